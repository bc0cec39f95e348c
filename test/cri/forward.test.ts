// Forwarding: what a caller sends reaches containerd untouched, and containerd's answer comes back untouched.

import { randomBytes } from "node:crypto";
import { mkdir, readFile, rename, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import {
  Client,
  credentials,
  Metadata,
  type ServerUnaryCall,
  type ServerWritableStream,
  type ServiceError,
  status,
} from "@grpc/grpc-js";
import { afterEach, beforeEach, expect, test } from "vitest";
import { createContainerd } from "../../src/containerd/client.ts";
import type { Containerd } from "../../src/containerd/containerd.ts";
import { createPullHandler, type PullHandlerOptions } from "../../src/cri/images.ts";
import { methodPaths } from "../../src/cri/methods.ts";
import { type CriServer, createCriServer } from "../../src/cri/server.ts";
import { PullError } from "../../src/errors.ts";
import { FakeContainerd, type UnaryHandler } from "../fakes/containerd.ts";
import { makeTrace } from "../fakes/trace.ts";
import { message } from "../harness/cri.ts";
import { eventually } from "../harness/process.ts";

const identity = (bytes: Buffer): Buffer => bytes;

let folder: string;
let upstream: FakeContainerd;
let containerd: Containerd;
let server: CriServer;
let client: Client;
let pulls: { -readonly [Key in keyof PullHandlerOptions]?: PullHandlerOptions[Key] } = {};

beforeEach(async () => {
  upstream = await FakeContainerd.create();
  folder = upstream.folder;
  pulls = {};
  containerd = createContainerd({
    address: upstream.address,
    namespace: "k8s.io",
    configFile: "/nonexistent",
    snapshotter: undefined,
  });
  const forward = containerd.forward.bind(containerd);
  const pull = createPullHandler({
    delegating: () => ({ [Symbol.dispose]: () => {} }),
    forward,
    fallback: true,
    ineligible: () => pulls.ineligible?.({} as never),
    pull: async (...args) =>
      pulls.pull ? await pulls.pull(...args) : { failure: undefined, [Symbol.asyncDispose]: async () => {} },
    begin: () => makeTrace(),
    done: (outcome, trace) => pulls.done?.(outcome, trace),
    unresolved: (name) => `failed to resolve reference "${name}"`,
    registered: () => {},
  });
  const socket = join(folder, "hawser.sock");
  server = createCriServer({ socket, messageBytesMax: 16 * 1024 * 1024, forward, pull });
  await server.listen();
  client = new Client(`unix:${socket}`, credentials.createInsecure(), {
    "grpc.max_receive_message_length": 16 * 1024 * 1024,
  });
});

afterEach(async () => {
  client.close();
  await server.drain(0);
  containerd.close();
  await upstream[Symbol.asyncDispose]();
});

interface Got {
  readonly bytes: Buffer;
  readonly header: Metadata;
  readonly trailer: Metadata;
}

async function ask(
  path: string,
  request: Buffer,
  metadata = new Metadata(),
  deadlineMs?: number,
): Promise<Got> {
  return await new Promise((resolve, reject) => {
    const options = deadlineMs === undefined ? {} : { deadline: Date.now() + deadlineMs };
    let header = new Metadata();
    let bytes: Buffer | undefined;
    const call = client.makeUnaryRequest(
      path,
      identity,
      identity,
      request,
      metadata,
      options,
      (error, answer) => {
        if (error) reject(error);
        else bytes = answer;
      },
    );
    call.on("metadata", (received: Metadata) => {
      header = received;
    });
    call.on("status", (received) => {
      if (bytes) resolve({ bytes, header, trailer: received.metadata });
    });
  });
}

function serve(path: string, handler: UnaryHandler): void {
  upstream.unary(path, handler);
}

test("every method of both services and both versions is forwarded", async () => {
  const paths = methodPaths();
  expect(paths.length).toBeGreaterThan(70);
  for (const path of paths)
    serve(path, (call, callback) => callback(null, Buffer.concat([Buffer.from(path), call.request])));
  await upstream.listen();
  for (const path of paths) {
    const request = path.endsWith("PullImage")
      ? Buffer.from(message([1, message([1, "example.com/a:b"])]))
      : Buffer.from("?");
    expect((await ask(path, request)).bytes.toString("latin1")).toBe(path + request.toString("latin1"));
  }
});

test("metadata goes both ways, trailers come back, and unknown bytes stay as they are", async () => {
  let seen: Metadata | undefined;
  serve("/runtime.v1.ImageService/ImageStatus", (call, callback) => {
    seen = call.metadata;
    const header = new Metadata();
    header.set("x-header", "h");
    call.sendMetadata(header);
    const trailer = new Metadata();
    trailer.set("x-trailer-bin", Buffer.from([1, 2, 255]));
    callback(null, call.request, trailer);
  });
  await upstream.listen();
  const metadata = new Metadata();
  metadata.set("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
  const request = randomBytes(1000);
  const got = await ask("/runtime.v1.ImageService/ImageStatus", request, metadata);
  expect(got.bytes.equals(request)).toBe(true);
  expect(seen?.get("traceparent")).toEqual(metadata.get("traceparent"));
  expect(got.header.get("x-header")).toEqual(["h"]);
  expect(got.trailer.get("x-trailer-bin")).toEqual([Buffer.from([1, 2, 255])]);
});

test("a ListImages answer of 10 MiB passes", async () => {
  const answer = randomBytes(10 * 1024 * 1024);
  serve("/runtime.v1.ImageService/ListImages", (_call, callback) => callback(null, answer));
  await upstream.listen();
  expect((await ask("/runtime.v1.ImageService/ListImages", Buffer.alloc(0))).bytes.equals(answer)).toBe(true);
});

test("codes, messages and details of errors are containerd's own", async () => {
  const metadata = new Metadata();
  metadata.set("grpc-status-details-bin", Buffer.from("details"));
  serve("/runtime.v1.RuntimeService/Version", (_call, callback) =>
    callback({ code: status.FAILED_PRECONDITION, details: "not now", metadata }),
  );
  await upstream.listen();
  const failure = ask("/runtime.v1.RuntimeService/Version", Buffer.alloc(0));
  await expect(failure).rejects.toMatchObject({ code: status.FAILED_PRECONDITION, details: "not now" });
  await failure.catch((error: ServiceError) =>
    expect(error.metadata.get("grpc-status-details-bin")).toEqual([Buffer.from("details")]),
  );
});

test("a stream of answers comes through in order, however many there are", async () => {
  const handler = (call: ServerWritableStream<Buffer, Buffer>): void => {
    for (let index = 0; index < 500; index++) call.write(Buffer.alloc(10_000, index % 256));
    call.end();
  };
  upstream.stream("/runtime.v1.RuntimeService/GetContainerEvents", handler);
  await upstream.listen();
  const stream = client.makeServerStreamRequest(
    "/runtime.v1.RuntimeService/GetContainerEvents",
    identity,
    identity,
    Buffer.alloc(0),
  );
  let count = 0;
  for await (const bytes of stream) expect((bytes as Buffer)[9_999]).toBe(count++ % 256);
  expect(count).toBe(500);
});

test("deadlines and cancellation reach containerd", async () => {
  const calls: ServerUnaryCall<Buffer, Buffer>[] = [];
  serve("/runtime.v1.ImageService/RemoveImage", (call) => calls.push(call));
  await upstream.listen();
  const path = "/runtime.v1.ImageService/RemoveImage";
  const slow = ask(path, Buffer.alloc(0), new Metadata(), 200);
  await expect(slow).rejects.toMatchObject({ code: status.DEADLINE_EXCEEDED });
  expect(Number(calls[0]?.getDeadline())).toBeLessThan(Date.now() + 200);
  const call = client.makeUnaryRequest(path, identity, identity, Buffer.alloc(0), () => {});
  await eventually(async () => expect(calls).toHaveLength(2), "the second call's arrival");
  expect(calls[1]?.cancelled).toBe(false);
  call.cancel();
  await eventually(async () => expect(calls[1]?.cancelled).toBe(true), "the cancellation's arrival");
});

test("containerd away: UNAVAILABLE, and answers again once it is there", async () => {
  await expect(ask("/runtime.v1.ImageService/ListImages", Buffer.alloc(0))).rejects.toMatchObject({
    code: status.UNAVAILABLE,
    details: `containerd does not answer: connect ENOENT ${upstream.address}`,
  });
  serve("/runtime.v1.ImageService/ListImages", (_call, callback) => callback(null, Buffer.from("back")));
  await upstream.listen();
  const back = async (): Promise<string> => {
    try {
      return (await ask("/runtime.v1.ImageService/ListImages", Buffer.alloc(0))).bytes.toString();
    } catch {
      return await back();
    }
  };
  expect(await back()).toBe("back");
});

test("a request of 10 MiB passes, one over the limit is refused and containerd never sees it", async () => {
  const path = "/runtime.v1.RuntimeService/CreateContainer";
  let seen = 0;
  serve(path, (call, callback) => {
    seen += 1;
    callback(null, Buffer.from(String(call.request.length)));
  });
  await upstream.listen();
  const size = 10 * 1024 * 1024;
  expect((await ask(path, Buffer.alloc(size))).bytes.toString()).toBe(String(size));
  await expect(ask(path, Buffer.alloc(17 * 1024 * 1024))).rejects.toMatchObject({
    code: status.RESOURCE_EXHAUSTED,
  });
  expect(seen).toBe(1);
});

test("a reader that does not read holds containerd back", async () => {
  const path = "/runtime.v1.RuntimeService/GetContainerEvents";
  let written = 0;
  upstream.stream(path, (call) => {
    const more = (): void => {
      while (written < 1000 && call.write(Buffer.alloc(100_000))) written += 1;
      if (written < 1000) call.once("drain", more);
      else call.end();
    };
    more();
  });
  await upstream.listen();
  const stream = client.makeServerStreamRequest(path, identity, identity, Buffer.alloc(0));
  let read = 0;
  stream.on("data", () => {
    read += 1;
    if (read === 1) stream.pause();
  });
  // The flow stands still once every window and queue on the way is full: far from all of it was written by then.
  let before = -1;
  await eventually(async () => {
    const standsStill = read > 0 && written === before;
    before = written;
    expect(standsStill).toBe(true);
  }, "the flow's standstill");
  expect(written).toBeLessThan(500);
  stream.resume();
  await new Promise((resolve) => {
    stream.on("end", resolve);
  });
  expect(written).toBe(1000);
});

test("a stream that fails in the middle: what came before arrives, then containerd's status and details", async () => {
  const path = "/runtime.v1.ImageService/StreamImages";
  upstream.stream(path, (call) => {
    call.write(Buffer.from("one"));
    const metadata = new Metadata();
    metadata.set("x-why", "because");
    call.emit("error", { code: status.ABORTED, details: "half way", metadata });
  });
  await upstream.listen();
  const stream = client.makeServerStreamRequest(path, identity, identity, Buffer.alloc(0));
  const received: string[] = [];
  stream.on("data", (bytes: Buffer) => received.push(bytes.toString()));
  const failure = await new Promise<ServiceError>((resolve) => {
    stream.on("error", (error) => resolve(error as ServiceError));
  });
  expect(received).toEqual(["one"]);
  expect(failure).toMatchObject({ code: status.ABORTED, details: "half way" });
  expect(failure.metadata.get("x-why")).toEqual(["because"]);
});

test("a socket that a dead process left is taken over; a file that is no socket is left alone", async () => {
  const options = { messageBytesMax: 1, forward: containerd.forward, pull: async () => Promise.reject() };
  const plain = join(folder, "plain");
  await writeFile(plain, "precious");
  const misplaced = createCriServer({ ...options, socket: plain });
  await expect(misplaced.listen()).rejects.toThrow(/is no socket/);
  expect(await readFile(plain, "utf8")).toBe("precious");
  await mkdir(join(folder, "folder"));
  await expect(createCriServer({ ...options, socket: join(folder, "folder") }).listen()).rejects.toThrow(
    /is no socket/,
  );

  // A server that is told nothing of its file's new name leaves it behind when it closes.
  const stale = join(folder, "stale");
  const dead = createServer();
  await new Promise<void>((resolve) => {
    dead.listen(join(folder, "first-name"), resolve);
  });
  await rename(join(folder, "first-name"), stale);
  await new Promise((resolve) => {
    dead.close(resolve);
  });
  expect((await stat(stale)).isSocket()).toBe(true);
  const heir = createCriServer({ ...options, socket: stale });
  await heir.listen();
  await heir.drain(0);
});

test("the socket is root's alone, is not taken from a living process, and is gone after the drain", async () => {
  const socket = join(folder, "hawser.sock");
  expect((await stat(socket)).mode & 0o777).toBe(0o600);
  const { forward } = containerd;
  const second = createCriServer({
    socket,
    messageBytesMax: 1,
    forward,
    pull: async () => Promise.reject(new Error("no")),
  });
  await expect(second.listen()).rejects.toThrow(/another process listens on/);
  await server.drain(0);
  await expect(stat(socket)).rejects.toThrow(/ENOENT/);
});

const pullPath = "/runtime.v1.ImageService/PullImage";
const pullRequest = Buffer.from(
  message([1, message([1, "example.com/a:b"])], [2, message([1, "user"], [2, "pass"])]),
);

test("PullImage holds what was pulled until containerd has answered, with the caller's bytes", async () => {
  const order: string[] = [];
  serve(pullPath, (call, callback) => {
    order.push("containerd");
    callback(null, Buffer.concat([Buffer.from("answer to "), call.request]));
  });
  await upstream.listen();
  pulls.pull = async (reference, login) => {
    order.push(`pull ${reference} ${login?.username}:${login?.password}`);
    return { failure: undefined, [Symbol.asyncDispose]: async () => void order.push("released") };
  };
  const { bytes } = await ask(pullPath, pullRequest);
  expect(bytes.equals(Buffer.concat([Buffer.from("answer to "), pullRequest]))).toBe(true);
  expect(order).toEqual(["pull example.com/a:b user:pass", "containerd", "released"]);
});

test.each([
  ["corrupt", new PullError("corrupt", "bad bytes")],
  ["refused without credentials", new PullError("refused", "401")],
  ["not_found", new PullError("not_found", "404")],
])("PullImage that failed (%s) is answered by containerd", async (_name, failure) => {
  serve(pullPath, (_call, callback) => callback({ code: status.NOT_FOUND, details: "containerd says so" }));
  await upstream.listen();
  pulls.pull = async () => ({ failure, [Symbol.asyncDispose]: async () => {} });
  const outcomes: unknown[] = [];
  pulls.done = (outcome) => outcomes.push(outcome);
  await expect(ask(pullPath, pullRequest)).rejects.toMatchObject({
    code: status.NOT_FOUND,
    details: "containerd says so",
  });
  expect(outcomes).toMatchObject([
    { path: "delegated", result: "error", delegation: { reason: failure.code } },
  ]);
});

test("a refusal of the caller's own credentials is not tried a second time", async () => {
  let asked = 0;
  serve(pullPath, (_call, callback) => {
    asked += 1;
    callback(null, Buffer.alloc(0));
  });
  await upstream.listen();
  const failure = new PullError("refused", "401 Unauthorized", { credentialsSent: true });
  pulls.pull = async () => ({ failure, [Symbol.asyncDispose]: async () => {} });
  await expect(ask(pullPath, pullRequest)).rejects.toMatchObject({
    code: status.UNKNOWN,
    details: expect.stringContaining("401 Unauthorized") as string,
  });
  expect(asked).toBe(0);
});

test("bytes that are no PullImageRequest are containerd's to judge", async () => {
  serve(pullPath, (call, callback) => callback(null, call.request));
  await upstream.listen();
  const nonsense = Buffer.from([0xff, 0xff, 0xff]);
  expect((await ask(pullPath, nonsense)).bytes.equals(nonsense)).toBe(true);
});

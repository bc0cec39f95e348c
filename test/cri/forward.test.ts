// Forwarding: what a caller sends reaches containerd untouched, and containerd's answer comes back untouched.

import { randomBytes } from "node:crypto";
import { mkdtemp, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  Client,
  credentials,
  Metadata,
  Server,
  ServerCredentials,
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
import { message } from "../harness/cri.ts";
import { eventually } from "../harness/process.ts";

const identity = (bytes: Buffer): Buffer => bytes;

let folder: string;
let upstream: Server;
let containerd: Containerd;
let server: CriServer;
let client: Client;
let pulls: { -readonly [Key in keyof PullHandlerOptions]?: PullHandlerOptions[Key] } = {};

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "forward-"));
  pulls = {};
  upstream = new Server();
  containerd = createContainerd({
    address: join(folder, "containerd.sock"),
    namespace: "k8s.io",
    configFile: "/nonexistent",
    snapshotter: undefined,
  });
  const forward = containerd.forward.bind(containerd);
  const pull = createPullHandler({
    forward,
    fallback: true,
    ineligible: () => pulls.ineligible?.({} as never),
    pull: async (...args) =>
      pulls.pull ? await pulls.pull(...args) : { failure: undefined, [Symbol.asyncDispose]: async () => {} },
    started: () => {},
    done: (outcome) => pulls.done?.(outcome),
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
  upstream.forceShutdown();
  await rm(folder, { recursive: true });
});

async function listen(): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    upstream.bindAsync(`unix:${folder}/containerd.sock`, ServerCredentials.createInsecure(), (error) =>
      error ? reject(error) : resolve(),
    );
  });
}

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

function serve(
  path: string,
  handler: (
    call: ServerUnaryCall<Buffer, Buffer>,
    callback: (error: Partial<ServiceError> | null, answer?: Buffer, trailer?: Metadata) => void,
  ) => void,
): void {
  upstream.register(path, handler, identity, identity, "unary");
}

test("every method of both services and both versions is forwarded", async () => {
  const paths = methodPaths();
  expect(paths.length).toBeGreaterThan(70);
  for (const path of paths)
    serve(path, (call, callback) => callback(null, Buffer.concat([Buffer.from(path), call.request])));
  await listen();
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
  await listen();
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
  await listen();
  expect((await ask("/runtime.v1.ImageService/ListImages", Buffer.alloc(0))).bytes.equals(answer)).toBe(true);
});

test("codes, messages and details of errors are containerd's own", async () => {
  const metadata = new Metadata();
  metadata.set("grpc-status-details-bin", Buffer.from("details"));
  serve("/runtime.v1.RuntimeService/Version", (_call, callback) =>
    callback({ code: status.FAILED_PRECONDITION, details: "not now", metadata }),
  );
  await listen();
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
  upstream.register(
    "/runtime.v1.RuntimeService/GetContainerEvents",
    handler,
    identity,
    identity,
    "serverStream",
  );
  await listen();
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
  await listen();
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
  });
  serve("/runtime.v1.ImageService/ListImages", (_call, callback) => callback(null, Buffer.from("back")));
  await listen();
  const back = async (): Promise<string> => {
    try {
      return (await ask("/runtime.v1.ImageService/ListImages", Buffer.alloc(0))).bytes.toString();
    } catch {
      return await back();
    }
  };
  expect(await back()).toBe("back");
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
  await listen();
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
  await listen();
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
  await listen();
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
  await listen();
  const nonsense = Buffer.from([0xff, 0xff, 0xff]);
  expect((await ask(pullPath, nonsense)).bytes.equals(nonsense)).toBe(true);
});

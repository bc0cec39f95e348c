// Clients that no library would make: what they write is answered or refused, nothing of it is logged, and the next
// call is served.

import http2 from "node:http2";
import { connect } from "node:net";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { status } from "@grpc/grpc-js";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { createContainerd } from "../../src/containerd/client.ts";
import type { Containerd } from "../../src/containerd/containerd.ts";
import { createPullHandler } from "../../src/cri/images.ts";
import { type CriServer, createCriServer } from "../../src/cri/server.ts";
import { FakeContainerd } from "../fakes/containerd.ts";
import { makeTrace } from "../fakes/trace.ts";
import { message } from "../harness/cri.ts";

const listImages = "/runtime.v1.ImageService/ListImages";
const pullImage = "/runtime.v1.ImageService/PullImage";
const bytesMax = 16 * 1024 * 1024;

let upstream: FakeContainerd;
let containerd: Containerd;
let server: CriServer;
let socket: string;

beforeEach(async () => {
  upstream = await FakeContainerd.create();
  for (const path of [listImages, pullImage])
    upstream.unary(path, (call, callback) => callback(null, call.request));
  await upstream.listen();
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
    ineligible: () => ({ reason: "test", detail: "" }),
    pull: async () => await Promise.reject(new Error("nothing is eligible")),
    unresolved: (name) => name,
    begin: () => makeTrace(),
    done: () => {},
    registered: () => {},
  });
  socket = join(upstream.folder, "hawser.sock");
  server = createCriServer({ socket, messageBytesMax: bytesMax, forward, pull });
  await server.listen();
});

afterEach(async () => {
  await server.drain(0);
  containerd.close();
  await upstream[Symbol.asyncDispose]();
});

/** A gRPC message with its five bytes of framing. */
function framed(bytes: Uint8Array, compressed = false): Buffer {
  const head = Buffer.from([compressed ? 1 : 0, 0, 0, 0, 0]);
  head.writeUInt32BE(bytes.length, 1);
  return Buffer.concat([head, bytes]);
}

interface Told {
  readonly code: number | undefined;
  readonly text: string;
  readonly bytes: number;
}

/** The status that a request gets; no code when the server reset it. */
async function ask(
  path: string,
  body: Buffer,
  headers: Readonly<Record<string, string>> = {},
): Promise<Told> {
  const session = http2.connect("http://localhost", { createConnection: () => connect(socket) });
  try {
    return await new Promise((resolve, reject) => {
      session.on("error", reject);
      const stream = session.request({
        ":method": "POST",
        ":path": path,
        "content-type": "application/grpc",
        te: "trailers",
        ...headers,
      });
      const found: http2.IncomingHttpHeaders = {};
      let bytes = 0;
      stream.on("response", (head) => Object.assign(found, head));
      stream.on("trailers", (tail) => Object.assign(found, tail));
      stream.on("data", (part: Buffer) => {
        bytes += part.length;
      });
      stream.on("error", () => {});
      stream.on("close", () => {
        const code = found["grpc-status"];
        const text = decodeURIComponent(String(found["grpc-message"] ?? ""));
        resolve({ code: code === undefined ? undefined : Number(code), text, bytes });
      });
      stream.end(body);
    });
  } finally {
    session.destroy();
  }
}

const request = Buffer.from(message([1, message([1, "example.com/a:b"])]));

test.each<[string, string, Buffer, Record<string, string>, number | undefined]>([
  ["gzip", pullImage, framed(gzipSync(request), true), { "grpc-encoding": "gzip" }, status.OK],
  ["gzip that is none", pullImage, framed(request, true), { "grpc-encoding": "gzip" }, status.INTERNAL],
  [
    "a gzip bomb",
    pullImage,
    framed(gzipSync(Buffer.alloc(bytesMax + 1)), true),
    { "grpc-encoding": "gzip" },
    status.RESOURCE_EXHAUSTED,
  ],
  ["an unknown encoding", pullImage, framed(request, true), { "grpc-encoding": "br" }, status.UNIMPLEMENTED],
  [
    "a message of 4 GiB, announced",
    pullImage,
    Buffer.from([0, 255, 255, 255, 255, 1]),
    {},
    status.RESOURCE_EXHAUSTED,
  ],
  ["no message", listImages, Buffer.alloc(0), {}, status.UNIMPLEMENTED],
  ["half a message", pullImage, Buffer.from([0, 0, 0, 0, 9, 1]), {}, status.UNIMPLEMENTED],
  ["a method that is none", "/runtime.v1.ImageService/None", framed(request), {}, status.UNIMPLEMENTED],
  [
    "a service of containerd's that is not CRI",
    "/containerd.services.images.v1.Images/List",
    framed(request),
    {},
    status.UNIMPLEMENTED,
  ],
  ["a timeout that is none", pullImage, framed(request), { "grpc-timeout": "soon" }, status.INTERNAL],
  ["a deadline that is over", pullImage, framed(request), { "grpc-timeout": "0n" }, status.DEADLINE_EXCEEDED],
  ["metadata of 10 KiB", listImages, framed(request), { "x-long": "a".repeat(10_000) }, status.OK],
  ["metadata of 2 MiB", listImages, framed(request), { "x-long": "a".repeat(2 ** 21) }, undefined],
  [
    "metadata that is no ASCII",
    listImages,
    framed(request),
    { authorization: "Bearer s3cr\u00e9t" },
    status.OK,
  ],
  ["binary metadata that is no base64", listImages, framed(request), { "x-bin": "%%%" }, status.OK],
])("%s", async (_name, path, body, headers, code) => {
  using printed = vi.spyOn(console, "error");
  const told = await ask(path, body, headers);
  expect(told.code).toBe(code);
  expect(told.text).not.toContain(upstream.folder);
  expect(printed.mock.calls).toEqual([]);
  expect(await ask(listImages, framed(request))).toMatchObject({ code: status.OK });
});

test("a deadline that is over is told in containerd's words", async () => {
  expect(await ask(pullImage, framed(request), { "grpc-timeout": "0n" })).toMatchObject({
    text: "context deadline exceeded",
  });
});

test("connections that say nothing or nonsense hold nobody up", async () => {
  const idle = Array.from({ length: 50 }, () => connect(socket));
  for (const one of idle) one.on("error", () => {});
  idle[0]?.write("GET / HTTP/1.1\r\n\r\n");
  idle[1]?.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\0".repeat(100_000));
  expect(await ask(listImages, framed(request))).toMatchObject({ code: status.OK });
  for (const one of idle) one.destroy();
});

// The channel: every status of containerd becomes one of our codes, and headers carry namespace and lease.

import { Metadata, type ServerUnaryCall, status } from "@grpc/grpc-js";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Channel, fromStatus } from "../../src/containerd/channel.ts";
import { introspection, leases } from "../../src/containerd/methods.ts";
import { PullError } from "../../src/errors.ts";
import { FakeContainerd } from "../fakes/containerd.ts";

let fake: FakeContainerd;
let channel: Channel;

beforeEach(async () => {
  fake = await FakeContainerd.create();
  channel = new Channel({ address: fake.address, namespace: "k8s.io" });
});

afterEach(async () => {
  channel.close();
  await fake[Symbol.asyncDispose]();
});

const codes: Record<keyof typeof status, string> = {
  OK: "internal",
  CANCELLED: "cancelled",
  UNKNOWN: "internal",
  INVALID_ARGUMENT: "invalid",
  DEADLINE_EXCEEDED: "slow",
  NOT_FOUND: "not_found",
  ALREADY_EXISTS: "exists",
  PERMISSION_DENIED: "internal",
  RESOURCE_EXHAUSTED: "exhausted",
  FAILED_PRECONDITION: "internal",
  ABORTED: "internal",
  OUT_OF_RANGE: "invalid",
  UNIMPLEMENTED: "unsupported",
  INTERNAL: "internal",
  UNAVAILABLE: "unavailable",
  DATA_LOSS: "internal",
  UNAUTHENTICATED: "internal",
};

test("every status has a code, and only UNAVAILABLE is temporary", () => {
  const names = Object.keys(status).filter((name) => Number.isNaN(Number(name)));
  expect(Object.keys(codes).sort()).toEqual(names.sort());
  for (const [name, code] of Object.entries(codes) as [keyof typeof status, string][]) {
    const error = Object.assign(new Error("x"), {
      code: status[name],
      details: "why",
      metadata: new Metadata(),
    });
    const found = fromStatus(error, "/containerd.services.x.v1.X/Do");
    expect(found).toBeInstanceOf(PullError);
    expect([name, found.code, found.temporary]).toEqual([name, code, name === "UNAVAILABLE"]);
    expect(found.message).toBe("containerd's Do: why");
    expect(found.cause).toBe(error);
  }
});

test("a full disk is told in the details alone", () => {
  const wordings = [
    "write /var/lib/containerd/x/meta.db: no space left on device: unknown",
    "mkdir /x: disk quota exceeded",
  ];
  for (const details of wordings) {
    const error = Object.assign(new Error("x"), { code: status.UNKNOWN, details, metadata: new Metadata() });
    expect(fromStatus(error, "/containerd.services.x.v1.X/Do").code).toBe("exhausted");
  }
});

test("namespace and lease go along as headers", async () => {
  const seen: Metadata[] = [];
  fake.unary(leases.list.path, (call: ServerUnaryCall<Buffer, Buffer>, callback) => {
    seen.push(call.metadata);
    callback(null, Buffer.alloc(0));
  });
  await fake.listen();
  await channel.call(leases.list, { filters: [] });
  await channel.call(leases.list, { filters: [] }, { namespace: "other", lease: "l" });
  expect(
    seen.map((headers) => [headers.get("containerd-namespace"), headers.get("containerd-lease")]),
  ).toEqual([
    [["k8s.io"], []],
    [["other"], ["l"]],
  ]);
});

test("an aborted call is cancelled, at containerd too", async () => {
  let reach = (_call: ServerUnaryCall<Buffer, Buffer>): void => {};
  const reached = new Promise<ServerUnaryCall<Buffer, Buffer>>((resolve) => {
    reach = resolve;
  });
  fake.unary(introspection.version.path, (call) => reach(call));
  await fake.listen();
  const abort = new AbortController();
  const answer = channel.call(introspection.version, {}, { signal: abort.signal });
  const call = await reached;
  const cancelled = new Promise<void>((resolve) => {
    call.on("cancelled", () => resolve());
  });
  abort.abort();
  await expect(answer).rejects.toMatchObject({ code: "cancelled" });
  await cancelled;
  await expect(channel.call(introspection.version, {}, { signal: abort.signal })).rejects.toMatchObject({
    code: "cancelled",
  });
});

test("containerd away is unavailable for now; an answer that is no message is our error, not a crash", async () => {
  await expect(channel.call(introspection.version, {})).rejects.toMatchObject({
    code: "unavailable",
    temporary: true,
  });
  fake.unary(introspection.version.path, (_call, callback) => callback(null, Buffer.from([0xff, 0xff])));
  await fake.listen();
  let ready = (): void => {};
  const connection = new Promise<void>((resolve) => {
    ready = resolve;
  });
  using _watch = channel.watch((connected) => connected && ready());
  await connection;
  await expect(channel.call(introspection.version, {})).rejects.toMatchObject({ code: "internal" });
});

test("a channel that is closed while it is watched says nothing and throws nothing", async () => {
  await fake.listen();
  const told: boolean[] = [];
  await new Promise<void>((resolve) => {
    channel.watch((connected) => {
      told.push(connected);
      resolve();
    });
  });
  channel.close();
  await new Promise((resolve) => {
    setImmediate(resolve);
  });
  expect(told).toEqual([true]);
});

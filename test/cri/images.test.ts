// PullImage where it ends otherwise than well: what is delegated, what is returned, and with which code.

import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Client, credentials, Metadata, type ServiceError, status } from "@grpc/grpc-js";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { Channel } from "../../src/containerd/channel.ts";
import { createPullHandler, type PullHandlerOptions, type PullOutcome } from "../../src/cri/images.ts";
import { type CriServer, createCriServer } from "../../src/cri/server.ts";
import { type ErrorCode, PullError } from "../../src/errors.ts";
import type { Pulled } from "../../src/pull/pull.ts";
import { FakeContainerd } from "../fakes/containerd.ts";
import { makeTrace } from "../fakes/trace.ts";
import { message } from "../harness/cri.ts";

const v1 = "/runtime.v1.ImageService/PullImage";
const v1alpha2 = "/runtime.v1alpha2.ImageService/PullImage";
const request = Buffer.from(
  message([1, message([1, "example.com/a:b"])], [2, message([1, "user"], [2, "secret-word"])]),
);
const identity = (bytes: Buffer): Buffer => bytes;

let folder: string;
let upstream: FakeContainerd;
let channel: Channel;
let server: CriServer | undefined;
let client: Client;
let outcomes: PullOutcome[];
/** Paths of the calls that reached containerd. */
let delegated: string[];

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "images-"));
  upstream = await FakeContainerd.create();
  channel = new Channel({ address: upstream.address, namespace: "k8s.io" });
  client = new Client(`unix:${folder}/hawser.sock`, credentials.createInsecure());
  outcomes = [];
  delegated = [];
  for (const path of [v1, v1alpha2]) {
    upstream.unary(path, (call, callback) => {
      delegated.push(path);
      callback(null, call.request);
    });
  }
  await upstream.listen();
});

afterEach(async () => {
  client.close();
  await server?.drain(0);
  server = undefined;
  channel.close();
  await upstream[Symbol.asyncDispose]();
  await rm(folder, { recursive: true });
});

async function serve(options: Partial<PullHandlerOptions>): Promise<void> {
  const forward = channel.raw.bind(channel);
  const pull = createPullHandler({
    forward,
    ineligible: () => undefined,
    pull: async () => result(undefined),
    delegating: () => ({ [Symbol.dispose]: () => {} }),
    fallback: true,
    begin: () => makeTrace(),
    done: (outcome) => outcomes.push(outcome),
    unresolved: (name) => `cannot resolve ${name}`,
    registered: () => {},
    ...options,
  });
  server = createCriServer({ socket: join(folder, "hawser.sock"), messageBytesMax: 1 << 24, forward, pull });
  await server.listen();
}

function result(failure: PullError | undefined): Pulled {
  return { failure, [Symbol.asyncDispose]: async () => {} };
}

function pullImage(path = v1, options: { deadlineMs?: number; bytes?: Uint8Array } = {}) {
  let cancel = (): void => {};
  const answer = new Promise<Buffer>((resolve, reject) => {
    const { deadlineMs, bytes: sent = request } = options;
    const made = client.makeUnaryRequest(
      path,
      identity,
      identity,
      Buffer.from(sent),
      new Metadata(),
      deadlineMs === undefined ? {} : { deadline: Date.now() + deadlineMs },
      (error: ServiceError | null, bytes?: Buffer) =>
        error ? reject(error) : resolve(bytes ?? Buffer.alloc(0)),
    );
    cancel = () => made.cancel();
  });
  return { answer, cancel: () => cancel() };
}

/** A pull that goes on until its signal is aborted, as pulls do; `begun` resolves with that signal. */
function endless() {
  let begin = (_signal: AbortSignal): void => {};
  const begun = new Promise<AbortSignal>((resolve) => {
    begin = resolve;
  });
  const pull: PullHandlerOptions["pull"] = async (_reference, _credentials, _isAwaited, signal) => {
    begin(signal);
    await new Promise((resolve) => {
      signal.addEventListener("abort", resolve, { once: true });
    });
    return result(new PullError("cancelled", "cancelled"));
  };
  return { begun, pull };
}

describe("failing open", () => {
  test("each version is delegated to the method of the same version, with the same bytes", async () => {
    await serve({ pull: async () => result(new PullError("corrupt", "x")) });
    for (const path of [v1, v1alpha2]) expect((await pullImage(path).answer).equals(request)).toBe(true);
    expect(delegated).toEqual([v1, v1alpha2]);
  });

  test("even a pull that breaks its promise and throws is delegated", async () => {
    await serve({ pull: () => Promise.reject(new TypeError("a fault of ours")) });
    expect((await pullImage().answer).equals(request)).toBe(true);
    expect(outcomes).toMatchObject([
      { path: "delegated", result: "ok", delegation: { reason: "internal", detail: "a fault of ours" } },
    ]);
  });

  test("what is ineligible is delegated before anything is pulled", async () => {
    const pulled: string[] = [];
    await serve({
      ineligible: () => ({ reason: "excluded", detail: "by configuration" }),
      pull: async (reference) => {
        pulled.push(reference);
        return result(undefined);
      },
    });
    await pullImage().answer;
    expect(pulled).toEqual([]);
    expect(delegated).toEqual([v1]);
    expect(outcomes).toMatchObject([{ path: "delegated", delegation: { reason: "excluded" } }]);
  });

  test("eligibility is asked for on each call", async () => {
    let reason: string | undefined = "starting";
    await serve({ ineligible: () => (reason === undefined ? undefined : { reason, detail: reason }) });
    await pullImage().answer;
    reason = undefined;
    await pullImage().answer;
    expect(outcomes.map(({ path }) => path)).toEqual(["delegated", "accelerated"]);
  });

  test("containerd away: its UNAVAILABLE is the answer, whatever went wrong here", async () => {
    await upstream[Symbol.asyncDispose]();
    await serve({ pull: async () => result(new PullError("corrupt", "x")) });
    await expect(pullImage().answer).rejects.toMatchObject({ code: status.UNAVAILABLE });
  });
});

describe("what is returned instead", () => {
  test("a refusal of the caller's credentials, in containerd's words, without the credentials", async () => {
    const failure = new PullError("refused", "pull access denied", { credentialsSent: true });
    await serve({ pull: async () => result(failure) });
    await expect(pullImage().answer).rejects.toMatchObject({
      code: status.UNKNOWN,
      details: "cannot resolve example.com/a:b: pull access denied",
    });
    expect(delegated).toEqual([]);
    expect(outcomes).toMatchObject([{ result: "refused" }]);
    expect(JSON.stringify(outcomes)).not.toContain("secret-word");
  });

  test.each<[ErrorCode, status]>([
    ["invalid", status.INVALID_ARGUMENT],
    ["not_found", status.NOT_FOUND],
    ["refused", status.UNKNOWN],
    ["unavailable", status.UNAVAILABLE],
    ["slow", status.DEADLINE_EXCEEDED],
    ["corrupt", status.DATA_LOSS],
    ["unsupported", status.UNIMPLEMENTED],
    ["exhausted", status.RESOURCE_EXHAUSTED],
    ["cancelled", status.CANCELLED],
    ["exists", status.UNKNOWN],
    ["internal", status.UNKNOWN],
  ])("with fallback.enabled = false, %s", async (code, expected) => {
    await serve({ fallback: false, pull: async () => result(new PullError(code, "why")) });
    await expect(pullImage().answer).rejects.toMatchObject({ code: expected, details: "why" });
    expect(delegated).toEqual([]);
  });

  test("with fallback.enabled = false, what is ineligible is delegated all the same", async () => {
    await serve({ fallback: false, ineligible: () => ({ reason: "unfit", detail: "x" }) });
    await pullImage().answer;
    expect(delegated).toEqual([v1]);
  });
});

describe("a caller that does not wait", () => {
  test("who cancels ends the pull, and nothing is delegated", async () => {
    const { begun, pull } = endless();
    await serve({ pull });
    const { answer, cancel } = pullImage();
    const signal = await begun;
    const aborted = once(signal, "abort");
    cancel();
    await expect(answer).rejects.toMatchObject({ code: status.CANCELLED });
    await aborted;
    await server?.drain(1000);
    expect(delegated).toEqual([]);
    expect(outcomes).toMatchObject([{ result: "cancelled" }]);
  });

  test("whose deadline passes gets DEADLINE_EXCEEDED, and nothing is delegated", async () => {
    const { begun, pull } = endless();
    await serve({ pull });
    const { answer } = pullImage(v1, { deadlineMs: 300 });
    const signal = await begun;
    const aborted = once(signal, "abort");
    await expect(answer).rejects.toMatchObject({ code: status.DEADLINE_EXCEEDED });
    // The caller's clock may be the first to tell.
    await aborted;
    await server?.drain(1000);
    expect(delegated).toEqual([]);
    expect(outcomes).toMatchObject([{ result: "cancelled" }]);
  });
});

test("only kruise-daemon's own mark says that nobody waits for a pull: a pod's annotation of that name does not", async () => {
  const told: boolean[] = [];
  await serve({
    pull: async (_reference, _credentials, { isAwaited }) => {
      told.push(isAwaited);
      return result(new PullError("corrupt", "x"));
    },
  });
  const mark = message([1, "apps.kruise.io/pulling-image-by"], [2, "kruise-daemon"]);
  const metadata = message([1, "a-pod"], [2, "uid"], [3, "default"]);
  const sandboxes = [message([7, mark]), message([1, metadata], [7, mark]), message([1, metadata])];
  const image = message([1, "example.com/a:b"]);
  for (const sandbox of sandboxes) await pullImage(v1, { bytes: message([1, image], [3, sandbox]) }).answer;
  await pullImage(v1, { bytes: message([1, image]) }).answer;
  expect(told).toEqual([false, true, true, true]);
});

test("whoever fetches ahead of need knows how long containerd is at a pull that is left to it", async () => {
  const told: string[] = [];
  await serve({
    ineligible: () => {
      told.push("asked");
      return { reason: "excluded", detail: "by configuration" };
    },
    delegating: () => {
      told.push(`begun with ${delegated.length} delegated`);
      return { [Symbol.dispose]: () => void told.push(`over with ${delegated.length} delegated`) };
    },
  });
  await pullImage().answer;
  expect(told).toEqual(["asked", "begun with 0 delegated", "over with 1 delegated"]);
});

// Hawser itself: configuration, socket, version and acceleration, asked over real sockets.

import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { status } from "@grpc/grpc-js";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { runtime } from "../../src/containerd/methods.ts";
import { checkDaemon } from "../../src/doctor/daemon.ts";
import type { DoctorOptions } from "../../src/doctor/doctor.ts";
import { createMetrics, type Metrics } from "../../src/metrics.ts";
import { FakeContainerd } from "../fakes/containerd.ts";
import { all, lines, MadeUpNode } from "./node.ts";

let fake: FakeContainerd;
let node: MadeUpNode;
let server: Server;
let metrics: Metrics;

// The fake is what kubelet would talk to; that it is called containerd.sock does not matter.
const socket = "/containerd.sock";
const never = new AbortController().signal;

beforeEach(async () => {
  fake = await FakeContainerd.create();
  node = new MadeUpNode(fake.folder);
  metrics = createMetrics("1.2.3", "front");
  metrics.engine.set({ engine: "native" }, 1);
  server = createServer((_request, response) => {
    void metrics.registry.metrics().then((text) => response.end(text));
  });
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
});

afterEach(async () => {
  server.closeAllConnections();
  await new Promise((resolve) => {
    server.close(resolve);
  });
  await fake[Symbol.asyncDispose]();
});

function address(host = "127.0.0.1"): { host: string; port: number } {
  return { host, port: (server.address() as AddressInfo).port };
}

async function found(options: Partial<DoctorOptions> = {}): Promise<string[]> {
  return lines(await all(checkDaemon(node.context({ socket, metrics: address(), ...options }), never)));
}

async function serving(options: Partial<DoctorOptions> = {}): Promise<string[]> {
  fake.answers(runtime.status, { info: {} });
  await fake.listen();
  return await found(options);
}

const through = "every pull goes through to containerd";

test("a daemon that is as it should be", async () => {
  node.process(1, { command: ["/sbin/init"], listens: [socket] });
  node.process(99, { command: ["/opt/hawser/lib/node", "main.js", "serve"], listens: [socket] });
  expect(await serving()).toEqual([
    "ok configuration: defaults, there is no file",
    "ok socket: /containerd.sock answers (process 99)",
    "ok CRI: calls are answered by containerd",
    "ok version: 1.2.3",
    "ok acceleration: on, with the native engine",
  ]);
});

test("a bad configuration", async () => {
  const configuration = {
    file: "/etc/hawser/hawser.toml",
    problems: ["a.b: is not known", "c.d: expected true"],
  };
  expect((await found({ configuration }))[0]).toBe(
    `broken configuration: a.b: is not known (and 1 more): ${through} -> hawser config check /etc/hawser/hawser.toml`,
  );
});

describe("nobody on the socket", () => {
  const start = "start the daemon (systemctl start hawser.socket hawser.service, or hawser serve)";

  test("and nobody who counts on it", async () => {
    expect((await found())[1]).toBe(
      `unknown socket: /containerd.sock: there is no such file; the daemon does not run -> ${start}`,
    );
  });

  test("and kubelet counts on it", async () => {
    node.write("/var/lib/kubelet/config.yaml", `imageServiceEndpoint: unix://${socket}\n`);
    expect((await found())[1]).toBe(
      `broken socket: /containerd.sock: there is no such file, and kubelet pulls through it -> ${start}`,
    );
  });

  test("any more", async () => {
    node.write(socket, "");
    expect((await found())[1]).toBe(`broken socket: /containerd.sock: nobody listens there -> ${start}`);
  });
});

test("systemd's proxy in the daemon's place", async () => {
  node.process(1, { command: ["/sbin/init"], listens: [socket] });
  node.process(98, { command: ["/usr/lib/systemd/systemd-socket-proxyd", "x"], listens: [socket] });
  expect(await serving()).toEqual([
    "ok configuration: defaults, there is no file",
    "broken socket: /containerd.sock is served by systemd-socket-proxyd: the daemon did not keep running -> journalctl -u hawser.service says why",
  ]);
});

test("calls that fail", async () => {
  fake.unary(runtime.status.path, (_call, callback) =>
    callback({ code: status.UNAVAILABLE, details: "containerd is gone" }),
  );
  await fake.listen();
  expect((await found())[2]).toBe(
    "broken CRI: calls fail: containerd's Status: containerd is gone -> look at the containerd lines, and at the daemon's log",
  );
});

describe("metrics", () => {
  test("off, and not there", async () => {
    expect((await serving({ metrics: undefined })).at(-1)).toBe(
      "unknown acceleration: metrics.listen is off, so the daemon cannot say -> look at its log",
    );
    expect((await found({ metrics: { host: "127.0.0.1", port: 1 } })).at(-1)).toBe(
      "unknown acceleration: the daemon's metrics at 127.0.0.1:1 cannot be read: nobody listens there -> set metrics.listen to a free address",
    );
  });

  test("on every address of the node", async () => {
    expect((await serving({ metrics: address("0.0.0.0") })).at(-1)).toMatch(/^ok acceleration/);
  });

  test("somebody else's", async () => {
    metrics.registry.clear();
    expect((await serving()).slice(-2)).toEqual([
      "unknown version: the daemon's metrics do not say",
      "unknown acceleration: the daemon's metrics do not say",
    ]);
  });

  test("an answer without an end is given up", async () => {
    server.removeAllListeners("request");
    server.on("request", (_request, response) => {
      const more = (): void => {
        if (response.write(Buffer.alloc(1024 * 1024, "x"))) setImmediate(more);
        else response.once("drain", more);
      };
      more();
    });
    expect((await serving()).at(-1)).toContain("cannot be read: too long an answer");
  });

  test("another version", async () => {
    expect(await serving({ version: "2.0.0" })).toContain(
      "slow version: the daemon is 1.2.3 and this program 2.0.0 -> restart the daemon, or use its own hawser command",
    );
  });

  test.each([
    ["configuration", "broken", "hawser config check, then restart the daemon"],
    ["engine", "broken", "look at the engine lines"],
    ["self-test", "broken", "look at the containerd lines; the daemon's log names the step"],
    ["containerd", "broken", "look at the containerd lines"],
    ["unfit", "slow", "look at the containerd lines"],
    ["selinux", "slow", "look at the containerd lines"],
    ["starting", "slow", "ask again in a moment"],
    ["a new one", "slow", "the daemon's log says why"],
  ])("pass-through for %s is %s", async (reason, state, todo) => {
    metrics.passThrough.set({ reason }, 1);
    expect((await serving()).at(-1)).toBe(`${state} acceleration: off, ${through} (${reason}) -> ${todo}`);
  });

  test("hosts whose breaker is open, and none whose breaker has closed", async () => {
    metrics.breakerOpen.set({ host: "down.example.com" }, 1);
    metrics.breakerOpen.set({ host: "up.example.com" }, 0);
    expect((await serving()).slice(-2)).toEqual([
      "ok acceleration: on, with the native engine",
      "slow registry: down.example.com failed repeatedly and is not asked now -> hawser doctor --registry down.example.com",
    ]);
  });
});

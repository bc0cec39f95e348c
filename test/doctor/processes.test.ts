// Processes: who listens, with which limits and proxies.

import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { checkLimits } from "../../src/doctor/limits.ts";
import { Processes } from "../../src/doctor/processes.ts";
import { checkProxy } from "../../src/doctor/proxy.ts";
import { Tree } from "../../src/doctor/tree.ts";
import { all, lines, MadeUpNode } from "./node.ts";

let node: MadeUpNode;

beforeEach(() => {
  node = new MadeUpNode();
});

afterEach(() => {
  node[Symbol.dispose]();
});

const containerdSocket = "/run/containerd/containerd.sock";
const hawserSocket = "/run/hawser/hawser.sock";
const limitsOf = (soft: string): string =>
  `Limit                     Soft Limit           Hard Limit           Units     \nMax open files            ${soft.padEnd(20)} 524288               files     \n`;

describe("who listens", () => {
  test("on this machine, this process", async () => {
    const folder = mkdtempSync(join(tmpdir(), "listen-"));
    const path = join(folder, "x.sock");
    const server = createServer();
    server.listen(path);
    await once(server, "listening");
    const found = await new Processes(new Tree("/")).listening(path);
    expect(found).toEqual([
      { pid: process.pid, name: expect.any(String) as string, command: expect.any(Array) as string[] },
    ]);
    server.close();
    await once(server, "close");
    expect(await new Processes(new Tree("/")).listening(path)).toEqual([]);
    rmSync(folder, { recursive: true });
  });

  test("connections of the same path are not listeners, and /var/run is /run", async () => {
    node.process(5, { command: ["/usr/bin/containerd"], listens: [`/var${containerdSocket}`] });
    node.process(6, { command: ["/usr/bin/containerd-shim"] });
    const processes = new Processes(new Tree(node.root));
    expect(await processes.listening(containerdSocket)).toEqual([
      { pid: 5, name: "containerd", command: ["/usr/bin/containerd"] },
    ]);
  });
});

describe("limits", () => {
  const found = async (): Promise<string[]> => lines(await all(checkLimits(node.context())));

  test("processes that are not there", async () => {
    expect(await found()).toEqual([
      "unknown open files of the daemon: its process was not found",
      "unknown open files of containerd: its process was not found",
    ]);
  });

  test.each([
    ["524288", "ok open files of the daemon: 524288"],
    ["unlimited", "ok open files of the daemon: unlimited"],
    [
      "1024",
      "slow open files of the daemon: 1024, which many pulls at once may use up -> set LimitNOFILE=65536 for hawser.service and restart it",
    ],
    ["", "unknown open files of the daemon: its limits do not say"],
  ])("%j", async (soft, expected) => {
    const limits = soft === "" ? "nothing\n" : limitsOf(soft);
    node.process(8, { command: ["node", "main.js", "serve"], listens: [hawserSocket], files: { limits } });
    node.process(9, {
      command: ["containerd"],
      listens: [containerdSocket],
      files: { limits: limitsOf("1048576") },
    });
    expect(await found()).toEqual([expected, "ok open files of containerd: 1048576"]);
  });
});

describe("proxies", () => {
  const found = async (): Promise<string[]> => {
    const text = lines(await all(checkProxy(node.context())));
    expect(text.join("\n")).not.toContain("secret-word");
    return text;
  };
  const containerd = (environment: Record<string, string>): void =>
    node.process(9, { command: ["containerd"], listens: [containerdSocket], environment });
  const hawser = (environment: Record<string, string>): void =>
    node.process(8, { command: ["node", "main.js", "serve"], listens: [hawserSocket], environment });
  const set = (name: string): string =>
    `set ${name} for hawser.service as for containerd.service (systemctl edit hawser.service), and restart it`;

  test("without containerd, and without the daemon", async () => {
    expect(await found()).toEqual(["unknown environment: containerd's process was not found"]);
    containerd({ HTTPS_PROXY: "http://user:secret-word@proxy:3128" });
    expect(await found()).toEqual([
      "unknown environment: the daemon does not run; containerd's: http none, https http://proxy:3128 (with credentials), except none -> set the same for hawser.service",
    ]);
  });

  test("none for both, and the same for both", async () => {
    containerd({});
    hawser({ PATH: "/bin" });
    expect(await found()).toEqual(["ok environment: the same for both: no proxy"]);
  });

  test("the same, written differently", async () => {
    containerd({ HTTPS_PROXY: "http://proxy:3128", NO_PROXY: "10.0.0.0/8, .svc" });
    hawser({ https_proxy: "http://proxy:3128", no_proxy: ".SVC,10.0.0.0/8" });
    expect(await found()).toEqual([
      "ok environment: the same for both: http none, https http://proxy:3128, except .svc,10.0.0.0/8",
    ]);
  });

  test("each variable that differs", async () => {
    containerd({ HTTP_PROXY: "proxy:3128", HTTPS_PROXY: "http://proxy:3128", NO_PROXY: ".svc" });
    hawser({ HTTPS_PROXY: "http://other:3128" });
    expect(await found()).toEqual([
      `slow HTTP_PROXY: http://proxy:3128 for containerd, none for the daemon -> ${set("HTTP_PROXY")}`,
      `slow HTTPS_PROXY: http://proxy:3128 for containerd, http://other:3128 for the daemon -> ${set("HTTPS_PROXY")}`,
      `slow NO_PROXY: .svc for containerd, none for the daemon -> ${set("NO_PROXY")}`,
    ]);
  });

  test("a difference that may not be shown, and a value that is no URL", async () => {
    containerd({ HTTPS_PROXY: "http://user:secret-word@proxy:3128", HTTP_PROXY: "http://secret-word:x:y" });
    hawser({ HTTPS_PROXY: "http://user:other@proxy:3128" });
    expect(await found()).toEqual([
      `slow HTTP_PROXY: something that is no URL for containerd, none for the daemon -> ${set("HTTP_PROXY")}`,
      `slow HTTPS_PROXY: differs in its credentials (http://proxy:3128 (with credentials)) -> ${set("HTTPS_PROXY")}`,
    ]);
  });
});

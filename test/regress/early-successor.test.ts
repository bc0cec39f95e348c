// A call that a puller lost while it was leaving went to the next one at once, which found the bytes that were fetched
// already still in the hands of the former, and fetched them again.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Metadata, status } from "@grpc/grpc-js";
import { expect, test } from "vitest";
import { createFailover } from "../../src/cri/failover.ts";
import type { Forward } from "../../src/cri/forward.ts";
import { Pullers } from "../../src/front/pullers.ts";
import { eventually } from "../harness/process.ts";

/** Stands for the program: breaks its calls off when it is asked to leave, and is gone once a file is there. */
const program = `
const { existsSync } = require("node:fs");
const calls = new Set();
const server = require("node:net").createServer((call) => calls.add(call.on("error", () => {})));
server.listen(process.argv.at(-1), () => process.send({ kind: "listening" }));
process.on("message", ({ kind }) => {
  if (kind !== "drain") return;
  server.close();
  for (const call of calls) call.destroy();
  setInterval(() => existsSync(process.argv[1]) && process.exit(0), 10);
});
process.on("disconnect", () => process.exit(0));`;

test("a lost call goes on only once the process that lost it is gone", async () => {
  const folder = mkdtempSync(join(tmpdir(), "early-"));
  const gone = join(folder, "gone");
  const pullers = new Pullers({
    start: () => ({
      command: [process.execPath, "-e", program, gone],
      environment: {},
      socket: join(folder, "socket"),
    }),
    changed: () => {},
  });
  pullers.start();
  const leaver = await eventually(async () => {
    const { serving } = pullers;
    if (serving === undefined) throw new Error("none serves");
    return serving;
  }, "the puller");
  let [asked, lost] = [0, 0];
  const answered: { alive: boolean }[] = [];
  const containerd: Forward = () => {
    answered.push({ alive: isAlive(leaver.pid) });
    throw Object.assign(new Error("answered"), { code: status.OK, metadata: new Metadata() });
  };
  const handler = createFailover({
    route: async (former) => {
      asked += 1;
      if (former === undefined) return { kind: "puller", forward: leaver.forward };
      lost += 1;
      await pullers.letGo(former);
      return { kind: "containerd", reason: "test" };
    },
    containerd,
    fallback: true,
    bypass: () => ({ signal: new AbortController().signal, end: () => {} }),
  });
  const incoming = { path: "/a/B", request: Buffer.alloc(0), metadata: new Metadata(), deadline: Infinity };
  const call = handler(incoming, new AbortController().signal).catch((error: unknown) => error);
  await eventually(async () => expect(asked).toBe(1), "the call");
  const left = leaver.drain(60_000);
  await eventually(async () => expect(lost).toBe(1), "the loss");
  expect(answered).toEqual([]);
  writeFileSync(gone, "");
  await call;
  expect(answered).toEqual([{ alive: false }]);
  await left;
  await pullers.drain(0);
  rmSync(folder, { recursive: true });
});

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

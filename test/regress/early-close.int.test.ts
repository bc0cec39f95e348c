// A process that ended while its workers were still being loaded now and then died of SIGABRT, by an assertion of Node's
// own. So nobody ends them before.

import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { expect, test } from "vitest";
import { createEngine } from "../../src/layer/pool.ts";
import { scratch } from "../harness/containerd.ts";

const worker = new URL("../../dist/worker.js", import.meta.url);

test("an engine that is closed at once lets its workers load to their end first", async () => {
  const folder = mkdtempSync(join(scratch(), "early-"));
  const loaded = join(folder, "loaded-by-");
  // The real worker, behind which loading goes on for a while.
  const slow = `
import { writeFileSync } from "node:fs";
import { threadId } from "node:worker_threads";
export { default } from ${JSON.stringify(worker.href)};
Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 200);
writeFileSync(${JSON.stringify(loaded)} + threadId, "");
`;
  const file = join(folder, "slow.mjs");
  writeFileSync(file, slow);
  const engine = createEngine({ engine: "native", threads: 2, workerFile: pathToFileURL(file) });
  await engine.close();
  expect(readdirSync(folder).filter((name) => name.startsWith("loaded-by-"))).toHaveLength(4);
  rmSync(folder, { recursive: true });
});

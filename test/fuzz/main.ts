// `npm run fuzz -- --minutes 10 [--seed N] [--once]`: prints executions and crashes; fails unless there are none.

import { randomInt } from "node:crypto";
import { parseArgs } from "node:util";
import { containerdRelease } from "../harness/versions.ts";
import { fuzz } from "./fuzz.ts";
import { compareByChance, Oracle } from "./oracle.ts";
import { fuzzSanitized } from "./sanitized.ts";

const { values } = parseArgs({
  options: { minutes: { type: "string" }, seed: { type: "string" }, once: { type: "boolean" } },
});
const minutes = Number(values.minutes ?? "10");
const seed = Number(values.seed ?? randomInt(2 ** 31));
if (!(minutes > 0) || !Number.isInteger(seed)) {
  console.error("fuzz: --minutes takes a number above 0, --seed an integer");
  process.exit(2);
}
const once = values.once ? { executionsMax: 1 } : {};
console.log(`fuzz: ${minutes} minutes, seed ${seed}`);
// Three fifths of the time in this process; then native code under sanitizers, and layers beside containerd.
const { executions, crashes } = await fuzz({ seconds: minutes * 36, seed, ...once });
for (const [name, count] of executions) console.log(`fuzz: ${count} x ${name}`);
for (const { target, seed: own, message } of crashes)
  console.log(`  ${target}: ${message.slice(0, 500)}\n  again with: npm run fuzz -- --seed ${own} --once`);
const native = values.once ? { executions: 0, crash: undefined } : fuzzSanitized(minutes * 12, seed);
console.log(`fuzz: ${native.executions} x native inflate under AddressSanitizer and UBSan`);
if (native.crash !== undefined) console.log(`  ${native.crash}`);
await using oracle = await Oracle.start(containerdRelease("1.6"));
const { verdicts, failure } = await compareByChance(oracle, { seconds: minutes * 12, seed, ...once });
for (const [verdict, times] of verdicts) console.log(`fuzz: ${times} x layer beside containerd: ${verdict}`);
if (failure !== undefined) console.log(`  ${failure}\n  again with: npm run fuzz -- --seed N --once`);
const count = crashes.length + (native.crash === undefined ? 0 : 1) + (failure === undefined ? 0 : 1);
console.log(`fuzz: crashes = ${count}`);
if (count > 0) process.exitCode = 1;

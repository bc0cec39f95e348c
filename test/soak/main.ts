// `npm run soak -- --minutes 10 [--seed N]`: prints kills, pulls, wrong results and leftovers; fails unless both are 0.

import { randomInt } from "node:crypto";
import { parseArgs } from "node:util";
import { soak } from "./soak.ts";

const { values } = parseArgs({ options: { minutes: { type: "string" }, seed: { type: "string" } } });
const minutes = Number(values.minutes ?? "10");
const seed = Number(values.seed ?? randomInt(2 ** 31));
if (!(minutes > 0) || !Number.isInteger(seed)) {
  console.error("soak: --minutes takes a number above 0, --seed an integer");
  process.exit(2);
}
console.log(`soak: ${minutes} minutes, seed ${seed}`);
const { kills, pulls, wrong, leftovers } = await soak({ seconds: minutes * 60, seed, log: console.log });
for (const line of [...wrong, ...leftovers].slice(0, 50)) console.log(`  ${line}`);
console.log(
  `soak: kills ${kills}, pulls ${pulls}, wrong results = ${wrong.length}, leftovers = ${leftovers.length}`,
);
if (wrong.length + leftovers.length > 0) process.exit(1);

// Feeds damaged gzip and zstd streams to an addon, in pieces and into windows of every size: node inflate.mjs ADDON
// SECONDS SEED. Plain JavaScript, since it runs under sanitizers with nothing but node.

import { createRequire } from "node:module";
import { gzipSync } from "node:zlib";

const [addon = "", seconds = "1", seed = "1"] = process.argv.slice(2);
const native = createRequire(import.meta.url)(addon);
let state = Number(seed) >>> 0;

/** Mulberry32. */
function integer(bound) {
  state = (state + 0x6d2b79f5) >>> 0;
  let mixed = Math.imul(state ^ (state >>> 15), state | 1);
  mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
  return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * bound);
}

function stream(isGzip) {
  const unit = Buffer.from(Array.from({ length: integer(200) + 1 }, () => integer(256)));
  const content = Buffer.concat(Array.from({ length: integer(100) }, () => unit));
  const packed = isGzip
    ? gzipSync(content)
    : Buffer.concat([
        Buffer.from("28b52ffd0050", "hex"),
        Buffer.from([1 + ((content.length << 3) & 0xff), 0, 0]),
        content,
      ]);
  for (let count = integer(6); count > 0; count--) packed[integer(packed.length)] = integer(256);
  return packed.subarray(0, integer(4) === 0 ? integer(packed.length) : packed.length);
}

let executions = 0;
const end = Date.now() + Number(seconds) * 1000;
while (Date.now() < end) {
  const isGzip = integer(2) === 0;
  // A copy of exactly its length, so that a byte read behind it is seen.
  const input = new Uint8Array(stream(isGzip));
  const inflater = isGzip ? native.createGzip() : native.createZstd();
  const results = new Float64Array(2);
  let total = 0;
  for (let at = 0; at < input.length && total < 2 ** 22; ) {
    const until = Math.min(input.length, at + integer(300) + 1);
    const output = new Uint8Array(integer(4096) + 1);
    const status = native.inflate(inflater, input, at, until, output, 0, output.length, results);
    if (status < 0) break;
    if (results[0] === 0 && results[1] === 0 && until === input.length) break;
    at += results[0];
    total += results[1];
  }
  native.release(inflater);
  executions += 1;
}
console.log(`executions ${executions}`);

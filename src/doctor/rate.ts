// How fast a blob comes from a host: over one connection, and over as many as a pull would use, each for so many bytes
// and seconds at most. What is read is thrown away.

import type { Descriptor } from "../oci/descriptor.ts";
import { checkContentRange } from "../registry/ranges.ts";
import type { Requester, Response } from "../registry/request.ts";
import type { Finding } from "./doctor.ts";

export interface RateOptions {
  readonly requester: Requester;
  readonly repository: string;
  /** The blob to read of. */
  readonly descriptor: Descriptor;
  /** Connections that a pull would use for it. */
  readonly streams: number;
}

export interface Sample {
  readonly streams: number;
  readonly bytes: number;
  readonly seconds: number;
}

/** Several connections that are this much slower than one are not so by chance, nor for want of a processor. */
const interference = 0.5;

interface Range {
  readonly start: number;
  readonly end: number;
}

/** Enough to get past a connection's slow start. */
const bytesMax = { one: 32 * 1024 * 1024, several: 64 * 1024 * 1024 } as const;
const sampleMsMax = 5_000;
/** Less than this says more of the round trip than of the rate. */
const bytesMin = 1024 * 1024;
/** An image of a gigabyte takes most of a minute below this, however fast the node is. */
const slowBytesPerSecond = 20_000_000;

export async function* checkRates(options: RateOptions, signal: AbortSignal): AsyncGenerator<Finding> {
  const { descriptor, streams } = options;
  const { finding, hasRanges } = await tryRange(options, signal);
  yield finding;
  if (descriptor.size < bytesMin) {
    const told = `the largest layer has only ${descriptor.size} bytes`;
    yield { state: "unknown", what: "rate", finding: told, todo: "name an image with a larger layer" };
    return;
  }
  const whole = { start: 0, end: Math.min(descriptor.size, bytesMax.one) };
  const one = await measure(options, [whole], hasRanges, signal);
  const lanes = hasRanges && streams > 1 ? lanesOf(descriptor.size, streams) : [];
  const several = lanes.length > 1 ? await measure(options, lanes, true, signal) : undefined;
  yield judgeRates(one, several, options.requester.host.url.host);
}

/** What the two rates mean. */
export function judgeRates(one: Sample, several: Sample | undefined, host: string): Finding {
  const what = "rate";
  const [single, together] = [rateOf(one), several ? rateOf(several) : 0];
  const best = Math.max(single, together);
  const more = several ? `, ${several.streams} together ${megabytes(together)}` : "";
  const finding = `one connection ${megabytes(single)}${more}`;
  if (best < slowBytesPerSecond) {
    const seconds = Math.round(1e9 / Math.max(1e5, best));
    const todo =
      "put a mirror near this node, or look at what is in between; no pull can be faster than this";
    return { state: "slow", what, finding: `${finding}: a gigabyte takes ${seconds} s or more`, todo };
  }
  if (several && together < interference * single) {
    const todo = `set streams = 1 in [registry.host.${JSON.stringify(host)}] of Hawser's configuration`;
    return { state: "slow", what, finding: `${finding}: connections get in each other's way`, todo };
  }
  return { state: "ok", what, finding };
}

async function tryRange(
  options: RateOptions,
  signal: AbortSignal,
): Promise<{ readonly finding: Finding; readonly hasRanges: boolean }> {
  const what = "ranges";
  const { descriptor, requester } = options;
  const range = { start: 0, end: Math.min(descriptor.size, 1024) };
  const { status, headers, url, body } = await ask(options, range, signal);
  const from = url.origin === requester.host.url.origin ? "" : ` by ${url.host}`;
  try {
    if (status === 206) {
      checkContentRange(headers["content-range"], range, descriptor.size);
      return { finding: { state: "ok", what, finding: `served${from}` }, hasRanges: true };
    }
    const finding = `not served${from}: one connection for each layer, and no going on after a break`;
    const todo = "use a registry, mirror or proxy that serves ranges";
    return { finding: { state: "slow", what, finding, todo }, hasRanges: false };
  } finally {
    await body.dump({ limit: 64 * 1024 }).catch(() => {});
  }
}

/** Equal parts, none of them too small to tell anything. */
function lanesOf(sizeBytes: number, streams: number): Range[] {
  const size = Math.min(sizeBytes, bytesMax.several);
  const count = Math.min(streams, Math.floor(size / (bytesMin / 4)));
  const part = Math.ceil(size / count);
  const starts = Array.from({ length: count }, (_, index) => index * part);
  return starts.map((start) => ({ start, end: Math.min(size, start + part) }));
}

/** Reads ranges side by side until they end or the time is over. */
async function measure(
  options: RateOptions,
  ranges: readonly Range[],
  hasRanges: boolean,
  signal: AbortSignal,
): Promise<Sample> {
  const began = performance.now();
  const limit = AbortSignal.any([signal, AbortSignal.timeout(sampleMsMax)]);
  const reading = ranges.map(async (range) => await read(options, range, hasRanges, limit, signal));
  const counts = await Promise.all(reading);
  const bytes = counts.reduce((sum, count) => sum + count, 0);
  return { streams: ranges.length, bytes, seconds: (performance.now() - began) / 1000 };
}

/** How many bytes came; what had come when the time was over counts. */
async function read(
  options: RateOptions,
  range: Range,
  hasRanges: boolean,
  limit: AbortSignal,
  signal: AbortSignal,
): Promise<number> {
  let bytes = 0;
  try {
    const { body } = await ask(options, hasRanges ? range : undefined, limit);
    for (let part = await body.next(); part; part = await body.next()) {
      bytes += part.length;
      if (bytes >= range.end - range.start) break;
    }
    // Of one that goes on.
    body.destroy();
  } catch (error) {
    if (signal.aborted || !limit.aborted) throw error;
  }
  return bytes;
}

async function ask(
  { requester, repository, descriptor }: RateOptions,
  range: Range | undefined,
  signal: AbortSignal,
): Promise<Response> {
  const path = `/${repository}/blobs/${descriptor.digest}`;
  const headers = {
    "accept-encoding": "identity",
    ...(range && { range: `bytes=${range.start}-${range.end - 1}` }),
  };
  const response = await requester.send({ method: "GET", path, headers, isBulk: true }, signal);
  if (response.status !== 200 && response.status !== 206) throw await requester.toError(response);
  return response;
}

function rateOf({ bytes, seconds }: Sample): number {
  return bytes / seconds;
}

function megabytes(bytesPerSecond: number): string {
  return `${(bytesPerSecond / 1e6).toFixed(1)} MB/s`;
}

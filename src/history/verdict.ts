// Why a pull took as long as it did, in words: what most of its critical path went by with, what shows that, and what can be
// done about it.

import { type Cause, type Part, partsOf } from "./critical.ts";
import type { HostRecord, PullRecord } from "./record.ts";
import { bytesText, plain, rateText, secondsText } from "./words.ts";

export interface Verdict {
  readonly cause: Cause;
  /** Where it is a limit: the configuration's key. */
  readonly key?: string;
  /** How much of the pull's time, from 0 to 1. */
  readonly share: number;
  readonly sentence: string;
  /** What was seen, a sentence each. */
  readonly evidence: readonly string[];
  readonly advice: string;
  /** All of the pull's time, by what it went by with; the longest first. */
  readonly parts: readonly Part[];
}

/** Undefined for one that has taken no time yet. */
export function verdictOf(record: PullRecord): Verdict | undefined {
  const parts = partsOf(record);
  const [worst] = parts;
  if (worst === undefined) return undefined;
  const { cause, key } = worst;
  const share = Math.round((1000 * worst.seconds) / record.seconds) / 1000;
  return {
    cause,
    ...(key !== undefined && { key }),
    share,
    sentence: sentenceOf(record, worst, share),
    evidence: evidenceOf(record, worst),
    advice: adviceOf(record, worst),
    parts,
  };
}

/** A few words for each cause. */
export function nameOf({ cause, key }: Pick<Part, "cause" | "key">): string {
  return cause === "limit" ? `limit ${key}` : causeNames[cause];
}

const causeNames: Record<Exclude<Cause, "limit">, string> = {
  registry: "registry",
  network: "network",
  cpu: "CPU",
  disk: "disk",
  containerd: "containerd",
  others: "pulls that go first",
  hawser: "Hawser itself",
};

function sentenceOf(record: PullRecord, part: Part, share: number): string {
  const all = `${Math.round(100 * share)} % of ${secondsText(record.seconds)}`;
  switch (part.cause) {
    case "registry":
      return `the registry: ${all} went by until it answered`;
    case "network":
      return `the network: ${all} went by while bytes were on their way`;
    case "cpu":
      return `CPU: ${all} went by while cores were at work, or waited for`;
    case "disk":
      return `the disk: ${all} went by until it had taken what was written`;
    case "containerd":
      return record.delegation
        ? `containerd: ${all} went by while it made this pull by itself`
        : `containerd: ${all} went by until it had made snapshots and records`;
    case "limit":
      return `a limit: ${all} went by because of ${part.key}`;
    case "others":
      return `other pulls: ${all} went by while pulls that somebody waits for went first`;
    case "hawser":
      return isLost(record)
        ? `Hawser itself: ${all} went by until a process that pulled was found to be gone`
        : `Hawser itself: ${all} went by with nothing that it could name`;
  }
}

function evidenceOf(record: PullRecord, part: Part): readonly string[] {
  const hosts = summed(record.layers.flatMap((layer) => layer.hosts));
  switch (part.cause) {
    case "registry":
      return [
        ...stageTexts(record, ["resolve", "plan"]),
        ...hosts.filter(({ requests }) => requests > 0).map(answerText),
        ...summed([...record.hosts, ...hosts]).flatMap(failureTexts),
      ];
    case "network":
      return [
        ...hosts.filter(({ bytes }) => bytes > 0).map((host) => receivedText(record, host)),
        // How much there is to be had by faster bytes: what waited for them.
        ...(record.layers.some(({ unpacked }) => unpacked) ? [unpackText(record)] : []),
        ...summed([...record.hosts, ...hosts]).flatMap(failureTexts),
      ];
    case "cpu":
    case "disk":
      return [unpackText(record), machineText(record)];
    case "containerd":
      return containerdTexts(record);
    case "limit":
      return limitTexts(record, part.key ?? "");
    case "others":
      return [`it was fetched ahead of need, and kept back for ${secondsText(part.seconds)}`];
    case "hawser":
      return [machineText(record)];
  }
}

function adviceOf(record: PullRecord, { cause, key }: Part): string {
  switch (cause) {
    case "registry":
      return "a mirror near the node (registry.config_path) answers sooner, and prewarm.images has images asked for ahead";
    case "network":
      return "a mirror near the node (registry.config_path), or prewarm.images; with a limit per connection, as some registries have one, a higher download.max_concurrent_per_host";
    case "cpu":
      return "images that are compressed with zstd, which takes half the time of gzip; for images of several layers more cores";
    case "disk":
      return "a faster disk below containerd's root, or fewer layers at once (unpack.max_concurrent) where many small writes are what slows it";
    case "containerd":
      return record.delegation
        ? `see why Hawser left it to containerd: ${delegationText(record.delegation)}`
        : "see what else containerd is at (its own metrics, its disk), and how many layers the image has";
    case "limit":
      return `raise ${key} in the configuration, then "systemctl reload hawser"`;
    case "others":
      return "none is needed: the pulls that pods wait for were faster for it";
    case "hawser":
      return isLost(record)
        ? "see in the log why the process that pulled ended"
        : "please report it, with the output of hawser trace --json";
  }
}

/** A word, and what there is more to say. */
export function delegationText({ reason, detail }: NonNullable<PullRecord["delegation"]>): string {
  return detail === "" ? reason : `${reason} (${detail})`;
}

function isLost({ stages }: PullRecord): boolean {
  return stages.some(({ name }) => name === "lost");
}

function stageTexts(record: PullRecord, names: readonly string[]): readonly string[] {
  return record.stages
    .filter(({ name }) => names.includes(name))
    .map(({ name, startSeconds, endSeconds = record.seconds }) => {
      const what = name === "resolve" ? "finding out what the name stands for" : "its manifest and config";
      return `${what} took ${secondsText(endSeconds - startSeconds)}`;
    });
}

/** One for each host. */
function summed(hosts: readonly HostRecord[]): readonly HostRecord[] {
  const sums = new Map<string, HostRecord>();
  for (const host of hosts) {
    const sum = sums.get(host.host);
    sums.set(host.host, sum ? added(sum, host) : host);
  }
  return [...sums.values()];
}

function added(one: HostRecord, other: HostRecord): HostRecord {
  const failures = { ...one.failures };
  for (const [code, count] of Object.entries(other.failures)) failures[code] = (failures[code] ?? 0) + count;
  return {
    host: one.host,
    requests: one.requests + other.requests,
    bytes: one.bytes + other.bytes,
    answeredSeconds: one.answeredSeconds + other.answeredSeconds,
    openSeconds: one.openSeconds + other.openSeconds,
    pausedSeconds: one.pausedSeconds + other.pausedSeconds,
    failures,
  };
}

function answerText({ host, answeredSeconds, requests }: HostRecord): string {
  const each = secondsText(answeredSeconds / requests);
  return `${plain(host)} took ${each} until the first byte of each of ${requests} requests`;
}

function failureTexts({ host, failures, pausedSeconds }: HostRecord): readonly string[] {
  const all = Object.entries(failures).map(([code, count]) => `${count} × ${code}`);
  if (all.length === 0) return [];
  return [
    `${plain(host)} failed (${all.join(", ")}), and was left alone for ${secondsText(pausedSeconds)} behind that`,
  ];
}

/** Over the time in which anything was downloaded. */
function receivedText(record: PullRecord, { host, bytes, requests, openSeconds }: HostRecord): string {
  const spans = record.layers.flatMap((layer) => layer.spans.filter(({ name }) => name === "download"));
  const start = Math.min(...spans.map(({ startSeconds }) => startSeconds));
  const end = Math.max(...spans.map(({ endSeconds = record.seconds }) => endSeconds));
  const each = rateText(bytes / Math.max(0.001, openSeconds));
  return `${bytesText(bytes)} came from ${plain(host)} at ${rateText(bytes / Math.max(0.001, end - start))}, in ${requests} requests that got ${each} each`;
}

function unpackText({ layers }: PullRecord): string {
  const all = layers.flatMap(({ unpacked }) => unpacked ?? []);
  const sum = (of: (one: (typeof all)[number]) => number): number =>
    all.reduce((total, one) => total + of(one), 0);
  const [onCore, queued] = [sum((one) => one.onCoreSeconds ?? 0), sum((one) => one.queuedSeconds ?? 0)];
  const waited = sum((one) => one.waitedSeconds);
  const spans = layers.flatMap((layer) => layer.spans.filter(({ name }) => name === "unpack"));
  const took = spans.reduce(
    (total, { startSeconds, endSeconds = startSeconds }) => total + endSeconds - startSeconds,
    0,
  );
  const paused = sum((one) => one.pausedSeconds);
  const stood = Math.max(0, took - onCore - queued - waited - paused);
  return [
    `unpacking ${bytesText(sum((one) => one.bytes))} in ${layers.length} layers took ${secondsText(took)} in all:`,
    `${secondsText(onCore)} on a core, ${secondsText(queued)} waiting for one, ${secondsText(waited)} waiting for bytes,`,
    ...(paused > 0 ? [`${secondsText(paused)} for pulls that go first,`] : []),
    `${secondsText(stood)} for the disk or another thread`,
  ].join(" ");
}

function machineText({ machine }: PullRecord): string {
  if (!machine) return "what the machine did meanwhile is not known";
  const percent = (part: number): string => `${Math.round(100 * part)} %`;
  return `meanwhile the machine's cores were busy to ${percent(machine.coresBusy)}, and the thread that receives to ${percent(machine.mainBusy)}`;
}

function containerdTexts(record: PullRecord): readonly string[] {
  const commits = record.layers.flatMap((layer) => layer.spans.filter(({ name }) => name === "commit"));
  const took = commits.reduce(
    (sum, { startSeconds, endSeconds = startSeconds }) => sum + endSeconds - startSeconds,
    0,
  );
  const calls = record.stages.filter(({ name }) => name === "containerd" || name === "register");
  const called = calls.reduce(
    (sum, { startSeconds, endSeconds = record.seconds }) => sum + endSeconds - startSeconds,
    0,
  );
  return [
    ...(commits.length > 0 ? [`its commits of ${commits.length} layers took ${secondsText(took)}`] : []),
    ...(calls.length > 0 ? [`its own part at the end took ${secondsText(called)}`] : []),
  ];
}

function limitTexts({ layers }: PullRecord, key: string): readonly string[] {
  const waiting = [
    ["requests", layers.map(({ downloadWaits }) => downloadWaits[key] ?? 0)],
    ["layers that were to be unpacked", layers.map(({ unpackWaits }) => unpackWaits[key] ?? 0)],
  ] as const;
  const texts = waiting.flatMap(([who, all]) => {
    const seconds = all.reduce((sum, one) => sum + one, 0);
    return seconds > 0 ? [`${who} waited ${secondsText(seconds)} in all for ${key}`] : [];
  });
  const most = Math.max(0, ...layers.map(({ requestsMost }) => requestsMost));
  return [...texts, `a layer had ${most} requests open at once at most`];
}

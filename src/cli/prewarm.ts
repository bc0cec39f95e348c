// hawser prewarm: images that are to be on this node before anybody asks for them.

import { setTimeout as sleep } from "node:timers/promises";
import { PullError } from "../errors.ts";
import { parseReference } from "../oci/reference.ts";
import type { PrewarmStatus } from "../prewarm/prewarming.ts";
import type { ImageStatus } from "../prewarm/report.ts";
import { askDaemon } from "./admin.ts";
import { type Command, type Context, parseOptions, plainLine, UsageError } from "./command.ts";

const pollMs = 500;

export const prewarm: Command = {
  name: "prewarm",
  summary: "have images on this node before anybody asks for them",
  help: `Usage: hawser prewarm list [--json]
       hawser prewarm add REFERENCE… [--within SECONDS]
       hawser prewarm rm REFERENCE…
       hawser prewarm wait [REFERENCE…] [--timeout SECONDS]

  list    what is wanted, how far it has come, and who wants it
  add     have images fetched and kept, over restarts too, until "rm"; one that failed is tried again at once
  rm      no longer; what is here stays for prewarm.keep
  wait    return once these images, or all that are wanted, are here; exit code 1 once all that are missing cannot be
          had (a registry that does not answer is waited for)

A pod that asks for such an image still has to be let in by its registry; then it has it at once.

Options:
  --timeout SECONDS   with "wait": give up after so long (default: never)
  --within SECONDS    with "add": of no use later than that; what is not here by then is not tried any more, and what is
                      needed sooner is fetched first
  --json              with "list": for programs
  --config FILE       configuration that names the admin socket (default /etc/hawser/hawser.toml)
`,
  run: async (args, context) => {
    const options = {
      config: { type: "string" },
      json: { type: "boolean" },
      timeout: { type: "string" },
      within: { type: "string" },
    } as const;
    const { values, positionals } = parseOptions(args, options, Number.POSITIVE_INFINITY);
    const [word, ...references] = positionals;
    for (const reference of references) parseReference(reference);
    if (values.json && word !== "list") throw new UsageError("--json goes with list");
    if (values.timeout !== undefined && word !== "wait") throw new UsageError("--timeout goes with wait");
    if (values.within !== undefined && word !== "add") throw new UsageError("--within goes with add");
    const ask = async (body?: unknown): Promise<PrewarmStatus> =>
      (await askDaemon(values.config, body ? "POST" : "GET", "/prewarm", body)) as PrewarmStatus;
    switch (word) {
      case "list": {
        if (references.length > 0) throw new UsageError("list takes no reference");
        const status = await ask();
        context.stdout(values.json ? `${JSON.stringify(status)}\n` : listText(status));
        return 0;
      }
      case "add":
      case "rm":
        if (references.length === 0) throw new UsageError(`expected an image reference behind ${word}`);
        await ask(
          word === "add"
            ? { add: references, withinSeconds: secondsOf("--within", values.within) }
            : { remove: references },
        );
        return 0;
      case "wait":
        return await wait(
          references,
          secondsOf("--timeout", values.timeout) ?? Number.POSITIVE_INFINITY,
          ask,
          context,
        );
      default:
        throw new UsageError("expected list, add, rm or wait");
    }
  },
};

/** Thirty years. */
const secondsMax = 1e9;

function secondsOf(option: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const seconds = Number(text);
  if (text.trim() !== "" && seconds > 0 && seconds <= secondsMax) return seconds;
  throw new UsageError(`expected seconds behind ${option}, not ${JSON.stringify(text)}`);
}

async function wait(
  references: readonly string[],
  seconds: number,
  ask: () => Promise<PrewarmStatus>,
  { stderr, interrupted }: Context,
): Promise<number> {
  const names = references.map((reference) => parseReference(reference).name);
  const deadline = performance.now() + 1000 * seconds;
  let told = "";
  for (;;) {
    const { ready, images } = await ask().catch((error: unknown) => {
      const { code, message } = PullError.from(error);
      if (code === "invalid") throw error;
      // A daemon that is only starting is waited for as well.
      if (message !== told) stderr(`hawser: waiting: ${message}\n`);
      told = message;
      return { ready: false, images: [] };
    });
    const absent = names.filter((name) => !images.some((image) => image.name === name));
    if (ready && absent.length > 0)
      throw new PullError("not_found", `nobody wants ${absent.join(", ")} here: add it first`);
    const awaited = images.filter(
      ({ name, sources }) => names.includes(name) || (names.length === 0 && sources.length > 0),
    );
    const open = awaited.filter(({ state }) => state !== "warm");
    if (ready && open.length === 0) return 0;
    const hopeless = open.filter(({ state, temporary }) => state === "failed" && temporary === false);
    if (ready && hopeless.length === open.length) {
      for (const image of hopeless) stderr(`hawser: ${image.name}: ${image.error}\n`);
      return 1;
    }
    if (performance.now() >= deadline) {
      const missing = open.map(({ name }) => name).join(", ") || told || "the daemon is not ready";
      stderr(`hawser: not here after ${seconds} s: ${missing}\n`);
      return 1;
    }
    await sleep(pollMs, undefined, { signal: interrupted }).catch(() => {});
    if (interrupted.aborted) return 1;
  }
}

/** What a person is told. */
function listText({ images, troubles }: PrewarmStatus): string {
  const lines = images.map((image) => `${image.state.padEnd(8)}  ${image.name}  ${detailsOf(image)}`);
  const none = lines.length === 0 ? ["no image is wanted ahead of need"] : [];
  return [...lines, ...none, ...troubles.map((trouble) => `trouble   ${trouble}`), ""].join("\n");
}

function detailsOf({
  state,
  sources,
  bytes,
  warmSeconds,
  ageSeconds,
  error,
  attempts,
  nextSeconds,
  deadlineSeconds,
}: ImageStatus): string {
  const parts = [
    state === "warm" ? `for ${spanOf(warmSeconds ?? 0)}` : `since ${spanOf(ageSeconds)}`,
    ...(bytes === undefined ? [] : [`${(bytes / 2 ** 20).toFixed(1)} MiB`]),
    `by ${sources.join(", ") || "nobody any more"}`,
    ...(deadlineSeconds ? [`needed within ${spanOf(deadlineSeconds)}`] : []),
    ...(error === undefined ? [] : [`${error} (attempt ${attempts}, ${nextOf(nextSeconds)})`]),
  ];
  return plainLine(parts.join(", ")).trim();
}

function nextOf(seconds: number | undefined): string {
  return seconds === undefined ? "given up" : `next in ${spanOf(seconds)}`;
}

function spanOf(seconds: number): string {
  if (seconds < 120) return `${seconds} s`;
  return seconds < 7_200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

// hawser upgrade: a workload's pods get other images in place, from any machine with a kubeconfig; without a workload, this
// release takes the place of the one that the node has.

import { access } from "node:fs/promises";
import { hostname, userInfo } from "node:os";
import { delimiter, join } from "node:path";
import { createCluster } from "../cluster/client.ts";
import { Kubeconfig, type KubeconfigOptions } from "../cluster/kubeconfig.ts";
import { PullError } from "../errors.ts";
import { plain } from "../history/words.ts";
import type {
  Kind,
  Outcome,
  Plan,
  Share,
  UpgradeEvent,
  UpgradeOptions,
  UpgradeRequest,
} from "../inplace/inplace.ts";
import { planUpgrade, upgrade as upgradeIn } from "../inplace/upgrade.ts";
import { parseReference } from "../oci/reference.ts";
import { duration } from "../settings.ts";
import { type Board, PlainBoard, TerminalBoard } from "./board.ts";
import { type Command, type Context, parseOptions, plainLine, UsageError } from "./command.ts";
import { upgradeRelease } from "./install.ts";

export const upgrade: Command = {
  name: "upgrade",
  outlivesReader: true,
  summary: "give a workload's pods other images in place; or put this release in place of the installed one",
  help: `Usage: hawser upgrade KIND/NAME CONTAINER=IMAGE… [OPTIONS]
       hawser upgrade

With a workload: its pods stay what and where they are, with their addresses, nodes and volumes, and only the containers
whose images change are restarted. The images are on the pods' nodes before anything is touched. KIND is cloneset (OpenKruise
does it), statefulset or daemonset (with updateStrategy OnDelete), or pod; other workloads make their pods anew. Pods need the
readiness gate InPlaceUpdateReady. If anything fails, all pods become what they were. An upgrade that was broken off is gone
on with by the same command, and undone by one with the former images.

Without one, on a node, from a new release: ./bin/hawser upgrade. The new daemon takes the socket at once, the old one ends
what it is at within ten seconds, and no call fails. If the new one does not prove that it works, the old one is put back.
An older release goes the same way.

Options:
  -n, --namespace NS      the workload's (default: that of the kubeconfig's context)
  --max-unavailable N     no more pods than these are out of service at a time, a number or 25% (default 1; of a CloneSet its
                          own)
  --grace TIME            between a pod's being out of service and its container's end (default 10s; of a CloneSet its own)
  --timeout TIME          without any progress of a step that is a failure (default 10m)
  --skip-unready          leave alone pods that are not ready, as on a node that is down; they count all the same, and get the
                          image when they are made anew (StatefulSets and DaemonSets)
  --no-prewarm            do not wait for the images to be on the nodes
  --dry-run               check everything, print what would be done, and change nothing
  --json                  for programs: a JSON object a line, of the plan, of each event, and of the outcome
  --kubeconfig FILE       (default: KUBECONFIG, or .kube/config in the home folder)
  --context NAME          of the kubeconfig, another one than its current one

Exit codes: 0 upgraded, 1 refused, or failed with all as it was before, 2 usage, 3 failed with something left that is named.
`,
  run: async (args, context) => {
    const { values, positionals } = parseOptions(args, optionsOfUpgrade, Number.MAX_SAFE_INTEGER);
    const [target, ...images] = positionals;
    if (target === undefined) {
      const [given] = Object.keys(values);
      if (given !== undefined)
        throw new UsageError(`--${given} goes with a workload, such as statefulset/web`);
      return await upgradeRelease(context);
    }
    // What is wrong with the words comes before what is wrong with the cluster.
    const asked = {
      images: imagesOf(images),
      maxUnavailable: shareOf(values["max-unavailable"]),
      graceMs: timeOf("--grace", values.grace, "0s"),
      timeoutMs: timeOf("--timeout", values.timeout, "1s") ?? usualTimeoutMs,
      isPrewarmed: !(values["no-prewarm"] ?? false),
      skipsUnready: values["skip-unready"] ?? false,
    };
    const [word, name] = wordsOf(target);
    const given = values.namespace === undefined ? undefined : wordOf("--namespace", values.namespace);
    const interrupted = interruptionOf(context);
    const { isDry, isJson } = { isDry: values["dry-run"] ?? false, isJson: values.json ?? false };
    try {
      const kind = kindOf(word);
      if (asked.skipsUnready && (kind === "cloneset" || kind === "pod"))
        throw new UsageError(`--skip-unready is for a StatefulSet or a DaemonSet`);
      const kubeconfig = await kubeconfigFor(values.kubeconfig, values.context, context);
      const namespace = given ?? (await new Kubeconfig(kubeconfig).namespace()) ?? "default";
      const request: UpgradeRequest = { ...asked, kind, name, namespace };
      return await run(request, kubeconfig, { isDry, isJson }, { ...context, interrupted });
    } catch (error) {
      if (error instanceof UsageError) throw error;
      const { code, message } = PullError.from(error);
      const why = interrupted.aborted ? "interrupted" : message;
      if (isJson) context.stdout(`${JSON.stringify({ outcome: { kind: "refused", code, error: why } })}\n`);
      context.stderr(plainLine(`hawser: ${target} is not upgraded: ${why}`));
      return 1;
    }
  },
};

const optionsOfUpgrade = {
  namespace: { type: "string", short: "n" },
  "max-unavailable": { type: "string" },
  grace: { type: "string" },
  timeout: { type: "string" },
  "skip-unready": { type: "boolean" },
  "no-prewarm": { type: "boolean" },
  "dry-run": { type: "boolean" },
  json: { type: "boolean" },
  kubeconfig: { type: "string" },
  context: { type: "string" },
} as const;
const usualTimeoutMs = 600_000;

/** A terminal that is closed, or a connection that is lost, ends it as Ctrl-C does. */
function interruptionOf({ interrupted, onSignal }: Context): AbortSignal {
  const hangup = new AbortController();
  onSignal("SIGHUP", () => hangup.abort());
  return AbortSignal.any([interrupted, hangup.signal]);
}

interface Flags {
  readonly isDry: boolean;
  readonly isJson: boolean;
}

async function run(
  request: UpgradeRequest,
  kubeconfig: KubeconfigOptions,
  { isDry, isJson }: Flags,
  context: Context,
): Promise<number> {
  const { stdout, stderr, interrupted } = context;
  const began = performance.now();
  const said = (value: object): void => stdout(`${JSON.stringify(value)}\n`);
  let board: Board | undefined;
  const options: UpgradeOptions = {
    cluster: createCluster(kubeconfig),
    holder: `${userName()} on ${hostname()}`,
    told: (event) => board?.told(event),
  };
  const plan = await planUpgrade(options, request, interrupted);
  if (isJson) said({ plan });
  else (isDry ? stdout : stderr)(planText(plan));
  if (isDry) return 0;
  board = isJson ? { told: (event: UpgradeEvent) => said(event), end: () => {} } : boardOn(plan, context);
  const title = `${request.kind}/${request.name}`;
  context.lastWords(plainLine(`hawser: ${title} is left as it is now: ${wayOn}`));
  let outcome: Outcome;
  try {
    outcome = await upgradeIn(options, request, interrupted);
  } finally {
    board.end();
    context.lastWords(undefined);
  }
  const seconds = Number(((performance.now() - began) / 1000).toFixed(1));
  if (isJson) said({ outcome: jsonOf(outcome), seconds });
  return ending(outcome, title, isJson, seconds, context);
}

const wayOn = "the same command goes on from here, and one with the former images goes back";

function boardOn(plan: Plan, { stderr, errorTerminal }: Context): Board {
  const first = errorTerminal();
  return first ? new TerminalBoard(plan, stderr, () => errorTerminal() ?? first) : new PlainBoard(stderr);
}

function ending(
  outcome: Outcome,
  title: string,
  isJson: boolean,
  seconds: number,
  { stdout, stderr }: Context,
): number {
  switch (outcome.kind) {
    case "upgraded":
      if (!isJson) stdout(plainLine(`${title} is upgraded: ${countOf(outcome.pods)} in ${seconds} s`));
      return 0;
    case "rolled back": {
      const back =
        outcome.pods === 0 ? "no pod was touched" : `${countOf(outcome.pods)} rolled back, all is as it was`;
      stderr(plainLine(`hawser: ${title} is not upgraded: ${whyOf(outcome.failure)} (${back})`));
      return 1;
    }
    case "left":
      stderr(plainLine(`hawser: ${title} is not upgraded: ${whyOf(outcome.failure)}`));
      for (const one of outcome.left) stderr(plainLine(`hawser: not as it was: ${one}`));
      stderr(plainLine(`hawser: ${wayOn}`));
      return 3;
  }
}

function whyOf({ code, message }: PullError): string {
  return code === "cancelled" ? "interrupted" : message;
}

function countOf(pods: number): string {
  return pods === 1 ? "1 pod" : `${pods} pods`;
}

function jsonOf(outcome: Outcome): object {
  if (outcome.kind === "upgraded") return outcome;
  const { failure, ...rest } = outcome;
  return { ...rest, code: failure.code, error: whyOf(failure) };
}

function planText({ request, pods, podsInAll, maxUnavailable, graceMs, changes }: Plan): string {
  const { kind, name, namespace, images, isPrewarmed } = request;
  const limits = [
    ...(maxUnavailable === undefined ? [] : [`at most ${maxUnavailable} out of service at a time`]),
    ...(graceMs === undefined ? [] : [`${graceMs / 1000} s of grace`]),
    ...(kind === "cloneset" ? ["by OpenKruise"] : []),
    isPrewarmed ? "images on the nodes first" : "without images on the nodes first",
  ];
  const nothing = pods.length === 0 && changes.length === 0 ? ["  nothing is to be done"] : [];
  const lines = [
    `${kind}/${name} in ${namespace}: ${pods.length} of ${countOf(podsInAll)}, ${limits.join(", ")}`,
    ...pods.map((pod) => {
      const what = Object.entries(pod.from).map(
        ([container, from]) => `${container}: ${from} -> ${images[container]}`,
      );
      const state = [...(pod.isReady ? [] : ["not ready"]), ...(pod.isBegun ? ["begun before"] : [])];
      const words = [what.join(", "), ...(state.length > 0 ? [`(${state.join(", ")})`] : [])];
      return `  ${plain(pod.name)}  ${plain(pod.node ?? "no node")}  ${plain(words.join(" "))}`;
    }),
    ...changes.map((change) => `  ${kind}/${name}  ${plain(change)}`),
    ...nothing,
  ];
  return lines.map((line) => `${line}\n`).join("");
}

/** With the short names that kubectl has, and the groups. */
const kinds: Readonly<Record<Kind, RegExp>> = {
  cloneset: /^(?:clonesets?|clone)(?:\.apps\.kruise\.io)?$/,
  statefulset: /^(?:statefulsets?|sts)(?:\.apps)?$/,
  daemonset: /^(?:daemonsets?|ds)(?:\.apps)?$/,
  pod: /^(?:pods?|po)$/,
};
const others: Readonly<Record<string, string>> = {
  deployment:
    "a Deployment makes its pods anew whenever its template changes: use a CloneSet of OpenKruise with " +
    "spec.updateStrategy.type InPlaceIfPossible, or a StatefulSet with spec.updateStrategy.type OnDelete",
  replicaset:
    "a ReplicaSet makes its pods anew: use a CloneSet of OpenKruise, or a StatefulSet with updateStrategy OnDelete",
  job: "the pods of a Job are to end, and not to be upgraded",
  cronjob: "change the CronJob: its next pods have the new image",
};
const namesOfOthers: Readonly<Record<string, string>> = {
  deploy: "deployment",
  rs: "replicaset",
  cj: "cronjob",
};

function wordsOf(target: string): readonly [string, string] {
  const [, word, name] = /^([a-z.]+)\/([a-z0-9.-]{1,253})$/i.exec(target) ?? [];
  if (word !== undefined && name !== undefined) return [word.toLowerCase(), name];
  throw new UsageError(`expected KIND/NAME, such as statefulset/web, not ${JSON.stringify(target)}`);
}

/** Throws `unsupported` with what would help. */
function kindOf(word: string): Kind {
  const found = (Object.keys(kinds) as Kind[]).find((kind) => kinds[kind].test(word));
  if (found !== undefined) return found;
  const other = namesOfOthers[word] ?? word.replace(/s?(?:\.apps|\.batch)?$/, "");
  const why = others[other] ?? `KIND is one of ${Object.keys(kinds).join(", ")}`;
  throw new PullError("unsupported", why);
}

function imagesOf(words: readonly string[]): Readonly<Record<string, string>> {
  if (words.length === 0)
    throw new UsageError("expected CONTAINER=IMAGE, such as app=registry.example.com/app:2");
  const images: Record<string, string> = {};
  for (const word of words) {
    const [, container, image] = /^([a-z0-9-]+)=(.+)$/.exec(word) ?? [];
    if (container === undefined || image === undefined)
      throw new UsageError(`expected CONTAINER=IMAGE, not ${JSON.stringify(word)}`);
    if (Object.hasOwn(images, container)) throw new UsageError(`${container} is given two images`);
    try {
      parseReference(image);
    } catch (error) {
      throw new UsageError(`${JSON.stringify(image)} is no image: ${PullError.from(error).message}`);
    }
    images[container] = image;
  }
  return images;
}

function shareOf(text: string | undefined): Share | undefined {
  if (text === undefined) return undefined;
  const [, digits, percent] = /^(\d{1,5})(%?)$/.exec(text) ?? [];
  const value = Number(digits);
  if (!(value >= 1) || (percent === "%" && value > 100))
    throw new UsageError(
      `--max-unavailable takes a number of pods from 1, or a share such as 25%, not ${JSON.stringify(text)}`,
    );
  return percent === "%" ? { percent: value } : { count: value };
}

function timeOf(option: string, text: string | undefined, least: string): number | undefined {
  if (text === undefined) return undefined;
  try {
    return duration(least, "24h").parse(text);
  } catch (error) {
    throw new UsageError(`${option} takes ${PullError.from(error).message}`);
  }
}

function wordOf(option: string, text: string): string {
  if (/^[a-z0-9-]{1,63}$/.test(text)) return text;
  throw new UsageError(`${option} takes a name, not ${JSON.stringify(text)}`);
}

/** As kubectl finds it; of several files those that are there. */
async function kubeconfigFor(
  file: string | undefined,
  name: string | undefined,
  { environment }: Context,
): Promise<KubeconfigOptions> {
  const common = { context: name, environment, isOfOneUse: true };
  if (file !== undefined) return { files: [file], ...common };
  const listed = (environment["KUBECONFIG"] ?? "").split(delimiter).filter((one) => one !== "");
  const usual = join(environment["HOME"] ?? "/", ".kube/config");
  const candidates = listed.length > 0 ? listed : [usual];
  const present = await Promise.all(candidates.map(async (one) => ((await isThere(one)) ? [one] : [])));
  const files = present.flat();
  if (files.length > 0) return { files, ...common };
  throw new PullError(
    "invalid",
    `there is no kubeconfig ${candidates.join(", ")}: name one with --kubeconfig or KUBECONFIG`,
  );
}

async function isThere(file: string): Promise<boolean> {
  return await access(file).then(
    () => true,
    () => false,
  );
}

function userName(): string {
  try {
    return userInfo().username;
  } catch {
    return "somebody";
  }
}

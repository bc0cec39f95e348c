// A registry named by the operator: each host that hosts.toml has for it, from its name to the rate of a layer. Requests
// are those of a pull, through the same connections, tokens and proxies; every one is bounded in bytes and time.

import { request } from "undici";
import { PullError } from "../errors.ts";
import type { Descriptor } from "../oci/descriptor.ts";
import { hostPlatform, parseIndex, parseManifest, selectPlatform } from "../oci/manifest.ts";
import { isIndex } from "../oci/media.ts";
import { parseChallenges, TokenCache } from "../registry/auth.ts";
import { Connections } from "../registry/connections.ts";
import { plain, transportError } from "../registry/failure.ts";
import { Health } from "../registry/health.ts";
import { type Host, hostsOf } from "../registry/hosts.ts";
import { realTiming } from "../registry/patience.ts";
import { ProxyRules, type ProxySettings, proxySettings } from "../registry/proxy.ts";
import { HttpRepository } from "../registry/repository.ts";
import { Requester } from "../registry/request.ts";
import { wordingOf } from "../registry/wording.ts";
import { certsFolders } from "./certs.ts";
import { compareClocks } from "./clock.ts";
import type { Context, DoctorOptions, Finding, RegistryTarget } from "./doctor.ts";
import { daemonOf } from "./processes.ts";
import { checkRates } from "./rate.ts";
import { reasonOf } from "./tree.ts";
import { tryWay, usualSlowMs } from "./way.ts";

/** More hosts than this for one registry are left out. */
const hostsMax = 8;
const answerMs = 10_000;
const bodyBytesMax = 64 * 1024;
/** containerd's limit (reference 6.3). */
const manifestBytesMax = 4 * 1048 * 1048;

interface Asking {
  readonly options: DoctorOptions;
  readonly target: RegistryTarget;
  readonly host: Host;
  readonly proxy: ProxySettings;
  readonly connections: Connections;
}

export async function* checkRegistry(
  context: Context,
  target: RegistryTarget,
  signal: AbortSignal,
): AsyncGenerator<Finding> {
  const hosts = await hostsOf(target.host, yield* folders(context));
  const proxy = await proxies(context);
  const { options } = context;
  const connections = new Connections({
    connectTimeoutMs: options.connectTimeoutMs,
    progressTimeoutMs: answerMs,
    proxy,
  });
  let hasServed = false;
  try {
    for (const [index, host] of hosts.slice(0, hostsMax).entries()) {
      const prefix = hosts.length > 1 ? `${host.url.host} ` : "";
      const isSpare = hasServed || index < hosts.length - 1;
      let [isGood, isAsked] = [true, false];
      for await (const finding of hostFindings({ options, target, host, proxy, connections }, signal)) {
        isGood &&= finding.state !== "broken";
        isAsked ||= finding.what === (target.reference ? "image" : "authorization") && finding.state === "ok";
        yield { ...(isSpare ? spared(finding) : finding), what: `${prefix}${finding.what}` };
      }
      hasServed ||= isGood && isAsked;
    }
  } finally {
    await connections.close();
  }
  if (hosts.length <= hostsMax) return;
  yield {
    state: "unknown",
    what: "hosts",
    finding: `only the first ${hostsMax} of ${hosts.length} were tried`,
  };
}

/** Pulls go on to the next host when one fails, and do not come to a later one when an earlier has served them. */
function spared(finding: Finding): Finding {
  if (finding.state !== "broken") return finding;
  return { ...finding, state: "slow", finding: `${finding.finding}; pulls can do without this host` };
}

async function* folders(context: Context): AsyncGenerator<Finding, readonly string[]> {
  try {
    return await certsFolders(context);
  } catch (error) {
    const finding = `not looked at, since containerd does not say where it is: ${reasonOf(error)}`;
    yield { state: "unknown", what: "certs.d", finding };
    return [];
  }
}

/** The daemon's, where it runs: a shell's environment is seldom that of a service. */
async function proxies({ options, processes }: Context): Promise<ProxySettings> {
  try {
    const daemon = daemonOf(await processes.listening(options.socket));
    if (daemon) return proxySettings(await processes.environment(daemon.pid));
  } catch {
    // Not root's to see: what is asked then is asked as this shell would ask it.
  }
  return proxySettings(options.environment);
}

async function* hostFindings(asking: Asking, signal: AbortSignal): AsyncGenerator<Finding> {
  const { options, target, host, proxy, connections } = asking;
  const way = {
    url: host.url,
    proxy: new ProxyRules(proxy).proxyFor(host.url),
    tls: await connections.tls(host),
    stepMs: host.dialTimeoutMs ?? options.connectTimeoutMs,
    slowMs: usualSlowMs,
    now: Date.now,
  };
  let isOpen = true;
  for await (const finding of tryWay(way, signal)) {
    yield finding;
    isOpen &&= finding.state !== "broken";
  }
  if (!isOpen) return;
  let door: Awaited<ReturnType<typeof knock>>;
  try {
    door = await knock(asking, signal);
  } catch (error) {
    const finding = `no answer to ${plain(host.url)}/: ${PullError.from(error).message}`;
    yield { state: "broken", what: "API", finding, todo: "see whether a registry is there" };
    return;
  }
  yield authorization(door, host);
  const clock = compareClocks(door.date, Date.now());
  if (clock) yield clock;
  if (target.reference === undefined) {
    const todo = `hawser doctor --registry ${target.host}/REPOSITORY:TAG`;
    yield { state: "unknown", what: "rate", finding: "not measured without an image", todo };
    return;
  }
  yield* imageFindings(asking, signal);
}

interface Door {
  readonly status: number;
  readonly challenge: string;
  readonly date: string | undefined;
}

async function knock({ host, connections, options }: Asking, signal: AbortSignal): Promise<Door> {
  const url = new URL(`${host.url.pathname}/`, host.url);
  const both = AbortSignal.any([signal, AbortSignal.timeout(answerMs)]);
  try {
    const headers = { "user-agent": `hawser/${options.version}`, ...host.headers };
    const dispatcher = await connections.to(host);
    const answer = await request(url, { dispatcher, headers, signal: both });
    await answer.body.dump({ limit: bodyBytesMax });
    const text = (name: string): string => [answer.headers[name] ?? ""].flat().join(", ");
    return { status: answer.statusCode, challenge: text("www-authenticate"), date: text("date") };
  } catch (error) {
    throw transportError(error, url, both);
  }
}

function authorization({ status, challenge }: Door, host: Host): Finding {
  const what = "authorization";
  if (status === 200) return { state: "ok", what, finding: "none asked for at the door" };
  if (status !== 401) {
    const finding = `${plain(host.url)}/ answers ${status}, where a registry answers 200 or 401`;
    const todo = "look at the registry's own log, and at override_path in hosts.toml";
    return { state: status >= 500 || status === 404 ? "broken" : "slow", what, finding, todo };
  }
  const challenges = parseChallenges(challenge);
  const bearer = challenges.find(({ scheme }) => scheme === "bearer");
  const realm = bearer?.parameters["realm"] ?? "";
  if (URL.canParse(realm)) return { state: "ok", what, finding: `tokens from ${plain(new URL(realm))}` };
  if (challenges.some(({ scheme }) => scheme === "basic")) return { state: "ok", what, finding: "basic" };
  const schemes = challenges.map(({ scheme }) => scheme).join(", ") || "nothing that is understood";
  const finding = `asks for ${schemes}, and only basic and bearer are known`;
  return { state: "broken", what, finding, todo: "use a registry or mirror with one of these" };
}

async function* imageFindings(asking: Asking, signal: AbortSignal): AsyncGenerator<Finding> {
  const { options, target, host, connections } = asking;
  const { reference, credentials } = target;
  if (reference === undefined) return;
  const what = "image";
  if (!host.canResolve && reference.digest === undefined) {
    yield { state: "unknown", what, finding: "hosts.toml does not let it say what a tag stands for" };
    return;
  }
  const requester = new Requester({
    host,
    registryHost: reference.host,
    repository: reference.repository,
    credentials,
    route: await connections.to(host),
    tokens: new TokenCache(realTiming.now),
    userAgent: `hawser/${options.version}`,
    timing: realTiming,
    wording: wordingOf(""),
    answerTimeoutMs: answerMs,
    progressTimeoutMs: answerMs,
  });
  let layer: Descriptor | undefined;
  try {
    layer = await largestLayer(asking, requester, signal);
  } catch (error) {
    yield refusal(PullError.from(error), host, target);
    return;
  }
  yield { state: "ok", what, finding: `${reference.name} can be pulled` };
  if (layer === undefined) {
    yield { state: "unknown", what: "rate", finding: "the image has no layers", todo: "name another image" };
    return;
  }
  const streams = options.hostStreams.get(host.url.host) ?? options.streams;
  const { repository } = reference;
  try {
    yield* checkRates({ requester, repository, descriptor: layer, streams }, signal);
  } catch (error) {
    const finding = `a layer cannot be read: ${reasonOf(error)}`;
    yield { state: "broken", what: "layers", finding, todo: "look at the registry's own log" };
  }
}

async function largestLayer(
  { target, options }: Asking,
  requester: Requester,
  signal: AbortSignal,
): Promise<Descriptor | undefined> {
  const { reference } = target;
  if (reference === undefined) return undefined;
  const health = new Health({ failures: Number.POSITIVE_INFINITY, resetMs: answerMs, changed: () => {} });
  const repository = new HttpRepository({
    reference,
    requesters: async () => await Promise.resolve([requester]),
    health,
    timing: realTiming,
    chunkBytes: manifestBytesMax,
    streams: options.streams,
    hostStreams: options.hostStreams,
    retries: 0,
    fallbackAfterMs: answerMs,
    events: { bytes: () => {}, retry: () => {} },
  });
  const { descriptor, body } = await repository.resolve(true, signal);
  const bytes = body ?? (await repository.fetch(descriptor, manifestBytesMax, signal));
  const manifest = isIndex(descriptor.mediaType)
    ? await repository.fetch(selectPlatform(parseIndex(bytes), hostPlatform()), manifestBytesMax, signal)
    : bytes;
  return parseManifest(manifest).layers.toSorted((a, b) => b.size - a.size)[0];
}

/** A mirror need not have everything; the registry must. */
function refusal(failure: PullError, host: Host, { reference, credentials }: RegistryTarget): Finding {
  const what = "image";
  const log = "look at the registry's own log";
  if (failure.code === "not_found") {
    const finding = `${reference?.name} is not there`;
    return host.isMirror
      ? { state: "unknown", what, finding: `${finding}; a pull asks the next host` }
      : { state: "broken", what, finding, todo: "look at the name and tag" };
  }
  const who = credentials
    ? "look at the credentials, and at what they may read"
    : "give credentials with --creds-stdin";
  return { state: "broken", what, finding: failure.message, todo: failure.code === "refused" ? who : log };
}

// certs.d: every folder of every directory in config_path, read by the parser that pulls use.

import { X509Certificate } from "node:crypto";
import { join } from "node:path";
import { PullError } from "../errors.ts";
import { plain } from "../registry/failure.ts";
import { type Host, HostsFileError, isLoopback, readFolder } from "../registry/hosts.ts";
import type { Context, Finding } from "./doctor.ts";
import { codeOf, reasonOf } from "./tree.ts";

/** More folders than this are not told one by one. */
const foldersMax = 500;

/** Directories of certs.d that are in force: Hawser's, if it has any of its own, else containerd's. */
export async function certsFolders({ options, inspection }: Context): Promise<readonly string[]> {
  if (options.configPath !== undefined) return options.configPath;
  const { cri } = await inspection();
  if (cri instanceof PullError) throw cri;
  return cri.configPath;
}

export async function* checkCerts(context: Context, now: () => number = Date.now): AsyncGenerator<Finding> {
  const { tree } = context;
  const roots = await certsFolders(context);
  const seen = new Map<string, string>();
  let covering: string | undefined;
  for (const root of roots) {
    if (!(await tree.exists(root))) {
      yield { state: "ok", what: root, finding: "is not there" };
      continue;
    }
    for (const name of inOrder(await tree.list(root))) {
      const folder = join(root, name);
      if (!(await tree.isDirectory(folder))) continue;
      const host = hostNamed(name);
      const former = seen.get(host) ?? covering;
      if (former !== undefined) yield shadowed(folder, former);
      else yield* folderFindings(tree.at(folder), folder, host, now());
      seen.set(host, former ?? folder);
      if (seen.size >= foldersMax) {
        yield {
          state: "unknown",
          what: root,
          finding: `only the first ${foldersMax} folders were looked at`,
        };
        return;
      }
    }
    // Directories are gone through one after the other, each with its default (reference 6.1).
    covering ??= seen.get("_default");
  }
  if (seen.size > 0) return;
  const finding = roots.length === 0 ? "config_path is not set" : "no folder for any registry";
  yield { state: "ok", what: "hosts", finding: `${finding}: each registry is asked itself` };
}

/** Of two names for one host, `host_port_` is looked for first. */
function inOrder(names: readonly string[]): string[] {
  const isFirst = (name: string): number => Number(/_\d+_$/.test(name));
  return names.toSorted((a, b) => isFirst(b) - isFirst(a));
}

/** `host_port_` is `host:port`; `_default` is for whichever has none of its own. */
function hostNamed(name: string): string {
  const [, host, port] = /^(.+)_(\d+)_$/.exec(name) ?? [];
  return host === undefined ? name : `${host}:${port}`;
}

function shadowed(folder: string, former: string): Finding {
  const finding = `is never read, since ${former} comes first`;
  return { state: "slow", what: folder, finding, todo: "make one folder of the two" };
}

async function* folderFindings(
  path: string,
  folder: string,
  host: string,
  now: number,
): AsyncGenerator<Finding> {
  const registry = host === "_default" ? "registry.invalid" : host;
  let hosts: Host[];
  try {
    hosts = await readFolder(path, registry);
  } catch (error) {
    yield unreadable(folder, path, error);
    return;
  }
  const names = hosts.map(({ url, isMirror }) =>
    isMirror ? plain(url) : host === "_default" ? "the registry" : plain(url),
  );
  yield { state: "ok", what: folder, finding: names.join(", then ") };
  for (const one of hosts) {
    yield* unverified(folder, one);
    yield* authorities(folder, one, now);
  }
}

function unreadable(folder: string, path: string, error: unknown): Finding {
  const failure = PullError.from(error);
  const message = failure.message.replaceAll(path, folder);
  if (!(failure instanceof HostsFileError)) {
    const finding = `${message}, which only containerd understands: it pulls these images itself`;
    return {
      state: "slow",
      what: folder,
      finding,
      todo: "write it without, if these pulls are to be accelerated",
    };
  }
  const { cause } = failure;
  const place =
    cause instanceof Error && "line" in cause && "column" in cause
      ? ` (line ${String(cause.line)}, column ${String(cause.column)})`
      : "";
  const why = codeOf(cause) === "" ? place : ` (${reasonOf(cause)})`;
  return {
    state: "broken",
    what: folder,
    finding: `${message}${why}`,
    todo: "correct it; files are read afresh with each pull",
  };
}

function* unverified(folder: string, { url, tls }: Host): Generator<Finding> {
  if (!tls.skipVerify || url.protocol !== "https:" || isLoopback(url.hostname)) return;
  const finding = `the certificate of ${url.host} is not verified (skip_verify): anybody in between can answer`;
  yield {
    state: "slow",
    what: folder,
    finding,
    todo: "name its authority with ca, and take skip_verify out",
  };
}

/** Authorities that are there and say nothing, or nothing any more. */
function* authorities(folder: string, { url, tls }: Host, now: number): Generator<Finding> {
  for (const pem of tls.ca) {
    const blocks = pem.match(/-----BEGIN CERTIFICATE-----[\s\S]*?-----END CERTIFICATE-----/g) ?? [];
    const certificates = blocks.flatMap((block) => parsed(block) ?? []);
    if (certificates.length === 0) {
      const finding = `a ca file for ${url.host} holds no certificate`;
      yield { state: "broken", what: folder, finding, todo: "put the authority's certificate there, as PEM" };
    }
    // Bundles hold old ones as well, which do no harm.
    const [first] = certificates;
    if (first && certificates.every(({ validTo }) => Date.parse(validTo) < now)) {
      const finding = `the authority for ${url.host} has expired on ${dayOf(first.validTo)} (${commonName(first.subject)})`;
      yield { state: "broken", what: folder, finding, todo: "put its successor there" };
    }
  }
}

function parsed(block: string): X509Certificate | undefined {
  try {
    return new X509Certificate(block);
  } catch {
    return undefined;
  }
}

export function dayOf(date: string): string {
  return new Date(date).toISOString().slice(0, 10);
}

/** Lines of `key=value`, of which the most telling. */
function commonName(subject: string): string {
  return /^CN=(.*)$/m.exec(subject)?.[1] ?? /^O=(.*)$/m.exec(subject)?.[1] ?? "without a name";
}

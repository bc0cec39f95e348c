// Which hosts serve a reference, in which order, and how to speak to each: hosts.toml of the certs.d directories, or
// the default host (reference 6.1). Files are read afresh for each pull, as containerd does.

import { readdir, readFile, stat } from "node:fs/promises";
import { dirname, isAbsolute, join } from "node:path";
import { parse } from "smol-toml";
import { PullError } from "../errors.ts";

export interface Host {
  /** Root of the API: `https://registry-1.docker.io/v2`. Neither user nor query. */
  readonly url: URL;
  /** Requests must say which registry they are meant for, since this is not it (`?ns=`). */
  readonly isMirror: boolean;
  readonly canResolve: boolean;
  readonly headers: Readonly<Record<string, string>>;
  readonly tls: HostTls;
  /** Spoken to over http, but offered TLS first, for which there are settings. */
  readonly offerTls: boolean;
  /** Longest wait for a connection, where the host has one of its own. */
  readonly dialTimeoutMs?: number;
}

interface HostTls {
  /** PEM, beside what the system trusts. */
  readonly ca: readonly string[];
  readonly skipVerify: boolean;
  /** What this node shows of itself, PEM. */
  readonly client?: { readonly cert: string; readonly key: string };
}

type Table = Readonly<Record<string, unknown>>;

/** A file that cannot be read or does not make sense, as opposed to one that only containerd understands. */
export class HostsFileError extends PullError {
  constructor(message: string, cause?: unknown) {
    super("unsupported", message, { cause });
  }
}

/** Throws `unsupported` for settings that only containerd understands; it then pulls by itself. */
export async function hostsOf(registryHost: string, configPath: readonly string[]): Promise<Host[]> {
  const folder = await findFolder(registryHost, configPath);
  return folder === undefined ? [defaultHost(registryHost)] : await readFolder(folder, registryHost);
}

/** What a folder of certs.d says of the registry that it is for; throws as {@link hostsOf} does. */
export async function readFolder(folder: string, registryHost: string): Promise<Host[]> {
  const own = defaultHost(registryHost);
  const file = join(folder, "hosts.toml");
  const text = await readIfThere(file);
  if (text.trim() === "") return [{ ...own, tls: { ...own.tls, ...(await looseCertificates(folder)) } }];
  const { server, host, ...settings } = parseToml(text, file);
  // containerd 1.6 takes no notice of a file without host tables, later ones do.
  if (host === undefined) throw new PullError("unsupported", `${file} has no host tables`);
  const hosts: Host[] = [];
  for (const [address, given] of Object.entries(table(host, `${file}: host`))) {
    hosts.push(await readHost(address, table(given, `${file}: host ${address}`), own, file));
  }
  hosts.push(await readServer(server, settings, own, file));
  return hosts;
}

/** The first of `host_port_`, `host` (with its port, if any) and `_default` that exists, root after root. */
async function findFolder(host: string, configPath: readonly string[]): Promise<string | undefined> {
  const colon = /^(.+):(\d+)$/.exec(host);
  const names = [...(colon ? [`${colon[1]}_${colon[2]}_`] : []), host, "_default"];
  for (const root of configPath) {
    for (const name of names) {
      const folder = join(root, name);
      if ((await stat(folder).catch(() => undefined))?.isDirectory()) return folder;
    }
  }
  return undefined;
}

async function readIfThere(file: string): Promise<string> {
  return await readFile(file, "utf8").catch((error: unknown) => {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return "";
    throw new HostsFileError(`${file} cannot be read`, error);
  });
}

function parseToml(text: string, file: string): Table {
  try {
    return parse(text);
  } catch (error) {
    throw new HostsFileError(`${file} is not TOML`, error);
  }
}

/** Docker's older layout, which counts where there is no hosts.toml: authorities, and client certificates. */
async function looseCertificates(folder: string): Promise<Omit<HostTls, "skipVerify">> {
  const names = (await readdir(folder)).sort();
  const ending = (suffix: string): string[] => names.filter((name) => name.endsWith(suffix));
  const ca = await Promise.all(ending(".crt").map((name) => readPem(name, folder)));
  const pairs = ending(".cert").map((cert) => {
    const key = cert.replace(/cert$/, "key");
    return [cert, names.includes(key) ? key : ""] as const;
  });
  return { ca, ...(await clientOf(pairs, folder, folder)) };
}

/** The certificate that this node shows, and its key, which an empty name looks for in the same file. */
async function clientOf(
  pairs: readonly (readonly [string, string])[],
  folder: string,
  where: string,
): Promise<Pick<HostTls, "client">> {
  const [pair, ...others] = pairs;
  if (pair === undefined) return {};
  // Which of several to show depends on what the server accepts; containerd can choose.
  if (others.length > 0) throw new PullError("unsupported", `${where}: several client certificates`);
  const [cert, key] = pair;
  return { client: { cert: await readPem(cert, folder), key: await readPem(key || cert, folder) } };
}

/** A file with both, a list of such, or a list of pairs of certificate and key. */
function pairsOf(value: unknown, where: string): [string, string][] {
  if (typeof value === "string") return [[value, ""]];
  if (!Array.isArray(value)) throw new HostsFileError(`${where} is neither a string nor a list`);
  return value.map((one: unknown): [string, string] => {
    if (typeof one === "string") return [one, ""];
    const [cert, key, ...more] = strings(one, where);
    if (cert === undefined || key === undefined || more.length > 0) {
      throw new HostsFileError(`${where} holds no pair of certificate and key`);
    }
    return [cert, key];
  });
}

const unitsMs: Readonly<Record<string, number>> = {
  ns: 1e-6,
  us: 1e-3,
  µs: 1e-3,
  ms: 1,
  s: 1000,
  m: 60_000,
  h: 3_600_000,
};

/** Go's notation: `1m30s`, `200ms`. */
function durationMs(value: unknown, where: string): number {
  const text = string(value, where);
  const parts = [...text.matchAll(/(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)/g)];
  if (text === "" || parts.map(([part]) => part).join("") !== text) {
    throw new HostsFileError(`${where} is no duration`);
  }
  return parts.reduce((sum, [, number, unit = ""]) => sum + Number(number) * (unitsMs[unit] ?? 0), 0);
}

/** The registry itself: https, except on loopback, where a registry with a port of its own speaks plain http. */
function defaultHost(registryHost: string): Host {
  const host = registryHost === "docker.io" ? "registry-1.docker.io" : registryHost;
  // A port over 65535, or digits that are no address: containerd says what is wrong with it.
  if (!URL.canParse(`https://${host}`) || !isAsWritten(new URL(`https://${host}`), host))
    throw new PullError("unsupported", `${host} is no host`);
  const { hostname, port } = new URL(`https://${host}`);
  const isPlain = isLoopback(hostname) && port !== "";
  return {
    url: new URL(`${isPlain ? "http" : "https"}://${host}/v2`),
    isMirror: false,
    canResolve: true,
    headers: {},
    tls: { ca: [], skipVerify: isLoopback(hostname) },
    offerTls: isPlain && port !== "80",
  };
}

/** Digits such as 0x7f.1 and 2130706433, addresses to URL, are names to whoever dials for containerd. */
function isAsWritten({ hostname }: URL, authority: string): boolean {
  return hostname === authority.toLowerCase().replace(/:\d*$/, "");
}

export function isLoopback(hostname: string): boolean {
  return hostname === "localhost" || /^(?:\[::1\]|::1|127(?:\.\d{1,3}){3})$/.test(hostname);
}

const known = new Set([
  "capabilities",
  "ca",
  "client",
  "header",
  "skip_verify",
  "override_path",
  "dial_timeout",
]);

/** What the top level describes: the host that is asked last. Without `server` that is the registry itself. */
async function readServer(server: unknown, settings: Table, own: Host, file: string): Promise<Host> {
  if (server !== undefined && server !== "") {
    return await readHost(string(server, `${file}: server`), settings, own, file);
  }
  const { capabilities: _all, ...others } = settings;
  const host = await readHost(own.url.origin, others, own, file);
  const tls = { ...host.tls, skipVerify: host.tls.skipVerify || own.tls.skipVerify };
  return { ...host, tls, offerTls: host.offerTls || own.offerTls };
}

async function readHost(address: string, settings: Table, own: Host, file: string): Promise<Host> {
  const where = `${file}: ${address}`;
  const unknown = Object.keys(settings).find((key) => !known.has(key));
  if (unknown !== undefined) throw new PullError("unsupported", `${where}: key ${unknown}`);
  const { capabilities, ca, client, header, skip_verify, override_path, dial_timeout } = settings;
  const can = capabilitiesOf(capabilities, `${where}: capabilities`);
  const url = apiRoot(address, flag(override_path, `${where}: override_path`), file);
  return {
    url,
    isMirror: url.host !== own.url.host,
    canResolve: can.includes("resolve"),
    headers: headers(header, `${where}: header`),
    tls: {
      ca: await Promise.all(strings(ca ?? [], `${where}: ca`).map((path) => readPem(path, dirname(file)))),
      skipVerify: flag(skip_verify, `${where}: skip_verify`),
      ...(client !== undefined &&
        (await clientOf(pairsOf(client, `${where}: client`), dirname(file), where))),
    },
    offerTls: isAmbiguous(address) && [ca, client, skip_verify].some(isGiven),
    ...(dial_timeout !== undefined && { dialTimeoutMs: durationMs(dial_timeout, `${where}: dial_timeout`) }),
  };
}

/** Plain http by its scheme, but not by its port. */
function isAmbiguous(address: string): boolean {
  return /^http:\/\/(?![^/]*:80(?:\/|$))/.test(address);
}

function isGiven(value: unknown): boolean {
  return value !== undefined;
}

/** None named are all of them. */
function capabilitiesOf(value: unknown, where: string): string[] {
  if (value !== undefined && !Array.isArray(value)) throw new PullError("unsupported", `${where} is no list`);
  const named = strings(value ?? [], where).map((name) => name.toLowerCase());
  if (named.length === 0) return ["pull", "resolve"];
  // containerd takes no notice of a file that has one which it does not know, and later releases know more.
  const unknown = named.find((name) => !["pull", "resolve", "push"].includes(name));
  if (unknown !== undefined) throw new PullError("unsupported", `${where}: ${unknown}`);
  if (!named.includes("pull")) {
    // containerd asks such a host for blobs all the same (reference 6.1); what that means is its to know.
    throw new PullError("unsupported", `${where} without "pull"`);
  }
  return named;
}

function apiRoot(address: string, overridePath: boolean, file: string): URL {
  const withScheme = /^https?:\/\//.test(address) ? address : `https://${address}`;
  if (!URL.canParse(withScheme)) {
    throw new HostsFileError(`${file}: ${JSON.stringify(address)} is no URL`);
  }
  const [, authority = ""] = /^https?:\/\/(?:[^/?#]*@)?([^/?#]*)/.exec(withScheme) ?? [];
  if (!isAsWritten(new URL(withScheme), authority))
    throw new PullError("unsupported", `${file}: ${JSON.stringify(address)} has no plain host`);
  // Of a URL, containerd takes scheme, host and path, and cleans the path.
  const { origin, pathname } = new URL(withScheme);
  const path = pathname.replace(/\/+/g, "/").replace(/\/$/, "");
  return new URL(origin + (overridePath || path.endsWith("/v2") ? path : `${path}/v2`));
}

/** Relative paths are relative to the folder. */
async function readPem(path: string, folder: string): Promise<string> {
  const absolute = isAbsolute(path) ? path : join(folder, path);
  return await readFile(absolute, "utf8").catch((error: unknown) => {
    throw new HostsFileError(`the certificate ${absolute} cannot be read`, error);
  });
}

function headers(value: unknown, where: string): Record<string, string> {
  const entries = Object.entries(table(value ?? {}, where));
  return Object.fromEntries(
    entries.map(([name, one]) => [name.toLowerCase(), strings(one, where).join(", ")]),
  );
}

function string(value: unknown, where: string): string {
  if (typeof value !== "string") throw new HostsFileError(`${where} is no string`);
  return value;
}

/** One string, or a list of them. */
function strings(value: unknown, where: string): string[] {
  return (Array.isArray(value) ? value : [value]).map((one) => string(one, where));
}

function flag(value: unknown, where: string): boolean {
  if (value !== undefined && typeof value !== "boolean") {
    throw new HostsFileError(`${where} is neither true nor false`);
  }
  return value ?? false;
}

function table(value: unknown, where: string): Table {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new HostsFileError(`${where} is no table`);
  }
  return value as Table;
}

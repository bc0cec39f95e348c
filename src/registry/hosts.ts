// Which hosts serve a reference, in which order, and how to speak to each: hosts.toml of the certs.d directories, or
// the default host (reference 6.1). Files are read afresh for each pull, as containerd does.

import { readdir, readFile, stat } from "node:fs/promises";
import { dirname, isAbsolute, join } from "node:path";
import { parse } from "smol-toml";
import { PullError } from "../errors.ts";

export interface Host {
  /** Root of the API, without a slash at its end: `https://registry-1.docker.io/v2`. */
  readonly url: URL;
  /** Requests must say which registry they are meant for, since this is not it (`?ns=`). */
  readonly isMirror: boolean;
  readonly canResolve: boolean;
  readonly headers: Readonly<Record<string, string>>;
  readonly tls: { readonly ca: readonly string[]; readonly skipVerify: boolean };
}

type Table = Readonly<Record<string, unknown>>;

/** Throws `unsupported` for settings that only containerd understands; it then pulls by itself. */
export async function hostsOf(registryHost: string, configPath: readonly string[]): Promise<Host[]> {
  const own = defaultHost(registryHost);
  const folder = await findFolder(registryHost, configPath);
  if (folder === undefined) return [own];
  const file = join(folder, "hosts.toml");
  const text = await readIfThere(file);
  if (text.trim() === "") return [{ ...own, tls: { ...own.tls, ca: await looseCertificates(folder) } }];
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
    throw new PullError("unsupported", `${file} cannot be read`, { cause: error });
  });
}

function parseToml(text: string, file: string): Table {
  try {
    return parse(text);
  } catch (error) {
    throw new PullError("unsupported", `${file} is not TOML`, { cause: error });
  }
}

/** Docker's older layout, which counts where there is no hosts.toml: authorities, and client certificates. */
async function looseCertificates(folder: string): Promise<string[]> {
  const names = (await readdir(folder)).sort();
  if (names.some((name) => name.endsWith(".cert"))) {
    throw new PullError("unsupported", `${folder} holds client certificates`);
  }
  const files = names.filter((name) => name.endsWith(".crt"));
  return await Promise.all(files.map((name) => readPem(name, folder)));
}

/** The registry itself: https, except on loopback, where a registry with a port of its own speaks plain http. */
function defaultHost(registryHost: string): Host {
  const host = registryHost === "docker.io" ? "registry-1.docker.io" : registryHost;
  // A port over 65535, or digits that are no address: containerd says what is wrong with it.
  if (!URL.canParse(`https://${host}`)) throw new PullError("unsupported", `${host} is no host`);
  const { hostname, port } = new URL(`https://${host}`);
  const isPlain = isLoopback(hostname) && port !== "";
  return {
    url: new URL(`${isPlain ? "http" : "https"}://${host}/v2`),
    isMirror: false,
    canResolve: true,
    headers: {},
    tls: { ca: [], skipVerify: isLoopback(hostname) },
  };
}

export function isLoopback(hostname: string): boolean {
  return hostname === "localhost" || hostname === "[::1]" || /^127(?:\.\d{1,3}){3}$/.test(hostname);
}

const known = new Set(["capabilities", "ca", "header", "skip_verify", "override_path"]);

/** What the top level describes: the host that is asked last. Without `server` that is the registry itself. */
async function readServer(server: unknown, settings: Table, own: Host, file: string): Promise<Host> {
  if (server !== undefined && server !== "") {
    return await readHost(string(server, `${file}: server`), settings, own, file);
  }
  const { capabilities: _all, ...others } = settings;
  const host = await readHost(own.url.origin, others, own, file);
  return { ...host, tls: { ...host.tls, skipVerify: host.tls.skipVerify || own.tls.skipVerify } };
}

async function readHost(address: string, settings: Table, own: Host, file: string): Promise<Host> {
  const where = `${file}: ${address}`;
  const unknown = Object.keys(settings).find((key) => !known.has(key));
  if (unknown !== undefined) throw new PullError("unsupported", `${where}: key ${unknown}`);
  const { capabilities, ca, header, skip_verify, override_path } = settings;
  const can = capabilities === undefined ? undefined : strings(capabilities, `${where}: capabilities`);
  if (can !== undefined && !can.includes("pull")) {
    // containerd asks such a host for blobs all the same (reference 6.1); what that means is its to know.
    throw new PullError("unsupported", `${where} without the capability "pull"`);
  }
  const url = apiRoot(address, flag(override_path, `${where}: override_path`), file);
  return {
    url,
    isMirror: url.host !== own.url.host,
    canResolve: can === undefined || can.includes("resolve"),
    headers: headers(header, `${where}: header`),
    tls: {
      ca: await Promise.all(strings(ca ?? [], `${where}: ca`).map((path) => readPem(path, dirname(file)))),
      skipVerify: flag(skip_verify, `${where}: skip_verify`),
    },
  };
}

function apiRoot(address: string, overridePath: boolean, file: string): URL {
  const withScheme = /^https?:\/\//.test(address) ? address : `https://${address}`;
  if (!URL.canParse(withScheme)) {
    throw new PullError("unsupported", `${file}: ${JSON.stringify(address)} is no URL`);
  }
  const url = new URL(withScheme);
  const path = url.pathname.replace(/\/+$/, "");
  url.pathname = overridePath || path.endsWith("/v2") ? path : `${path}/v2`;
  return url;
}

/** Relative paths are relative to the folder. */
async function readPem(path: string, folder: string): Promise<string> {
  const absolute = isAbsolute(path) ? path : join(folder, path);
  return await readFile(absolute, "utf8").catch((error: unknown) => {
    throw new PullError("unsupported", `the certificate ${absolute} cannot be read`, { cause: error });
  });
}

function headers(value: unknown, where: string): Record<string, string> {
  const entries = Object.entries(table(value ?? {}, where));
  return Object.fromEntries(
    entries.map(([name, one]) => [name.toLowerCase(), strings(one, where).join(", ")]),
  );
}

function string(value: unknown, where: string): string {
  if (typeof value !== "string") throw new PullError("unsupported", `${where} is no string`);
  return value;
}

/** One string, or a list of them. */
function strings(value: unknown, where: string): string[] {
  return (Array.isArray(value) ? value : [value]).map((one) => string(one, where));
}

function flag(value: unknown, where: string): boolean {
  if (value !== undefined && typeof value !== "boolean") {
    throw new PullError("unsupported", `${where} is neither true nor false`);
  }
  return value ?? false;
}

function table(value: unknown, where: string): Table {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new PullError("unsupported", `${where} is no table`);
  }
  return value as Table;
}

// Which hosts serve a reference, in which order, and how to speak to each: hosts.toml of the certs.d directories, or
// the default host (reference 6.1). Files are read afresh for each pull, as containerd does.

import { readFile, stat } from "node:fs/promises";
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
  const folder = await findFolder(registryHost, configPath);
  if (folder === undefined) return [defaultHost(registryHost)];
  const file = join(folder, "hosts.toml");
  const text = await readFile(file, "utf8").catch(() => "");
  if (text.trim() === "")
    throw new PullError("unsupported", `${folder} holds certificates and no hosts.toml`);
  let toml: Table;
  try {
    toml = parse(text);
  } catch (error) {
    throw new PullError("unsupported", `${file} is not TOML`, { cause: error });
  }
  const hosts: Host[] = [];
  for (const [address, settings] of Object.entries(table(toml["host"]))) {
    hosts.push(await readHost(address, table(settings), registryHost, file));
  }
  const server = toml["server"];
  const own = typeof server === "string" ? server : defaultHost(registryHost).url.origin;
  hosts.push(
    await readHost(
      own,
      typeof server === "string" ? toml : { ...toml, capabilities: undefined },
      registryHost,
      file,
    ),
  );
  return hosts;
}

/** The first of `host_port_`, `host:port`, `host` and `_default` that exists, root after root. */
async function findFolder(host: string, configPath: readonly string[]): Promise<string | undefined> {
  const colon = /^(.*):(\d+)$/.exec(host);
  const names = colon ? [`${colon[1]}_${colon[2]}_`, host, `${colon[1]}`] : [host];
  for (const root of configPath) {
    for (const name of [...names, "_default"]) {
      const folder = join(root, name);
      if ((await stat(folder).catch(() => undefined))?.isDirectory()) return folder;
    }
  }
  return undefined;
}

/** The registry itself: https, except on loopback, where a registry with a port of its own speaks plain http. */
function defaultHost(registryHost: string): Host {
  const host = registryHost === "docker.io" ? "registry-1.docker.io" : registryHost;
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

const known = new Set([
  "capabilities",
  "ca",
  "header",
  "skip_verify",
  "override_path",
  // Not those of a host, but of the file, whose top level describes the server.
  "server",
  "host",
]);

async function readHost(address: string, settings: Table, registryHost: string, file: string): Promise<Host> {
  for (const [key, value] of Object.entries(settings)) {
    if (value !== undefined && !known.has(key))
      throw new PullError("unsupported", `${file}: key ${key} of ${address}`);
  }
  const url = apiRoot(address, settings["override_path"] === true, file);
  const capabilities = settings["capabilities"] === undefined ? undefined : strings(settings["capabilities"]);
  if (capabilities !== undefined && !capabilities.includes("pull")) {
    // containerd asks such a host for blobs all the same (reference 6.1); what that means is its to know.
    throw new PullError("unsupported", `${file}: ${address} without the capability "pull"`);
  }
  return {
    url,
    isMirror: url.host !== defaultHost(registryHost).url.host,
    canResolve: capabilities === undefined || capabilities.includes("resolve"),
    headers: headers(settings["header"]),
    tls: {
      ca: await Promise.all(strings(settings["ca"] ?? []).map((path) => readPem(path, file))),
      skipVerify: settings["skip_verify"] === true,
    },
  };
}

function apiRoot(address: string, overridePath: boolean, file: string): URL {
  const text = /^https?:\/\//.test(address) ? address : `https://${address}`;
  if (!URL.canParse(text))
    throw new PullError("unsupported", `${file}: ${JSON.stringify(address)} is no URL`);
  const url = new URL(text);
  url.pathname = url.pathname.replace(/\/+$/, "");
  if (!overridePath && !url.pathname.endsWith("/v2")) url.pathname = `${url.pathname.replace(/^\/$/, "")}/v2`;
  return url;
}

async function readPem(path: string, file: string): Promise<string> {
  const absolute = isAbsolute(path) ? path : join(dirname(file), path);
  return await readFile(absolute, "utf8").catch((error: unknown) => {
    throw new PullError("unsupported", `${file}: the certificate ${absolute} cannot be read`, {
      cause: error,
    });
  });
}

function headers(value: unknown): Record<string, string> {
  const entries = Object.entries(table(value));
  return Object.fromEntries(entries.map(([name, text]) => [name.toLowerCase(), strings(text).join(", ")]));
}

function strings(value: unknown): string[] {
  if (typeof value === "string") return [value];
  return Array.isArray(value) ? value.filter((one) => typeof one === "string") : [];
}

function table(value: unknown): Table {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Table) : {};
}

// Which requests go through a proxy: HTTP_PROXY, HTTPS_PROXY and NO_PROXY as Go reads them, since containerd does.
//
// https goes through HTTPS_PROXY alone; requests to this machine never go through any. NO_PROXY names hosts with all
// below them (`example.com`), only what is below them (`.example.com`), addresses and networks, each but networks with a
// port or without, or everything (`*`).

import { BlockList, isIP } from "node:net";
import { PullError } from "../errors.ts";

/** Values as in HTTP_PROXY, HTTPS_PROXY and NO_PROXY. */
export interface ProxySettings {
  readonly http: string;
  readonly https: string;
  readonly no: string;
}

export class ProxyRules {
  readonly #http: URL | undefined;
  readonly #https: URL | undefined;
  readonly #isExempt: (hostname: string, port: string) => boolean;

  /** Throws `unsupported` for a proxy that does not speak HTTP. */
  constructor({ http, https, no }: ProxySettings) {
    this.#http = proxyUrl(http);
    this.#https = proxyUrl(https);
    this.#isExempt = exemptions(no);
  }

  /** The proxy for an origin; undefined when it is asked directly. */
  proxyFor(origin: URL): URL | undefined {
    const isHttps = origin.protocol === "https:";
    const proxy = isHttps ? this.#https : this.#http;
    const hostname = origin.hostname.replace(/^\[|\]$/g, "");
    if (proxy === undefined || isThisMachine(hostname)) return undefined;
    return this.#isExempt(hostname, origin.port || (isHttps ? "443" : "80")) ? undefined : proxy;
  }
}

/** The process's environment; upper case goes before lower, as with Go. */
export function proxySettings(environment: NodeJS.ProcessEnv): ProxySettings {
  const value = (name: string): string => environment[name] || environment[name.toLowerCase()] || "";
  return { http: value("HTTP_PROXY"), https: value("HTTPS_PROXY"), no: value("NO_PROXY") };
}

function proxyUrl(text: string): URL | undefined {
  if (text === "") return undefined;
  const withScheme = /^\w+:\/\//.test(text) ? text : `http://${text}`;
  const url = URL.canParse(withScheme) ? new URL(withScheme) : undefined;
  // What is wrong with it is not repeated, since it may hold a password.
  if (url === undefined || (url.protocol !== "http:" && url.protocol !== "https:")) {
    throw new PullError("unsupported", "HTTP_PROXY or HTTPS_PROXY names no HTTP proxy");
  }
  return url;
}

const ownNetworks = new BlockList();
ownNetworks.addSubnet("127.0.0.0", 8, "ipv4");
ownNetworks.addAddress("::1", "ipv6");

function isThisMachine(hostname: string): boolean {
  return hostname === "localhost" || contains(ownNetworks, hostname);
}

function exemptions(text: string): (hostname: string, port: string) => boolean {
  const entries = text.split(",").map((entry) => entry.trim().toLowerCase());
  if (entries.includes("*")) return () => true;
  const rules = entries.filter((entry) => entry !== "").map(exemption);
  return (hostname, port) => rules.some((rule) => rule(hostname, port));
}

function exemption(entry: string): (hostname: string, port: string) => boolean {
  const [address = "", bits = "", ...more] = entry.split("/");
  if (isIP(address) > 0 && /^\d+$/.test(bits) && more.length === 0) {
    const network = subnet(address, Number(bits));
    return (hostname) => contains(network, hostname);
  }
  const [, name = "", port] = /^(\[.*\]|[^:]*):(\d*)$/.exec(entry) ?? [undefined, entry, ""];
  const isPort = (asked: string): boolean => port === "" || asked === port;
  const host = name.replace(/^\[|\]$/g, "");
  if (isIP(host) > 0) {
    const only = subnet(host, isIP(host) === 4 ? 32 : 128);
    return (hostname, asked) => contains(only, hostname) && isPort(asked);
  }
  const below = host.replace(/^\*(?=\.)/, "").replace(/^(?!\.)/, ".");
  return (hostname, asked) =>
    (hostname.endsWith(below) || (!/^\*?\./.test(host) && hostname === host)) && isPort(asked);
}

function subnet(address: string, bits: number): BlockList {
  const list = new BlockList();
  const family = isIP(address) === 4 ? "ipv4" : "ipv6";
  if (bits <= (family === "ipv4" ? 32 : 128)) list.addSubnet(address, bits, family);
  return list;
}

function contains(list: BlockList, hostname: string): boolean {
  const family = isIP(hostname);
  return family > 0 && list.check(hostname, family === 4 ? "ipv4" : "ipv6");
}

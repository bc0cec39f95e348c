// The way to one registry host, step by step: its name, a connection, the proxy's tunnel, TLS. Each step is bounded in
// time, sends nothing but what the step takes, and closes what it opened.

import type { LookupAddress } from "node:dns";
import { lookup } from "node:dns/promises";
import { once } from "node:events";
import { request as plainRequest } from "node:http";
import { request as tlsRequest } from "node:https";
import { connect, isIP, type Socket } from "node:net";
import { type PeerCertificate, connect as secure, type TLSSocket } from "node:tls";
import { PullError } from "../errors.ts";
import type { TlsOptions } from "../registry/connector.ts";
import { dayOf } from "./certs.ts";
import type { Finding } from "./doctor.ts";
import { shown } from "./proxy.ts";
import { codeOf, reasonOf } from "./tree.ts";

export interface Way {
  readonly url: URL;
  readonly proxy: URL | undefined;
  readonly tls: TlsOptions;
  /** Longest wait for each step. */
  readonly stepMs: number;
  /** From when on a step is slow. */
  readonly slowMs: typeof usualSlowMs;
  readonly now: () => number;
}

/** Longer than this a step costs every pull a good part of its time. */
export const usualSlowMs: { readonly name: number; readonly connection: number; readonly tls: number } = {
  name: 500,
  connection: 300,
  tls: 600,
};
/** Certificates that end sooner are worth a word. */
const soonMs = 14 * 24 * 60 * 60 * 1000;

/** Goes as far as it leads; the last finding is `broken` when that is not all the way. */
export async function* tryWay(way: Way, signal: AbortSignal): AsyncGenerator<Finding> {
  const { url, proxy } = way;
  const target = proxy ?? url;
  const name = yield* tryName(target.hostname.replace(/^\[|\]$/g, ""), way, signal);
  if (!name) return;
  let socket: Socket | undefined;
  try {
    socket = yield* tryConnection(target, way, signal);
    // What is http the proxy fetches itself.
    if (socket !== undefined && proxy !== undefined && url.protocol === "https:") {
      socket.destroy();
      socket = yield* tryTunnel(proxy, way, signal);
    }
    if (socket !== undefined && url.protocol === "https:") yield* tryTls(socket, way, signal);
  } finally {
    socket?.destroy();
  }
}

async function* tryName(hostname: string, way: Way, signal: AbortSignal): AsyncGenerator<Finding, boolean> {
  if (isIP(hostname) !== 0) return true;
  const what = "DNS";
  try {
    const [found, tookMs] = await timed(lookup(hostname, { all: true }), way, signal);
    const addresses = found.map(({ address }: LookupAddress) => address).join(", ");
    const todo = "look at the name servers in /etc/resolv.conf";
    yield judged(what, `${hostname} is ${addresses}`, tookMs, way.slowMs.name, todo);
    return true;
  } catch (error) {
    const todo = "look at the name, and at the name servers in /etc/resolv.conf";
    yield { state: "broken", what, finding: `${hostname}: ${reasonOf(error)}`, todo };
    return false;
  }
}

async function* tryConnection(
  target: URL,
  way: Way,
  signal: AbortSignal,
): AsyncGenerator<Finding, Socket | undefined> {
  const what = "TCP";
  const port = portOf(target);
  const socket = connect({ host: target.hostname.replace(/^\[|\]$/g, ""), port: Number(port) });
  const name = way.proxy === undefined ? target.host : `proxy ${shown(target.href)}`;
  try {
    const [, tookMs] = await timed(once(socket, "connect"), way, signal);
    const finding = `${name}, connected to ${socket.remoteAddress ?? ""}:${port}`;
    yield judged(
      what,
      finding,
      tookMs,
      way.slowMs.connection,
      "look for a registry or mirror nearer to this node",
    );
    return socket;
  } catch (error) {
    socket.destroy();
    const isRefused = codeOf(error) === "ECONNREFUSED";
    const direct = isRefused
      ? "start it, or look at its port"
      : "look at routes and firewalls, and whether it needs a proxy";
    const todo = way.proxy === undefined ? direct : "start the proxy, or look at its address";
    yield { state: "broken", what, finding: `${name}: ${reasonOf(error)}`, todo };
    return undefined;
  }
}

async function* tryTunnel(
  proxy: URL,
  way: Way,
  signal: AbortSignal,
): AsyncGenerator<Finding, Socket | undefined> {
  const what = "proxy";
  if (!/^https?:$/.test(proxy.protocol)) {
    yield { state: "unknown", what, finding: `${shown(proxy.href)} is of a kind that is not looked into` };
    return undefined;
  }
  const user = decodeURIComponent(proxy.username);
  const pair = Buffer.from(`${user}:${decodeURIComponent(proxy.password)}`).toString("base64");
  const { hostname } = way.url;
  const request = (proxy.protocol === "https:" ? tlsRequest : plainRequest)({
    host: proxy.hostname,
    port: portOf(proxy),
    method: "CONNECT",
    path: `${hostname}:${portOf(way.url)}`,
    headers: user === "" ? {} : { "proxy-authorization": `Basic ${pair}` },
    ...(proxy.protocol === "https:" && { ca: way.tls.ca }),
  });
  try {
    request.end();
    const [[answer, socket], tookMs] = await timed(once(request, "connect"), way, signal);
    const { statusCode } = answer as { readonly statusCode: number };
    if (statusCode === 200) {
      yield judged(
        what,
        `${shown(proxy.href)} leads to ${hostname}`,
        tookMs,
        way.slowMs.connection,
        "look at the proxy",
      );
      return socket as Socket;
    }
    (socket as Socket).destroy();
    throw new PullError("refused", `answers ${statusCode} to CONNECT`);
  } catch (error) {
    request.destroy();
    const finding = `${shown(proxy.href)}: ${reasonOf(error)}`;
    yield { state: "broken", what, finding, todo: "allow this registry there, or name it in NO_PROXY" };
    return undefined;
  }
}

async function* tryTls(socket: Socket, way: Way, signal: AbortSignal): AsyncGenerator<Finding> {
  const what = "TLS";
  const hostname = way.url.hostname.replace(/^\[|\]$/g, "");
  // Whatever is wrong with the certificate is to be said, so the handshake must not end for it.
  const options = { ...way.tls, rejectUnauthorized: false };
  const tls = secure({
    ...options,
    socket,
    host: hostname,
    ...(isIP(hostname) === 0 && { servername: hostname }),
  });
  try {
    const [, tookMs] = await timed(once(tls, "secureConnect"), way, signal);
    yield certificate(tls, way);
    if (tookMs > way.slowMs.tls)
      yield {
        state: "slow",
        what,
        finding: `the handshake took ${milliseconds(tookMs)}`,
        todo: "look for a mirror nearer to this node",
      };
  } catch (error) {
    const todo = "see whether it speaks TLS at all: plain http needs an http:// host in hosts.toml";
    yield { state: "broken", what, finding: `the handshake failed: ${reasonOf(error)}`, todo };
  } finally {
    tls.destroy();
  }
}

function certificate(tls: TLSSocket, { tls: { rejectUnauthorized }, now }: Way): Finding {
  const what = "TLS";
  const peer: Partial<PeerCertificate> = tls.getPeerCertificate();
  const ends = Date.parse(peer.valid_to ?? "");
  const named = `${tls.getProtocol() ?? "TLS"}, certificate of ${nameIn(peer.subject)} by ${nameIn(peer.issuer)}`;
  const until = Number.isNaN(ends) ? "" : `, valid until ${dayOf(peer.valid_to ?? "")}`;
  const finding = `${named}${until}`;
  // Node gives the code as a string, and an error for a certificate of another name.
  const wrong: unknown = tls.authorizationError;
  if (!tls.authorized && rejectUnauthorized) {
    const code = wrong instanceof Error && "code" in wrong ? String(wrong.code) : String(wrong);
    return {
      state: "broken",
      what,
      finding: `${finding}: ${verdicts[code] ?? code}`,
      todo: remedies[code] ?? remedy,
    };
  }
  if (!tls.authorized) {
    return {
      state: "slow",
      what,
      finding: `${finding}, not verified (skip_verify)`,
      todo: "name its authority with ca in hosts.toml",
    };
  }
  if (ends - now() < soonMs) {
    const days = Math.floor((ends - now()) / 86_400_000);
    return { state: "slow", what, finding: `${finding}, in ${days} days`, todo: "have it renewed" };
  }
  return { state: "ok", what, finding };
}

/** OpenSSL's verdicts that are met in practice. */
const verdicts: Readonly<Record<string, string>> = {
  CERT_HAS_EXPIRED: "it has expired",
  CERT_NOT_YET_VALID: "it is not valid yet",
  DEPTH_ZERO_SELF_SIGNED_CERT: "it is signed by itself",
  SELF_SIGNED_CERT_IN_CHAIN: "its authority is not trusted here",
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: "its authority is not known here",
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "its authority is not known here",
  UNABLE_TO_GET_ISSUER_CERT: "its authority is not known here",
  ERR_TLS_CERT_ALTNAME_INVALID: "it is another host's",
};
const remedy = "name its authority with ca in hosts.toml, or install it in the system";
const remedies: Readonly<Record<string, string>> = {
  CERT_HAS_EXPIRED: "have the registry's certificate renewed, or look at this node's clock",
  CERT_NOT_YET_VALID: "look at this node's clock",
  ERR_TLS_CERT_ALTNAME_INVALID: "ask it by a name that is in its certificate",
};

function nameIn(name: PeerCertificate["subject"] | undefined): string {
  return String(name?.CN ?? name?.O ?? "nobody");
}

function portOf(url: URL): string {
  return url.port || (url.protocol === "https:" ? "443" : "80");
}

function judged(what: string, finding: string, tookMs: number, limitMs: number, todo: string): Finding {
  const text = `${finding} (${milliseconds(tookMs)})`;
  return tookMs > limitMs
    ? { state: "slow", what, finding: text, todo }
    : { state: "ok", what, finding: text };
}

function milliseconds(timeMs: number): string {
  return `${Math.max(1, Math.round(timeMs))} ms`;
}

/** The result, and how long it took; rejects when the step's time is over. */
async function timed<Result>(
  step: Promise<Result>,
  { stepMs }: Way,
  signal: AbortSignal,
): Promise<[Result, number]> {
  const began = performance.now();
  let give = (_error: Error): void => {};
  const over = new Promise<never>((_, reject) => {
    give = reject;
  });
  const timer = setTimeout(() => give(new PullError("slow", `no answer within ${stepMs} ms`)), stepMs);
  const abort = (): void => give(new PullError("cancelled", "given up"));
  signal.addEventListener("abort", abort, { once: true });
  if (signal.aborted) abort();
  try {
    return [await Promise.race([step, over]), performance.now() - began];
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", abort);
    // Whichever comes second is nobody's business any more.
    step.catch(() => {});
    over.catch(() => {});
  }
}

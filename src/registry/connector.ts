// One connection to a host: TCP within the time that a dial may take, then TLS within what is left of the whole.
//
// A host that hosts.toml names with http and with settings for TLS is offered TLS first, as containerd 1.7 and later do
// it: an administrator who gives an authority means it. A certificate that is not trusted never leads to plain HTTP.
// Timers are the event loop's own; those of undici tick twice a second,
// which is too coarse for a dial_timeout of 200 ms.

import { connect as connectTcp, isIP, type OnReadOpts, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { buildConnector, errors } from "undici";
import { type Host, isLoopback } from "./hosts.ts";
import { Lately } from "./lately.ts";

export interface TlsOptions {
  readonly ca: string[];
  readonly rejectUnauthorized: boolean;
  readonly cert?: string;
  readonly key?: string;
}

export interface ConnectorOptions {
  readonly host: Host;
  readonly tls: TlsOptions;
  /** Longest wait for a connection, TLS included, unless the host has a dial_timeout: then for TLS alone. */
  readonly timeoutMs: number;
}

type Target = buildConnector.Options;

/** "HTTP" read as a record is of a wrong version or too long: which of them is said first depends on OpenSSL. */
const noTlsCodes = new Set([
  "ERR_SSL_WRONG_VERSION_NUMBER",
  "ERR_SSL_PACKET_LENGTH_TOO_LONG",
  "UND_ERR_CONNECT_TIMEOUT",
]);

/** For how long a host that answered TLS with plain HTTP is not offered TLS again. */
const plainMs = 60_000;
const keepAliveDelayMs = 60_000;

/** Connects to the host itself and to wherever it redirects; with `receive`, bytes come into the caller's own memory. */
export type Open = (target: Target, receive?: OnReadOpts) => Promise<Socket>;

export function openerTo({ host, tls, timeoutMs }: ConnectorOptions): Open {
  const dialMs = host.dialTimeoutMs ?? timeoutMs;
  const wholeMs = host.dialTimeoutMs === undefined ? timeoutMs : dialMs + timeoutMs;
  const handshake = buildConnector({ ...tls, timeout: 0 });
  const openSecure: Open = async (target, receive) => {
    const began = performance.now();
    const left = (): number => wholeMs - (performance.now() - began);
    if (receive) return await encryptInto(receive, tls, target, dialMs, left);
    const socket = await dial(target, dialMs);
    try {
      return await within(left(), target, encrypt(handshake, { ...target, httpSocket: socket }));
    } catch (error) {
      socket.destroy();
      throw error;
    }
  };
  /** Those that answered TLS with plain HTTP. */
  const plain = new Lately(plainMs);
  return async (target, receive) => {
    if (target.protocol === "https:") return await openSecure(target, receive);
    const name = `${target.hostname}:${target.port}`;
    if (plain.has(name) || !host.offerTls || !isMeant(host, target))
      return await dial(target, dialMs, receive);
    try {
      return await openSecure({ ...target, protocol: "https:" }, receive);
    } catch (error) {
      if (!isNoTls(error, target)) throw error;
      plain.add(name);
      return await dial(target, dialMs, receive);
    }
  };
}

/** The same for undici. */
export function connectorOf(open: Open): buildConnector.connector {
  return (target, done) => {
    open(target).then(
      (socket) => done(null, socket),
      (error: unknown) => done(error instanceof Error ? error : new Error(String(error)), null),
    );
  };
}

/** The host itself and not where it redirects. All registries on this machine are one host here, as are their pools. */
function isMeant(host: Host, { host: name, hostname }: Target): boolean {
  return name === host.url.host || (isLoopback(host.url.hostname) && isLoopback(hostname));
}

async function dial(target: Target, timeoutMs: number, receive?: OnReadOpts): Promise<Socket> {
  const options = {
    ...addressOf(target),
    highWaterMark: 64 * 1024,
    noDelay: true,
    keepAlive: true,
    keepAliveInitialDelay: keepAliveDelayMs,
    ...(receive && { onread: receive }),
  };
  const socket = connectTcp(options);
  // Whoever uses the connection listens for its errors; one that nobody uses any more has nobody to tell.
  socket.on("error", () => {});
  try {
    await within(timeoutMs, target, told(socket, "connect"));
    return socket;
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

/** A connection over TLS whose content comes into the caller's memory: only one that Node opens by itself can do that. */
async function encryptInto(
  receive: OnReadOpts,
  tls: TlsOptions,
  target: Target,
  dialMs: number,
  left: () => number,
): Promise<Socket> {
  const address = addressOf(target);
  const options = {
    ...tls,
    ...address,
    // Names alone are told to servers (RFC 6066, 3).
    ...(isIP(address.host) === 0 && { servername: address.host }),
    ALPNProtocols: ["http/1.1"],
    onread: receive,
  };
  const socket = connectTls(options);
  socket.on("error", () => {});
  try {
    await within(dialMs, target, told(socket, "connect"));
    socket.setNoDelay(true).setKeepAlive(true, keepAliveDelayMs);
    await within(left(), target, told(socket, "secureConnect"));
    return socket;
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

function addressOf({ hostname, port, protocol }: Target): { readonly host: string; readonly port: number } {
  const host = hostname.replace(/^\[(.*)\]$/, "$1");
  return { host, port: Number(port || (protocol === "https:" ? 443 : 80)) };
}

async function told(socket: Socket, event: "connect" | "secureConnect"): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    socket.once(event, resolve).once("error", reject);
    socket.once("close", () => reject(new errors.SocketError("the connection was closed")));
  });
}

async function encrypt(handshake: buildConnector.connector, target: Target): Promise<Socket> {
  return await new Promise<Socket>((resolve, reject) => {
    handshake(target, (error, socket) => (error ? reject(error) : resolve(socket)));
  });
}

/** Rejects when the time is over; what is waited for goes on. */
async function within<Value>(timeMs: number, { host }: Target, what: Promise<Value>): Promise<Value> {
  let timer: NodeJS.Timeout | undefined;
  const over = new Promise<never>((_resolve, reject) => {
    const message = `no connection to ${host} within the time that it may take`;
    timer = setTimeout(() => reject(new errors.ConnectTimeoutError(message)), Math.max(0, timeMs));
  });
  try {
    return await Promise.race([what, over]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * A greeting that was answered with something else or not at all; or, where no port is named, nobody at the one for
 * https. What is wrong with a certificate is none of these.
 */
function isNoTls(error: unknown, { port }: Target): boolean {
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  const isElsewhere = port === "" && code === "ECONNREFUSED";
  return isElsewhere || noTlsCodes.has(code);
}

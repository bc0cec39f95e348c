// One connection to a host: TCP within the time that a dial may take, then TLS within what is left of the whole.
//
// A host that hosts.toml names with http and with settings for TLS is offered TLS first, as containerd 1.7 and later do
// it: an administrator who gives an authority means it. A certificate that is not trusted never leads to plain HTTP.
// Timers are the event loop's own; those of undici tick twice a second,
// which is too coarse for a dial_timeout of 200 ms.

import { connect as connectTcp, type Socket } from "node:net";
import { buildConnector, errors } from "undici";
import { type Host, isLoopback } from "./hosts.ts";

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

/** For how long a host that answered TLS with plain HTTP is not offered TLS again, and how many are remembered. */
const plainMs = 60_000;
const plainMax = 256;

/** Connects to the host itself and to wherever it redirects. */
export function connectorTo({ host, tls, timeoutMs }: ConnectorOptions): buildConnector.connector {
  const dialMs = host.dialTimeoutMs ?? timeoutMs;
  const wholeMs = host.dialTimeoutMs === undefined ? timeoutMs : dialMs + timeoutMs;
  const handshake = buildConnector({ ...tls, timeout: 0 });
  const openSecure = async (target: Target): Promise<Socket> => {
    const began = performance.now();
    const socket = await dial(target, dialMs);
    try {
      const left = wholeMs - (performance.now() - began);
      return await within(left, target, encrypt(handshake, { ...target, httpSocket: socket }));
    } catch (error) {
      socket.destroy();
      throw error;
    }
  };
  const plainUntil = new Map<string, number>();
  const open = async (target: Target): Promise<Socket> => {
    if (target.protocol === "https:") return await openSecure(target);
    const name = `${target.hostname}:${target.port}`;
    const isPlain = (plainUntil.get(name) ?? Number.NEGATIVE_INFINITY) > performance.now();
    if (isPlain || !host.offerTls || !isMeant(host, target)) return await dial(target, dialMs);
    try {
      return await openSecure({ ...target, protocol: "https:" });
    } catch (error) {
      if (!isNoTls(error, target)) throw error;
      plainUntil.delete(name);
      plainUntil.set(name, performance.now() + plainMs);
      const oldest = plainUntil.keys().next();
      if (plainUntil.size > plainMax && !oldest.done) plainUntil.delete(oldest.value);
      return await dial(target, dialMs);
    }
  };
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

async function dial(target: Target, timeoutMs: number): Promise<Socket> {
  const { hostname, port, protocol } = target;
  const options = {
    host: hostname,
    port: Number(port || (protocol === "https:" ? 443 : 80)),
    highWaterMark: 64 * 1024,
    noDelay: true,
    keepAlive: true,
    keepAliveInitialDelay: 60_000,
  };
  const socket = connectTcp(options);
  // Whoever uses the connection listens for its errors; one that nobody uses any more has nobody to tell.
  socket.on("error", () => {});
  const connected = new Promise<void>((resolve, reject) => {
    socket.once("connect", resolve).once("error", reject);
  });
  try {
    await within(timeoutMs, target, connected);
    return socket;
  } catch (error) {
    socket.destroy();
    throw error;
  }
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

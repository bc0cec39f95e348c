// A registry that misbehaves on request: in-process, from memory, with a log of what it was asked.
//
// It serves what put() gave it. `behave` is asked for each request and may change how it is answered; the defaults are
// those of a good registry with ranges. Use `gate()` for a pause that a test ends.

import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo } from "node:net";
import { gunzipSync } from "node:zlib";
import { mediaTypes } from "../../src/oci/media.ts";
import { layerTypes } from "../harness/images.ts";

export interface Behaviour {
  /** Answered at once, with this status. */
  readonly status?: number;
  readonly headers?: Readonly<Record<string, string>>;
  /** The body instead of what is asked for. */
  readonly body?: Buffer;
  /** The body comes at this rate, on each connection. */
  readonly bytesPerSecond?: number;
  /** Nothing is answered before this settles. */
  readonly answer?: Promise<void>;
  /** Whole blobs whatever range is asked for. */
  readonly ignoreRange?: boolean;
  /** After so many bytes of the body ... */
  readonly after?: number;
  /** ... this happens: the connection is cut, or the rest waits for a promise. */
  readonly afterwards?: "reset" | Promise<void>;
}

export interface Asked {
  readonly method: string;
  readonly path: string;
  readonly query: string;
  readonly range: string | undefined;
  readonly authorization: string | undefined;
  readonly headers: IncomingMessage["headers"];
}

/** What is served of a blob: a Buffer, or something that makes its bytes when they are asked for. */
export interface Content {
  readonly length: number;
  subarray(start: number, end: number): Buffer;
}

export interface FakeImage<Bytes extends Content = Buffer> {
  readonly reference: string;
  readonly layers: readonly { readonly digest: string; readonly bytes: Bytes }[];
  readonly manifestDigest: string;
  readonly configDigest: string;
}

export interface FakeLayer<Bytes extends Content = Buffer> {
  readonly bytes: Bytes;
  readonly mediaType?: string;
  /** The uncompressed stream, when it is not gzip of this. */
  readonly tar?: Buffer;
  /** What the manifest says instead of the truth. */
  readonly digest?: string;
  readonly size?: number;
  readonly diffID?: string;
}

interface FakeBlob {
  readonly digest: string;
  readonly size: number;
}

export class FakeRegistry implements AsyncDisposable {
  readonly asked: Asked[] = [];
  readonly #server: Server;
  readonly #blobs = new Map<string, { readonly bytes: Content; readonly mediaType: string }>();
  behave: (asked: Asked) => Behaviour | undefined = () => undefined;
  /** Paths of configs, which are blobs as well but no layers. */
  readonly #configs = new Set<string>();
  /** Requests for layers that are open now, and the most there were at once. */
  openBlobs = 0;
  peakBlobs = 0;

  private constructor(server: Server) {
    this.#server = server;
  }

  /** Over TLS when it is given a certificate and its key. */
  static async start(
    tls?: { readonly cert: Buffer; readonly key: Buffer },
    address = "127.0.0.1",
  ): Promise<FakeRegistry> {
    const server = tls ? createTlsServer(tls) : createServer();
    const registry = new FakeRegistry(server);
    server.on("request", (request, response) => void registry.#answer(request, response));
    await new Promise<void>((resolve) => {
      server.listen(0, address, resolve);
    });
    return registry;
  }

  get host(): string {
    const { address, family, port } = this.#server.address() as AddressInfo;
    return `${family === "IPv6" ? `[${address}]` : address}:${port}`;
  }

  /** Requests for blobs of layers, by digest. */
  rangesOf(digest: string): (string | undefined)[] {
    return this.asked.filter(({ path }) => path.endsWith(`/blobs/${digest}`)).map(({ range }) => range);
  }

  put<Bytes extends Content = Buffer>(
    name: string,
    layers: readonly FakeLayer<Bytes>[],
    manifestExtra: Readonly<Record<string, unknown>> = {},
  ): FakeImage<Bytes> {
    const [repository = "", tag = "latest"] = name.split(":");
    const stored = layers.map((layer) => {
      const { digest, size } = this.blob(repository, layer.bytes, layer.digest);
      return { mediaType: layer.mediaType ?? layerTypes.ociGzip, digest, size: layer.size ?? size };
    });
    const diffIDs = layers.map((layer) => layer.diffID ?? sha256(layer.tar ?? inflated(whole(layer.bytes))));
    const config = this.config(repository, configOf(diffIDs));
    const manifest = {
      schemaVersion: 2,
      mediaType: mediaTypes.ociManifest,
      config: { mediaType: mediaTypes.ociConfig, ...config },
      layers: stored,
      ...manifestExtra,
    };
    const text = Buffer.from(JSON.stringify(manifest));
    const { digest } = this.document(repository, text, mediaTypes.ociManifest, tag);
    return {
      reference: `${this.host}/${repository}:${tag}`,
      layers: layers.map(({ bytes }, index) => ({ digest: stored[index]?.digest ?? "", bytes })),
      manifestDigest: digest,
      configDigest: config.digest,
    };
  }

  /** A layer, or anything else that is fetched as a blob; under another digest than its own if one is given. */
  blob(repository: string, bytes: Content, digest = sha256(whole(bytes))): FakeBlob {
    this.#blobs.set(`/v2/${repository}/blobs/${digest}`, { bytes, mediaType: "application/octet-stream" });
    return { digest, size: bytes.length };
  }

  config(repository: string, bytes: Buffer): FakeBlob {
    const blob = this.blob(repository, bytes);
    this.#configs.add(`/v2/${repository}/blobs/${blob.digest}`);
    return blob;
  }

  /** A manifest or an index, by its digest and, if one is given, by a tag. */
  document(repository: string, bytes: Buffer, mediaType: string, tag?: string): FakeBlob {
    const digest = sha256(bytes);
    for (const version of [digest, ...(tag === undefined ? [] : [tag])])
      this.#blobs.set(`/v2/${repository}/manifests/${version}`, { bytes, mediaType });
    return { digest, size: bytes.length };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? "/", "http://fake");
    const { range, authorization } = request.headers;
    const asked = {
      method: request.method ?? "",
      path: url.pathname,
      query: url.search,
      range,
      authorization,
      headers: request.headers,
    };
    this.asked.push(asked);
    const behaviour = this.behave(asked) ?? {};
    const isLayer = url.pathname.includes("/blobs/") && !this.#configs.has(url.pathname);
    if (isLayer) this.peakBlobs = Math.max(this.peakBlobs, ++this.openBlobs);
    response.once("close", () => {
      if (isLayer) this.openBlobs -= 1;
    });
    await behaviour.answer;
    if (behaviour.status !== undefined) {
      response.writeHead(behaviour.status, behaviour.headers).end(behaviour.body);
      return;
    }
    const stored = this.#blobs.get(url.pathname);
    const body = behaviour.body ?? stored?.bytes;
    if (body === undefined) {
      response.writeHead(url.pathname === "/v2/" ? 200 : 404).end();
      return;
    }
    await this.#serve(asked, response, behaviour, body, stored?.mediaType ?? "application/octet-stream");
  }

  async #serve(
    asked: Asked,
    response: ServerResponse,
    behaviour: Behaviour,
    bytes: Content,
    mediaType: string,
  ): Promise<void> {
    const match = behaviour.ignoreRange ? null : /^bytes=(\d+)-(\d+)?$/.exec(asked.range ?? "");
    const start = Number(match?.[1] ?? 0);
    const end = Math.min(bytes.length, match?.[2] === undefined ? bytes.length : Number(match[2]) + 1);
    const body = bytes.subarray(start, end);
    const headers: Record<string, string> = {
      "content-type": mediaType,
      "content-length": String(body.length),
      ...(asked.path.includes("/manifests/") && { "docker-content-digest": sha256(whole(bytes)) }),
      ...(match && { "content-range": `bytes ${start}-${end - 1}/${bytes.length}` }),
      ...behaviour.headers,
    };
    response.writeHead(match ? 206 : 200, headers);
    if (asked.method === "HEAD") {
      response.end();
      return;
    }
    if (behaviour.bytesPerSecond !== undefined) {
      drip(response, body, behaviour.bytesPerSecond / 20);
      return;
    }
    if (behaviour.after === undefined || behaviour.after >= body.length) {
      response.end(body);
      return;
    }
    response.write(body.subarray(0, behaviour.after), () => {
      if (behaviour.afterwards === "reset") response.destroy();
    });
    if (behaviour.afterwards !== "reset") {
      await behaviour.afterwards;
      response.end(body.subarray(behaviour.after));
    }
  }
}

/** Twenty pieces a second until the body ends or nobody wants it any more. */
function drip(response: ServerResponse, body: Buffer, pieceBytes: number): void {
  const size = Math.ceil(pieceBytes);
  let sent = 0;
  const timer = setInterval(() => {
    response.write(body.subarray(sent, sent + size));
    sent += size;
    if (sent < body.length) return;
    clearInterval(timer);
    response.end();
  }, 50);
  response.once("close", () => clearInterval(timer));
}

/** A promise that a test settles. */
export function gate(): { readonly opened: Promise<void>; open(): void } {
  let open = (): void => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { opened, open: () => open() };
}

export function sha256(bytes: Uint8Array): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}

function whole(content: Content): Buffer {
  return content.subarray(0, content.length);
}

/** A config for this machine. */
export function configOf(diffIDs: readonly string[], more: Readonly<Record<string, unknown>> = {}): Buffer {
  const architecture = process.arch === "arm64" ? "arm64" : "amd64";
  const rootfs = { type: "layers", diff_ids: diffIDs };
  return Buffer.from(JSON.stringify({ os: "linux", architecture, config: {}, rootfs, ...more }));
}

function inflated(bytes: Buffer): Buffer {
  return bytes[0] === 0x1f && bytes[1] === 0x8b ? gunzipSync(bytes) : bytes;
}

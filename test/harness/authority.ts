// A private certificate authority and what it signs: files in a folder of its own, as servers and hosts.toml want them.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { isIP } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** Paths of PEM files. */
export interface KeyPair {
  readonly cert: string;
  readonly key: string;
}

export class Authority implements Disposable {
  /** Its own certificate, which whoever trusts it must be given. */
  readonly cert: string;
  readonly folder: string;
  readonly #own: KeyPair;

  constructor() {
    this.folder = mkdtempSync(join(tmpdir(), "authority-"));
    this.#own = make(this.folder, "authority", []);
    this.cert = this.#own.cert;
  }

  /** A pair for a server at these addresses and names, or for a client. */
  issue(name: string, hosts: readonly string[] = ["127.0.0.1"]): KeyPair {
    const alternatives = hosts.map((host) => `${isIP(host) ? "IP" : "DNS"}:${host}`).join(",");
    const signed = ["-CA", this.#own.cert, "-CAkey", this.#own.key];
    return make(this.folder, name, [...signed, "-addext", `subjectAltName=${alternatives}`]);
  }

  /** Its own pair, with which it can sign anything. */
  get pair(): KeyPair {
    return this.#own;
  }

  [Symbol.dispose](): void {
    rmSync(this.folder, { recursive: true });
  }
}

/** What node:tls and node:https take. */
export function readPair({ cert, key }: KeyPair): { readonly cert: Buffer; readonly key: Buffer } {
  return { cert: readFileSync(cert), key: readFileSync(key) };
}

/** A key on P-256 and its certificate, signed by itself unless the options say by whom. */
function make(folder: string, name: string, options: readonly string[]): KeyPair {
  const pair = { cert: join(folder, `${name}.crt`), key: join(folder, `${name}.key`) };
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
  const out = ["-subj", `/CN=${name}`, "-days", "2", "-keyout", pair.key, "-out", pair.cert];
  execFileSync("openssl", ["req", "-x509", ...key, ...out, ...options], { stdio: "pipe" });
  return pair;
}

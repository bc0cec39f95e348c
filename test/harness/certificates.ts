// Keys and certificates for TLS tests, made by openssl in a folder: `<name>.key` and `<name>.crt`.

import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

export interface CertificateOptions {
  /** Name of the authority that signs it; by itself without. */
  readonly by?: string;
  /** What it is for, in OpenSSL's words. */
  readonly subjectAltName?: string;
  /** From when until when, `YYYYMMDDHHMMSSZ`; two days from now without. */
  readonly dates?: readonly [string, string];
}

/** Makes `<name>.key` and `<name>.crt` with this common name. */
export function certificate(folder: string, name: string, options: CertificateOptions = {}): void {
  const { by, subjectAltName = "IP:127.0.0.1", dates } = options;
  const at = (file: string): string => join(folder, file);
  const key = [
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:prime256v1",
    "-nodes",
    "-keyout",
    at(`${name}.key`),
  ];
  const subject = ["-subj", `/CN=${name}`, "-addext", `subjectAltName=${subjectAltName}`];
  if (dates === undefined) {
    const signer = by === undefined ? [] : ["-CA", at(`${by}.crt`), "-CAkey", at(`${by}.key`)];
    openssl("req", "-x509", ...key, "-days", "2", ...subject, ...signer, "-out", at(`${name}.crt`));
    return;
  }
  // Only "ca" takes dates, and it keeps books.
  openssl("req", "-new", ...key, ...subject, "-out", at(`${name}.csr`));
  const books = at("books");
  if (!existsSync(books)) mkdirSync(books);
  writeFileSync(join(books, "index"), "");
  writeFileSync(join(books, "config"), configuration(books));
  const signer =
    by === undefined
      ? ["-selfsign", "-keyfile", at(`${name}.key`)]
      : ["-cert", at(`${by}.crt`), "-keyfile", at(`${by}.key`)];
  const [start, end] = dates;
  const times = ["-startdate", start, "-enddate", end];
  const files = ["-in", at(`${name}.csr`), "-out", at(`${name}.crt`)];
  openssl("ca", "-batch", "-notext", "-config", join(books, "config"), ...signer, ...times, ...files);
}

function configuration(books: string): string {
  return `[ca]
default_ca = own
[own]
database = ${books}/index
new_certs_dir = ${books}
rand_serial = yes
default_md = sha256
policy = any
copy_extensions = copy
[any]
commonName = supplied
`;
}

function openssl(...args: readonly string[]): void {
  execFileSync("openssl", args, { stdio: "pipe" });
}

// Digests: branded strings that only parseDigest and sha256 make, so that a raw string is never taken for one.

import { createHash } from "node:crypto";
import { PullError } from "../errors.ts";

declare const brand: unique symbol;

/** `sha256:` and 64 lower-case hex digits (OCI image-spec, descriptor.md). Other algorithms are not accepted. */
export type Digest = string & { readonly [brand]: "digest" };

const sha256Pattern = /^sha256:[0-9a-f]{64}$/;
const anyPattern = /^[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+$/;

/** Throws `unsupported` for a well-formed digest of another algorithm and `invalid` for anything else. */
export function parseDigest(text: string): Digest {
  if (isDigest(text)) return text;
  if (anyPattern.test(text) && !text.startsWith("sha256:")) {
    throw new PullError("unsupported", `digest ${text.slice(0, 100)} is not sha256`);
  }
  throw new PullError("invalid", `${JSON.stringify(text.slice(0, 100))} is not a digest`);
}

function isDigest(text: string): text is Digest {
  return sha256Pattern.test(text);
}

export function sha256(bytes: Uint8Array | string): Digest {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}` as Digest;
}

/** The 64 hex digits. */
export function hexOf(digest: Digest): string {
  return digest.slice("sha256:".length);
}

/**
 * The chainID of every layer, from the diffIDs in order (OCI image-spec, config.md "Layer ChainID").
 * chainID(0) is diffID(0); chainID(n) is the digest of "chainID(n-1) diffID(n)".
 */
export function chainIDs(diffIDs: readonly Digest[]): Digest[] {
  const chain: Digest[] = [];
  for (const diffID of diffIDs) {
    const parent = chain.at(-1);
    chain.push(parent === undefined ? diffID : sha256(`${parent} ${diffID}`));
  }
  return chain;
}

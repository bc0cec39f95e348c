// References: "busybox:1.36" in, host, repository, tag and digest out, by containerd's rules (reference 2.1).

import { PullError } from "../errors.ts";
import { type Digest, parseDigest } from "./digest.ts";

export interface Reference {
  /** Host with port as in the canonical name: `docker.io`, `reg.example.com:5000`. */
  readonly host: string;
  /** `library/busybox`. */
  readonly repository: string;
  /** Set when the reference has a tag and no digest; a tag beside a digest is dropped. */
  readonly tag: string | undefined;
  readonly digest: Digest | undefined;
  /** The canonical form: `docker.io/library/busybox:latest`, or `…@sha256:…`. The name of the image record. */
  readonly name: string;
}

const domainComponent = "(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])";
const domain = new RegExp(
  `^(?:${domainComponent}(?:\\.${domainComponent})*|\\[[a-fA-F0-9:]+\\])(?::[0-9]+)?$`,
);
const pathComponent = "[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*";
const repositoryPath = new RegExp(`^${pathComponent}(?:/${pathComponent})*$`);
const tagPattern = /^\w[\w.-]{0,127}$/;
/** Longest repository name with its domain (distribution's grammar). */
const nameMax = 255;

/**
 * Throws `invalid` for what containerd's ParseDockerRef refuses, and `unsupported` for a digest of another algorithm
 * than sha256.
 */
export function parseReference(text: string): Reference {
  const refuse = (why: string): PullError =>
    new PullError("invalid", `${JSON.stringify(text.slice(0, 300))} is not an image reference: ${why}`);
  if (/^[0-9a-f]{64}$/.test(text)) throw refuse("64 hex digits are an image id");
  const [withoutDigest = "", digestText, ...more] = text.split("@");
  if (more.length > 0) throw refuse("more than one @");
  const { host, path } = splitDomain(withoutDigest);
  const colon = path.indexOf(":");
  const repository = colon === -1 ? path : path.slice(0, colon);
  const tag = colon === -1 ? undefined : path.slice(colon + 1);
  if (repository !== repository.toLowerCase()) throw refuse("a repository name must be lowercase");
  if (!domain.test(host) || !repositoryPath.test(repository)) throw refuse("invalid reference format");
  if (tag !== undefined && !tagPattern.test(tag)) throw refuse("invalid tag");
  if (`${host}/${repository}`.length > nameMax)
    throw refuse(`a name may be ${nameMax} characters at the most`);
  if (digestText !== undefined) {
    const digest = parseDigest(digestText);
    return { host, repository, tag: undefined, digest, name: `${host}/${repository}@${digest}` };
  }
  const effective = tag ?? "latest";
  return { host, repository, tag: effective, digest: undefined, name: `${host}/${repository}:${effective}` };
}

/** The first component is a host when it looks like one; everything else is on Docker Hub. */
function splitDomain(name: string): { readonly host: string; readonly path: string } {
  const slash = name.indexOf("/");
  const first = name.slice(0, Math.max(0, slash));
  const isHost = slash > 0 && (/[.:]/.test(first) || first === "localhost" || first.toLowerCase() !== first);
  const host = isHost ? first : "docker.io";
  const path = isHost ? name.slice(slash + 1) : name;
  const canonical = host === "index.docker.io" ? "docker.io" : host;
  return {
    host: canonical,
    path: canonical === "docker.io" && !path.includes("/") ? `library/${path}` : path,
  };
}

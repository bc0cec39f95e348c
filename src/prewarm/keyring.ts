// Credentials by image, from what Docker and Kubernetes keep them in: {"auths": {HOST: {"auth": …}}}.
//
// Which of them are tried for an image, and in which order, goes by kubelet's rules: a key is a host, perhaps with a port
// and the beginning of a path, with "*" for parts of a host's name; the longer ones come first, and Docker Hub's go by its
// old name. Secrets stay in memory and are never part of a message.

import { PullError } from "../errors.ts";
import type { Reference } from "../oci/reference.ts";
import type { Credentials } from "../registry/registry.ts";

interface Key {
  readonly host: string;
  readonly port: string;
  /** Without a slash at its beginning. */
  readonly path: string;
  readonly credentials: Credentials;
}

const hubKeys = new Set(["index.docker.io", "docker.io", "registry-1.docker.io"]);
const keysMax = 10_000;

export class Keyring {
  readonly #keys: readonly Key[];

  private constructor(keys: readonly Key[]) {
    this.#keys = keys;
  }

  static readonly empty = new Keyring([]);

  /** Throws `invalid` for what is no such file; an entry in it that says nothing is left out. */
  static parse(text: string): Keyring {
    let parsed: unknown;
    try {
      parsed = JSON.parse(text);
    } catch {
      throw new PullError("invalid", "the credentials are not JSON");
    }
    const document = record(parsed);
    // The older form has the hosts at the top.
    const auths = record(document?.["auths"] ?? document);
    if (auths === undefined) throw new PullError("invalid", 'the credentials have no "auths"');
    const entries = Object.entries(auths).slice(0, keysMax);
    const keys = entries.flatMap(([name, entry]) => {
      const credentials = credentialsOf(record(entry));
      return credentials ? [{ ...placeOf(name), credentials, name }] : [];
    });
    return new Keyring(keys.sort((one, other) => (one.name < other.name ? 1 : -1)));
  }

  /** Those to try, in order; none for an image that is asked for without. */
  of({ host, repository }: Reference): readonly Credentials[] {
    const [name = "", port = ""] = splitPort(host);
    const isHub = hubKeys.has(host);
    return this.#keys
      .filter((key) => {
        if (isHub && hubKeys.has(key.host)) return key.port === "" && repository.startsWith(key.path);
        return matches(key.host, name) && key.port === port && repository.startsWith(key.path);
      })
      .map(({ credentials }) => credentials);
  }
}

function record(value: unknown): Readonly<Record<string, unknown>> | undefined {
  const isRecord = typeof value === "object" && value !== null && !Array.isArray(value);
  return isRecord ? (value as Record<string, unknown>) : undefined;
}

function credentialsOf(entry: Readonly<Record<string, unknown>> | undefined): Credentials | undefined {
  const word = (key: string): string => (typeof entry?.[key] === "string" ? entry[key] : "");
  const decoded = Buffer.from(word("auth"), "base64").toString("utf8");
  const colon = decoded.indexOf(":");
  const [user, secret] =
    colon === -1 ? [word("username"), word("password")] : [decoded.slice(0, colon), decoded.slice(colon + 1)];
  const identityToken = word("identitytoken");
  if (identityToken) return { identityToken, ...(user && { username: user }) };
  return user && secret ? { username: user, password: secret } : undefined;
}

/** "https://registry.example.com:5000/v1/" is that host and port; any other path limits it to what lies below. */
function placeOf(key: string): Omit<Key, "credentials"> {
  const bare = key.replace(/^https?:\/\//, "");
  const slash = bare.indexOf("/");
  const [host = "", port = ""] = splitPort(slash === -1 ? bare : bare.slice(0, slash));
  const path = slash === -1 ? "" : bare.slice(slash + 1).replace(/\/+$/, "");
  return { host, port, path: /^v[12]$/.test(path) ? "" : path };
}

function splitPort(host: string): readonly string[] {
  const match = /^(.*?)(?::(\d+))?$/.exec(host);
  return [match?.[1] ?? "", match?.[2] ?? ""];
}

/** "*" stands for any characters of one part of a host's name. */
function matches(pattern: string, host: string): boolean {
  const [parts, names] = [pattern.split("."), host.split(".")];
  if (parts.length !== names.length) return false;
  return parts.every((part, index) => globMatches(part, names[index] ?? ""));
}

/** Without going back, so that no pattern takes long. */
function globMatches(pattern: string, text: string): boolean {
  const [first = "", ...rest] = pattern.split("*");
  if (rest.length === 0) return pattern === text;
  const last = rest.pop() ?? "";
  if (!text.startsWith(first)) return false;
  let at = first.length;
  for (const piece of rest) {
    const found = text.indexOf(piece, at);
    if (found === -1) return false;
    at = found + piece.length;
  }
  return text.length - last.length >= at && text.endsWith(last);
}

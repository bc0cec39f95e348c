// In which words containerd passes on what a registry refuses; they have changed from release to release. A refusal that
// is Hawser's to give is given in those of the containerd that it stands in front of, as they are known of 1.6.20,
// 1.7.24 and 2.1.9.

import { STATUS_CODES } from "node:http";

export interface Wording {
  /** What goes before everything that is said of a name that cannot be resolved. */
  unresolved(name: string): string;
  /** A registry's unexpected answer to a request for what is at this path below its API's root. */
  status(url: URL, path: string, status: number): string;
  /** The same of a token endpoint. */
  token(method: string, url: URL, status: number): string;
}

/** `version` as containerd tells it: "1.6.20~ds1", "v2.1.9". Unknown ones speak as the latest does. */
export function wordingOf(version: string): Wording {
  const [, major, minor] = /^v?(\d+)\.(\d+)/.exec(version) ?? [];
  const release = Number(major ?? 99) * 100 + Number(minor ?? 0);
  return {
    unresolved: (name) => {
      const resolving =
        release < 201 ? `failed to resolve reference ${JSON.stringify(name)}` : "failed to resolve image";
      return `failed to pull and unpack image ${JSON.stringify(name)}: ${resolving}`;
    },
    status: release < 107 ? oldStatus : newStatus,
    token: release < 107 ? (_method, _url, status) => `unexpected status: ${spelled(status)}` : newToken,
  };
}

/** With what was asked for as the last two parts of the path. */
function oldStatus({ host }: URL, path: string, status: number): string {
  const [kind, version] = path.split("/").slice(-2);
  return `pulling from host ${host} failed with status code [${kind} ${version}]: ${spelled(status)}`;
}

/** containerd asks for manifests by HEAD while it resolves a name. */
function newStatus(url: URL, path: string, status: number): string {
  return newToken(path.includes("/manifests/") ? "HEAD" : "GET", url, status);
}

function newToken(method: string, url: URL, status: number): string {
  const shown = new URL(url);
  // A realm may name a user and a password.
  [shown.username, shown.password] = ["", ""];
  return `unexpected status from ${method} request to ${shown.href}: ${spelled(status)}`;
}

function spelled(status: number): string {
  return `${status} ${STATUS_CODES[status] ?? ""}`;
}

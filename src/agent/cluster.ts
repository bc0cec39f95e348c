// The cluster's API, asked one thing: whether the DaemonSet is there that this process is a pod of.
//
// A pod is not told why it ends. While its DaemonSet is there it is replaced, or its node goes down; when that is gone
// somebody takes Hawser out of the cluster. Only the metadata of that object and of its
// namespace is asked for, with the pod's own account.

import { readFile } from "node:fs/promises";
import { isIPv6 } from "node:net";
import { join } from "node:path";
import { Agent, request } from "undici";
import { PullError } from "../errors.ts";

export interface DaemonSetName {
  readonly namespace: string;
  readonly name: string;
}

export type Presence =
  | { readonly kind: "there" }
  | { readonly kind: "gone" }
  /** The account may not ask: it was never allowed to, or has been deleted as well. */
  | { readonly kind: "refused" };

export interface ClusterOptions {
  /** Host and port of the API, as kubelet gives them to every container. */
  readonly host: string;
  readonly port: string;
  /** Folder with the account's token and the API's authority. */
  readonly account: string;
}

const timeoutMs = 10_000;
const answerBytesMax = 1024 * 1024;

export class Cluster {
  readonly #options: ClusterOptions;

  constructor(options: ClusterOptions) {
    this.#options = options;
  }

  /** Throws `unavailable` when the API gives no answer. */
  async find({ namespace, name }: DaemonSetName): Promise<Presence> {
    const own = await this.#ask(`apis/apps/v1/namespaces/${namespace}/daemonsets/${name}`);
    if (own.kind !== "there") return own;
    // A namespace that is deleted has its pods deleted first, and their DaemonSet some time later.
    const around = await this.#ask(`api/v1/namespaces/${namespace}`);
    return around.kind === "gone" ? around : own;
  }

  async #ask(path: string): Promise<Presence> {
    try {
      const { status, text } = await this.#get(path);
      if (status === 200) return presenceOf(text);
      if (status === 404) return { kind: "gone" };
      if (status === 401 || status === 403) return { kind: "refused" };
      throw new Error(`status ${status}`);
    } catch (error) {
      const why = PullError.from(error).message;
      throw new PullError("unavailable", `the cluster's API does not answer: ${why}`, { cause: error });
    }
  }

  async #get(path: string): Promise<{ readonly status: number; readonly text: string }> {
    const { host, port, account } = this.#options;
    // Both are replaced while pods run.
    const [ca, token] = await Promise.all(
      ["ca.crt", "token"].map(async (name) => await readFile(join(account, name), "utf8")),
    );
    const dispatcher = new Agent({
      connect: { ca: ca ?? "", timeout: timeoutMs },
      headersTimeout: timeoutMs,
      bodyTimeout: timeoutMs,
      maxResponseSize: answerBytesMax,
    });
    try {
      const authority = `${isIPv6(host) ? `[${host}]` : host}:${port}`;
      const { statusCode, body } = await request(`https://${authority}/${path}`, {
        dispatcher,
        headers: {
          authorization: `Bearer ${token?.trim()}`,
          accept: "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
        },
      });
      return { status: statusCode, text: await body.text() };
    } finally {
      await dispatcher.destroy();
    }
  }
}

function presenceOf(text: string): Presence {
  const { metadata } = JSON.parse(text) as {
    readonly metadata?: { readonly uid?: unknown; readonly deletionTimestamp?: unknown };
  };
  if (typeof metadata?.uid !== "string") throw new Error("its answer is no object of Kubernetes");
  // Deleted in the foreground, it stays until its pods are gone.
  return { kind: metadata.deletionTimestamp === undefined ? "there" : "gone" };
}

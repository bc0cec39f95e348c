// Requests to the API: where it is and who asks is read from the kubeconfig each time, since certificates and tokens are
// exchanged while we run.

import { type IncomingMessage, request as requestPlain } from "node:http";
import { request } from "node:https";
import { PullError, throwIfAborted } from "../errors.ts";
import { type Asked, objectBytesMax, objectOf, readAll, unreachable } from "./answer.ts";
import type { Change, Cluster, Collection, Follower, KubernetesObject } from "./cluster.ts";
import { follow, list } from "./follow.ts";
import { Kubeconfig, type KubeconfigOptions } from "./kubeconfig.ts";

const answerMs = 30_000;

/** Reads nothing before it is asked. */
export function createCluster(kubeconfig: KubeconfigOptions): Cluster {
  return new KubeconfigCluster(kubeconfig);
}

class KubeconfigCluster implements Cluster {
  readonly #kubeconfig: Kubeconfig;
  #isKnown = false;

  constructor(options: KubeconfigOptions) {
    this.#kubeconfig = new Kubeconfig(options);
  }

  async get(path: string, signal: AbortSignal): Promise<KubernetesObject> {
    const answer = await this.#send({ method: "GET", path, silenceMs: answerMs }, signal);
    return objectOf(await readAll(answer, objectBytesMax));
  }

  async list(collection: Collection, signal: AbortSignal): Promise<readonly KubernetesObject[]> {
    const { objects } = await list(async (asked, both) => await this.#send(asked, both), collection, signal);
    return objects;
  }

  async write(change: Change, signal: AbortSignal): Promise<KubernetesObject> {
    const answer = await this.#send({ ...requestFor(change), silenceMs: answerMs }, signal);
    return objectOf(await readAll(answer, objectBytesMax));
  }

  async follow(collection: Collection, follower: Follower, signal: AbortSignal): Promise<void> {
    await follow(async (asked, both) => await this.#send(asked, both), collection, follower, signal);
  }

  async #send(
    { method, path, query = {}, body, mediaType = "application/json", silenceMs }: Asked,
    signal: AbortSignal,
  ): Promise<IncomingMessage> {
    throwIfAborted(signal);
    const { url, options } = await this.#kubeconfig.read(signal);
    url.pathname = `${url.pathname.replace(/\/$/, "")}${path}`;
    url.search = new URLSearchParams(query).toString();
    const text = body === undefined ? undefined : JSON.stringify(body);
    const headers = {
      ...options.headers,
      accept: "application/json",
      "user-agent": "hawser",
      ...(text !== undefined && { "content-type": mediaType, "content-length": Buffer.byteLength(text) }),
    };
    const answer = await new Promise<IncomingMessage>((resolve, reject) => {
      const make = url.protocol === "http:" ? requestPlain : request;
      const sent = make(url, { ...options, method, headers, signal }, resolve);
      sent.setTimeout(silenceMs, () => sent.destroy(new Error("the API does not answer")));
      sent.on("error", reject);
      sent.end(text);
    }).catch((error: unknown) => {
      throwIfAborted(signal);
      throw unreachable(error);
    });
    const { statusCode: status = 0 } = answer;
    if (status === 200 || status === 201) {
      this.#isKnown = true;
      return answer;
    }
    if (status === 401) this.#kubeconfig.forget();
    const refusal = await refusalOf(answer, status, method);
    // Who was let in before may be again, with what a program grants next.
    if (status === 401 && this.#isKnown)
      throw new PullError(refusal.code, refusal.message, { temporary: true });
    throw refusal;
  }
}

/** Whose changes these are to be known as in an object's managedFields. */
const fieldManager = "hawser";

function requestFor(change: Change): Omit<Asked, "silenceMs"> {
  const { path } = change;
  const query = { fieldManager };
  switch (change.kind) {
    case "create":
      return { method: "POST", path, query, body: change.object };
    case "merge":
    case "strategic": {
      const mediaType = `application/${change.kind === "merge" ? "" : "strategic-"}merge-patch+json`;
      return { method: "PATCH", path, query, body: change.patch, mediaType };
    }
    case "remove":
      return {
        method: "DELETE",
        path,
        ...(change.version !== undefined && { body: { preconditions: { resourceVersion: change.version } } }),
      };
  }
}

/** What the API says against it, in its own words; with Retry-After where it asks for patience. */
async function refusalOf(
  answer: IncomingMessage,
  status: number,
  method: Asked["method"],
): Promise<PullError> {
  const text = (await readAll(answer, 64 * 1024).catch(() => Buffer.alloc(0))).toString("utf8");
  const said = messageOf(text) ?? `status ${status}`;
  if (status === 404) return new PullError("not_found", said);
  if (status === 401 || status === 403) return new PullError("refused", `the API refuses: ${said}`);
  if (status === 409) return new PullError(method === "POST" ? "exists" : "conflict", said);
  if (status === 400 || status === 415 || status === 422)
    return new PullError("invalid", `the API does not take it: ${said}`);
  const seconds = Number(answer.headers["retry-after"]);
  const cause = seconds > 0 ? { retryAfterMs: 1000 * seconds } : { status };
  return new PullError("unavailable", `the API says: ${said}`, { temporary: true, cause });
}

function messageOf(text: string): string | undefined {
  try {
    const { message } = JSON.parse(text) as { message?: unknown };
    return typeof message === "string" ? message.slice(0, 500) : undefined;
  } catch {
    return undefined;
  }
}

// Lists, in pages, and watches of an API server, from the version that a list had.

import { randomUUID } from "node:crypto";
import type { ServerResponse } from "node:http";
import { Refusal, statusOf } from "./refusal.ts";
import { type Selection, selectionOf } from "./select.ts";
import type { ApiChange, ApiObject, ObjectStore } from "./store.ts";
import type { Target } from "./target.ts";

type Query = Readonly<Record<string, string>>;

interface Watch extends Selection {
  readonly collection: string;
  readonly response: ServerResponse;
}

/** A page's next one. */
interface Page {
  readonly items: readonly ApiObject[];
  readonly version: number;
}

export class Reads {
  readonly #store: ObjectStore;
  readonly #watches = new Set<Watch>();
  readonly #pages = new Map<string, Page>();

  constructor(store: ObjectStore) {
    this.#store = store;
    store.listen((change) => {
      for (const watch of this.#watches) if (watch.collection === change.collection) send(watch, change);
    });
  }

  get watching(): number {
    return this.#watches.size;
  }

  list({ collection, namespace }: Target, query: Query): object {
    const token = query["continue"] ?? "";
    const page = token === "" ? this.#firstPage(collection, namespace, query) : this.#pages.get(token);
    if (page === undefined) throw new Refusal(410, "Expired", "The provided continue parameter is too old");
    const limit = Number(query["limit"] ?? page.items.length);
    const rest = page.items.slice(limit);
    const next = rest.length > 0 ? randomUUID() : "";
    if (next) this.#pages.set(next, { items: rest, version: page.version });
    const metadata = { resourceVersion: String(page.version), ...(next && { continue: next }) };
    return { kind: "List", apiVersion: "v1", metadata, items: page.items.slice(0, limit) };
  }

  watch({ collection, namespace }: Target, query: Query, response: ServerResponse): void {
    const watch: Watch = { collection, response, ...selectionOf(namespace, query) };
    const from = Number(query["resourceVersion"] ?? 0);
    response.writeHead(200, { "content-type": "application/json" });
    if (from > 0 && from < this.#store.compacted) {
      const object = statusOf(410, `too old resource version: ${from} (${this.#store.compacted})`, "Expired");
      response.end(lineOf("ERROR", object));
      return;
    }
    if (from > 0) {
      for (const change of this.#store.since(from)) if (change.collection === collection) send(watch, change);
    } else {
      // Who names no version is told what there is first.
      for (const object of this.#store.list(collection))
        if (watch.isSelected(object)) response.write(lineOf("ADDED", object));
    }
    // Headers go out with the first event, or with this.
    response.flushHeaders();
    this.#watches.add(watch);
    response.once("close", () => this.#watches.delete(watch));
  }

  /** Tells watchers the latest version, and nothing else. */
  bookmark(): void {
    const metadata = { resourceVersion: String(this.#store.version) };
    const object = { kind: "Pod", apiVersion: "v1", metadata };
    for (const { response } of this.#watches) response.write(lineOf("BOOKMARK", object));
  }

  /** An event of type ERROR, behind which every stream ends. */
  fail(code: number): void {
    this.end(lineOf("ERROR", statusOf(code, "too old resource version")));
  }

  end(last = ""): void {
    for (const { response } of this.#watches) response.end(last);
    this.#watches.clear();
  }

  #firstPage(collection: string, namespace: string, query: Query): Page {
    const { isSelected } = selectionOf(namespace, query);
    return { items: this.#store.list(collection).filter(isSelected), version: this.#store.version };
  }
}

function lineOf(type: string, object: object): string {
  return `${JSON.stringify({ type, object })}\n`;
}

/** What comes to be selected is added, and what is so no more is deleted, for who watches. */
function send({ isSelected, response }: Watch, { type, object, former }: ApiChange): void {
  const was = former !== undefined && isSelected(former);
  const is = type !== "DELETED" && isSelected(object);
  if (was || is) response.write(lineOf(is ? (was ? "MODIFIED" : "ADDED") : "DELETED", object));
}

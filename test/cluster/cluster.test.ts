// The cluster's API, followed through all that befalls it: pages, versions, bookmarks, 410, broken connections, refusals.

import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { createCluster } from "../../src/cluster/client.ts";
import type { Cluster, KubernetesObject } from "../../src/cluster/cluster.ts";
import { findKubeconfig, nodeNameOf } from "../../src/cluster/identity.ts";
import { FakeApi } from "../fakes/api.ts";

const pods = "/api/v1/pods";
const never = new AbortController().signal;

let api: FakeApi;
let cluster: Cluster;

beforeEach(async () => {
  api = await FakeApi.start();
  cluster = createCluster({ files: [api.kubeconfig] });
});

afterEach(async () => {
  await api[Symbol.asyncDispose]();
});

function put(name: string, nodeName = api.nodeName): void {
  api.put(pods, { metadata: { name, namespace: "default" }, spec: { nodeName } });
}

/** What a follower of the node's pods holds for true, and what it was told. */
class Follower implements AsyncDisposable {
  readonly names = new Set<string>();
  readonly troubles: (string | undefined)[] = [];
  lists = 0;
  readonly #abort = new AbortController();
  readonly #over: Promise<void>;

  constructor() {
    const nameOf = ({ metadata }: KubernetesObject): string => metadata.name;
    this.#over = cluster.follow(
      { path: pods, fieldSelector: `spec.nodeName=${api.nodeName}` },
      {
        replaced: (objects) => {
          this.lists += 1;
          this.names.clear();
          for (const object of objects) this.names.add(nameOf(object));
        },
        changed: (object) => void this.names.add(nameOf(object)),
        deleted: (object) => void this.names.delete(nameOf(object)),
        trouble: (why) => {
          if (why !== this.troubles.at(-1)) this.troubles.push(why);
        },
      },
      this.#abort.signal,
    );
  }

  async untilKnown(...names: readonly string[]): Promise<void> {
    await vi.waitFor(() => expect([...this.names].sort()).toEqual([...names].sort()), { timeout: 10_000 });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#abort.abort();
    await this.#over;
  }
}

async function untilWatched(): Promise<void> {
  await vi.waitFor(() => expect(api.watching).toBe(1), { timeout: 10_000 });
}

function watchVersions(): (string | undefined)[] {
  return api.requests.filter(({ query }) => query["watch"]).map(({ query }) => query["resourceVersion"]);
}

test("what there is, what comes, changes and goes; nothing of other nodes", async () => {
  put("one");
  put("elsewhere", "node-2");
  await using follower = new Follower();
  await follower.untilKnown("one");
  await untilWatched();
  put("two");
  put("also elsewhere", "node-2");
  await follower.untilKnown("one", "two");
  api.remove(pods, "one", "default");
  await follower.untilKnown("two");
  expect(follower.lists).toBe(1);
  expect(api.requests[0]).toEqual({
    identity: `system:node:${api.nodeName}`,
    contentType: "",
    body: undefined,
    method: "GET",
    path: pods,
    query: { fieldSelector: `spec.nodeName=${api.nodeName}`, limit: "500", resourceVersion: "0" },
  });
});

test("a thousand pods come in pages", async () => {
  const names = Array.from({ length: 1100 }, (_, index) => `pod-${index}`);
  for (const name of names) put(name);
  await using follower = new Follower();
  await follower.untilKnown(...names);
  await untilWatched();
  const pages = api.requests.filter(({ query }) => query["limit"] === "500");
  expect(pages.map(({ query }) => query["continue"] !== undefined)).toEqual([false, true, true]);
});

test("a watch that ends is taken up where it was, which bookmarks tell as well", async () => {
  put("one");
  await using follower = new Follower();
  await untilWatched();
  put("elsewhere", "node-2");
  api.bookmark();
  put("two");
  await follower.untilKnown("one", "two");
  api.endWatches();
  await vi.waitFor(() => expect(watchVersions()).toHaveLength(2), { timeout: 10_000 });
  put("three");
  await follower.untilKnown("one", "two", "three");
  expect(watchVersions()).toEqual(["1001", "1003"]);
  expect(follower.lists).toBe(1);
});

test("connections that break cost nothing that happens meanwhile", async () => {
  put("one");
  await using follower = new Follower();
  await untilWatched();
  api.disconnect();
  put("two");
  api.remove(pods, "one", "default");
  await follower.untilKnown("two");
  expect(follower.lists).toBe(1);
});

test.each(["by an event", "in answer to a watch"])(
  "what is too old is listed anew, as is said %s",
  async (how) => {
    put("one");
    await using follower = new Follower();
    await untilWatched();
    if (how === "by an event") {
      api.fail(410);
    } else {
      api.behave = () => ({ status: 503 });
      api.disconnect();
      await vi.waitFor(() => expect(follower.troubles.at(-1)).toContain("the API says: as the test says"));
    }
    api.remove(pods, "one", "default");
    put("two");
    api.compact();
    api.behave = () => undefined;
    await follower.untilKnown("two");
    expect(follower.lists).toBeGreaterThan(1);
    await vi.waitFor(() => expect(follower.troubles.at(-1)).toBeUndefined());
  },
);

test("an API that ends each watch at once, or never remembers, is not asked without pause", async () => {
  put("one");
  api.behave = ({ query }) => (query["watch"] ? { status: 410 } : undefined);
  await using follower = new Follower();
  await vi.waitFor(() => expect(follower.troubles.at(-1)).toMatch(/does not know any more/), {
    timeout: 10_000,
  });
  const asked = api.requests.length;
  expect(asked).toBeLessThanOrEqual(6);
});

test.each([
  { status: 401, says: "the API refuses: as the test says" },
  { status: 403, says: "the API refuses: as the test says" },
  { status: 429, says: "the API says: as the test says" },
  { status: 500, says: "the API says: as the test says" },
])("status $status is told, and asked again", async ({ status, says }) => {
  put("one");
  api.behave = () => ({ status, headers: { "retry-after": "0.05" } });
  await using follower = new Follower();
  await vi.waitFor(() => expect(follower.troubles.at(-1)).toBe(says));
  api.behave = () => undefined;
  await follower.untilKnown("one");
  await vi.waitFor(() => expect(follower.troubles.at(-1)).toBeUndefined());
});

test("a token that is exchanged is used from then on", async () => {
  put("one");
  api.writeKubeconfig("an old token");
  await using follower = new Follower();
  await vi.waitFor(() => expect(follower.troubles.at(-1)).toBe("the API refuses: Unauthorized"));
  api.writeKubeconfig(api.token);
  await follower.untilKnown("one");
});

test.each([
  { text: "{", says: /cannot be used/ },
  { text: "kind: Config", says: /cannot be used/ },
  { text: JSON.stringify({ clusters: [], contexts: [], users: [] }), says: /cannot be used/ },
])("a kubeconfig that says nothing is told with its path: $text", async ({ text, says }) => {
  api.writeKubeconfig("", text);
  const failure = cluster.get("/api/v1/namespaces/default/secrets/one", never);
  await expect(failure).rejects.toMatchObject({ code: "invalid", message: expect.stringMatching(says) });
  await expect(failure).rejects.toThrow(api.kubeconfig);
});

test("an object is read, or is not there", async () => {
  api.put("/api/v1/secrets", { metadata: { name: "one", namespace: "default" }, data: { key: "dmFsdWU=" } });
  const path = "/api/v1/namespaces/default/secrets";
  expect((await cluster.get(`${path}/one`, never))["data"]).toEqual({ key: "dmFsdWU=" });
  await expect(cluster.get(`${path}/two`, never)).rejects.toMatchObject({ code: "not_found" });
});

test("the node's name is what the API knows, or the host's", async () => {
  expect(await nodeNameOf(cluster, never)).toBe(api.nodeName);
  api.behave = () => ({ status: 404 });
  expect(await nodeNameOf(cluster, never)).toMatch(/^[a-z0-9.-]+$/);
  api.behave = () => ({ status: 503 });
  await expect(nodeNameOf(cluster, never)).rejects.toMatchObject({ code: "unavailable" });
});

test("kubelet's kubeconfig is found in the first of its places, or told to be in none", async () => {
  expect(await findKubeconfig(["/nonexistent", api.kubeconfig])).toBe(api.kubeconfig);
  await expect(findKubeconfig(["/nonexistent"])).rejects.toThrow("set prewarm.kubeconfig");
});

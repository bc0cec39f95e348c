// Upgrades in place in odd circumstances: what is left of earlier ones, what others do meanwhile, and kubelets, kubeconfigs and
// names of all kinds.

import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { afterEach, expect, test } from "vitest";
import { createCluster } from "../../src/cluster/client.ts";
import { conditionFor, requestAnnotation } from "../../src/cluster/marks.ts";
import { upgradeAnnotation } from "../../src/inplace/pod.ts";
import { upgrade } from "../../src/inplace/upgrade.ts";
import { eventually } from "../harness/process.ts";
import { collections, namespace, podSpec, pods, quick, Rig } from "./rig.ts";

let rig: Rig;
const never = new AbortController().signal;

afterEach(async () => {
  await rig[Symbol.asyncDispose]();
});

/** The images of all pods, each once, and that of the template. */
function imagesNow(): unknown {
  return [[...new Set(Object.values(rig.images))].toSorted(), rig.template];
}

function change(kind: "statefulset" | "cloneset", spec: object): void {
  rig.api.update(collections[kind], "web", namespace, (workload) => ({
    ...workload,
    spec: { ...Object(workload["spec"]), ...spec },
  }));
}

function templateWith(image: string, more: object = {}): object {
  const spec = podSpec() as { readonly containers: readonly { readonly name: string }[] };
  const containers = spec.containers.map((one) => Object.assign({}, one, one.name === "app" && { image }));
  return { metadata: { labels: { app: "web" } }, spec: { ...spec, ...more, containers } };
}

/** An upgrade that ends as soon as one pod is done, since the API lets it do nothing more. */
async function breakOff(): Promise<void> {
  rig.onEvent = (event) => {
    if (event.event === "pod" && event.step === "done")
      rig.api.behave = ({ identity }) => (identity === "operator" ? { status: 403 } : undefined);
  };
  expect(await rig.upgrade()).toMatchObject({ kind: "left" });
  rig.api.behave = () => undefined;
  rig.onEvent = () => {};
}

/** Nothing is taken away from what an upgrade has written. */
function keepMarks(): void {
  rig.api.behave = ({ identity, body }) =>
    identity === "operator" && JSON.stringify(body ?? "").includes(`"${upgradeAnnotation}":null`)
      ? { status: 403 }
      : undefined;
}

test.each(["statefulset", "cloneset", "pod"] as const)(
  "marks that stayed behind on a %s say nothing of the next upgrade, which goes back to what was there before it",
  async (kind) => {
    rig = await Rig.open(2, { kind });
    keepMarks();
    expect(await rig.upgrade()).toMatchObject({ kind: "upgraded" });
    expect(rig.steps).toMatch(/stays? on/);
    rig.api.behave = () => undefined;
    expect(rig.annotations).toContain(upgradeAnnotation);
    expect(await rig.upgrade({ images: { app: "app:3-crash" } })).toMatchObject({ kind: "rolled back" });
    expect(Object.values(rig.images)).toEqual(rig.all.map(() => "app:2"));
    if (kind !== "pod") expect(rig.template).toBe("app:2");
    expect(rig.annotations.filter((name) => name.startsWith("hawser.dev/"))).toEqual([]);
  },
);

test("the same command again after all is done leaves alone a pod that is out of service for reasons of its own", async () => {
  rig = await Rig.open(2);
  keepMarks();
  await rig.upgrade();
  rig.api.behave = () => undefined;
  for (const kubelet of rig.kubelets) kubelet.pause();
  ready("web-0", "False");
  expect(await rig.upgrade({ timeoutMs: 500 })).toEqual({ kind: "upgraded", pods: 0 });
  expect(rig.unready).toEqual(["web-0"]);
  expect(imagesNow()).toEqual([["app:2"], "app:2"]);
});

test("an upgrade of another container that was broken off is not forgotten", async () => {
  rig = await Rig.open(2);
  await breakOff();
  await expect(rig.upgrade({ images: { side: "side:2" } })).rejects.toThrow(
    /an upgrade of it was broken off, of app=app:2 \(it was app:1\): end it first, or undo it/,
  );
  expect(await rig.upgrade()).toMatchObject({ kind: "upgraded" });
  expect(await rig.upgrade({ images: { side: "side:2" } })).toMatchObject({ kind: "upgraded" });
});

test("another context that is chosen meanwhile is for the next upgrade", async () => {
  rig = await Rig.open(2);
  const other = await Rig.open(2);
  try {
    const config = (file: string) =>
      JSON.parse(readFileSync(file, "utf8")) as Record<string, { name: string }[]>;
    const [one, two] = [config(rig.kubeconfig), config(other.kubeconfig)];
    const renamed = JSON.stringify(two)
      .replaceAll('"c"', '"c2"')
      .replaceAll('"u"', '"u2"')
      .replaceAll('"x"', '"x2"');
    const both = JSON.parse(renamed) as Record<string, { name: string }[]>;
    const merged = Object.fromEntries(
      ["clusters", "users", "contexts"].map((key) => [key, [...(one[key] ?? []), ...(both[key] ?? [])]]),
    );
    const file = `${rig.kubeconfig}.both`;
    const write = (context: string): void =>
      writeFileSync(file, JSON.stringify({ ...merged, "current-context": context }));
    write("x");
    const options = rig.optionsWith(file);
    rig.onEvent = () => write("x2");
    const since = other.api.requests.length;
    const cluster = createCluster({ files: [file], isOfOneUse: true });
    expect(await upgrade({ ...options, cluster }, rig.request, never)).toMatchObject({ kind: "upgraded" });
    expect(other.api.requests.length).toBe(since);
    expect(imagesNow()).toEqual([["app:2"], "app:2"]);
  } finally {
    await other[Symbol.asyncDispose]();
  }
});

test("a kubeconfig that is being written, and a token that has just ended, are waited for", async () => {
  rig = await Rig.open(2);
  const copy = `${rig.kubeconfig}.copy`;
  copyFileSync(rig.kubeconfig, copy);
  let isRefused = false;
  rig.onEvent = (event) => {
    if (event.event !== "pod") return;
    if (event.step === "leaving service") writeFileSync(rig.kubeconfig, "");
    if (event.step === "leaving service") setTimeout(() => copyFileSync(copy, rig.kubeconfig), 100);
    if (event.step === "entering service") isRefused = true;
  };
  rig.api.behave = ({ identity, method }) => {
    const refuse = identity === "operator" && method === "PATCH" && isRefused;
    if (refuse) isRefused = false;
    return refuse ? { status: 401 } : undefined;
  };
  const cluster = createCluster({ files: [rig.kubeconfig], isOfOneUse: true });
  const options = { ...rig.optionsWith(rig.kubeconfig), cluster };
  expect(await upgrade(options, rig.request, never)).toMatchObject({ kind: "upgraded" });
  expect(imagesNow()).toEqual([["app:2"], "app:2"]);
});

test("a tag that begins as another one does is told from it", async () => {
  rig = await Rig.open(2);
  const images = { app: "app:1-missing" };
  const outcome = await rig.upgrade({ images, isPrewarmed: false });
  expect(outcome).toMatchObject({ kind: "rolled back", pods: 1, failure: { code: "unsupported" } });
  expect(imagesNow()).toEqual([["app:1"], "app:1"]);
});

test("a pod that is out of service for a moment is not kept out", async () => {
  rig = await Rig.open(4);
  let isBlinking = false;
  rig.onEvent = (event) => {
    if (event.event !== "pod" || event.step !== "warm" || isBlinking) return;
    isBlinking = true;
    // It would say otherwise at once.
    const [kubelet] = rig.kubelets;
    kubelet?.pause();
    ready("web-0", "False");
    setTimeout(() => {
      ready("web-0", "True");
      kubelet?.resume();
    }, 300);
  };
  const request = { maxUnavailable: { count: 2 } };
  expect(await rig.upgrade(request, never, { ...quick, settleMs: 2_000 })).toMatchObject({
    kind: "upgraded",
  });
  const order = rig.events.flatMap((event) =>
    event.event === "pod" && event.step === "leaving service" ? [event.pod] : [],
  );
  expect(order).toEqual(["web-3", "web-2", "web-1", "web-0"]);
});

function ready(name: string, status: string): void {
  rig.api.update(pods, name, namespace, (pod) => {
    const { conditions, ...rest } = pod["status"] as { conditions: { type: string }[] };
    const changed = conditions.map((one) => Object.assign({}, one, one.type === "Ready" && { status }));
    return { ...pod, status: { ...rest, conditions: changed } };
  });
}

test("a pod that is gone though nobody has said so is asked for once", async () => {
  rig = await Rig.open(2);
  const held = new Promise<void>((resolve) => setTimeout(resolve, 1_500));
  rig.onEvent = (event) => {
    if (event.event !== "pod" || event.step !== "leaving service" || event.pod !== "web-1") return;
    rig.onEvent = () => {};
    rig.controllers.pause();
    rig.api.behave = ({ identity, query }) =>
      identity === "operator" && query["watch"] ? { hold: held } : undefined;
    rig.api.endWatches();
    rig.api.remove(pods, "web-1", namespace);
    void held.then(() => rig.controllers.resume());
  };
  const since = rig.api.requests.length;
  expect(await rig.upgrade({}, never, { ...quick, awayMs: 30_000 })).toMatchObject({ kind: "upgraded" });
  const asked = rig.api.requests
    .slice(since)
    .filter(({ path, identity }) => identity === "operator" && path.includes("/web-1"));
  expect(asked.length).toBeLessThan(20);
});

test("a kubelet that does not say what it has seen is given the time that a container has to end", async () => {
  const spec = { template: templateWith("app:1", { terminationGracePeriodSeconds: 1 }) };
  rig = await Rig.open(1, { spec });
  for (const kubelet of rig.kubelets) Object.assign(kubelet, { tellsGeneration: false, stopMs: 500 });
  const interrupt = new AbortController();
  rig.onEvent = (event) => {
    if (event.event === "pod" && event.step === "restarting") setTimeout(() => interrupt.abort(), 50);
  };
  const outcome = await rig.upgrade({}, interrupt.signal);
  expect(outcome).toMatchObject({ kind: "rolled back", pods: 1 });
  const told = rig.all.flatMap(
    (pod) => (Object(pod["status"]) as { containerStatuses: { image: string }[] }).containerStatuses,
  );
  expect(told.map(({ image }) => image)).toContain("app:1");
  const starts = rig.kubelets
    .flatMap(({ events }) => events)
    .filter((event) => event.startsWith("Started web-0/app"));
  // It has not been told to be back before the container that was on its way was gone again.
  expect(starts).toHaveLength(3);
});

test.each([true, false])(
  "a container that kubelet has not touched before its image was the former one again is the former one (told what is seen: %s)",
  async (tellsGeneration) => {
    const template = templateWith("app:1", { terminationGracePeriodSeconds: 0 });
    rig = await Rig.open(1, { spec: { template } });
    for (const kubelet of rig.kubelets) kubelet.tellsGeneration = tellsGeneration;
    for (let round = 0; round < 6; round++) {
      const interrupt = new AbortController();
      rig.api.behave = ({ identity, body }) => {
        const isExchange = "spec" in Object(body) && JSON.stringify(body).includes("app:2");
        if (identity !== "operator" || !isExchange) return undefined;
        for (const kubelet of rig.kubelets) kubelet.pause();
        interrupt.abort();
        return undefined;
      };
      rig.onEvent = (event) => {
        if (event.event !== "pod" || event.detail !== "restarting") return;
        for (const kubelet of rig.kubelets) kubelet.resume();
      };
      expect(await rig.upgrade({ timeoutMs: 5_000 }, interrupt.signal)).toMatchObject({
        kind: "rolled back",
        pods: 1,
      });
    }
    const events = rig.kubelets.flatMap((kubelet) => kubelet.events);
    expect(events.filter((event) => event.startsWith("Killing"))).toEqual([]);
    expect(imagesNow()).toEqual([["app:1"], "app:1"]);
  },
);

test("what a node has said to an earlier request is no answer", async () => {
  rig = await Rig.open(1);
  const failed = { state: "failed", code: "not_found", error: "of yesterday" } as const;
  const said = conditionFor({ request: "earlier", images: { "app:2": failed } });
  rig.api.update(pods, "web-0", namespace, (pod) => {
    const { conditions, ...rest } = pod["status"] as { conditions: unknown[] };
    return { ...pod, status: { ...rest, conditions: [...conditions, said] } };
  });
  const { fetch } = rig;
  rig.fetch = () => undefined;
  rig.onEvent = (event) => {
    if (event.event !== "pod" || event.step !== "fetching") return;
    setTimeout(() => {
      rig.fetch = fetch;
      rig.api.update(pods, "web-0", namespace, (pod) => ({
        ...pod,
        spec: { ...Object(pod["spec"]), priority: 1 },
      }));
    }, 100);
  };
  expect(await rig.upgrade()).toMatchObject({ kind: "upgraded", pods: 1 });
});

test("a kubelet that says nothing of what it has seen: containers that have their images are not waited for, and others are", async () => {
  const template = templateWith("app:1", { terminationGracePeriodSeconds: 0 });
  rig = await Rig.open(2, { spec: { template } });
  for (const kubelet of rig.kubelets) kubelet.tellsGeneration = false;
  const images = { app: "app:2", side: "side:1" };
  const began = performance.now();
  expect(await rig.upgrade({ images }, never, { ...quick, settleMs: 20_000 })).toMatchObject({
    kind: "upgraded",
  });
  expect(performance.now() - began).toBeLessThan(15_000);
  expect(await rig.upgrade({ images: { app: "app:3" } })).toMatchObject({ kind: "upgraded" });
  for (let round = 0; round < 8; round++) {
    const interrupt = new AbortController();
    rig.onEvent = (event) => event.event === "pod" && event.step === "restarting" && interrupt.abort();
    const outcome = await rig.upgrade(
      { images: { app: `app:4-${round}` }, timeoutMs: 10_000 },
      interrupt.signal,
    );
    expect(outcome).toMatchObject({ kind: "rolled back" });
  }
  expect(imagesNow()).toEqual([["app:3"], "app:3"]);
});

test("pods that were only marked, and then died, are left alone if that is asked for", async () => {
  rig = await Rig.open(4);
  const [first] = rig.kubelets;
  await breakOff();
  // The node of web-0 and web-2.
  first?.pause();
  for (const name of ["web-0", "web-2"]) ready(name, "False");
  const request = { skipsUnready: true, maxUnavailable: { count: 3 } };
  expect(await rig.upgrade({ ...request, timeoutMs: 5_000 })).toMatchObject({ kind: "upgraded" });
  expect(rig.images).toEqual({ "web-0": "app:1", "web-1": "app:2", "web-2": "app:1", "web-3": "app:2" });
  expect(rig.annotations).toEqual([]);
});

test("pods that die untouched are no matter of a way back", async () => {
  rig = await Rig.open(4);
  const [first] = rig.kubelets;
  rig.onEvent = (event) => {
    if (event.event !== "pod" || event.step !== "restarting") return;
    rig.onEvent = () => {};
    first?.pause();
    for (const name of ["web-0", "web-2"]) ready(name, "False");
  };
  expect(await rig.upgrade({ images: { app: "app:2-crash" } })).toMatchObject({
    kind: "rolled back",
    pods: 1,
  });
  expect([rig.annotations, imagesNow()]).toEqual([[], [["app:1"], "app:1"]]);
});

test("a CloneSet's limits that cannot be put back are named, and a partition comes back with the next upgrade", async () => {
  const spec = { updateStrategy: { type: "InPlaceIfPossible", partition: 2, maxUnavailable: 1 } };
  rig = await Rig.open(4, { kind: "cloneset", spec });
  keepMarks();
  const outcome = await rig.upgrade({ images: { app: "app:2-crash" }, maxUnavailable: { percent: 100 } });
  expect(outcome).toMatchObject({ kind: "left" });
  expect(outcome.kind === "left" ? outcome.left.join() : "").toMatch(
    /not as it was: .*spec\.updateStrategy\.maxUnavailable.*spec\.updateStrategy\.partition|spec\.updateStrategy\.partition.*spec\.updateStrategy\.maxUnavailable/,
  );
  rig.api.behave = () => undefined;
  expect((await rig.plan()).changes).toContain("spec.updateStrategy.partition keeps 2 of 4 pods as they are");
  expect(await rig.upgrade()).toMatchObject({ kind: "upgraded", pods: 2 });
  expect(Object.values(rig.images).toSorted()).toEqual(["app:1", "app:1", "app:2", "app:2"]);
  expect(rig.workload).toHaveProperty("spec.updateStrategy", spec.updateStrategy);
  expect(await rig.upgrade()).toEqual({ kind: "upgraded", pods: 0 });
});

test("a template that had the image before is no hindrance to its pods' counting as updated", async () => {
  rig = await Rig.open(2);
  rig.putWorkload("statefulset", 2, { template: templateWith("app:2") });
  await eventually(async () => {
    expect(await Promise.resolve(rig.workload?.["status"])).toMatchObject({ updatedReplicas: 0 });
  }, "a new revision");
  expect(await rig.upgrade()).toEqual({ kind: "upgraded", pods: 2 });
  await eventually(async () => {
    expect(await Promise.resolve(rig.workload?.["status"])).toMatchObject({ updatedReplicas: 2 });
  }, "pods counted as updated");
});

test("an interruption once all is done undoes nothing", async () => {
  rig = await Rig.open(2);
  const interrupt = new AbortController();
  rig.api.behave = ({ identity, body }) => {
    if (identity === "operator" && JSON.stringify(body ?? "").includes("controller-revision-hash"))
      interrupt.abort();
    return undefined;
  };
  expect(await rig.upgrade({}, interrupt.signal)).toMatchObject({ kind: "upgraded" });
  expect(imagesNow()).toEqual([["app:2"], "app:2"]);
  expect(rig.annotations).toEqual([]);
});

test("a workload that has come to make its pods anew gets no template", async () => {
  rig = await Rig.open(2);
  rig.onEvent = (event) => {
    if (event.event === "pod" && event.step === "entering service")
      change("statefulset", { updateStrategy: { type: "RollingUpdate" } });
  };
  const outcome = await rig.upgrade();
  expect(outcome).toMatchObject({ kind: "rolled back", failure: { code: "unsupported" } });
  expect(imagesNow()).toEqual([["app:1"], "app:1"]);
});

test("a pod that no node has yet gets its image, and nobody waits for it", async () => {
  rig = await Rig.open(2);
  rig.api.update(pods, "web-0", namespace, (pod) => pod);
  rig.controllers.pause();
  rig.api.remove(pods, "web-0", namespace);
  const { ownerReferences, labels } = Object(rig.all[0]).metadata as Record<string, unknown>;
  rig.api.put(pods, {
    metadata: { name: "web-0", namespace, ownerReferences, labels },
    spec: podSpec(),
    status: { phase: "Pending" },
  });
  const done = rig.upgrade({ maxUnavailable: { count: 2 } });
  rig.onEvent = (event) => event.event === "note" && rig.controllers.resume();
  expect(await done).toMatchObject({ kind: "upgraded" });
  expect(imagesNow()).toEqual([["app:2"], "app:2"]);
});

test("pods that are not ready may be left alone, and count as out of service", async () => {
  rig = await Rig.open(3);
  const [first] = rig.kubelets;
  // The node of web-0 and web-2, of which one is dead.
  first?.pause();
  ready("web-0", "False");
  const request = { skipsUnready: true, maxUnavailable: { count: 2 } };
  expect((await rig.plan(request)).pods.map(({ name }) => name)).toEqual(["web-2", "web-1"]);
  rig.onEvent = (event) => event.event === "pod" && event.pod === "web-2" && first?.resume();
  expect(await rig.upgrade(request)).toMatchObject({ kind: "upgraded", pods: 2 });
  expect(rig.images).toEqual({ "web-0": "app:1", "web-1": "app:2", "web-2": "app:2" });
  expect([rig.template, rig.steps]).toEqual([
    "app:2",
    expect.stringContaining("web-0 was not ready, and is left alone"),
  ]);
});

test("a pod of a workload that ends is its owner's affair; a bare one that ends is left, and one that would is refused", async () => {
  rig = await Rig.open(2);
  rig.onEvent = (event) => {
    if (event.event !== "pod" || event.step !== "restarting" || event.pod !== "web-1") return;
    rig.onEvent = () => {};
    end("web-1");
    setTimeout(() => {
      rig.api.remove(pods, "web-1", namespace);
      for (const kubelet of rig.kubelets) kubelet.resume();
    }, 50);
  };
  expect(await rig.upgrade()).toMatchObject({ kind: "upgraded" });
  expect(imagesNow()).toEqual([["app:2"], "app:2"]);
  await rig[Symbol.asyncDispose]();
  rig = await Rig.open(1, { kind: "pod" });
  rig.onEvent = (event) => {
    if (event.event === "pod" && event.step === "restarting") end("web");
  };
  expect(await rig.upgrade()).toMatchObject({ kind: "left", left: ["pod/web: it has ended, or is gone"] });
  await rig[Symbol.asyncDispose]();
  rig = await Rig.open(1, { kind: "pod", spec: { restartPolicy: "Never" } });
  await expect(rig.upgrade()).rejects.toThrow(/pod\/web has restartPolicy Never/);
});

/** As kubelet tells of it, which then says nothing else. */
function end(name: string): void {
  for (const kubelet of rig.kubelets) kubelet.pause();
  rig.api.update(pods, name, namespace, (pod) => ({
    ...pod,
    status: { ...Object(pod["status"]), phase: "Failed" },
  }));
}

test("a CloneSet whose partition keeps pods of several revisions, or all of them, is refused", async () => {
  const spec = { updateStrategy: { type: "InPlaceIfPossible", partition: 2, maxUnavailable: 4 } };
  rig = await Rig.open(4, { kind: "cloneset", spec });
  change("cloneset", { template: templateWith("app:2") });
  await eventually(async () => {
    expect(Object.values(await Promise.resolve(rig.images)).toSorted()).toEqual([
      "app:1",
      "app:1",
      "app:2",
      "app:2",
    ]);
  }, "two updated pods");
  await expect(rig.upgrade({ images: { app: "app:3" } })).rejects.toThrow(
    /are of 2 revisions, kept so by spec\.updateStrategy\.partition/,
  );
  change("cloneset", { updateStrategy: { ...spec.updateStrategy, partition: "100%" } });
  await expect(rig.upgrade({ images: { app: "app:3" } })).rejects.toThrow(
    /keeps all of its pods as they are/,
  );
});

test("a CloneSet's template that somebody else changes meanwhile is theirs, and not called upgraded", async () => {
  rig = await Rig.open(4, {
    kind: "cloneset",
    spec: { updateStrategy: { type: "InPlaceIfPossible", maxUnavailable: 1 } },
  });
  rig.onEvent = (event) => {
    if (event.event === "pod" && event.step === "done")
      change("cloneset", { template: templateWith("app:9") });
  };
  const outcome = await rig.upgrade();
  expect(outcome).toMatchObject({ kind: "left", failure: { code: "conflict" } });
  expect(rig.template).toBe("app:9");
});

test("a container may be called what objects of JavaScript have", async () => {
  rig = await Rig.open(1, {
    kind: "pod",
    spec: {
      containers: [
        { name: "constructor", image: "other:1" },
        { name: "app", image: "app:1" },
      ],
    },
  });
  expect(await rig.upgrade()).toMatchObject({ kind: "upgraded", pods: 1 });
  expect(
    await rig.upgrade({ images: JSON.parse('{"constructor":"other:2"}') as Record<string, string> }),
  ).toMatchObject({ kind: "upgraded", pods: 1 });
  expect(rig.all[0]?.metadata["annotations"] ?? {}).not.toHaveProperty([requestAnnotation]);
});

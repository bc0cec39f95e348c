// hawser upgrade KIND/NAME as its users have it: the program, with a kubeconfig that may no more than the role for it, on
// pods of two nodes whose Hawsers and containerds are real, and so are all pulls; the API, kubelets and controllers are fakes.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { parse } from "yaml";
import { conditionOf, readinessGate } from "../../src/cluster/marks.ts";
import { FakeApi } from "../fakes/api.ts";
import { FakeControllers } from "../fakes/controllers.ts";
import { FakeKubelet } from "../fakes/kubelet.ts";
import type { Rule } from "../fakes/kubernetes/access.ts";
import type { ApiObject } from "../fakes/kubernetes/store.ts";
import { type FakeImage, FakeRegistry, gate } from "../fakes/registry.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { eventually } from "../harness/process.ts";

const program = fileURLToPath(new URL("../../dist/main.js", import.meta.url));
const role = new URL("../../config/kubernetes/upgrade/role.yaml", import.meta.url);
const { rules } = parse(readFileSync(role, "utf8")) as { readonly rules: readonly Rule[] };
const pods = "/api/v1/pods";
const leases = "/apis/coordination.k8s.io/v1/leases";
const namespace = "shop";
const collections = {
  statefulset: "/apis/apps/v1/statefulsets",
  daemonset: "/apis/apps/v1/daemonsets",
  cloneset: "/apis/apps.kruise.io/v1alpha1/clonesets",
} as const;
const kinds = ["statefulset", "daemonset", "cloneset", "pod"] as const;
type Kind = (typeof kinds)[number];

interface Node {
  readonly name: string;
  readonly containerd: PrivateContainerd;
  readonly hawser: PrivateHawser;
}

let registry: FakeRegistry;
let api: FakeApi;
let kubeconfig: string;
let nodes: readonly Node[];
let controllers: FakeControllers;
let kubelets: readonly FakeKubelet[];
let images = 0;
let worst = 0;
let silence: () => void;

beforeAll(async () => {
  [registry, api] = await Promise.all([FakeRegistry.start(), FakeApi.start()]);
  kubeconfig = api.kubeconfigFor({ name: "operator", rules, namespace });
  nodes = await Promise.all(
    ["node-1", "node-2"].map(async (name): Promise<Node> => {
      const containerd = await PrivateContainerd.start();
      const own = api.kubeconfigFor({ name, nodeName: name });
      const config = `[prewarm]\npods = true\nkubeconfig = "${own}"`;
      return {
        name,
        containerd,
        hawser: await PrivateHawser.start({ containerd: containerd.address, config }),
      };
    }),
  );
}, 60_000);

afterAll(async () => {
  for (const { hawser, containerd } of nodes) {
    await hawser[Symbol.asyncDispose]();
    await containerd[Symbol.asyncDispose]();
  }
  await api[Symbol.asyncDispose]();
  await registry[Symbol.asyncDispose]();
});

beforeEach(() => {
  worst = 0;
  silence = api.listen(({ collection }) => {
    if (collection === pods) worst = Math.max(worst, unready().length);
  });
  controllers = new FakeControllers({ api, nodes: nodes.map(({ name }) => name), kruise: true });
  kubelets = nodes.map(({ name, hawser }) => {
    const kubelet = new FakeKubelet({ api, nodeName: name, images: hawser.cri });
    kubelet.behave = (image) => ({ readyAfterMs: 5, ...(image.includes("crash") && { exitsWith: 1 }) });
    return kubelet;
  });
});

afterEach(async () => {
  registry.behave = () => undefined;
  api.behave = () => undefined;
  silence();
  for (const collection of Object.values(collections))
    for (const { metadata } of api.list(collection)) api.remove(collection, metadata.name, namespace);
  controllers[Symbol.dispose]();
  for (const { metadata } of Array.from(api.list(pods))) api.remove(pods, metadata.name, namespace);
  for (const { metadata } of Array.from(api.list(leases))) api.remove(leases, metadata.name, namespace);
  for (const kubelet of kubelets) await kubelet[Symbol.asyncDispose]();
});

/** One that no node has yet. */
function makeImage(word = "app"): FakeImage {
  images += 1;
  return registry.put(`${word}/image${images}:v1`, [
    { bytes: tarGz([file(`f${images}`, `image ${images}`)]) },
  ]);
}

function podSpec(image: string): object {
  return { readinessGates: [{ conditionType: readinessGate }], containers: [{ name: "app", image }] };
}

/** Runs pods of this image, two on each node if there are that many. */
async function run(kind: Kind, image: FakeImage, replicas = 3): Promise<void> {
  const labels = { app: "web" };
  if (kind === "pod") {
    api.put(pods, {
      metadata: { name: "web", namespace },
      spec: { ...podSpec(image.reference), nodeName: "node-1" },
    });
  } else {
    const template = { metadata: { labels }, spec: podSpec(image.reference) };
    const updateStrategy = {
      type: kind === "cloneset" ? "InPlaceIfPossible" : "OnDelete",
      maxUnavailable: 1,
    };
    const spec = {
      replicas,
      selector: { matchLabels: labels },
      podManagementPolicy: "Parallel",
      updateStrategy,
      template,
    };
    api.put(collections[kind], { metadata: { name: "web", namespace }, spec });
  }
  const count = kind === "pod" ? 1 : kind === "daemonset" ? nodes.length : replicas;
  await eventually(async () => {
    expect([await Promise.resolve(podsNow().length), unready()]).toEqual([count, []]);
  }, `${count} pods that are ready`);
  worst = 0;
}

function podsNow(): readonly ApiObject[] {
  return api.list(pods, namespace);
}

function unready(): readonly string[] {
  return podsNow().flatMap((pod) =>
    conditionOf(pod, "Ready")?.status === "True" ? [] : [pod.metadata.name],
  );
}

function identities(): unknown[] {
  return podsNow().map(({ metadata: { name, uid } }) => [name, uid]);
}

/** What kubelets say that runs. */
function running(): Set<unknown> {
  return new Set(
    podsNow().map(
      (pod) => (pod["status"] as { containerStatuses: { imageID: string }[] }).containerStatuses[0]?.imageID,
    ),
  );
}

function imageIDOf({ reference, manifestDigest }: FakeImage): string {
  return `${reference.slice(0, reference.lastIndexOf(":"))}@${manifestDigest}`;
}

interface Ended {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function start(args: readonly string[], config = kubeconfig) {
  const child = spawn(process.execPath, [program, "upgrade", ...args, "--kubeconfig", config]);
  const ended = Promise.all([text(child.stdout), text(child.stderr), once(child, "close")]);
  const over = ended.then(
    ([stdout, stderr, [status]]): Ended => ({ stdout, stderr, status: status as number | null }),
  );
  return { child, over };
}

async function upgrade(kind: Kind, image: string, ...more: readonly string[]): Promise<Ended> {
  return await start([`${kind}/web`, `app=${image}`, "--grace", "0s", ...more]).over;
}

/** Nothing of the upgrade is left on the pods, and nobody holds the lock. */
function expectClean(): void {
  const annotations = podsNow().flatMap((pod) => Object.keys(Object(pod.metadata["annotations"])));
  expect(annotations.filter((name) => name.startsWith("hawser.dev/"))).toEqual([]);
  expect(api.list(leases)).toEqual([]);
}

test.each(kinds)(
  "a %s: the image is on its nodes first, and each pod then only changes its container",
  async (kind) => {
    const [former, next] = [makeImage(), makeImage()];
    await run(kind, former);
    const before = identities();
    const { status, stdout, stderr } = await upgrade(kind, next.reference);
    expect({ status, stderr }).toMatchObject({ status: 0 });
    expect(stdout).toMatch(new RegExp(`^${kind}/web is upgraded: ${before.length} pods? in [\\d.]+ s\n$`));
    expect(identities()).toEqual(before);
    expect(running()).toEqual(new Set([imageIDOf(next)]));
    expect(worst).toBe(1);
    expectClean();
    // By the daemons before any pod was touched: kubelets found everything there.
    const told = stderr.split("\n").filter((line) => /: (?:warm|leaving service|restarting|done)/.test(line));
    expect(told.findIndex((line) => /: (?:leaving|restarting)/.test(line))).toBe(
      told.filter((line) => line.endsWith(": warm")).length,
    );
    const used = new Set(podsNow().map(({ spec }) => (spec as { nodeName: string }).nodeName));
    expect(registry.rangesOf(next.layers[0]?.digest ?? "").length).toBe(used.size);
  },
);

test("kubelet's own pull of a warm image asks the registry for nothing but whether this pod may have it", async () => {
  const [former, next] = [makeImage(), makeImage()];
  await run("pod", former);
  let asked: string[] = [];
  registry.behave = ({ method, path }) => {
    if (path.includes(next.reference.split("/")[1] ?? ""))
      asked.push(`${method} ${path.replace(/.*\//, "")}`);
    return undefined;
  };
  api.behave = ({ identity, method, path }) => {
    if (identity === "operator" && method === "PATCH" && path.endsWith("/status")) asked = [];
    return undefined;
  };
  expect((await upgrade("pod", next.reference)).status).toBe(0);
  expect(asked.every((one) => !one.includes("sha256") || one.startsWith("HEAD"))).toBe(true);
});

test.each(kinds)("a %s whose image the registry does not have is not touched", async (kind) => {
  const former = makeImage();
  await run(kind, former);
  const specs = podsNow().map((pod) => pod["spec"]);
  const missing = former.reference.replace(/:v1$/, ":v2");
  const { status, stderr } = await upgrade(kind, missing);
  expect(status).toBe(1);
  expect(stderr).toMatch(
    /hawser: \w+\/web is not upgraded: node node-\d cannot have \S+:v2 for pod web\S*: .+ \(no pod was touched\)\n$/,
  );
  expect(podsNow().map((pod) => pod["spec"])).toEqual(specs);
  expect([worst, running()]).toEqual([0, new Set([imageIDOf(former)])]);
  expectClean();
});

test.each(kinds)("a %s whose new containers crash becomes what it was", async (kind) => {
  const [former, crash] = [makeImage(), makeImage("crash")];
  await run(kind, former);
  const before = identities();
  const { status, stderr } = await upgrade(kind, crash.reference);
  expect(status).toBe(1);
  expect(stderr).toMatch(
    /is not upgraded: pod web\S*: container app crashes: .* \(\d pods? rolled back, all is as it was\)\n$/,
  );
  expect(identities()).toEqual(before);
  expect([worst, unready(), running()]).toEqual([1, [], new Set([imageIDOf(former)])]);
  expectClean();
});

test("without pre-warming, an image that is missing is met by kubelet, and rolled back", async () => {
  const former = makeImage();
  await run("statefulset", former);
  const missing = former.reference.replace(/:v1$/, ":v2");
  const { status, stderr } = await upgrade("statefulset", missing, "--no-prewarm");
  expect(status).toBe(1);
  expect(stderr).toMatch(
    /pod web-2: container app does not start: ImagePullBackOff: .*\(1 pod rolled back, all is as it was\)/,
  );
  expect([worst, unready(), running()]).toEqual([1, [], new Set([imageIDOf(former)])]);
  expectClean();
});

test("a registry that is down for a while is waited for, and told", async () => {
  const [former, next] = [makeImage(), makeImage()];
  await run("statefulset", former);
  registry.behave = () => ({ status: 503 });
  const { child, over } = start(["statefulset/web", `app=${next.reference}`, "--grace", "0s"]);
  let said = "";
  child.stderr.on("data", (chunk: Buffer) => {
    said += chunk.toString();
    if (/fetching \(.*503/.test(said)) registry.behave = () => undefined;
  });
  expect((await over).status).toBe(0);
  expect(said).toMatch(/web-\d on node-\d: fetching \(\S+: .*503.*\)/);
  expect(running()).toEqual(new Set([imageIDOf(next)]));
}, 60_000);

test("a process that is killed in the middle: the same command goes on, and finds what it left", async () => {
  const [former, next] = [makeImage(), makeImage()];
  await run("statefulset", former);
  const before = identities();
  const first = start(["statefulset/web", `app=${next.reference}`, "--grace", "0s"]);
  api.behave = ({ identity, method, body }) => {
    const isExchange =
      identity === "operator" &&
      method === "PATCH" &&
      "spec" in Object(body) &&
      "containers" in Object(Object(body).spec);
    // The first pod is done by then, and the second one out of service.
    if (!isExchange || !JSON.stringify(podsNow().map((pod) => pod["spec"])).includes(next.reference))
      return undefined;
    first.child.kill("SIGKILL");
    return { drop: true };
  };
  expect((await first.over).status).toBe(null);
  api.behave = () => undefined;
  expect(unready()).toHaveLength(1);
  const plan = await upgrade("statefulset", next.reference, "--dry-run");
  expect(plan.stdout).toMatch(/web-1 .*not ready, begun before/);
  const { status, stderr } = await upgrade("statefulset", next.reference);
  expect({ status, stderr }).toMatchObject({ status: 0 });
  expect(stderr).toMatch(/statefulset\/web is locked by .*: waiting to see whether that goes on/);
  expect(identities()).toEqual(before);
  expect([worst, unready(), running()]).toEqual([1, [], new Set([imageIDOf(next)])]);
  expectClean();
}, 90_000);

test("Ctrl-C rolls back", async () => {
  const [former, next] = [makeImage(), makeImage()];
  await run("statefulset", former);
  const { child, over } = start(["statefulset/web", `app=${next.reference}`, "--grace", "5m"]);
  child.stderr.on("data", (chunk: Buffer) => {
    if (chunk.toString().includes("leaving service")) child.kill("SIGINT");
  });
  const { status, stderr } = await over;
  expect(status).toBe(1);
  expect(stderr).toMatch(
    /statefulset\/web is not upgraded: interrupted \((?:no pod was touched|1 pod rolled back, all is as it was)\)\n$/,
  );
  await eventually(async () => expect(await Promise.resolve(unready())).toEqual([]), "all pods ready");
  expect(running()).toEqual(new Set([imageIDOf(former)]));
  expectClean();
});

test("a second Ctrl-C ends it at once, says what that leaves, and the same command goes on", async () => {
  const [former, next] = [makeImage(), makeImage()];
  await run("statefulset", former);
  const { child, over } = start(["statefulset/web", `app=${next.reference}`, "--grace", "5m"]);
  child.stderr.on("data", (chunk: Buffer) => {
    if (!chunk.toString().includes("leaving service")) return;
    // Nothing that it wants to take back gets through.
    api.behave = ({ identity, method }) => {
      if (identity !== "operator" || method !== "PATCH") return undefined;
      child.kill("SIGINT");
      return { drop: true };
    };
    child.kill("SIGINT");
  });
  const { status, stderr } = await over;
  api.behave = () => undefined;
  expect(status).toBe(130);
  expect(stderr).toMatch(
    /\nhawser: statefulset\/web is left as it is now: the same command goes on from here, and one with the former images goes back\n$/,
  );
  // What is held is not let go until it is found to be nobody's, which takes as long as it does above.
  for (const { metadata } of api.list(leases, namespace)) api.remove(leases, metadata.name, namespace);
  expect(await upgrade("statefulset", next.reference, "--grace", "0s")).toMatchObject({ status: 0 });
  expect(running()).toEqual(new Set([imageIDOf(next)]));
  expectClean();
}, 90_000);

test.each(["SIGHUP", "a reader that is gone"])("%s in the middle leaves nothing half done", async (what) => {
  const [former, next] = [makeImage(), makeImage()];
  await run("statefulset", former);
  const { child, over } = start(["statefulset/web", `app=${next.reference}`, "--grace", "1s", "--json"]);
  let [said, isDone] = ["", false];
  child.stdout.on("data", (chunk: Buffer) => {
    said += chunk.toString();
    if (!said.includes("leaving service") || isDone) return;
    isDone = true;
    if (what === "SIGHUP") child.kill("SIGHUP");
    else child.stdout.destroy();
  });
  const { status } = await over.catch(async () => ({
    status: child.exitCode ?? ((await once(child, "exit"))[0] as number),
  }));
  const [code, image] = what === "SIGHUP" ? [1, former] : [0, next];
  expect(status).toBe(code);
  await eventually(async () => expect(await Promise.resolve(unready())).toEqual([]), "all pods ready");
  expect(running()).toEqual(new Set([imageIDOf(image)]));
  expectClean();
});

test("an API that forbids everything half way: what is left is named, and the same command goes on", async () => {
  const [former, next] = [makeImage(), makeImage()];
  await run("statefulset", former);
  api.behave = ({ identity, method }) => {
    const isExchanged = JSON.stringify(podsNow().map((pod) => pod["spec"])).includes(next.reference);
    return identity === "operator" && method === "PATCH" && isExchanged ? { status: 403 } : undefined;
  };
  const { status, stderr } = await upgrade("statefulset", next.reference);
  api.behave = () => undefined;
  expect(status).toBe(3);
  expect(stderr).toMatch(
    /is not upgraded: the API refuses: .*\nhawser: not as it was: pod web-2: the API refuses: .*\nhawser: the same command goes on from here/,
  );
  expect(unready()).toEqual(["web-2"]);
  expect((await upgrade("statefulset", next.reference)).status).toBe(0);
  expect([worst, running()]).toEqual([1, new Set([imageIDOf(next)])]);
  expectClean();
});

test("two upgrades at once: the second is refused with who is at it, and disturbs nothing", async () => {
  const [former, next, other] = [makeImage(), makeImage(), makeImage()];
  await run("statefulset", former);
  const held = gate();
  registry.behave = ({ path }) =>
    path.includes(next.layers[0]?.digest ?? "none") ? { answer: held.opened } : undefined;
  const first = start(["statefulset/web", `app=${next.reference}`, "--grace", "0s"]);
  await eventually(async () => expect(await Promise.resolve(api.list(leases))).toHaveLength(1), "a lock");
  const second = await upgrade("statefulset", other.reference);
  expect(second.status).toBe(1);
  expect(second.stderr).toMatch(
    /statefulset\/web is not upgraded: another upgrade of it goes on, by .+ on .+: wait for its end/,
  );
  held.open();
  expect((await first.over).status).toBe(0);
  expect(running()).toEqual(new Set([imageIDOf(next)]));
  expectClean();
}, 60_000);

test("a dry run prints the plan, and changes nothing", async () => {
  const [former, next] = [makeImage(), makeImage()];
  await run("statefulset", former);
  const since = api.requests.length;
  const { status, stdout } = await upgrade(
    "statefulset",
    next.reference,
    "--dry-run",
    "--max-unavailable",
    "50%",
  );
  expect(status).toBe(0);
  expect(stdout).toBe(
    `statefulset/web in shop: 3 of 3 pods, at most 1 out of service at a time, 0 s of grace, images on the nodes first\n` +
      ["web-2  node-1", "web-1  node-2", "web-0  node-1"]
        .map((pod) => `  ${pod}  app: ${former.reference} -> ${next.reference}\n`)
        .join("") +
      `  statefulset/web  spec.template.spec.containers, app: ${former.reference} -> ${next.reference}\n`,
  );
  const changes = api.requests
    .slice(since)
    .filter(
      ({ identity, method, path }) =>
        identity === "operator" && method !== "GET" && !path.endsWith("reviews"),
    );
  expect(changes).toEqual([]);
});

test("for programs: a JSON object a line, of the plan, of each event and of the outcome", async () => {
  const [former, next] = [makeImage(), makeImage()];
  await run("statefulset", former, 2);
  const { status, stdout } = await upgrade("statefulset", next.reference, "--json");
  expect(status).toBe(0);
  const lines = stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);
  expect(lines[0]).toMatchObject({
    plan: {
      pods: [
        { name: "web-1", node: "node-2" },
        { name: "web-0", node: "node-1" },
      ],
      maxUnavailable: 1,
    },
  });
  const steps = lines.filter(({ event, pod }) => event === "pod" && pod === "web-1").map(({ step }) => step);
  expect(steps).toEqual(["fetching", "warm", "leaving service", "restarting", "entering service", "done"]);
  expect(lines.at(-1)).toMatchObject({ outcome: { kind: "upgraded", pods: 2 }, seconds: expect.any(Number) });
  const refused = await upgrade("daemonset", next.reference, "--json");
  expect(refused.status).toBe(1);
  expect(JSON.parse(refused.stdout)).toMatchObject({ outcome: { kind: "refused", code: "not_found" } });
});

test("the role for it is enough, and no more than that", () => {
  const denied = api.requests.filter(({ identity }) => identity === "operator");
  expect(denied.length).toBeGreaterThan(100);
  for (const { apiGroups, resources, verbs } of rules)
    for (const resource of resources)
      for (const verb of verbs)
        expect(isUsed(apiGroups[0] ?? "", resource, verb), `${verb} ${resource}`).toBe(true);
});

function isUsed(group: string, resource: string, verb: string): boolean {
  const [plural = "", subresource = ""] = resource.split("/");
  const prefix = group === "" ? "/api/v1/" : `/apis/${group}/`;
  return api.requests.some(({ identity, method, path, query }) => {
    if (identity !== "operator" || !path.startsWith(prefix)) return false;
    const [, , , ...rest] = path
      .slice(prefix.length - 1)
      .replace(/^\/v1[^/]*/, "")
      .split("/");
    const [, name, sub = ""] = rest;
    if (rest[0] !== plural || sub !== subresource) return false;
    const seen =
      method === "GET"
        ? name
          ? "get"
          : query["watch"]
            ? "watch"
            : "list"
        : { POST: "create", PATCH: "patch", DELETE: "delete" }[method];
    return seen === verb;
  });
}

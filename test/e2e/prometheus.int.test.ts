// A real Prometheus scrapes a real daemon by the configuration and the rules that are delivered, and each alert fires when
// what it tells of is made to happen; and only then. Waits, ranges and some thresholds of the rules are shortened, in their text.

import { randomBytes } from "node:crypto";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parse } from "yaml";
import { root } from "../../config/release/place.ts";
import { askAdmin } from "../../src/front/client.ts";
import { type FakeImage, FakeRegistry, gate } from "../fakes/registry.ts";
import { dir, file, tarGz } from "../fakes/tar.ts";
import { type Dashboard, expressionsOf, type RuleFile, rulesOf } from "../harness/alerting.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { eventually, freePort } from "../harness/process.ts";
import { PrivatePrometheus, type Sample } from "../harness/prometheus.ts";

const read = (path: string): string => readFileSync(join(root, path), "utf8");

/** Each of these is in the text; what is changed is how long something has to last or how much it has to be. */
function replaced(text: string, changes: readonly (readonly [RegExp, string])[]): string {
  return changes.reduce((changed, [pattern, by]) => {
    expect(changed).toMatch(pattern);
    return changed.replaceAll(pattern, by);
  }, text);
}

const rules = replaced(read("config/prometheus/hawser.rules.yaml"), [
  [/for: \d+m/g, "for: 0s"],
  [/\[\d+[mh]\]/g, "[1m]"],
  // HawserPullsSlow, HawserRegistrySlow, HawserLimited and HawserPrewarmLate.
  [/> 120$/gm, "> 1"],
  [/\)\)\) > 5$/gm, "))) > 0.3"],
  [/> 60$/gm, "> 0.5"],
  [/> 3600$/gm, "> 1"],
]);

let containerd: PrivateContainerd;
let fake: FakeRegistry;
let hawser: PrivateHawser;
let prometheus: PrivatePrometheus;
const running: AsyncDisposable[] = [];
const started = new Set<string>();
let count = 0;

beforeAll(async () => {
  fake = await FakeRegistry.start();
  running.push(fake);
  containerd = await PrivateContainerd.start();
  running.push(containerd);
  const metricsPort = await freePort();
  const config = `
[content]
spool_max_size = "4MiB"
[download]
max_concurrent_per_image = 1
bandwidth_limit = "1GiB"
retries = 1
[fallback]
breaker_failures = 10
`;
  hawser = await PrivateHawser.start({ containerd: containerd.address, config, metricsPort });
  running.push(hawser);
  prometheus = await PrivatePrometheus.start({
    rules,
    config: replaced(read("config/prometheus/prometheus.yaml"), [
      [/interval: 15s/g, "interval: 250ms"],
      [/node-1\.example:9464/g, `127.0.0.1:${metricsPort}`],
    ]),
  });
  running.push(prometheus);
});

afterAll(async () => {
  for (const one of running.toReversed()) await one[Symbol.asyncDispose]();
});

function put(layers: number, bytes: number): FakeImage {
  count += 1;
  const made = Array.from({ length: layers }, (_, index) => ({
    bytes: tarGz([dir(`${index}`), file(`${index}/noise`, randomBytes(bytes)), file(`n${count}`)]),
  }));
  return fake.put(`watched/image-${count}:v1`, made);
}

const isBlob = ({ path }: { readonly path: string }): boolean => path.includes("/blobs/");

async function admin(method: "POST" | "PUT", path: string, body?: unknown): Promise<unknown> {
  return await askAdmin(join(hawser.root, "admin.sock"), method, path, body);
}

async function firing(): Promise<readonly string[]> {
  return (await prometheus.firing()).map(({ labels }) => labels["alertname"] ?? "");
}

/** Waits until an expression has a sample that is meant. */
async function untilSeen(expression: string, isMeant: (value: number) => boolean): Promise<void> {
  await eventually(async () => {
    const values = (await prometheus.query(expression)).map(({ value: [, text] }) => Number(text));
    if (!values.some(isMeant)) throw new Error(`${expression}: ${values.join(", ")}`);
  }, expression);
}

/** These fire, and none of them did before it was made to. */
async function expectFiring(names: readonly string[]): Promise<void> {
  for (const name of names) {
    expect(started).not.toContain(name);
    const { labels, annotations } = await prometheus.untilFiring(name);
    expect(labels["severity"], name).toMatch(/^(?:critical|warning|info)$/);
    // What the templates refer to is there.
    expect(annotations["summary"], name).toMatch(/node-1|127\.0\.0\.1/);
    expect(JSON.stringify(annotations), name).not.toMatch(/no value|error expanding/);
    started.add(name);
  }
}

/** Nothing else does but what was made to by now, and may still. */
async function expectNoOthers(): Promise<void> {
  expect((await firing()).filter((name) => !started.has(name))).toEqual([]);
}

async function kill(): Promise<void> {
  const { pullers } = await hawser.status();
  const serving = pullers.find(({ state }) => state === "serving")?.pid;
  if (serving === undefined) throw new Error("no process pulls");
  process.kill(serving, "SIGKILL");
  await eventually(async () => {
    const status = await hawser.status();
    const isBack = status.pullers.some(({ pid, state }) => state === "serving" && pid !== serving);
    if (!isBack || !status.accelerating) throw new Error("not yet");
  }, "another process that pulls");
}

test("pulls as usual: nothing fires, and what was pulled is told", async () => {
  const image = put(2, 500_000);
  await hawser.cri.mustPull(image.reference);
  await hawser.cri.mustPull(put(1, 500_000).reference);
  const sizes = image.layers.reduce((sum, { bytes }) => sum + bytes.length, 0);
  await untilSeen('hawser_pulls_total{result="ok", path="accelerated"}', (value) => value === 2);
  await untilSeen(`hawser_registry_received_bytes_total{host="${fake.host}"}`, (value) => value > sizes);
  await untilSeen(`hawser_registry_requests_total{host="${fake.host}", status="2xx"}`, (value) => value >= 7);
  await untilSeen(`hawser_registry_first_byte_seconds_count{host="${fake.host}"}`, (value) => value >= 7);
  await untilSeen(`hawser_registry_open_requests{host="${fake.host}"}`, (value) => value === 0);
  await untilSeen(`hawser_registry_open_requests_max{host="${fake.host}"}`, (value) => value >= 1);
  await untilSeen("hawser_image_pulling_throughput_mibps_count", (value) => value === 2);
  await untilSeen("hawser_pull_fetched_bytes_sum", (value) => value > 1_500_000 && value < 1_600_000);
  await untilSeen("sum(hawser_pull_bottlenecks_total)", (value) => value === 2);
  await untilSeen("sum(hawser_pull_cause_seconds_total)", (value) => value > 0);
  for (const [key, most] of [
    ["download.max_concurrent_per_image", 1],
    ["download.max_concurrent", 64],
    ["content.spool_max_size", 4 * 2 ** 20],
    ["download.bandwidth_limit", 2 ** 30],
  ] as const)
    await untilSeen(`hawser_limit{key="${key}"}`, (value) => value === most);
  await untilSeen('hawser_limit_used{key="download.max_concurrent_per_image"}', (value) => value === 0);
  expect(await firing()).toEqual([]);
  expect(await prometheus.ruleErrors()).toEqual([]);
});

test("a limit is in the way: pulls are slow because of it", async () => {
  const image = put(4, 400_000);
  fake.behave = (asked) => (isBlob(asked) ? { bytesPerSecond: 500_000 } : undefined);
  const reply = hawser.cri.mustPull(image.reference);
  const key = "download.max_concurrent_per_image";
  await untilSeen(`hawser_limit_used{key="${key}"}`, (value) => value === 1);
  await untilSeen(`hawser_queue_length{key="${key}"}`, (value) => value >= 1);
  await reply;
  fake.behave = () => undefined;
  await untilSeen(`hawser_queue_wait_seconds_count{key="${key}"}`, (value) => value >= 3);
  await untilSeen(`hawser_queue_length{key="${key}"}`, (value) => value === 0);
  await untilSeen('hawser_pull_bottlenecks_total{cause="limit"}', (value) => value === 1);
  await expectFiring(["HawserPullsSlow", "HawserLimited"]);
  await expectNoOthers();
});

test("a registry that takes its time", async () => {
  fake.behave = () => ({ answer: sleep(500) });
  await hawser.cri.mustPull(put(1, 1000).reference);
  fake.behave = () => undefined;
  await expectFiring(["HawserRegistrySlow"]);
  await expectNoOthers();
});

test("a layer as large as the spool that does not come: the spool is full, and who comes next waits", async () => {
  const [image, next] = [put(1, 4_100_000), put(1, 400_000)];
  const pause = gate();
  fake.behave = ({ path }) =>
    path.endsWith(image.layers[0]?.digest ?? "-") ? { after: 10, afterwards: pause.opened } : undefined;
  const replies = [hawser.cri.mustPull(image.reference)];
  await expectFiring(["HawserSpoolNearlyFull"]);
  replies.push(hawser.cri.mustPull(next.reference));
  await untilSeen('hawser_queue_length{key="content.spool_max_size"}', (value) => value === 1);
  pause.open();
  fake.behave = () => undefined;
  await Promise.all(replies);
  await untilSeen('hawser_queue_wait_seconds_count{key="content.spool_max_size"}', (value) => value === 1);
  await expectNoOthers();
});

test("a reload while a pull goes on: limits are the newer process's, and what goes on is both's", async () => {
  const image = put(1, 1000);
  const pause = gate();
  fake.behave = ({ path }) =>
    path.endsWith(image.layers[0]?.digest ?? "-") ? { answer: pause.opened } : undefined;
  const reply = hawser.cri.pull(image.reference);
  await untilSeen('hawser_in_flight{what="pulls"}', (value) => value === 1);
  const written = join(hawser.root, "hawser.toml");
  const text = readFileSync(written, "utf8");
  writeFileSync(written, text.replace("max_concurrent_per_image = 1", "max_concurrent_per_image = 3"));
  await admin("POST", "/reload");
  const key = "download.max_concurrent_per_image";
  await untilSeen(`hawser_limit{key="${key}"}`, (value) => value === 3);
  expect((await hawser.status()).pullers).toHaveLength(2);
  await eventually(async () => {
    const [limits, used, open] = await Promise.all(
      [`hawser_limit{key="${key}"}`, `hawser_limit_used{key="${key}"}`, 'hawser_in_flight{what="pulls"}'].map(
        async (name) => (await prometheus.query(name)).map(({ value: [, value] }) => value),
      ),
    );
    expect({ limits, used, open }).toEqual({ limits: ["3"], used: ["0"], open: ["1"] });
  }, "each process counted once");
  pause.open();
  fake.behave = () => undefined;
  expect(await reply).toEqual({ value: image.configDigest });
  await hawser.untilSettled();
});

test("an image that nobody can fetch ahead of need", async () => {
  await admin("POST", "/prewarm", { add: [`${fake.host}/watched/nothing:v1`] });
  await expectFiring(["HawserPrewarmFailing", "HawserPrewarmLate"]);
  await expectNoOthers();
});

test("no folder for traces: they are lost, and pulls go on", async () => {
  const folder = join(hawser.root, "state/pulls");
  rmSync(folder, { recursive: true });
  writeFileSync(folder, "");
  await hawser.cri.mustPull(put(1, 1000).reference);
  await expectFiring(["HawserTracesLost"]);
  rmSync(folder);
  await expectNoOthers();
});

test("a registry in trouble: pulls fail, are left to containerd, and the breaker opens", async () => {
  const images = Array.from({ length: 14 }, () => put(1, 1000));
  fake.behave = () => ({ status: 503 });
  for (const { reference } of images) expect(await hawser.cri.pull(reference)).toHaveProperty("code");
  await untilSeen(
    `hawser_registry_failures_total{host="${fake.host}", reason="5xx"}`,
    (value) => value >= 10,
  );
  await expectFiring([
    "HawserPullsFailing",
    "HawserDelegating",
    "HawserRegistryFailing",
    "HawserBreakerOpen",
  ]);
  await expectNoOthers();
  fake.behave = () => undefined;
});

describe("what the dashboard asks for", () => {
  const dashboard = JSON.parse(read("config/grafana/hawser.json")) as Dashboard;
  /** Of what there is none at the moment. */
  const empty = [/hawser_pass_through/];

  test.each(expressionsOf(dashboard))("%s", async (expression) => {
    const chosen = expression
      .replaceAll("$node", ".*")
      .replaceAll("$__rate_interval", "2m")
      .replaceAll("$__range", "2m");
    const ask = async (): Promise<readonly Sample[]> => await prometheus.query(chosen);
    if (empty.some((pattern) => pattern.test(expression)) && !expression.includes("unless"))
      expect(await ask()).toEqual([]);
    // On a busy machine a scrape may be late, and what is of now is not there until the next one.
    else await eventually(async () => expect((await ask()).length).toBeGreaterThan(0), expression);
  });

  test("each of its nodes is one that is scraped", async () => {
    await eventually(async () => {
      const nodes = await prometheus.query("count by (node) (hawser_build_info)");
      expect(nodes.map(({ metric }) => metric)).toEqual([{ node: "node-1" }]);
    }, "a scrape of the node");
  });
});

test("the process that pulls is killed again and again", async () => {
  for (let kills = 0; kills < 4; kills++) await kill();
  await untilSeen("hawser_puller_restarts_total", (value) => value === 4);
  await expectFiring(["HawserPullerRestarting"]);
});

test("forty hosts that somebody made up have as many names as there are labels, and the rest one", async () => {
  const hosts = Array.from({ length: 40 }, (_, index) => `127.0.0.1:${index + 1}`);
  for (const host of hosts) expect(await hawser.cri.pull(`${host}/made/up:v1`)).toHaveProperty("code");
  const counted = 'count(count by (host) ({__name__=~"hawser_registry_(requests|failures)_total"}))';
  await untilSeen('hawser_registry_failures_total{host="other"}', (value) => value >= 8);
  await untilSeen(counted, (value) => value === 33);
});

test("an operator has every pull go through, and then there is no containerd", async () => {
  await eventually(async () => expect(await firing()).not.toContain("HawserPassThrough"), "the end of that");
  await admin("PUT", "/passthrough", { on: true, persistent: false });
  const { labels } = await prometheus.untilFiring("HawserPassThrough");
  expect(labels).toMatchObject({ reason: "switch", node: "node-1" });
  started.add("HawserPassThrough");
  await admin("PUT", "/passthrough", { on: false, persistent: false });
  await eventually(async () => expect(await firing()).not.toContain("HawserPassThrough"), "its end");
  await containerd.stop();
  const again = await prometheus.untilFiring("HawserPassThrough");
  expect(again.labels).toMatchObject({ reason: "containerd" });
});

test("no daemon", async () => {
  expect(await firing()).not.toContain("HawserDown");
  await hawser.stop("SIGKILL");
  await expectFiring(["HawserDown"]);
});

test("that was each alert that there is", () => {
  const all = rulesOf(parse(rules) as RuleFile).map(({ alert }) => alert);
  expect([...started].toSorted()).toEqual(all.toSorted());
});

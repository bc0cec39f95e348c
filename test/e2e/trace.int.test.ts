// Every pull leaves a trace: however it ended, whoever made it, over restarts; and it is shown, followed and cancelled from
// the command line.

import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { Metadata, status } from "@grpc/grpc-js";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { askAdmin } from "../../src/front/client.ts";
import type { PullList } from "../../src/front/pulls.ts";
import type { PullRecord } from "../../src/history/record.ts";
import type { PullSummary } from "../../src/history/summary.ts";
import { type FakeImage, FakeRegistry, gate } from "../fakes/registry.ts";
import { dir, file, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { message } from "../harness/cri.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { eventually } from "../harness/process.ts";

const program = fileURLToPath(new URL("../../dist/main.js", import.meta.url));
const keep = 12;

let containerd: PrivateContainerd;
let hawser: PrivateHawser;
let fake: FakeRegistry;
/** One that is none of Hawser's business. */
let excluded: FakeRegistry;
let count = 0;

beforeAll(async () => {
  containerd = await PrivateContainerd.start();
  fake = await FakeRegistry.start();
  excluded = await FakeRegistry.start(undefined, "127.0.0.2");
  const config = `[registry]\nexclude = ["${excluded.host}"]\n[trace]\nkeep = ${keep}`;
  hawser = await PrivateHawser.start({ containerd: containerd.address, config });
});

afterEach(() => {
  fake.behave = () => undefined;
});

afterAll(async () => {
  await hawser[Symbol.asyncDispose]();
  await containerd[Symbol.asyncDispose]();
  await fake[Symbol.asyncDispose]();
  await excluded[Symbol.asyncDispose]();
});

function put(layers = 2): FakeImage {
  count += 1;
  const made = Array.from({ length: layers }, (_, index) => ({
    bytes: tarGz([dir(`${index}`), file(`${index}/noise`, randomBytes(300_000)), file(`n${count}`)]),
  }));
  return fake.put(`traced/image-${count}:v1`, made);
}

/** The last layer comes to its half, and on when the gate opens. */
function hold(image: FakeImage): { open(): void } {
  const half = gate();
  const last = image.layers.at(-1)?.digest ?? "";
  fake.behave = ({ path }) => (path.endsWith(last) ? { after: 150_000, afterwards: half.opened } : undefined);
  return half;
}

/** Not in this thread, which is the registry's. */
async function execute(...args: readonly string[]) {
  const child = spawn(process.execPath, [program, ...args], { stdio: ["ignore", "pipe", "pipe"] });
  const [stdout, stderr] = [text(child.stdout), text(child.stderr)];
  const [code] = (await once(child, "exit")) as [number | null];
  return { code, stdout: await stdout, stderr: await stderr };
}

async function run(...args: readonly string[]) {
  return await execute(...args, "--config", join(hawser.root, "hawser.toml"));
}

async function get(path: string): Promise<unknown> {
  return await askAdmin(join(hawser.root, "admin.sock"), "GET", path);
}

async function latest(): Promise<PullRecord> {
  return (await get("/pulls/latest")) as PullRecord;
}

async function untilRunning(image: FakeImage, doneBytes = 1): Promise<PullSummary> {
  return await eventually(async () => {
    const { running } = (await get("/pulls")) as PullList;
    const pull = running.find((one) => one.image === image.reference && one.doneBytes >= doneBytes);
    if (!pull) throw new Error(JSON.stringify(running));
    return pull;
  }, "a pull that goes on");
}

describe("a trace of", () => {
  test("an image that was fetched, and of the same image found there", async () => {
    const image = put();
    await hawser.cri.mustPull(image.reference);
    const fetched = await latest();
    expect(fetched).toMatchObject({
      image: image.reference,
      state: "ok",
      outcome: { path: "accelerated", records: "hawser" },
      presentLayers: 0,
      isAhead: false,
      isJoined: false,
    });
    expect(fetched.stages.map(({ name }) => name)).toEqual([
      "resolve",
      "registry",
      "plan",
      "registry",
      "layers",
      "blobs",
      "register",
    ]);
    expect(fetched.layers.map(({ digest }) => digest)).toEqual(image.layers.map(({ digest }) => digest));
    for (const [index, layer] of fetched.layers.entries()) {
      expect(layer.receivedBytes).toBe(image.layers[index]?.bytes.length);
      expect(layer.hosts).toMatchObject([{ host: fake.host, requests: 1, bytes: layer.bytes, failures: {} }]);
      expect(layer.unpacked).toMatchObject({ entries: 3 });
      const names = layer.spans.map(({ name }) => name);
      expect(names).toEqual(expect.arrayContaining(["open", "download", "worker", "unpack", "commit"]));
      for (const { startSeconds, endSeconds = -1 } of layer.spans) {
        expect(startSeconds).toBeGreaterThanOrEqual(0);
        expect(endSeconds).toBeGreaterThanOrEqual(startSeconds);
        expect(endSeconds).toBeLessThanOrEqual(fetched.seconds);
      }
    }
    await hawser.cri.mustPull(image.reference);
    const found = await latest();
    expect(found).toMatchObject({ state: "ok", outcome: { records: "earlier" }, layers: [] });
    expect(found.id).not.toBe(fetched.id);
    expect(hawser.logs()).toMatch(new RegExp(`pull.*id=${fetched.id}`));
  });

  test("two that share the work of one", async () => {
    const image = put();
    const half = hold(image);
    const first = hawser.cri.mustPull(image.reference);
    await untilRunning(image);
    const second = hawser.cri.mustPull(image.reference);
    await eventually(async () => {
      const { running } = (await get("/pulls")) as PullList;
      expect(running.map((one) => one.layers)).toEqual([2, 2]);
    }, "both pulls");
    half.open();
    await Promise.all([first, second]);
    const { ended } = (await get("/pulls?count=2")) as PullList;
    const both = await Promise.all(ended.map(async ({ id }) => (await get(`/pulls/${id}`)) as PullRecord));
    expect(both.filter(({ isJoined }) => isJoined)).toHaveLength(1);
  });

  test("one that is left to containerd, and why", async () => {
    // As long as it takes for this to be what takes the time.
    excluded.behave = () => ({ answer: sleep(1000), status: 403 });
    await expect(hawser.cri.mustPull(`${excluded.host}/a/b:v1`)).rejects.toThrow();
    expect(await latest()).toMatchObject({
      image: `${excluded.host}/a/b:v1`,
      state: "error",
      outcome: { path: "delegated", error: expect.stringContaining(excluded.host) },
      delegation: { reason: "excluded", detail: `registry ${excluded.host} is excluded by configuration` },
      verdict: { cause: "containerd", advice: expect.stringContaining("excluded by configuration") },
    });
  });

  test("one that goes past the process that pulls, as it goes on and in the end", async () => {
    const image = put();
    const half = gate();
    fake.behave = ({ path }) => (path.includes("/blobs/") ? { answer: half.opened } : undefined);
    await run("passthrough", "on");
    const pulling = hawser.cri.pull(image.reference);
    const { id } = await untilRunning(image, 0);
    expect(await get(`/pulls/${id}`)).toMatchObject({ delegation: { reason: "switch" }, state: "running" });
    expect((await run("pulls")).stdout).toMatch(
      new RegExp(`^${id} +${image.reference} +running \\(containerd\\) `, "m"),
    );
    expect((await run("cancel", id)).code).toBe(0);
    expect(await pulling).toMatchObject({
      code: status.CANCELLED,
      message: expect.stringContaining("hawser cancel"),
    });
    half.open();
    await hawser.cri.mustPull(image.reference);
    await run("passthrough", "off");
    expect(await latest()).toMatchObject({
      image: image.reference,
      state: "ok",
      outcome: { path: "delegated" },
      delegation: { reason: "switch" },
      stages: [{ name: "containerd" }],
      verdict: { cause: "containerd" },
    });
  });

  test("one that a process lost that has died", async () => {
    const image = put();
    const half = hold(image);
    const pulling = hawser.cri.mustPull(image.reference);
    await untilRunning(image, 400_000);
    half.open();
    fake.behave = () => undefined;
    hawser.kill("SIGKILL", ({ role }) => role === "puller");
    await pulling;
    const record = await latest();
    expect(record).toMatchObject({ state: "ok", delegation: { reason: "lost" } });
    expect(record.stages.map(({ name }) => name)).toEqual(["lost", "containerd"]);
    await hawser.untilSettled();
  });

  test("one ahead of need", async () => {
    const image = put();
    await run("prewarm", "add", image.reference);
    expect((await run("prewarm", "wait", image.reference)).code).toBe(0);
    expect(await latest()).toMatchObject({ image: image.reference, state: "ok", isAhead: true });
    await run("prewarm", "rm", image.reference);
  });

  test("a caller's own trace is continued, and nothing that is none is", async () => {
    const image = put();
    const traced = async (traceparent: string): Promise<PullRecord> => {
      const metadata = new Metadata();
      metadata.set("traceparent", traceparent);
      const path = "/runtime.v1.ImageService/PullImage";
      await hawser.cri.raw(path, message([1, message([1, image.reference])]), undefined, metadata);
      return await latest();
    };
    const [traceId, parentId] = [randomBytes(16).toString("hex"), randomBytes(8).toString("hex")];
    expect(await traced(`00-${traceId}-${parentId}-01`)).toMatchObject({ traceId, parentId });
    const other = await traced(`00-${"0".repeat(32)}-${parentId}-01`);
    expect(other.traceId).toMatch(/^[0-9a-f]{32}$/);
    expect(other.traceId).not.toBe("0".repeat(32));
    expect(other).not.toHaveProperty("parentId");
  });

  test("the last so many are kept, over a restart, root's alone, and broken ones are no hindrance", async () => {
    for (let index = 0; index < keep; index++) await hawser.cri.mustPull(put(1).reference);
    const folder = join(hawser.root, "state/pulls");
    // A pull that has ended is shown before it is written, beside as many as are kept.
    const before = await eventually(async () => {
      const list = (await get("/pulls?count=100")) as PullList;
      expect(list.ended).toHaveLength(keep);
      return list;
    }, "kept traces");
    expect(readdirSync(folder)).toHaveLength(keep);
    for (const name of readdirSync(folder)) expect(statSync(join(folder, name)).mode & 0o777).toBe(0o600);
    expect(statSync(folder).mode & 0o777).toBe(0o700);
    await hawser.stop();
    const broken = ["{", "null\nnull\n", "{}\n{}\n"];
    for (const [index, name] of readdirSync(folder).sort().slice(0, broken.length).entries())
      writeFileSync(join(folder, name), broken[index] ?? "");
    await hawser.startAgain();
    const after = (await get("/pulls?count=100")) as PullList;
    expect(after.ended).toEqual(before.ended.slice(0, -broken.length));
    const config = join(hawser.root, "hawser.toml");
    writeFileSync(config, readFileSync(config, "utf8").replace(`keep = ${keep}`, "keep = 3"));
    await askAdmin(join(hawser.root, "admin.sock"), "POST", "/reload");
    await hawser.cri.mustPull(put(1).reference);
    await eventually(async () => expect(readdirSync(folder)).toHaveLength(3), "fewer of them");
    writeFileSync(config, readFileSync(config, "utf8").replace("keep = 3", `keep = ${keep}`));
    await askAdmin(join(hawser.root, "admin.sock"), "POST", "/reload");
    // Those that the front keeps, too.
    await run("passthrough", "on");
    for (let index = 0; index < 2; index++) await hawser.cri.mustPull(put(1).reference);
    await run("passthrough", "off");
    await eventually(async () => expect(readdirSync(folder)).toHaveLength(5), "more of them");
  });
});

describe("from the command line", () => {
  test("hawser pulls shows one that goes on, and then how it ended", async () => {
    const image = put();
    const half = hold(image);
    const pulling = hawser.cri.mustPull(image.reference);
    const { id } = await untilRunning(image, 400_000);
    const [head, row] = (await run("pulls")).stdout.split("\n");
    expect(head).toMatch(/^ID +IMAGE +STATE +BEGAN +TIME +SIZE +BOTTLENECK$/);
    expect(row).toMatch(
      new RegExp(`^${id} +${image.reference} +7\\d % at .*\\d+ s ago +.* 60\\d kB +\\w+ \\d+ %$`),
    );
    half.open();
    await pulling;
    const [, then] = (await run("pulls", "--count", "1")).stdout.split("\n");
    expect(then).toMatch(new RegExp(`^${id} +${image.reference} +ok +\\d+ s ago .*  60\\d kB +\\w+ \\d+ %$`));
    const { stdout } = await run("pulls", "--json");
    expect(JSON.parse(stdout)).toMatchObject({
      running: [],
      ended: expect.arrayContaining([expect.objectContaining({ id })]),
    });
  });

  test("hawser trace shows the latest, or the one whose id begins so", async () => {
    const image = put();
    await hawser.cri.mustPull(image.reference);
    const record = await latest();
    await hawser.cri.mustPull(put().reference);
    const { code, stdout } = await run("trace", record.id.slice(0, 12));
    expect(code).toBe(0);
    const lines = stdout.split("\n");
    expect(lines[0]).toMatch(new RegExp(`^${image.reference}: ok in .*, id ${record.id}$`));
    expect(lines).toContainEqual(`Bottleneck: ${record.verdict?.sentence}.`);
    expect(lines).toContainEqual(expect.stringMatching(/^Time by cause: .* \(\d+ %\)/));
    for (const label of ["resolve", "manifest", "layer 1", "layer 2", "records"])
      expect(lines).toContainEqual(expect.stringMatching(new RegExp(`^${label} .*[█░▒▓]`)));
    expect((await run("trace")).stdout).not.toContain(record.id);
    expect(JSON.parse((await run("trace", record.id, "--json")).stdout)).toEqual(record);
  });

  test.each([
    [
      ["trace", "0123456789abcdef"],
      /^hawser: there is no pull 0123456789abcdef any more; "hawser pulls" lists those that are kept\n$/,
    ],
    [["trace", "x/y"], /^hawser: "x%2Fy" is no id of a pull; "hawser pulls" lists them\n$/],
    [["cancel", "0123456789abcdef"], /^hawser: there is no pull 0123456789abcdef any more/],
    [["cancel"], /^hawser: expected the id of a pull; "hawser pulls" lists them \(see "hawser --help"\)\n$/],
    [["pulls", "--count", "0"], /^hawser: expected a number from 1 to 1000 behind --count \(see/],
  ])("%j ends with one line", async (args, said) => {
    const { code, stderr } = await run(...args);
    expect(code).toBe(said.source.includes("see") ? 2 : 1);
    expect(stderr).toMatch(said);
  });

  test("hawser cancel ends a pull, whose caller is told, and which goes on from there the next time", async () => {
    const image = put();
    const half = hold(image);
    const pulling = hawser.cri.pull(image.reference);
    const { id } = await untilRunning(image, 400_000);
    expect(await run("cancel", id.slice(0, 10))).toEqual({
      code: 0,
      stdout: `cancelled pull ${id} of ${image.reference}\n`,
      stderr: "",
    });
    expect(await pulling).toEqual({
      code: status.CANCELLED,
      message: "cancelled by an operator of this node (hawser cancel)",
    });
    half.open();
    expect(await get(`/pulls/${id}`)).toMatchObject({ state: "cancelled" });
    const { code, stderr } = await run("cancel", id);
    expect([code, stderr]).toEqual([1, `hawser: pull ${id} of ${image.reference} has ended already\n`]);
    fake.behave = () => undefined;
    await hawser.cri.mustPull(image.reference);
    const [, last] = (await latest()).layers;
    expect(last?.presentBytes).toBeGreaterThan(0);
  });
});

describe("hawser pull", () => {
  function start(image: FakeImage, ...more: readonly string[]) {
    const config = join(hawser.root, "hawser.toml");
    const args = [program, "pull", image.reference, "--config", config, ...more];
    const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"] });
    return { child, out: text(child.stdout), err: text(child.stderr), over: once(child, "exit") };
  }

  test("says on lines what each layer has come to", async () => {
    const image = put();
    const half = hold(image);
    const { out, err, over } = start(image);
    const { id } = await untilRunning(image, 400_000);
    // The daemon tells three times a second.
    await eventually(async () => {
      const { layers } = (await get(`/pulls/${id}`)) as PullRecord;
      expect(layers[0]?.spans.some(({ name, endSeconds }) => name === "commit" && endSeconds)).toBe(true);
    }, "the first layer");
    const told = await toldFor(1);
    half.open();
    expect(await over).toEqual([0, null]);
    expect(told).toBeGreaterThan(0);
    expect(await out).toMatch(/^sha256:[0-9a-f]{64}\n$/);
    const lines = (await err).trimEnd().split("\n");
    expect(lines).toContainEqual(expect.stringMatching(/^layer {2}1 [0-9a-f]{12} of 30\d kB: done$/));
    expect(lines).toContainEqual(expect.stringMatching(/^layer {2}2 [0-9a-f]{12} of 30\d kB: /));
    expect(lines.at(-1)).toMatch(
      new RegExp(`^pulled ${image.reference} in \\d+\\.\\d\\d s \\("hawser trace ${id}" says what with\\)$`),
    );
  });

  /** Waits until whoever follows has been told so many times more. */
  async function toldFor(times: number): Promise<number> {
    const response = await new Promise<NodeJS.ReadableStream>((resolve, reject) => {
      import("node:http").then(({ get: open }) => {
        open({ socketPath: join(hawser.root, "admin.sock"), path: "/events", agent: false }, resolve).on(
          "error",
          reject,
        );
      }, reject);
    });
    let told = 0;
    for await (const _event of response) {
      told += 1;
      if (told > times) break;
    }
    return told;
  }

  test("tells programs in JSON", async () => {
    const image = put();
    const half = hold(image);
    const { out, over } = start(image, "--json");
    const { id } = await untilRunning(image, 400_000);
    await toldFor(1);
    half.open();
    expect(await over).toEqual([0, null]);
    const events = (await out)
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as Record<string, unknown>);
    expect(events.length).toBeGreaterThan(1);
    expect(events[0]).toMatchObject({ pull: { id, image: image.reference, state: "running" } });
    expect(events.at(-1)).toEqual({
      id: expect.stringMatching(/^sha256:/),
      seconds: expect.any(Number),
    });
  });

  test("draws a line for each layer on a terminal, and leaves none", async () => {
    const image = put();
    const half = hold(image);
    const config = join(hawser.root, "hawser.toml");
    const command = `stty columns 100 rows 30; TERM=xterm ${process.execPath} ${program} pull ${image.reference} --config ${config}`;
    const child = spawn("script", ["-qec", command, "/dev/null"], { stdio: ["ignore", "pipe", "inherit"] });
    const out = text(child.stdout);
    const over = once(child, "exit");
    await untilRunning(image, 400_000);
    await toldFor(2);
    half.open();
    expect(await over).toEqual([0, null]);
    const drawn = (await out).replaceAll("\r\n", "\n");
    expect(drawn).toMatch(/layer {2}1 [0-9a-f]{12} +30\d kB █{20} done, \d+ ms\n/);
    expect(drawn).toMatch(/layer {2}2 [0-9a-f]{12} +30\d kB █{10}░{10} /);
    // Three lines are drawn over, and taken away in the end.
    expect(drawn).toContain("\u001b[3F\u001b[J");
    const last = drawn.split("\u001b[J").at(-1);
    expect(last).toMatch(/^sha256:[0-9a-f]{64}\npulled /);
  });

  test("Ctrl-C cancels the pull", async () => {
    const image = put();
    const half = hold(image);
    const { child, err, over } = start(image);
    const { id } = await untilRunning(image, 400_000);
    child.kill("SIGINT");
    expect(await over).toEqual([1, null]);
    expect(await err).toContain(
      `hawser: cannot pull ${image.reference} through ${hawser.socket}: interrupted\n`,
    );
    await eventually(
      async () => expect(await get(`/pulls/${id}`)).toMatchObject({ state: "cancelled" }),
      "its end",
    );
    half.open();
  });

  test("without an admin socket it pulls all the same, and says nothing of progress", async () => {
    const image = put();
    const config = join(hawser.root, "other.toml");
    writeFileSync(config, `[cri]\nlisten = "${hawser.socket}"\n[admin]\nlisten = "off"\n`);
    const { code, stderr } = await execute("pull", image.reference, "--config", config);
    expect(code).toBe(0);
    expect(stderr).toMatch(/^pulled \S+ in \d+\.\d\d s\n$/);
  });
});

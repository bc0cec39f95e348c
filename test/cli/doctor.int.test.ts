// hawser doctor as an operator meets it: the built program beside a real containerd, a real daemon and real registries,
// plain, with TLS and with credentials; and beside fakes that are slow, serve no ranges or do not answer.
//
// What differs between machines (processor, systemd, a crictl of its own) is not asserted here, but with made-up nodes
// in test/doctor.

import { execFileSync, spawn, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { lstatSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { FakeRegistry } from "../fakes/registry.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { certificate } from "../harness/certificates.ts";
import { PrivateContainerd, scratch } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { pushImage } from "../harness/images.ts";
import { PrivateRegistry } from "../harness/registry.ts";
import { readState } from "../harness/state.ts";
import { Volume } from "../harness/volume.ts";

const program = fileURLToPath(new URL("../../dist/main.js", import.meta.url));
const login = { username: "user", password: "secret-word" };
const layer = tarGz([file("x", randomBytes(8_000_000))]);

let folder = "";
let volume: Volume;
let containerd: PrivateContainerd;
let hawser: PrivateHawser;
let plain: PrivateRegistry;
let secured: PrivateRegistry;
let guarded: PrivateRegistry;

beforeAll(async () => {
  folder = mkdtempSync(join(scratch(), "doctor-"));
  certificate(folder, "authority");
  certificate(folder, "server", { by: "authority" });
  volume = new Volume({ mebibytes: 8192 });
  // Only containerd is told of a proxy, which nothing here needs.
  vi.stubEnv("HTTPS_PROXY", "http://user:secret-word@127.0.0.1:1");
  containerd = await PrivateContainerd.start({ root: volume.path });
  vi.unstubAllEnvs();
  hawser = await PrivateHawser.start({ containerd: containerd.address, metricsPort: await freePort() });
  plain = await PrivateRegistry.start();
  const tls = { cert: join(folder, "server.crt"), key: join(folder, "server.key") };
  secured = await PrivateRegistry.start({ store: plain.store, tls });
  guarded = await PrivateRegistry.start({ store: plain.store, login });
  await pushImage(plain, "team/app:v1", [{ bytes: layer }], { index: true });
  writeFileSync(
    join(folder, "kubelet.yaml"),
    `imageServiceEndpoint: unix://${hawser.socket}\ncontainerRuntimeEndpoint: unix://${containerd.address}\nserializeImagePulls: false\n`,
  );
});

afterAll(async () => {
  for (const server of [hawser, guarded, secured, plain, containerd]) await server[Symbol.asyncDispose]();
  volume[Symbol.dispose]();
  rmSync(folder, { recursive: true });
});

async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

interface Run {
  /** Or the signal that ended it. */
  readonly code: number | string | null;
  readonly lines: readonly string[];
  readonly stderr: string;
}

/** Of the node that is set up here. Fakes answer from this very process, which must therefore not block. */
async function doctor(args: readonly string[] = [], input = ""): Promise<Run> {
  const own = [
    "--config",
    join(hawser.root, "hawser.toml"),
    "--kubelet-config",
    join(folder, "kubelet.yaml"),
  ];
  return await run(["doctor", ...own, ...args], input);
}

async function run(args: readonly string[], input = ""): Promise<Run> {
  const child = spawn(process.execPath, [program, ...args], { stdio: ["pipe", "pipe", "pipe"] });
  child.stdin.end(input);
  const [stdout, stderr, [status, signal]] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    once(child, "close"),
  ]);
  expect(stdout + stderr).not.toContain("secret-word");
  expect(stdout, "colours in a pipe").not.toContain("\u001b");
  const code = (status ?? signal) as number | string | null;
  return { code, lines: stdout.split("\n"), stderr };
}

/** Lines of one subject, without their indentation. */
function subject(name: string, { lines }: Run): string[] {
  const begin = lines.indexOf(name);
  expect(begin, `${name} in\n${lines.join("\n")}`).toBeGreaterThanOrEqual(0);
  const rest = lines.slice(begin + 1);
  return rest.slice(0, rest.indexOf("")).map((line) => line.trim().replace(/ {2,}/, " "));
}

/** Every name below a folder, with kind, size and time of change. */
function listing(root: string): string[] {
  return readdirSync(root, { recursive: true, encoding: "utf8" })
    .sort()
    .map((name) => {
      const { mode, size, mtimeMs, ctimeMs } = lstatSync(join(root, name));
      return `${name} ${mode} ${size} ${mtimeMs} ${ctimeMs}`;
    });
}

test("a node where all is well, which is the same afterwards", async () => {
  const places = [containerd.root, hawser.root, folder];
  const before = { state: await readState(containerd), files: places.map(listing) };
  const ran = await doctor(["--registry", `${plain.host}/team/app:v1`]);
  expect(ran).toMatchObject({ code: 0, stderr: "" });
  expect({ state: await readState(containerd), files: places.map(listing) }).toEqual(before);
  expect(before.files.every((files) => files.length > 0)).toBe(true);
  expect(subject("hawser", ran)).toEqual([
    `ok configuration: ${hawser.root}/hawser.toml`,
    `ok socket: ${hawser.socket} answers (process ${hawser.pid})`,
    "ok CRI: calls are answered by containerd",
    expect.stringMatching(/^ok version: \d+\.\d+\.\d+$/) as string,
    "ok acceleration: on, with the native engine",
  ]);
  expect(subject("containerd", ran)).toEqual([
    `ok socket: ${containerd.address} answers`,
    expect.stringMatching(/^ok version: .*1\.6\.\d+/) as string,
    "ok CRI plugin: runs",
    "ok snapshotter: overlayfs",
    `ok registry settings: config_path is ${containerd.root}/certs.d`,
    "ok discard_unpacked_layers: false: compressed layers are kept",
    "ok overlayfs: started, so kernel and file system (d_type) fit it",
    "ok user namespace: containerd runs in the host's",
    "ok SELinux: is off",
    `ok content: ${containerd.contentRoot}, on one mount with the spool`,
    `ok snapshots: ${containerd.snapshotterRoot}, on one mount with staging`,
  ]);
  expect(subject("kubelet", ran).slice(0, 4)).toEqual([
    `ok configuration: ${folder}/kubelet.yaml`,
    `ok image endpoint: unix://${hawser.socket}, which is Hawser`,
    `ok runtime endpoint: unix://${containerd.address}, the containerd that Hawser works with`,
    "ok serializeImagePulls: false: images are pulled side by side",
  ]);
  expect(subject("disk", ran)).toEqual([
    expect.stringMatching(/^ok content: .*: \d\.\d of 8\.0 GiB free$/) as string,
    `ok snapshots: ${containerd.snapshotterRoot}, on the same file system as content`,
    `ok spool: ${containerd.root}/root/io.hawser/spool, on the same file system as content`,
  ]);
  expect(subject("limits", ran)).toHaveLength(2);
  expect(subject("proxy", ran)).toEqual([
    "slow HTTPS_PROXY: http://127.0.0.1:1 (with credentials) for containerd, none for the daemon",
    expect.stringMatching(/^do: set HTTPS_PROXY for hawser\.service/) as string,
  ]);
  expect(ran.lines.at(-2)).toMatch(/^\d+ ok, \d+ slow, 0 broken, \d+ unknown$/);
});

describe("registries", () => {
  async function registry(
    name: string,
    args: readonly string[] = [],
    input = "",
  ): Promise<Run & { own: string[] }> {
    const ran = await doctor(["--registry", name, ...args], input);
    return { ...ran, own: subject(`registry ${name.split("/", 1)[0]}`, ran) };
  }

  test("plain, from its door to its rate", async () => {
    const { code, own } = await registry(`${plain.host}/team/app:v1`);
    expect(code).toBe(0);
    // How fast this machine is at the moment is not this test's to say.
    expect(own.filter((line) => !/TCP|^do:/.test(line))).toEqual([
      "ok authorization: none asked for at the door",
      "ok clock: agrees with this node's",
      `ok image: ${plain.host}/team/app:v1 can be pulled`,
      "ok ranges: served",
      expect.stringMatching(
        /^(?:ok|slow) rate: one connection [\d.]+ MB\/s, 8 together [\d.]+ MB\/s/,
      ) as string,
    ]);
  });

  test("with TLS: an authority that is known, and one that is not", async () => {
    const hosts = join(containerd.root, "certs.d", secured.host);
    mkdirSync(hosts);
    const toml = `server = "https://${secured.host}"\nca = "${folder}/authority.crt"\n[host]\n`;
    writeFileSync(join(hosts, "hosts.toml"), toml);
    try {
      const known = await registry(`${secured.host}/team/app:v1`);
      expect(known.code).toBe(0);
      expect(known.own.join("\n")).toMatch(
        /^slow TLS: TLSv1\.3, certificate of server by authority, valid until \d{4}-\d\d-\d\d, in 1 days$/m,
      );
      expect(known.own).toContain("ok ranges: served");
      expect(subject("certs.d", known)).toEqual([`ok ${hosts}: https://${secured.host}/v2`]);
      writeFileSync(join(hosts, "hosts.toml"), `server = "https://${secured.host}"\n[host]\n`);
      const unknown = await registry(`${secured.host}/team/app:v1`);
      expect(unknown.code).toBe(1);
      expect(unknown.own.slice(-2)).toEqual([
        expect.stringMatching(/^broken TLS: .*: its authority is not known here$/) as string,
        "do: name its authority with ca in hosts.toml, or install it in the system",
      ]);
    } finally {
      rmSync(hosts, { recursive: true });
    }
  });

  test("with credentials: none, wrong, and right", async () => {
    const name = `${guarded.host}/team/app:v1`;
    const none = await registry(name);
    expect(none.code).toBe(1);
    expect(none.own.slice(-2)).toEqual([
      "broken image: no basic auth credentials",
      "do: give credentials with --creds-stdin",
    ]);
    const wrong = await registry(name, ["--creds-stdin"], "user:secret-word-not");
    expect(wrong.code).toBe(1);
    expect(wrong.own.at(-1)).toBe("do: look at the credentials, and at what they may read");
    const right = await registry(name, ["--creds-stdin"], `${login.username}:${login.password}\n`);
    expect(right.code).toBe(0);
    expect(right.own).toContain("ok authorization: basic");
    expect(right.own).toContain("ok ranges: served");
  });

  test("without ranges", async () => {
    await using fake = await FakeRegistry.start();
    fake.put("a/b:v1", [{ bytes: layer }]);
    fake.behave = ({ path }) => (path.includes("/blobs/") ? { ignoreRange: true } : undefined);
    const { code, own } = await registry(`${fake.host}/a/b:v1`);
    expect(code).toBe(0);
    expect(own.join("\n")).toContain(
      "slow ranges: not served: one connection for each layer, and no going on after a break",
    );
    expect(own.join("\n")).toMatch(/^(?:ok|slow) rate: one connection [\d.]+ MB\/s(?:$|:)/m);
  });

  test("a slow one", async () => {
    await using fake = await FakeRegistry.start();
    const image = fake.put("a/b:v1", [{ bytes: layer }]);
    fake.behave = ({ path }) => (path.includes("/blobs/") ? { bytesPerSecond: 500_000 } : undefined);
    const { code, own } = await registry(`${fake.host}/a/b:v1`);
    expect(code).toBe(0);
    expect(own.slice(-2)).toEqual([
      expect.stringMatching(
        /^slow rate: one connection 0\.\d MB\/s, 8 together \d\.\d MB\/s: a gigabyte takes \d+ s or more$/,
      ) as string,
      "do: put a mirror near this node, or look at what is in between; no pull can be faster than this",
    ]);
    // Bounded in time: of one connection it got a part, and closed it.
    expect(image.layers[0]?.bytes.length).toBeGreaterThan(5 * 500_000);
    expect(fake.openBlobs).toBe(0);
  });

  test("a dead one, and one that never answers", async () => {
    const dead = await registry(`127.0.0.1:${await freePort()}`);
    expect(dead.code).toBe(1);
    expect(dead.own[0]).toMatch(/^broken TCP: 127\.0\.0\.1:\d+: nobody listens there$/);
    const silent = createServer((socket) => socket.resume());
    silent.listen(0, "127.0.0.1");
    await once(silent, "listening");
    const { port } = silent.address() as AddressInfo;
    const { code, own } = await registry(`127.0.0.1:${port}`);
    expect(code).toBe(1);
    expect(own.slice(-2)).toEqual([
      expect.stringMatching(/^broken API: no answer to http:\/\/127\.0\.0\.1:\d+\/v2\/: /) as string,
      "do: see whether a registry is there",
    ]);
    silent.close();
    await once(silent, "close");
  });
});

describe("a node where something is wrong", () => {
  test("a daemon that passes calls through, and its configuration", async () => {
    const config = '[download]\nretrys = 1\nchunk_size = "8MiB"\n';
    const port = await freePort();
    await using other = await PrivateHawser.start(
      { containerd: containerd.address, config, metricsPort: port },
      "ready",
    );
    const ran = await run(["doctor", "--config", join(other.root, "hawser.toml")]);
    expect(ran.code).toBe(1);
    expect(subject("hawser", ran)).toEqual([
      "broken configuration: download.retrys: is not known; did you mean retries?: every pull goes through to containerd",
      `do: hawser config check ${other.root}/hawser.toml`,
      `ok socket: ${other.socket} answers (process ${other.pid})`,
      "ok CRI: calls are answered by containerd",
      expect.stringMatching(/^ok version/) as string,
      "broken acceleration: off, every pull goes through to containerd (configuration)",
      "do: hawser config check, then restart the daemon",
    ]);
  });

  test("no containerd: one broken line, and the rest goes on", async () => {
    writeFileSync(join(folder, "none.toml"), `[containerd]\naddress = "${folder}/none.sock"\n`);
    const ran = await run(["doctor", "--config", join(folder, "none.toml")]);
    expect(ran.code).toBe(1);
    expect(subject("containerd", ran)[0]).toBe(`broken socket: ${folder}/none.sock: there is no such file`);
    expect(subject("certs.d", ran)).toEqual(["unknown check: containerd does not answer"]);
    expect(subject("engine", ran)[0]).toBe("ok native addon: loads");
  });

  test("a file that never ends is given up, and does not keep the program", async () => {
    const hosts = join(containerd.root, "certs.d/hangs.example.com");
    mkdirSync(hosts);
    execFileSync("mkfifo", [join(hosts, "pipe")]);
    writeFileSync(join(hosts, "hosts.toml"), '[host."https://m.example.com"]\nca = "pipe"\n');
    try {
      const ran = await doctor();
      expect(ran.code).toBe("SIGKILL");
      expect(subject("certs.d", ran)).toEqual(["unknown check: not finished within 10 s"]);
      expect(subject("clock", ran)[0]).toMatch(/^ok time/);
      expect(ran.lines.at(-2)).toMatch(/^\d+ ok, \d+ slow, 0 broken, \d+ unknown$/);
    } finally {
      rmSync(hosts, { recursive: true });
    }
  });
});

test("JSON says the same as lines", async () => {
  const [spoken, machine] = [await doctor(), await doctor(["--json"])];
  expect(machine.code).toBe(0);
  const { findings, counts } = JSON.parse(machine.lines.join("\n")) as {
    readonly findings: readonly {
      subject: string;
      state: string;
      what: string;
      finding: string;
      do?: string;
    }[];
    readonly counts: Record<string, number>;
  };
  const timeless = (line: string): string => line.replace(/time: .*/, "time");
  expect(
    findings.map(({ state, what, finding }) => timeless(`  ${state.padEnd(7)}  ${what}: ${finding}`)),
  ).toEqual(spoken.lines.filter((line) => /^ {2}\w/.test(line)).map(timeless));
  expect(findings.filter((one) => one.do !== undefined).map((one) => `do: ${one.do}`)).toEqual(
    spoken.lines.filter((line) => /^ {11}do/.test(line)).map((line) => line.trim()),
  );
  expect(Object.values(counts).reduce((sum, count) => sum + count, 0)).toBe(findings.length);
});

test("colours on a terminal", () => {
  const command = `${process.execPath} ${program} doctor --config ${join(hawser.root, "hawser.toml")}`;
  const terminal = (environment: Record<string, string>): string =>
    spawnSync("script", ["-qec", command, "/dev/null"], {
      encoding: "utf8",
      env: { ...process.env, ...environment },
    }).stdout;
  expect(terminal({ NO_COLOR: "" })).toContain("\u001b[32mok     \u001b[0m");
  expect(terminal({ NO_COLOR: "1" })).not.toContain("\u001b");
});

test.each([
  [["x"], 'unexpected argument "x"'],
  [["--registry"], "Option '--registry <value>' argument missing"],
  [["--registry", "busybox"], "expected HOST[/REPOSITORY[:TAG]]"],
  [["--registry", "busybox:1.36"], '"busybox:1.36/x" is not an image reference'],
  [["--registry", "reg.example.com/UPPER"], '"reg.example.com/UPPER" is not an image reference'],
  [["--creds-stdin"], "--creds-stdin needs --registry"],
  [["--registry", "reg.example.com", "--creds-stdin"], 'expected "user:password" on standard input'],
])("%j is one line and exit code 2", async (args, message) => {
  const { code, lines, stderr } = await run(["doctor", ...args]);
  expect({ code, lines }).toEqual({ code: 2, lines: [""] });
  expect(stderr).toContain(`hawser: ${message}`);
  expect(stderr.trim().split("\n")).toHaveLength(1);
});

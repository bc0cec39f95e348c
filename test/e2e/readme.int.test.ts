// The README, followed by somebody who knows nothing else: on a node with systemd Hawser is installed, a pull is slow, the
// page and the terminal say why, the key that they name is changed, and the next pull is faster; then it is taken away.
// Every command that the README shows is run here, or there where the list below says.

import { execFileSync, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type FakeImage, FakeRegistry } from "../fakes/registry.ts";
import { dir, file, tar } from "../fakes/tar.ts";
import { openBrowser, openPage } from "../harness/browser.ts";
import { testBundle } from "../harness/bundle.ts";
import { kubeletConfig, kubeletText, kubeletUnit, release } from "../harness/installation.ts";
import { PrivateNode } from "../harness/node.ts";
import { eventually } from "../harness/process.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** Commands that are run elsewhere: the file, and what of it shows that. */
const elsewhere: ReadonlyMap<string, readonly [string, string]> = new Map([
  ["npm test", [".ci/run", "npm test"]],
  ["hawser serve", ["test/harness/hawser.ts", '"serve"']],
  ["hawser load images.tar", ["test/e2e/load.int.test.ts", '"load"']],
  ["hawser agent", ["test/e2e/agent.int.test.ts", '"$program" agent']],
  ["npm run release", ["test/release/arm64.int.test.ts", "config/release"]],
  ["npm run release -- --arch arm64", ["test/release/arm64.int.test.ts", "arm64"]],
  ["npm run release:check", ["package.json", '"release:check"']],
  ["docker build --build-arg BASE=debian:bookworm-slim .", ["test/release/image.int.test.ts", "BASE="]],
  [
    "kubectl create configmap hawser-images -n hawser --from-file=images.txt",
    ["test/e2e/agent.int.test.ts", '"--images"'],
  ],
  [
    "docker save registry.example.com/team/app:v7 | ssh NODE hawser load -",
    ["test/e2e/load.int.test.ts", '"-"'],
  ],
  [
    "ssh -L 9465:/run/hawser/admin.sock NODE",
    ["test/e2e/page.int.test.ts", "the admin socket has the page too"],
  ],
  [
    "hawser upgrade KIND/NAME CONTAINER=IMAGE",
    ["test/e2e/upgrade.int.test.ts", '[program, "upgrade", ...args'],
  ],
  [
    "hawser upgrade statefulset/web app=registry.example.com/team/app:v8 -n shop --dry-run",
    ["test/e2e/upgrade.int.test.ts", '"--dry-run"'],
  ],
  [
    "hawser upgrade statefulset/web app=registry.example.com/team/app:v8 -n shop --max-unavailable 25%",
    ["test/e2e/upgrade.int.test.ts", '"--max-unavailable"'],
  ],
  ["kubectl apply -k config/kubernetes/upgrade", ["test/kubernetes/manifests.int.test.ts", '["upgrade",']],
  [
    "kubectl create rolebinding hawser-upgrade --clusterrole hawser-upgrade --user SOMEBODY --namespace shop",
    ["test/kubernetes/manifests.int.test.ts", '"hawser-upgrade"'],
  ],
  ["npm run format", ["biome.json", "formatter"]],
  ["npm run check", [".ci/run", "npm run --silent check"]],
  ["npm run build && npm run build:native", ["test/setup.mjs", "build:native"]],
  ["npx vitest run test/history", ["package.json", "vitest run"]],
  ["npx vitest run test/e2e/trace.int.test.ts", ["package.json", "vitest run"]],
]);

/** Those that are run here, as the README has them. */
const here = new Set<string>();

function commandsOf(name: string): readonly string[] {
  const fences = readFileSync(join(root, name), "utf8").matchAll(/```sh\n(.*?)```/gs);
  return [...fences]
    .flatMap(([, text = ""]) => text.split("\n"))
    .map((line) => line.replace(/\s+#.*$/, "").trim())
    .filter((line) => line !== "");
}

let fake: FakeRegistry;
let node: PrivateNode;
let bundle = "";
let count = 0;

beforeAll(async () => {
  fake = await FakeRegistry.start();
  const { archive, name } = await testBundle();
  bundle = name;
  node = await PrivateNode.start((place) => {
    writeFileSync(join(place, "etc/systemd/system/kubelet.service"), kubeletUnit);
  });
  node.unpack(archive, "/root");
  node.write(kubeletConfig, kubeletText);
  await node.ask("systemctl", "restart", "kubelet");
}, 400_000);

afterAll(async () => {
  await node[Symbol.asyncDispose]();
  await fake[Symbol.asyncDispose]();
});

/** Runs a command as the README has it, with what stands for what a reader would put in. */
async function run(command: string, instead: Readonly<Record<string, string>> = {}): Promise<string> {
  here.add(command);
  let text = command;
  for (const [placeholder, value] of Object.entries(instead)) {
    expect(text).toContain(placeholder);
    text = text.replace(placeholder, value);
  }
  return await node.ask("sh", "-c", `cd /root && ${text}`);
}

/** Three layers, of which each connection gets so little that more at once are faster. */
function put(): FakeImage {
  count += 1;
  const layers = [0, 1, 2].map((index) => {
    const bytes = tar([dir(`${index}`), file(`${index}/noise`, randomBytes(2_000_000)), file(`n${count}`)]);
    return { bytes: gzipSync(bytes, { level: 1 }), tar: bytes };
  });
  fake.behave = ({ path }) => (path.includes("/blobs/") ? { bytesPerSecond: 2_000_000 } : undefined);
  return fake.put(`shop/app-${count}:v1`, layers);
}

describe("a new user, with the README", () => {
  test("installs it", async () => {
    const said = await run(
      "hawser-VERSION-linux-amd64/bin/hawser install --kubelet-config /var/lib/kubelet/config.yaml",
      { "hawser-VERSION-linux-amd64": bundle },
    );
    expect(said).toContain("its self-test has passed");
    await run("systemctl restart kubelet");
    expect(await run("hawser status")).toContain("pulls are accelerated");
    expect(await run("hawser config check")).toContain("ok");
    expect(await run("hawser config show")).toMatch(/^download\.max_concurrent +"auto" +default$/m);
    // An installation that is there is told, and left as it is.
    expect(await run("hawser install")).toContain("is installed already");
  });

  test("finds why a pull is slow, from the terminal alone and from the page alone, and makes it faster", async () => {
    node.write("/etc/hawser/hawser.toml", '[download]\nmax_concurrent = 1\n[admin]\npage = "127.0.0.1:0"\n');
    await node.ask("systemctl", "restart", "hawser");
    await eventually(async () => await node.ask("hawser", "status"), "pulls are accelerated");
    const slow = put();
    await run("hawser pull busybox:1.36", { "busybox:1.36": slow.reference });
    expect(await run("hawser pulls")).toMatch(
      new RegExp(`${slow.reference} +ok .* limit download\\.max_concurrent \\d+ %`),
    );
    const trace = await run("hawser trace");
    expect(trace).toMatch(
      /^Bottleneck: a limit: \d+ % of .* went by because of download\.max_concurrent\.$/m,
    );
    expect(trace).toContain(
      'What helps: raise download.max_concurrent in the configuration, then "systemctl reload hawser".',
    );

    const port = /status page on 127\.0\.0\.1:(\d+)/.exec(
      await node.ask("journalctl", "--unit", "hawser", "--no-pager"),
    )?.[1];
    const browser = await openBrowser();
    try {
      const { page } = await openPage(browser, `http://127.0.0.1:${port}/`);
      await page.getByRole("link", { name: slow.reference }).click();
      await page.getByText(/^What helps: raise download\.max_concurrent in the configuration/).waitFor();
    } finally {
      await browser.close();
    }

    node.write("/etc/hawser/hawser.toml", "[download]\nmax_concurrent = 8\n");
    await node.ask("systemctl", "reload", "hawser");
    await eventually(async () => {
      const log = await node.ask("journalctl", "--unit", "hawser", "--no-pager");
      expect(log).toContain("new pulls follow the configuration");
    }, "the reload");
    const fast = put();
    await node.ask("hawser", "pull", fast.reference);
    const { ended } = JSON.parse(await node.ask("hawser", "pulls", "--json")) as {
      readonly ended: readonly { readonly image: string; readonly seconds: number }[];
    };
    const secondsOf = ({ reference }: FakeImage): number =>
      ended.find(({ image }) => image === reference)?.seconds ?? Number.NaN;
    // Three seconds of bytes one after another, and one side by side.
    expect(secondsOf(slow)).toBeGreaterThan(3);
    expect(secondsOf(fast)).toBeLessThan(secondsOf(slow) / 1.5);
  });

  test("looks at it from all sides", async () => {
    here.add("curl --unix-socket /run/hawser/admin.sock http://localhost/pulls");
    const socket = node.at("/run/hawser/admin.sock");
    const pulls = execFileSync("curl", ["--silent", "--unix-socket", socket, "http://localhost/pulls"], {
      encoding: "utf8",
    });
    expect(JSON.parse(pulls)).toMatchObject({ running: [], ended: [{ state: "ok" }, { state: "ok" }] });
    here.add("hawser doctor");
    expect((await node.run("hawser", "doctor")).stdout).toContain(
      "image endpoint: unix:///run/hawser/hawser.sock, which is Hawser",
    );
    const image = put();
    here.add("hawser doctor --registry registry.example.com/team/app:v1");
    const { stdout } = await node.run("hawser", "doctor", "--registry", image.reference);
    expect(stdout).toContain("registry");
    await run("hawser prewarm add IMAGE", { IMAGE: image.reference });
    await node.ask("hawser", "prewarm", "wait", image.reference);
    await run("hawser passthrough on");
    expect((await node.run("hawser", "status")).stdout).toContain("every pull goes through to containerd");
    await node.ask("hawser", "passthrough", "off");
  });

  test("upgrades it and takes it away", async () => {
    const newer = await release(node, `/root/${bundle}`, "9.9.9");
    const said = await run("hawser-NEW-linux-amd64/bin/hawser upgrade", {
      "hawser-NEW-linux-amd64": newer.replace("/root/", ""),
    });
    expect(said).toContain("version 9.9.9 serves in the place of");
    expect(await run("hawser uninstall --restart-kubelet")).toContain("version 9.9.9 is removed");
  });

  test("tries it on a machine of its own", () => {
    here.add("npm run quickstart");
    const scratch = mkdtempSync(join(tmpdir(), "quickstart-"));
    const env = { ...process.env, TMPDIR: scratch };
    const { status, stdout } = spawnSync("npm", ["run", "quickstart"], { cwd: root, encoding: "utf8", env });
    // What runs TypeScript leaves a folder of its own.
    rmSync(scratch, { recursive: true });
    expect(status).toBe(0);
    expect(stdout).toMatch(/^containerd \d+\.\d\d s, Hawser \d+\.\d\d s: \d+\.\dx faster$/m);
  });

  test.each(["README.md", "CONTRIBUTING.md"])("every command of %s is run", (name) => {
    const commands = commandsOf(name);
    expect(commands.length).toBeGreaterThan(6);
    expect(commands.filter((command) => !here.has(command) && !elsewhere.has(command))).toEqual([]);
  });

  test("what is run elsewhere is run there, and shown in the README or in CONTRIBUTING", () => {
    const shown = new Set([...commandsOf("README.md"), ...commandsOf("CONTRIBUTING.md")]);
    for (const [command, [place, proof]] of elsewhere) {
      expect(shown.has(command), command).toBe(true);
      expect(readFileSync(join(root, place), "utf8").includes(proof), `${command}: ${place}`).toBe(true);
    }
  });
});

// The command line as a user meets it: the built program, its exit codes and its one-line errors.

import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { FakeRegistry } from "../fakes/registry.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd, scratch } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { eventually, ServerProcess } from "../harness/process.ts";

const program = fileURLToPath(new URL("../../dist/main.js", import.meta.url));
let folder: string;

beforeAll(() => {
  folder = mkdtempSync(join(scratch(), "cli-"));
});

afterAll(() => {
  rmSync(folder, { recursive: true });
});

function hawser(args: readonly string[], input = "") {
  const { status, stdout, stderr } = spawnSync(process.execPath, [program, ...args], {
    encoding: "utf8",
    input,
  });
  return { status, stdout, stderr };
}

describe("usage", () => {
  test("help for the program and for each command", () => {
    const { status, stdout } = hawser(["--help"]);
    expect(status).toBe(0);
    for (const command of ["serve", "pull", "config", "doctor", "version"])
      expect(stdout).toContain(`  ${command} `);
    for (const command of ["serve", "pull", "config", "doctor"]) {
      const help = hawser([command, "--help"]);
      expect(help.status).toBe(0);
      expect(help.stdout).toContain(`Usage: hawser ${command}`);
      expect(hawser(["help", command]).stdout).toBe(help.stdout);
    }
  });

  test.each([
    [
      "deploy/web",
      /^hawser: deploy\/web is not upgraded: a Deployment makes its pods anew .* use a CloneSet .* OnDelete\n$/,
    ],
    ["replicasets/web", /a ReplicaSet makes its pods anew/],
    ["cj/web", /change the CronJob/],
    ["statefulset.apps.kruise.io/web", /KIND is one of cloneset, statefulset, daemonset, pod/],
  ])("%s is refused before anything is asked, for people and for programs", (target, told) => {
    const { status, stdout, stderr } = hawser(["upgrade", target, "app=a", "--json"]);
    expect(status).toBe(1);
    expect(stderr).toMatch(told);
    expect(JSON.parse(stdout)).toMatchObject({ outcome: { kind: "refused", code: "unsupported" } });
  });

  test("a kubeconfig that is not there, or names no such context, is told with where it was looked for", () => {
    const { status, stderr } = hawser(["upgrade", "sts/web", "app=a", "--kubeconfig", join(folder, "none")]);
    expect([status, stderr]).toEqual([
      1,
      expect.stringContaining(`the kubeconfig ${folder}/none cannot be used: ENOENT`),
    ]);
  });

  test("the version", () => {
    expect(hawser(["version"])).toMatchObject({
      status: 0,
      stdout: expect.stringMatching(/^hawser \d+\.\d+\.\d+ /) as string,
    });
  });

  test.each([
    [[], "expected a command"],
    [["sevre"], 'there is no command "sevre"'],
    [["pull"], "expected an image reference"],
    [["pull", "a", "b"], 'unexpected argument "b"'],
    [["pull", "--frob", "a"], "Unknown option '--frob'"],
    [["config"], 'expected "check" or "show"'],
    [["config", "show", "a", "--config", "b"], "expected one file"],
    [["help", "me"], 'there is no command "me"'],
    [["serve", "--config"], "Option '--config <value>' argument missing"],
    [["passthrough"], "expected on, off or status"],
    [["passthrough", "maybe"], "expected on, off or status"],
    [["passthrough", "off", "--persist"], "--persist goes with on"],
    [["status", "now"], 'unexpected argument "now"'],
    [["pull", "a", "--cri", ""], "expected the path of a socket behind --cri"],
    [["upgrade", "--grace", "1s"], "--grace goes with a workload, such as statefulset/web"],
    [["upgrade", "web", "app=a"], 'expected KIND/NAME, such as statefulset/web, not "web"'],
    [["upgrade", "sts/web"], "expected CONTAINER=IMAGE, such as app=registry.example.com/app:2"],
    [["upgrade", "sts/web", "app"], 'expected CONTAINER=IMAGE, not "app"'],
    [["upgrade", "statefulsets.apps/web", "constructor=A B"], '"A B" is no image'],
    [["upgrade", "sts/web", "app=a", "app=b"], "app is given two images"],
    [["upgrade", "sts/web", "app=A B"], '"A B" is no image'],
    [
      ["upgrade", "sts/web", "app=a", "--max-unavailable", "0"],
      "--max-unavailable takes a number of pods from 1, or",
    ],
    [["upgrade", "sts/web", "app=a", "--timeout", "soon"], "--timeout takes a duration"],
    [["upgrade", "sts/web", "app=a", "-n", "A_B"], '--namespace takes a name, not "A_B"'],
    [["pull", "a", "--cri", "tcp://127.0.0.1:1"], "expected the path of a socket behind --cri"],
  ])("%j is one line and exit code 2", (args, message) => {
    const { status, stdout, stderr } = hawser(args);
    expect({ status, stdout }).toEqual({ status: 2, stdout: "" });
    expect(stderr).toContain(`hawser: ${message}`);
    expect(stderr.trim().split("\n")).toHaveLength(1);
  });
});

describe("config", () => {
  test("check is silent about nothing: every problem, and exit code 2", () => {
    const path = join(folder, "bad.toml");
    writeFileSync(path, "[cri]\nlisten = 3\n[download]\nretries = -1\nretrys = 1\n");
    const { status, stderr } = hawser(["config", "check", "--config", path]);
    expect(status).toBe(2);
    expect(
      stderr
        .trim()
        .split("\n")
        .map((line) => line.slice(path.length + 2).split(":")[0]),
    ).toEqual(["download.retrys", "cri.listen", "download.retries"]);
  });

  test("check of a good file, and of one that is not there", () => {
    const path = join(folder, "good.toml");
    writeFileSync(path, "[download]\nretries = 1\n");
    const ok = { status: 0, stdout: `${path}: ok\n`, stderr: "" };
    expect(hawser(["config", "check", "--config", path])).toEqual(ok);
    expect(hawser(["config", "check", path])).toEqual(ok);
    const missing = hawser(["config", "check", "--config", join(folder, "missing.toml")]);
    expect(missing.status).toBe(2);
    expect(missing.stderr).toContain("missing.toml: cannot be read: ENOENT");
  });

  test("show says where each value comes from", () => {
    const path = join(folder, "shown.toml");
    writeFileSync(
      path,
      '[download]\nretries = 1\nprogress_timeout = "1.5m"\n[metrics]\nlisten = "[::1]:80"\n',
    );
    const { stdout } = hawser(["config", "show", "--config", path]);
    expect(stdout).toMatch(new RegExp(`^download\\.retries +1 +${path}$`, "m"));
    expect(stdout).toMatch(/^download\.progress_timeout +"1\.5m" +\//m);
    expect(stdout).toMatch(/^metrics\.listen +"\[::1\]:80" +\//m);
    expect(stdout).toMatch(/^download\.chunk_size +"8MiB" +default$/m);
  });
});

describe("broken output", () => {
  const shell = (line: string) => {
    const { status, stderr } = spawnSync("sh", ["-c", `${process.execPath} ${program} ${line}`], {
      encoding: "utf8",
    });
    return { status, stderr };
  };

  test("a disk that is full is one line, a reader that has gone is none", () => {
    const full = shell("version >/dev/full");
    expect(full).toEqual({ status: 1, stderr: expect.stringMatching(/^hawser: cannot write: ENOSPC.*\n$/) });
    // The reader ends before the program has even begun.
    expect(shell("config show | true").stderr).toBe("");
  });

  test("the daemon outlives its log", async () => {
    const [socket, config] = [join(folder, "full.sock"), join(folder, "full.toml")];
    const toml = `[cri]\nlisten = "${socket}"\n[containerd]\naddress = "${socket}.none"\n[metrics]\nlisten = "off"\n[admin]\nlisten = "off"\n`;
    writeFileSync(config, toml);
    const line = `exec ${process.execPath} ${program} serve --config ${config} 2>/dev/full`;
    const daemon = new ServerProcess("sh", ["-c", line]);
    try {
      await eventually(async () => {
        daemon.throwIfOver();
        expect(hawser(["pull", "x", "--cri", socket]).stderr).toContain(`${socket}.none`);
      }, "containerd's absence said by the daemon");
    } finally {
      await daemon.stop();
    }
    expect(daemon.exitCode).toBe(0);
    expect(existsSync(socket)).toBe(false);
  });
});

describe("status and passthrough", () => {
  test("what the daemon says, and the switch", async () => {
    await using containerd = await PrivateContainerd.start();
    await using daemon = await PrivateHawser.start({ containerd: containerd.address });
    const config = ["--config", join(daemon.root, "hawser.toml")];
    const said = (...args: string[]) => hawser([...args, ...config]);
    expect(said("status")).toMatchObject({
      status: 0,
      stdout: expect.stringMatching(/^pulls are accelerated\n/),
    });
    expect(said("passthrough", "on").stdout).toMatch(
      /^passthrough is on, until the daemon restarts: every pull goes through to containerd: switched by an operator/,
    );
    expect(said("status", "--json")).toMatchObject({ status: 1, stderr: "" });
    expect(JSON.parse(said("status", "--json").stdout)).toMatchObject({
      accelerating: false,
      reason: "switch",
    });
    expect(said("passthrough", "on", "--persist").stdout).toContain('until "hawser passthrough off"');
    expect(said("passthrough", "status").stdout).toContain("passthrough is on");
    expect(said("passthrough", "off").stdout).toMatch(/^passthrough is off: pulls are accelerated\n/);
  });

  test("without a daemon, and with the socket off, one line says what to do", () => {
    const path = join(folder, "absent.toml");
    writeFileSync(path, `[admin]\nlisten = "${folder}/absent.sock"\n`);
    expect(hawser(["status", "--config", path])).toEqual({
      status: 1,
      stdout: "",
      stderr: `hawser: cannot ask the daemon at ${folder}/absent.sock: nobody listens there (is "hawser serve" running?)\n`,
    });
    const nowhere = join(folder, "nowhere.toml");
    expect(hawser(["status", "--config", nowhere]).stderr).toBe(
      `hawser: ${nowhere}: cannot be read: ENOENT: no such file or directory\n`,
    );
    writeFileSync(path, '[admin]\nlisten = "off"\n');
    expect(hawser(["passthrough", "on", "--config", path]).stderr).toBe(
      "hawser: the daemon cannot be asked: admin.listen is off\n",
    );
  });
});

describe("serve and pull", () => {
  test("pull prints the id, and errors in one line", async () => {
    await using fake = await FakeRegistry.start();
    await using containerd = await PrivateContainerd.start();
    await using daemon = await PrivateHawser.start({ containerd: containerd.address });
    const image = fake.put("cli/image:v1", [{ bytes: tarGz([file("x")]) }]);
    // The fake registry answers from this very process, which must therefore not block.
    const run = async (...args: string[]): Promise<{ status: unknown; output: string }> => {
      const child = new ServerProcess(process.execPath, [program, "pull", "--cri", daemon.socket, ...args]);
      await child.exited;
      return { status: child.exitCode, output: child.logs() };
    };
    const good = await run(image.reference);
    expect(good.status).toBe(0);
    expect(good.output).toContain(`${image.configDigest}\n`);
    expect(good.output).toMatch(/pulled 127\.0\.0\.1:\d+\/cli\/image:v1 in \d+\.\d\d s/);
    const bad = await run(`${fake.host}/cli/missing:v1`);
    expect(bad.status).toBe(1);
    expect(bad.output.trim().split("\n")).toHaveLength(1);
    expect(bad.output).toMatch(/^hawser: cannot pull .*not found/);
    // containerd quotes what the registry says.
    const hostile = fake.put("cli/hostile:v1", [{ bytes: tarGz([file("y")]) }]);
    const message = "\u001b[2J\u009bgone\nhawser: forged";
    const body = Buffer.from(JSON.stringify({ errors: [{ code: "DENIED", message }] }));
    fake.behave = ({ path }) => (path.includes("/blobs/") ? { status: 403, body } : undefined);
    const said = await run(hostile.reference);
    expect(said.output).toMatch(/gone hawser: forged/);
    expect(said.output.trimEnd()).not.toMatch(/\p{Cc}/u);
  });

  test("pull without a daemon, and with credentials that are none", () => {
    const none = hawser(["pull", "busybox", "--cri", join(folder, "none.sock")]);
    expect(none.status).toBe(1);
    expect(none.stderr).toMatch(
      /^hawser: cannot pull busybox through .*none\.sock: nobody answers there \(connect ENOENT .*\); is "hawser serve" running/,
    );
    expect(hawser(["pull", "busybox", "--creds-stdin"], "nonsense\n")).toMatchObject({ status: 2 });
  });

  test("an interruption ends waiting for credentials", async () => {
    const args = [program, "pull", "busybox", "--creds-stdin"];
    const child = spawn(process.execPath, args, { stdio: ["pipe", "ignore", "pipe"] });
    const exited = once(child, "exit");
    const output = text(child.stderr);
    try {
      const fdinfo = `/proc/${child.pid}/fdinfo`;
      await eventually(async () => {
        const watched = readdirSync(fdinfo).map((fd) => readFileSync(join(fdinfo, fd), "utf8"));
        expect(watched.join("")).toMatch(/^tfd: +0 /m);
      }, "standard input in an epoll set");
    } finally {
      child.kill("SIGINT");
    }
    expect(await exited).toEqual([1, null]);
    expect(await output).toBe("hawser: cannot pull busybox through /run/hawser/hawser.sock: interrupted\n");
  });

  test("SIGTERM ends it: the exit code is 0 and the socket is gone", async () => {
    await using containerd = await PrivateContainerd.start();
    await using daemon = await PrivateHawser.start({ containerd: containerd.address });
    await daemon.cri.listImages();
    await daemon.stop();
    expect(daemon.exitCode).toBe(0);
    await expect(daemon.cri.listImages()).rejects.toMatchObject({ code: 14 });
  });

  test("with log.format json, every line is JSON", async () => {
    const [socket, config] = [join(folder, "json.sock"), join(folder, "json.toml")];
    const toml = `[cri]\nlisten = "${socket}"\n[containerd]\naddress = "${socket}.none"\n[metrics]\nlisten = "off"\n[log]\nformat = "json"\n`;
    writeFileSync(config, toml);
    const daemon = new ServerProcess(process.execPath, [program, "serve", "--config", config]);
    try {
      await daemon.untilPrinted(/ready on unix:/);
    } finally {
      await daemon.stop();
    }
    const lines = daemon.logs().trim().split("\n");
    expect(lines.map((line) => JSON.parse(line) as { msg: string })).toContainEqual(
      expect.objectContaining({ level: "info", msg: `ready on unix://${socket}` }),
    );
  });

  test.each(["/proc/none/hawser.sock", "/etc/hostname/hawser.sock", "/proc/hawser.sock"])(
    "a socket that cannot be made at %s is one line",
    (socket) => {
      const config = join(folder, "nowhere.toml");
      writeFileSync(config, `[cri]\nlisten = "${socket}"\n[metrics]\nlisten = "off"\n`);
      const { status, stderr } = hawser(["serve", "--config", config]);
      expect(status).toBe(1);
      expect(stderr).toContain(socket);
      expect(stderr).toMatch(/^hawser: .*set cri\.listen to another path\n$/);
      expect(stderr).not.toMatch(/unexpected fault/);
    },
  );

  test("a socket that somebody listens on is not taken", async () => {
    await using containerd = await PrivateContainerd.start();
    const config = join(folder, "taken.toml");
    writeFileSync(
      config,
      `[cri]\nlisten = "${containerd.address}"\n[metrics]\nlisten = "off"\n[admin]\nlisten = "off"\n`,
    );
    const { status, stderr } = hawser(["serve", "--config", config]);
    expect(status).toBe(1);
    expect(stderr).toContain(`hawser: another process listens on ${containerd.address}`);
  });
});

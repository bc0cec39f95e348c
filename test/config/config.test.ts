// The configuration: strict, complete in what it says, and documented by the very file that ships.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { expect, test } from "vitest";
import { renderSettings } from "../../src/cli/config.ts";
import { describeSettings, loadConfig, parseConfig } from "../../src/config.ts";
import { knobs } from "../../src/knobs.ts";

function problemsOf(toml: string): string[] {
  return parseConfig(toml, "test.toml").problems.map(({ path, message }) =>
    path ? `${path}: ${message}` : message,
  );
}

test("with no file everything has its default", () => {
  const { config, problems, given } = parseConfig("", undefined);
  expect(problems).toEqual([]);
  expect(given.size).toBe(0);
  expect(config.cri.listen).toBe("/run/hawser/hawser.sock");
  expect(config.download.chunk_size).toBe(8 * 1024 * 1024);
  expect(config.fallback.after).toBe(10_000);
  expect(config.metrics.listen).toEqual({ host: "127.0.0.1", port: 9464 });
  expect(Object.isFrozen(config) && Object.isFrozen(config.download)).toBe(true);
});

test("values are read with their units, and hosts with theirs", () => {
  const { config, problems } = parseConfig(
    `[download]\nchunk_size = "512KiB"\nprogress_timeout = "1.5m"\n[metrics]\nlisten = "off"\n[registry.host."reg.example.com:5000"]\nstreams = 2`,
    "test.toml",
  );
  expect(problems).toEqual([]);
  expect(config.download.chunk_size).toBe(524_288);
  expect(config.download.progress_timeout).toBe(90_000);
  expect(config.metrics.listen).toBe("off");
  expect(config.registry.host.get("reg.example.com:5000")).toEqual({ streams: 2 });
});

test("every problem is reported at once, with its key path", () => {
  const problems = problemsOf(`
[cri]
listen = "relative.sock"
[download]
max_concurrent = 0
chunk_size = 8
retires = 3
[metrics]
listen = "everywhere"
[unpack]
engine = "fast"
[dwonload]
[trace]
keep = 3
[prewarm]
images = "busybox"
min_free_disk = "much"
[registry]
exclude = "docker.io"
[registry.host."x"]
stream = 1
max_concurrent = 0
[registry.host."https://y/"]
[registry.host."docker.io"]
`);
  expect(problems).toEqual([
    "download.retires: is not known; did you mean retries?",
    "dwonload: is not known; did you mean download?",
    expect.stringMatching(/^cri\.listen: expected an absolute path.*not "relative\.sock"$/),
    'registry.exclude: expected a list of registry hosts, such as ["docker.io", "registry.example.com:5000"], not "docker.io"',
    'registry.host."x".stream: is not known; did you mean streams?',
    'registry.host."x".max_concurrent: expected a whole number from 1 to 256, not 0',
    'registry.host."https://y/": expected a host without scheme and path, such as "y"',
    'registry.host."docker.io": is asked as registry-1.docker.io; say that',
    'download.max_concurrent: expected a whole number from 1 to 256, or "auto", not 0',
    expect.stringMatching(/^download\.chunk_size: expected a size as a string from "64KiB" to "1GiB"/),
    'unpack.engine: expected "auto" or "native" or "portable", not "fast"',
    'prewarm.images: expected a list of image references, such as ["docker.io/library/busybox:1.36"], not "busybox"',
    'prewarm.min_free_disk: expected a share or a size of a file system, such as "20%" or "50GiB", not "much"',
    expect.stringMatching(/^metrics\.listen: expected "host:port"/),
  ]);
});

test("limits that could never be reached are said", () => {
  expect(
    problemsOf("[download]\nmax_concurrent = 2\nmax_concurrent_per_image = 3\nmax_concurrent_per_host = 2"),
  ).toEqual([
    "download.max_concurrent_per_image: 3 is above download.max_concurrent (2) and would never be reached",
  ]);
});

test("a contradiction is said beside other problems, but not of keys that have one or that the file does not set", () => {
  expect(problemsOf("[download]\nmax_concurrent = 1\n[fallback]\nafter = '1s'")).toEqual([]);
  expect(problemsOf("[download]\nmax_concurrent = 0\nmax_concurrent_per_image = 200")).toHaveLength(1);
  const toml = `[download]
retries = -1
connect_timeout = "20s"
max_concurrent_per_image = 8
[unpack]
max_concurrent = 2
max_concurrent_per_image = 3
[registry.host."x"]
streams = 9
max_concurrent = 16`;
  expect(problemsOf(toml)).toEqual([
    "download.retries: expected a whole number from 0 to 20, not -1",
    "unpack.max_concurrent_per_image: 3 is above unpack.max_concurrent (2) and would never be reached",
    'download.connect_timeout: "20s" is above fallback.after ("10s") and would never be reached',
    'registry.host."x".streams: 9 is above download.max_concurrent_per_image (8) and would never be reached',
  ]);
});

test("names that every JavaScript object has are as unknown as others", () => {
  expect(
    problemsOf("[constructor]\n[__proto__]\n[download]\ntoString = 1\n[registry.host.x]\nvalueOf = 1"),
  ).toEqual([
    "constructor: is not known",
    "__proto__: is not known",
    "download.toString: is not known",
    'registry.host."x".valueOf: is not known',
  ]);
});

test.each([
  ["[cri]\nlisten = '/run/hawser/'", "cri.listen: expected the path of a file"],
  ['[cri]\nlisten = "/run/a\\nb"', "cri.listen: expected an absolute path"],
  ["[containerd]\nnamespace = 'a/b'", "containerd.namespace: expected a name as containerd has them"],
  ['[containerd]\nnamespace = "k8s.io\\n"', "containerd.namespace: expected a name as containerd has them"],
  ["[containerd]\nsnapshotter = '../x'", "containerd.snapshotter: expected a name as containerd has them"],
  ["[registry]\nconfig_path = '/a:/b'", "registry.config_path: expected absolute paths, such as ["],
  ["[registry]\nexclude = ['index.docker.io']", 'registry.exclude: expected "docker.io" for Docker Hub'],
  [
    "[registry]\ninclude = ['docker.io', 'a']\nexclude = ['docker.io']",
    'registry.exclude: "docker.io" is in registry.include too',
  ],
  ["[x]", "x: is not known"],
])("%j is told", (toml, problem) => {
  const problems = problemsOf(toml);
  expect(problems).toEqual([expect.stringContaining(problem)]);
  expect(problems[0]).not.toContain("did you mean");
});

test("Hawser does not listen where containerd does, and then serves on the default socket", () => {
  const { config, problems } = parseConfig(
    '[cri]\nlisten = "/run//c.sock"\n[containerd]\naddress = "/run/c.sock"',
    "test.toml",
  );
  expect(problems).toEqual([{ path: "cri.listen", message: '"/run//c.sock" is containerd.address too' }]);
  expect(config.cri.listen).toBe("/run/hawser/hawser.sock");
  expect(config.containerd.address).toBe("/run/containerd/containerd.sock");
  expect(problemsOf('[cri]\nlisten = "/var/run/containerd/containerd.sock"')).toEqual([
    'cri.listen: "/var/run/containerd/containerd.sock" is containerd.address too',
  ]);
  expect(problemsOf(`[containerd]\naddress = "/${"x".repeat(107)}"`)).toEqual([
    expect.stringMatching(/^containerd\.address: expected a path of at most 107 bytes/),
  ]);
  expect(problemsOf(`[cri]\nlisten = "/${"x".repeat(90)}"`)).toEqual([
    expect.stringMatching(/^cri\.listen: expected a path of at most 90 bytes/),
  ]);
});

test("with a problem elsewhere, sockets keep what the file says", () => {
  const { config } = parseConfig(
    '[cri]\nlisten = "/run/mine.sock"\n[download]\nretries = "many"',
    "test.toml",
  );
  expect(config.cri.listen).toBe("/run/mine.sock");
  expect(config.download.retries).toBe(4);
});

test("the default file may be absent; one that is named must be readable", async () => {
  const folder = mkdtempSync(join(tmpdir(), "config-"));
  try {
    const { problems, config } = await loadConfig(join(folder, "none.toml"));
    expect(problems).toEqual([{ path: "", message: "cannot be read: ENOENT: no such file or directory" }]);
    expect(config.cri.listen).toBe("/run/hawser/hawser.sock");
    const told = async (file: string) => (await loadConfig(file)).problems[0]?.message;
    expect(await told(folder)).toBe("cannot be read: it is no file");
    expect(await told("")).toBe("cannot be read: ENOENT: no such file or directory");
    // Neither of these would ever end, and the daemon has to serve.
    execFileSync("mkfifo", [join(folder, "fifo")]);
    expect(await told(join(folder, "fifo"))).toBe("cannot be read: it is no file");
    expect(await told("/dev/zero")).toBe("cannot be read: it is no file");
    writeFileSync(join(folder, "large.toml"), "#".repeat(2 ** 20 + 1));
    expect(await told(join(folder, "large.toml"))).toBe("cannot be read: it is over 1 MiB long");
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("broken TOML is one problem with its line", () => {
  expect(problemsOf("[cri\nlisten = 1")).toEqual([expect.stringMatching(/line 1/)]);
});

test("parsing never throws, whatever the text", () => {
  const key = fc.constantFrom("cri", "download", "listen", "chunk_size", "registry", "host", "x.y", "unpack");
  const value = fc.oneof(
    fc.string(),
    fc.integer(),
    fc.boolean(),
    fc.array(fc.string()),
    fc.double(),
    fc.constant({}),
  );
  const line = fc.oneof(
    key.map((name) => `[${name}]`),
    fc.tuple(key, value).map(([name, any]) => `${name} = ${JSON.stringify(any)}`),
    fc.string(),
  );
  fc.assert(
    fc.property(fc.array(line), (lines) => {
      const { config, problems } = parseConfig(lines.join("\n"), "test.toml");
      expect(config.download.retries).toBeGreaterThanOrEqual(0);
      for (const { message } of problems) expect(message).not.toContain("\n");
    }),
  );
});

test("every key that is a matter of more or less says what becomes of too little and too much, and where that is seen", () => {
  const isAmount = (preset: unknown): boolean =>
    typeof preset === "number" ||
    (typeof preset === "string" && /^\d+ ?(%|ms|[smh]|[KMGT]?i?B)$/.test(preset));
  const amounts = describeSettings()
    .filter(({ preset }) => isAmount(preset))
    .map(({ section, key }) => `${section}.${key}`);
  // Those whose default is a word.
  const words = [
    "download.max_concurrent",
    "download.max_concurrent_per_image",
    "download.max_concurrent_per_host",
    "download.bandwidth_limit",
    "unpack.max_concurrent",
    "unpack.max_concurrent_per_image",
    "prewarm.bandwidth_limit",
  ];
  expect([...knobs.keys()].sort()).toEqual([...amounts, ...words].sort());
});

test("config/hawser.toml documents every key with its default, as the schema has it", () => {
  const file = readFileSync(new URL("../../config/hawser.toml", import.meta.url), "utf8");
  expect(file).toBe(renderSettings());
  const uncommented = file.replace(/^# (\w+ = |\[)/gm, "$1");
  const { problems, given } = parseConfig(uncommented, "hawser.toml");
  expect(problems).toEqual([]);
  const keys = describeSettings();
  expect([...given.keys()]).toEqual(keys.map(({ section, key }) => `${section}.${key}`));
});

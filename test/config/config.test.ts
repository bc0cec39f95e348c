// The configuration: strict, complete in what it says, and documented by the very file that ships.

import { readFileSync } from "node:fs";
import fc from "fast-check";
import { expect, test } from "vitest";
import { renderSettings } from "../../src/cli/config.ts";
import { describeSettings, parseConfig } from "../../src/config.ts";

function problemsOf(toml: string): string[] {
  return parseConfig(toml, "test.toml").problems.map(({ path, message }) =>
    path ? `${path}: ${message}` : message,
  );
}

test("with no file everything has its default", () => {
  const { config, problems, fromFile } = parseConfig("", undefined);
  expect(problems).toEqual([]);
  expect(fromFile.size).toBe(0);
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
[prewarm]
images = []
[registry]
exclude = "docker.io"
[registry.host."x"]
speed = 1
`);
  expect(problems).toEqual([
    "download.retires: is not known; did you mean retries?",
    "dwonload: is not known; did you mean download?",
    "prewarm: is not in this version yet",
    expect.stringMatching(/^cri\.listen: expected an absolute path.*not "relative\.sock"$/),
    'registry.exclude: expected a list of strings, such as ["registry.example.com"], not "docker.io"',
    expect.stringMatching(/^registry\.host: expected streams or max_concurrent for x/),
    "download.max_concurrent: expected a whole number from 1 to 256, not 0",
    expect.stringMatching(/^download\.chunk_size: expected a size as a string from "64KiB" to "1GiB"/),
    'unpack.engine: expected "auto" or "native" or "portable", not "fast"',
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

test("config/hawser.toml documents every key with its default, as the schema has it", () => {
  const file = readFileSync(new URL("../../config/hawser.toml", import.meta.url), "utf8");
  expect(file).toBe(renderSettings());
  const uncommented = file.replace(/^# (\w+ = |\[)/gm, "$1");
  const { problems, fromFile } = parseConfig(uncommented, "hawser.toml");
  expect(problems).toEqual([]);
  const keys = describeSettings();
  expect(fromFile.size).toBe(keys.length);
  for (const { section, key } of keys) expect(fromFile).toContain(`${section}.${key}`);
});

// Documents of the usual shape, and what makes one unusual: each of these Go's reader refuses, or might.

import { describe, expect, test } from "vitest";
import { type DocumentKind, isOrdinary } from "../../src/oci/ordinary.ts";

const digest = `sha256:${"0".repeat(64)}`;
const entry = { mediaType: "a/b", digest, size: 5, annotations: { a: "b" } };

const config = {
  created: "2024-02-29T23:59:59.123456789+02:00",
  author: "somebody",
  architecture: "amd64",
  os: "linux",
  "os.features": ["x"],
  container_config: { Env: 7 },
  docker_version: 1.5e3,
  config: {
    User: "1:2",
    ExposedPorts: { "80/tcp": {} },
    Env: ["A=b", null],
    Entrypoint: null,
    Cmd: ["sh"],
    Volumes: { "/data": {} },
    WorkingDir: "/",
    Labels: { l: '1.5 and "2e3" {[{[' },
    StopSignal: "TERM",
    ArgsEscaped: true,
    Healthcheck: { Test: ["CMD"] },
  },
  rootfs: { type: "layers", diff_ids: [digest] },
  history: [{ created: "2024-01-01T00:00:00Z", created_by: "COPY", comment: "", empty_layer: true }],
};
const manifest = {
  schemaVersion: 2,
  mediaType: "a/b",
  config: entry,
  layers: [entry],
  subject: entry,
  annotations: null,
};
const platform = { os: "linux", architecture: "arm64", variant: "v8", "os.version": "1", "os.features": [] };
const index = {
  schemaVersion: 2,
  manifests: [
    { ...entry, platform },
    { ...entry, artifactType: "a/b" },
  ],
};

const { docker_version: _number, ...plainConfig } = config;

const ordinary = (kind: DocumentKind, value: unknown): boolean =>
  isOrdinary(kind, Buffer.from(typeof value === "string" ? value : JSON.stringify(value)));

test.each([
  ["config", plainConfig],
  ["config", {}],
  ["config", { ...plainConfig, config: null, history: null, created: null }],
  ["manifest", manifest],
  ["index", index],
] as const)("%s: as usual", (kind, value) => {
  expect(ordinary(kind, value)).toBe(true);
});

/** With one field of it replaced, by its path. */
function changed(value: object, path: string, field: unknown): unknown {
  const copy = structuredClone(value) as Record<string, unknown>;
  const keys = path.split("/");
  const last = keys.pop() ?? "";
  let at = copy;
  for (const key of keys) at = at[key] as Record<string, unknown>;
  at[last] = field;
  return copy;
}

describe("a config with", () => {
  test.each<[string, unknown]>([
    ["created", "2024-02-30T00:00:00Z"],
    ["created", "2024-01-01"],
    ["created", "2024-01-01T24:00:00Z"],
    ["created", "2024-01-01T00:00:00"],
    ["created", 0],
    ["author", 1],
    ["os", []],
    ["os.features", "x"],
    ["config", "none"],
    ["config", []],
    ["config/User", 0],
    ["config/Env", "no list"],
    ["config/Env", [1]],
    ["config/Cmd", {}],
    ["config/ExposedPorts", ["80/tcp"]],
    ["config/ExposedPorts", { "80/tcp": 1 }],
    ["config/Volumes", { "/data": "x" }],
    ["config/Labels", { a: 1 }],
    ["config/ArgsEscaped", "true"],
    ["rootfs/diff_ids", [1]],
    ["history", {}],
    ["history/0/created", "yesterday"],
    ["history/0/empty_layer", 1],
    ["Author", "twice, for Go"],
  ])("%s = %j", (path, field) => {
    expect(ordinary("config", changed(plainConfig, path, field))).toBe(false);
  });

  test("a number that Go does not take for a whole one, wherever it is", () => {
    expect(ordinary("config", JSON.stringify(plainConfig).replace(/\}$/, ',"x":1.0}'))).toBe(false);
    expect(ordinary("config", JSON.stringify(plainConfig).replace(/\}$/, ',"x":1E2}'))).toBe(false);
  });

  test("more depth than Go goes into", () => {
    const deep = `{"x":${"[".repeat(9_001)}${"]".repeat(9_001)}}`;
    expect(ordinary("config", deep)).toBe(false);
  });
});

describe("a manifest or an index with", () => {
  test.each<["manifest" | "index", string, unknown]>([
    ["manifest", "schemaVersion", "2"],
    ["manifest", "schemaVersion", 2 ** 60],
    ["manifest", "config/annotations", { a: 1 }],
    ["manifest", "layers/0/urls", [1]],
    ["manifest", "layers/0/size", "5"],
    ["manifest", "layers/0/platform", "linux"],
    ["manifest", "subject", []],
    ["manifest", "subject/data", 5],
    ["manifest", "layers/0/data", "AAAA"],
    ["manifest", "annotations", { a: [] }],
    ["manifest", "Layers", []],
    ["index", "manifests/0/platform/os.version", 1],
    ["index", "manifests/1/artifactType", 1],
    ["index", "manifests", {}],
  ])("%s: %s = %j", (kind, path, field) => {
    expect(ordinary(kind, changed(kind === "manifest" ? manifest : index, path, field))).toBe(false);
  });

  test("a field twice, or what is no JSON at all", () => {
    expect(ordinary("manifest", '{"schemaVersion":2,"schemaVersion":2}')).toBe(false);
    expect(ordinary("index", "\ufeff{}")).toBe(false);
    expect(ordinary("index", "[]")).toBe(false);
  });
});

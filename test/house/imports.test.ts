// The house of ARCHITECTURE.md: imports point down, rooms on one tier do not know each other, and files stay small.

import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

const src = fileURLToPath(new URL("../../src", import.meta.url));

/** From the top down; a name with a slash at its end is a room (a folder). */
const tiers: readonly (readonly string[])[] = [
  ["main.ts"],
  ["cli/"],
  ["agent/"],
  ["install/"],
  ["daemon.ts", "loader.ts", "front/", "doctor/"],
  ["account.ts", "works.ts"],
  ["vitals.ts", "exporting.ts"],
  ["limits.ts"],
  ["cri/", "prewarm/", "inplace/", "archive/", "page/"],
  ["pull/", "history/"],
  ["registry/", "layer/", "containerd/", "cluster/"],
  ["removal.ts", "selinux.ts"],
  ["oci/", "spool.ts", "native.ts", "demand.ts"],
  ["proto/"],
  ["exposition.ts"],
  ["port.ts"],
  ["metrics.ts", "hostlabels.ts", "log.ts", "trace.ts"],
  ["yaml.ts"],
  ["errors.ts", "cores.ts", "usage.ts", "failpoint.ts", "grpc.ts"],
];
/** Read by the program's two ends alone, so not part of the tiers. */
const configuration = ["config.ts", "knobs.ts", "schema.ts", "settings.ts"];
const mayReadConfiguration = new Set([
  "daemon.ts",
  "loader.ts",
  "account.ts",
  "works.ts",
  "limits.ts",
  "front/",
  "cli/",
  ...configuration,
]);

const files = readdirSync(src, { recursive: true, encoding: "utf8" }).filter(
  (name) => name.endsWith(".ts") && !name.includes("gen/"),
);

function roomOf(file: string): string {
  const slash = file.indexOf("/");
  return slash === -1 ? file : file.slice(0, slash + 1);
}

function importsOf(file: string): string[] {
  const text = readFileSync(join(src, file), "utf8");
  const patterns = [
    /^(?:import|export)\s[^;]*?from "(\.[^"]+)"/gm,
    /^import "(\.[^"]+)"/gm,
    // What is loaded on demand, and types that are imported where they are used.
    /\bimport\(\s*"(\.[^"]+)"/g,
  ];
  const found = patterns.flatMap((pattern) => [...text.matchAll(pattern)].map((match) => match[1] ?? ""));
  return found
    .map((path) => normalize(relative(src, join(src, dirname(file), path))))
    .filter((path) => !path.startsWith(".."));
}

const edges = files.flatMap((from) => importsOf(from).map((to) => ({ from, to })));

function tierOf(room: string): number {
  return tiers.findIndex((tier) => tier.includes(room));
}

test("there is something to check, and every file has a place", () => {
  expect(files.length).toBeGreaterThan(40);
  expect(edges.length).toBeGreaterThan(100);
  const homeless = files.filter((file) => tierOf(roomOf(file)) === -1 && !configuration.includes(file));
  expect(homeless).toEqual([]);
});

test("imports point down, and rooms on one tier do not import each other", () => {
  const wrong = edges.filter(({ from, to }) => {
    const [room, other] = [roomOf(from), roomOf(to)];
    if (room === other || configuration.includes(other) || configuration.includes(room)) return false;
    return tierOf(room) >= tierOf(other);
  });
  expect(wrong).toEqual([]);
});

test("the configuration is read by the daemon and the commands alone", () => {
  const readers = edges.filter(({ to }) => configuration.includes(to)).map(({ from }) => from);
  expect(readers.length).toBeGreaterThan(2);
  expect(readers.filter((from) => !mayReadConfiguration.has(roomOf(from)))).toEqual([]);
});

test("only native.ts loads the addon, and only main.ts knows the environment", () => {
  const text = new Map(files.map((file) => [file, readFileSync(join(src, file), "utf8")]));
  const having = (pattern: RegExp): string[] => files.filter((file) => pattern.test(text.get(file) ?? ""));
  expect(having(/createRequire|hawser\.node/)).toEqual(["native.ts"]);
  expect(having(/process\.env/).filter((file) => file !== "main.ts")).toEqual([]);
  expect(having(/process\.argv/)).toEqual(["main.ts"]);
});

/** Functions and methods with their lengths; the formatter puts the closing brace under the line that opened. */
function functionsOf(file: string): { name: string; lines: number }[] {
  const lines = readFileSync(join(src, file), "utf8").split("\n");
  const opening =
    /^(?:export )?(?:async )?function\*? (\w+)|^ {2}(?:(?:static|async|get|set|private) )*\*?(#?\w+)(?:<.*>)?\(/;
  return lines.flatMap((line, start) => {
    const match = opening.exec(line);
    const name = match?.[1] ?? match?.[2];
    if (name === undefined || /^ {2}(?:if|for|while|switch|return|await|super|using)\b|[;,]$/.test(line))
      return [];
    const end = lines.indexOf(`${line.startsWith(" ") ? "  " : ""}}`, start);
    return end === -1 ? [] : [{ name, lines: end - start + 1 }];
  });
}

test("functions stay under 70 lines, but for the list of metrics", () => {
  const functions = files.flatMap(functionsOf);
  expect(functions.length).toBeGreaterThan(200);
  expect(functions.filter(({ lines }) => lines >= 70).map(({ name }) => name)).toEqual(["createMetrics"]);
});

test("every file opens with what it is, and stays under 350 lines", () => {
  for (const file of files) {
    const text = readFileSync(join(src, file), "utf8");
    expect(text.replace(/^#!.*\n/, ""), file).toMatch(/^\/\/ \S/);
    expect(text.split("\n").length, file).toBeLessThanOrEqual(350);
  }
});

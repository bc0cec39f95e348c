// The rules for alerts and the dashboard, as files: promtool finds them right, both forms of the rules are the same, and
// every metric, key and command that they name is there.

import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { parse } from "yaml";
import { root } from "../../config/release/place.ts";
import { createMetrics } from "../../src/metrics.ts";
import { schema } from "../../src/schema.ts";
import { type Dashboard, expressionsOf, type RuleFile, rulesOf } from "../harness/alerting.ts";
import { promtool } from "../harness/prometheus.ts";

const read = (path: string): string => readFileSync(join(root, path), "utf8");
const plain = parse(read("config/prometheus/hawser.rules.yaml")) as RuleFile;
const rules = rulesOf(plain);
const dashboard = JSON.parse(read("config/grafana/hawser.json")) as Dashboard;

test.each([
  [["check", "rules", "config/prometheus/hawser.rules.yaml"]],
  [["check", "config", "config/prometheus/prometheus.yaml"]],
  [["test", "rules", "test/metrics/alerts.yaml"]],
])("promtool %j", (args) => {
  const [first = "", second = "", file = ""] = args;
  const { status, text } = promtool(first, second, join(root, file));
  expect(text).toContain("SUCCESS");
  expect(status, text).toBe(0);
});

test("with an operator and without one the rules are the same", () => {
  const { spec } = parse(read("config/kubernetes/prometheus/rules.yaml")) as { spec: RuleFile };
  expect(plain).toEqual(spec);
});

test.each(rules.map((rule) => [rule.alert, rule] as const))(
  "%s says what it means and what to do",
  (_, rule) => {
    expect(["critical", "warning", "info"]).toContain(rule.labels["severity"]);
    expect(Object.keys(rule.annotations)).toEqual(["summary", "description", "runbook"]);
    expect(rule.annotations["summary"]).toMatch(/\$labels\.node \$labels\.instance/);
    expect(rule.annotations["runbook"]).toMatch(/"(?:hawser|journalctl|systemctl) |hawser_/);
    expect(rule.for).toMatch(/^\d+m$/);
  },
);

const texts = rules.map(({ annotations }) => Object.values(annotations).join(" ")).join(" ");

test("every key that is named is one of the configuration's", () => {
  const sections = Object.keys(schema).join("|");
  const named = [...texts.matchAll(new RegExp(`(?<![\\w/])(${sections})\\.([a-z_]+)`, "g"))];
  expect(named.length).toBeGreaterThan(15);
  const unknown = named.filter(([, section = "", key = ""]) => {
    const keys: object = schema[section as keyof typeof schema];
    return !Object.hasOwn(keys, key);
  });
  expect(unknown.map(([all]) => all)).toEqual([]);
});

test("every command that is named is one of Hawser's", () => {
  const { stdout } = spawnSync(process.execPath, [join(root, "dist/main.js"), "--help"], {
    encoding: "utf8",
  });
  const commands = new Set([...stdout.matchAll(/^ {2}(\w+) {2,}/gm)].map(([, name]) => name));
  const named = new Set([...texts.matchAll(/"hawser (\w+)/g)].map(([, name]) => name));
  expect(named.size).toBeGreaterThan(5);
  expect([...named].filter((name) => !commands.has(name))).toEqual([]);
});

/** Names of metrics in an expression, as their series are called. */
function namesIn(expression: string): readonly string[] {
  // Labels and their values may be called anything.
  const bare = expression.replaceAll(/\{[^}]*\}/g, "").replaceAll(/\b(?:by|on) \([^)]*\)/g, "");
  return [...bare.matchAll(/\b(?:up|(?:hawser|process|nodejs)_\w+)\b/g)].map(([name]) => name);
}

async function seriesNames(): Promise<ReadonlySet<string>> {
  const all = await createMetrics("1.2.3", "puller").registry.getMetricsAsJSON();
  const names = all.flatMap(({ name, type }) =>
    String(type) === "histogram" ? [`${name}_bucket`, `${name}_sum`, `${name}_count`] : [name],
  );
  return new Set(["up", ...names]);
}

describe.each([
  ["rules", rules.map(({ expr }) => expr)],
  ["dashboard", expressionsOf(dashboard)],
] as const)("%s", (_, expressions) => {
  test.each(expressions)("%s", async (expression) => {
    const known = await seriesNames();
    const names = namesIn(expression);
    expect(names.length).toBeGreaterThan(0);
    expect(names.filter((name) => !known.has(name))).toEqual([]);
  });
});

test("each metric is in the list of all, with its labels, and no other", async () => {
  const rows = [...read("config/prometheus/README.md").matchAll(/^\| `(hawser_\w+)` \| ([\w, ]*?) ?\|/gm)];
  const listed = rows.map(([, name, labels = ""]) => [name, ...labels.split(", ")].join(" ").trim());
  const { registry: _registry, ...metrics } = createMetrics("1.2.3", "puller");
  const own = Object.values(metrics).map((metric) => {
    const { name, labelNames = [] } = metric as unknown as { name: string; labelNames?: readonly string[] };
    return [name, ...labelNames].join(" ");
  });
  expect(listed.toSorted()).toEqual(own.toSorted());
});

describe("the dashboard", () => {
  test("asks the data source and the nodes that are chosen, and those alone", () => {
    expect(dashboard.templating.list.map(({ name, type }) => [name, type])).toEqual([
      ["datasource", "datasource"],
      ["node", "query"],
    ]);
    const panels = dashboard.panels.filter(({ type }) => type !== "row");
    expect(panels.length).toBeGreaterThan(20);
    for (const { datasource, targets = [], title } of panels) {
      expect([datasource, ...targets.map((target) => target.datasource)], title).toEqual(
        Array.from({ length: targets.length + 1 }, () => ({ type: "prometheus", uid: "${datasource}" })),
      );
      expect(targets.length, title).toBeGreaterThan(0);
    }
    for (const expression of expressionsOf(dashboard)) {
      const selectors = [...expression.matchAll(/\b(?:hawser|process|nodejs)_\w+(\{[^}]*\})?/g)];
      for (const [, braces] of selectors) expect(braces, expression).toContain('node=~"$node"');
    }
  });

  test("panels have numbers of their own and do not lie over each other", () => {
    const ids = dashboard.panels.map(({ id }) => id);
    expect(new Set(ids).size).toBe(ids.length);
    const cells = dashboard.panels.flatMap(({ gridPos: { x, y, w, h } }) =>
      Array.from({ length: w * h }, (_, cell) => `${x + (cell % w)} ${y + Math.floor(cell / w)}`),
    );
    expect(new Set(cells).size).toBe(cells.length);
    expect(Math.max(...dashboard.panels.map(({ gridPos: { x, w } }) => x + w))).toBe(24);
  });
});

// All checks together: each on its own, bounded, cleaned; and what is printed of them.

import { EventEmitter } from "node:events";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { Check, Finding, Report } from "../../src/doctor/doctor.ts";
import { conduct, examine } from "../../src/doctor/examine.ts";
import { isBroken, renderJson, renderReport, renderSum } from "../../src/doctor/report.ts";
import { MadeUpNode } from "./node.ts";

let node: MadeUpNode;

beforeEach(() => {
  node = new MadeUpNode();
});

afterEach(() => {
  node[Symbol.dispose]();
});

const never = new AbortController().signal;
const good: Finding = { state: "ok", what: "a", finding: "b" };

function check(run: Check["run"], limitMs = 60_000): Check {
  return { subject: "subject", limitMs, run };
}

describe("a check", () => {
  test("that throws is unknown, with what it found before", async () => {
    const failing = check(async function* () {
      yield good;
      await Promise.reject(new Error("went wrong\nin two lines"));
    });
    expect(await conduct(failing, node.context(), never)).toEqual({
      subject: "subject",
      findings: [good, { state: "unknown", what: "check", finding: "went wrong" }],
      isStuck: false,
    });
  });

  test("that hangs is given up, is told so, and adds nothing any more", async () => {
    const told = new EventEmitter();
    let resume = (): void => {};
    const hanging = check(async function* (_context, signal) {
      yield good;
      signal.addEventListener("abort", () => told.emit("aborted"));
      await new Promise<void>((resolve) => {
        resume = resolve;
      });
      yield good;
    }, 50);
    const aborted = EventEmitter.once(told, "aborted");
    const report = await conduct(hanging, node.context(), never);
    await aborted;
    const expected = [good, { state: "unknown", what: "check", finding: "not finished within 0.05 s" }];
    expect(report).toEqual({ subject: "subject", findings: expected, isStuck: true });
    resume();
    await new Promise((resolve) => {
      setImmediate(resolve);
    });
    expect(report.findings).toEqual(expected);
  });

  test("that ends when it is told to is not stuck", async () => {
    const patient = check(async function* (_context, signal) {
      yield good;
      await EventEmitter.once(signal as unknown as EventTarget, "abort");
      throw new Error("given up");
    }, 50);
    const { findings, isStuck } = await conduct(patient, node.context(), never);
    expect(isStuck).toBe(false);
    expect(findings).toHaveLength(2);
  });

  test("that is interrupted", async () => {
    const stop = new AbortController();
    const waiting = check(async function* () {
      yield good;
      await new Promise(() => {});
    });
    const running = conduct(waiting, node.context(), stop.signal);
    stop.abort();
    const { findings } = await running;
    expect(findings.at(-1)).toEqual({ state: "unknown", what: "check", finding: "interrupted" });
  });

  test("cannot speak to the terminal, nor show who a URL is for", async () => {
    const dirty = check(async function* () {
      yield await Promise.resolve({
        state: "slow",
        what: "w\u001b[31m",
        finding: `https://user:p@ss@host/v2, then http://u@h:1/ \u202e\r\nbroken x: y ${"z".repeat(1000)}`,
        todo: "do\u0007",
      } satisfies Finding);
    });
    const [finding] = (await conduct(dirty, node.context(), never)).findings;
    expect(finding?.what).toBe("w [31m");
    expect(finding?.finding).toMatch(/^https:\/\/host\/v2, then http:\/\/h:1\/ {2}broken x: y z+$/);
    expect(finding?.finding).toHaveLength(600);
    expect(finding?.todo).toBe("do ");
  });
});

test("a node with nothing on it: every subject, in order, none of them thrown", async () => {
  const reports: Report[] = [];
  for await (const report of examine(node.context().options, never)) reports.push(report);
  expect(reports.map(({ subject }) => subject)).toEqual([
    "hawser",
    "containerd",
    "certs.d",
    "kubelet",
    "crictl",
    "engine",
    "disk",
    "limits",
    "proxy",
    "systemd",
    "clock",
  ]);
  expect(reports.flatMap(({ findings }) => findings).every(({ finding }) => finding !== "")).toBe(true);
  const certs = reports.find(({ subject }) => subject === "certs.d");
  expect(certs?.findings).toEqual([
    { state: "unknown", what: "check", finding: "containerd does not answer" },
  ]);
});

describe("what is printed", () => {
  const reports: Report[] = [
    { subject: "one", findings: [good, { ...good, state: "unknown", todo: "c" }], isStuck: false },
    {
      subject: "two",
      findings: [{ state: "slow", what: "longer name", finding: "d", todo: "e" }],
      isStuck: false,
    },
  ];
  const broken: Report = { subject: "three", findings: [{ ...good, state: "broken" }], isStuck: false };

  test("lines, aligned, and their number", () => {
    expect(reports.map((report) => renderReport(report, false)).join("\n")).toBe(`one
  ok       a: b
  unknown  a: b
           do: c

two
  slow     longer name: d
           do: e
`);
    expect(renderSum([...reports, broken])).toBe("1 ok, 1 slow, 1 broken, 1 unknown\n");
  });

  test("colours, for those who want them", () => {
    expect(renderReport(broken, true)).toBe("\u001b[1mthree\u001b[0m\n  \u001b[31mbroken \u001b[0m  a: b\n");
  });

  test("JSON", () => {
    expect(JSON.parse(renderJson(reports, "1.2.3"))).toEqual({
      version: "1.2.3",
      counts: { ok: 1, slow: 1, broken: 0, unknown: 1 },
      findings: [
        { subject: "one", state: "ok", what: "a", finding: "b" },
        { subject: "one", state: "unknown", what: "a", finding: "b", do: "c" },
        { subject: "two", state: "slow", what: "longer name", finding: "d", do: "e" },
      ],
    });
  });

  test("only what is broken counts", () => {
    expect(isBroken(reports)).toBe(false);
    expect(isBroken([...reports, broken])).toBe(true);
  });
});

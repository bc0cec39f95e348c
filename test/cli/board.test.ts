// How far an upgrade is, on a terminal and in lines.

import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { PlainBoard, TerminalBoard } from "../../src/cli/board.ts";
import type { Plan, UpgradeEvent } from "../../src/inplace/inplace.ts";

const request: Plan["request"] = {
  kind: "statefulset",
  name: "web",
  namespace: "shop",
  images: { app: "app:2" },
  maxUnavailable: undefined,
  graceMs: undefined,
  timeoutMs: 1,
  isPrewarmed: true,
};

beforeEach(() => {
  vi.useFakeTimers();
});

afterEach(() => {
  vi.useRealTimers();
});

function planOf(count: number): Plan {
  const pods = Array.from({ length: count }, (_, index) => ({
    name: `web-${index}`,
    node: "node-1",
    isReady: true,
    from: { app: "app:1" },
    isBegun: false,
  }));
  return { request, pods, podsInAll: count, maxUnavailable: 1, graceMs: 0, changes: [] };
}

const escape = String.fromCodePoint(27);

/** What a terminal shows after all that was written: lines that were drawn over are gone. */
function shown(written: string): string[] {
  const lines: string[] = [];
  for (const part of written.split(escape)) {
    const up = /^\[(\d+)F$/.exec(part);
    if (up) lines.splice(lines.length - Number(up[1]));
    else lines.push(...part.replace(/^\[J/, "").split("\n").slice(0, -1));
  }
  return lines;
}

test("a line for each pod, with since when it is at what; what is said stays above", () => {
  let written = "";
  const board = new TerminalBoard(
    planOf(2),
    (text) => (written += text),
    () => ({ columns: 80, rows: 24 }),
  );
  expect(shown(written)).toEqual([
    "statefulset/web: 0 of 2 pods",
    "web-0  node-1  waits",
    "web-1  node-1  waits",
  ]);
  board.told({ event: "pod", pod: "web-1", node: "node-1", step: "restarting", detail: `a ${escape}[31mb` });
  vi.advanceTimersByTime(3_000);
  board.told({ event: "note", text: "a note" });
  board.told({ event: "pod", pod: "web-0", step: "done" });
  expect(shown(written)).toEqual([
    "a note",
    "statefulset/web: 1 of 2 pods",
    "web-0  node-1  done",
    "web-1  node-1  restarting for 3.00 s (a [31mb)",
  ]);
  board.end();
  expect(shown(written)).toEqual(["a note"]);
  expect(vi.getTimerCount()).toBe(0);
});

test("with more pods than rows, those that are at something", () => {
  let written = "";
  const board = new TerminalBoard(
    planOf(20),
    (text) => (written += text),
    () => ({ columns: 30, rows: 6 }),
  );
  board.told({
    event: "pod",
    pod: "web-17",
    step: "leaving service",
    detail: "what is longer than the terminal",
  });
  board.told({ event: "pod", pod: "web-18", step: "done" });
  expect(shown(written)).toEqual(
    [
      "statefulset/web: 1 of 20 pods",
      "web-17  node-1  leaving servic",
      "web-0  node-1  waits",
      "web-1  node-1  waits",
      "and 17 pods more",
    ].map((line) => line.slice(0, 29)),
  );
  board.end();
});

test("otherwise a line for each event, with nothing in it that speaks to a terminal", () => {
  const lines: string[] = [];
  const board = new PlainBoard((text) => void lines.push(text));
  const events: UpgradeEvent[] = [
    { event: "pod", pod: "web-0", node: `node${escape}[2J`, step: "fetching", detail: "app:2: 503" },
    { event: "note", text: "a note\nof two lines" },
    { event: "failure", error: "it failed" },
  ];
  for (const event of events) board.told(event);
  expect(lines).toEqual([
    "web-0 on node [2J: fetching (app:2: 503)\n",
    "a note of two lines\n",
    "failed, and is rolled back: it failed\n",
  ]);
});

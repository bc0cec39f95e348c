// Who keeps back for whom: requests, waits and unpacking of what nobody waits for, beside what somebody does.

import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Demand } from "../../src/demand.ts";
import { Precedence } from "../../src/pull/precedence.ts";

const never = new AbortController().signal;
const awaited = new Demand(true);
const lingerMs = 250;

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

function make(cores: number): { readonly precedence: Precedence; readonly told: string[] } {
  const told: string[] = [];
  const events = {
    given: () => void told.push("given"),
    cores: (areTaken: boolean) => void told.push(areTaken ? "pause" : "go on"),
  };
  return { precedence: new Precedence(cores, events), told };
}

test("what is awaited takes precedence until it has been over for a moment, and those who kept back are told", () => {
  const { precedence, told } = make(4);
  const ahead = new Demand(false);
  expect(precedence.limitOf(ahead, 7)).toBe(7);
  const asking = precedence.claim("asking", awaited);
  const downloads = precedence.claim("downloads", awaited);
  expect(precedence.limitOf(ahead, 7)).toBe(0);
  expect(precedence.limitOf(awaited, 7)).toBe(Number.POSITIVE_INFINITY);
  asking[Symbol.dispose]();
  asking[Symbol.dispose]();
  vi.advanceTimersByTime(lingerMs);
  expect(precedence.isTaken).toBe(true);
  downloads[Symbol.dispose]();
  vi.advanceTimersByTime(lingerMs - 1);
  const next = precedence.claim("asking", awaited);
  vi.advanceTimersByTime(lingerMs);
  expect(precedence.isTaken).toBe(true);
  expect(told).toEqual([]);
  next[Symbol.dispose]();
  vi.advanceTimersByTime(lingerMs);
  expect(told).toEqual(["given"]);
  expect(precedence.limitOf(ahead, 7)).toBe(7);
});

test("layers take precedence only where they keep all cores busy, at two threads each, and then others pause", () => {
  const { precedence, told } = make(4);
  const claims = [precedence.claim("layers", awaited)];
  expect(precedence.isTaken).toBe(false);
  claims.push(precedence.claim("layers", awaited));
  expect(precedence.isTaken).toBe(true);
  expect(told).toEqual(["pause"]);
  for (const claim of claims) claim[Symbol.dispose]();
  vi.advanceTimersByTime(lingerMs);
  expect(told).toEqual(["pause", "go on", "given"]);
});

test("a claim counts from when somebody comes to wait, and not at all if nobody does", () => {
  const { precedence } = make(2);
  const [one, other] = [new Demand(false), new Demand(false)];
  using _one = precedence.claim("downloads", one);
  const claim = precedence.claim("asking", other);
  expect(precedence.isTaken).toBe(false);
  claim[Symbol.dispose]();
  other.raise();
  expect(precedence.isTaken).toBe(false);
  one.raise();
  expect(precedence.isTaken).toBe(true);
});

test("requests under way are broken off by a claim, but for those that have come to be awaited, or are over", async () => {
  const { precedence } = make(2);
  const [ahead, raised] = [new Demand(false), new Demand(false)];
  using request = precedence.request(ahead);
  using mine = precedence.request(raised);
  const over = precedence.request(ahead);
  over[Symbol.dispose]();
  raised.raise();
  using _claim = precedence.claim("asking", awaited);
  await Promise.resolve();
  expect([request, mine, over].map(({ signal }) => signal.aborted)).toEqual([true, false, false]);
  using late = precedence.request(ahead);
  expect(late.signal.aborted).toBe(true);
});

test("what is awaited by the very word that takes precedence is not broken off", async () => {
  const { precedence } = make(2);
  const raised = new Demand(false);
  using _claim = precedence.claim("downloads", raised);
  using request = precedence.request(raised);
  raised.raise();
  await Promise.resolve();
  expect(precedence.isTaken).toBe(true);
  expect(request.signal.aborted).toBe(false);
});

test("a wait ends when nobody takes precedence any more, when it is awaited itself, or when it is aborted", async () => {
  const { precedence } = make(2);
  const [ahead, raised] = [new Demand(false), new Demand(false)];
  await precedence.untilGiven(ahead, never);
  const claim = precedence.claim("downloads", awaited);
  const order: string[] = [];
  const abort = new AbortController();
  const waits = [
    precedence.untilGiven(ahead, never).then(() => order.push("given")),
    precedence.untilGiven(raised, never).then(() => order.push("raised")),
    precedence.untilGiven(ahead, abort.signal).catch((error: Error) => order.push(error.message)),
  ];
  await precedence.untilGiven(awaited, never);
  raised.raise();
  await waits[1];
  abort.abort();
  await waits[2];
  expect(order).toEqual(["raised", "cancelled"]);
  claim[Symbol.dispose]();
  vi.advanceTimersByTime(lingerMs);
  await waits[0];
  expect(order).toEqual(["raised", "cancelled", "given"]);
});

// A follower that had gone before it was first told was told for ever, which kept the process that kubelet speaks to from
// ending.

import { IncomingMessage, ServerResponse } from "node:http";
import { Socket } from "node:net";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Events } from "../../src/front/events.ts";

beforeEach(() => {
  vi.useFakeTimers();
});

afterEach(() => {
  vi.useRealTimers();
});

function makeResponse(): ServerResponse {
  return new ServerResponse(new IncomingMessage(new Socket()));
}

test("nobody is told who has gone already", () => {
  const events = new Events();
  let told = 0;
  const tell = async () => {
    told += 1;
    return { event: "pulls", data: "[]" };
  };
  const gone = makeResponse();
  gone.destroy();
  expect(events.follow(gone, tell)).toBe(true);
  expect(vi.getTimerCount()).toBe(0);
  const there = makeResponse();
  expect(events.follow(there, tell)).toBe(true);
  expect(vi.getTimerCount()).toBe(1);
  there.emit("close");
  expect(vi.getTimerCount()).toBe(0);
  expect(told).toBe(1);
});

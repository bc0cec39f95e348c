// A replacement (SIGHUP) that met the death of the process it was to replace left a front with no process that pulls, for
// ever, since nothing started another; or with one too many, which served nobody until the front ended.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Pullers } from "../../src/front/pullers.ts";
import { eventually } from "../harness/process.ts";

/** Stands for the program: says that it listens once a file is there, and ends when it is asked to. */
const program = `
const { existsSync } = require("node:fs");
const poll = setInterval(() => {
  if (!existsSync(process.argv[1])) return;
  clearInterval(poll);
  process.send({ kind: "listening" });
}, 10);
process.on("message", ({ kind }) => kind === "drain" && process.exit(0));
process.on("disconnect", () => process.exit(0));`;

let folder: string;
let pullers: Pullers;
/** Numbers of the processes that were started. */
let started: number[];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "pullers-"));
  started = [];
  pullers = new Pullers({
    start: (number) => {
      started.push(number);
      return {
        command: [process.execPath, "-e", program, join(folder, `${number}`)],
        environment: {},
        socket: join(folder, `socket-${number}`),
      };
    },
    changed: () => {},
  });
});

afterEach(async () => {
  vi.useRealTimers();
  await pullers.drain(1000);
  rmSync(folder, { recursive: true });
});

function haveListen(number: number): void {
  writeFileSync(join(folder, `${number}`), "");
}

/** Waits until these serve or start, the oldest first. */
async function untilThere(...states: readonly string[]): Promise<void> {
  await eventually(async () => {
    expect(pullers.all.map(({ state }) => state.kind)).toEqual(states);
  }, states.join());
}

function kill(index: number): void {
  process.kill(pullers.all[index]?.pid ?? 0, "SIGKILL");
}

async function serveFirst(): Promise<void> {
  pullers.start();
  haveListen(1);
  await untilThere("serving");
}

test("the serving one dies, and then its replacement: another is started", async () => {
  await serveFirst();
  kill(0);
  await untilThere();
  // The pause before the next one is still on.
  const replaced = pullers.replace(1000);
  expect(started).toEqual([1, 2]);
  kill(0);
  expect(await replaced).toBe(false);
  haveListen(3);
  await untilThere("serving");
  expect(pullers.serving).toBe(pullers.all[0]);
  expect(started).toEqual([1, 2, 3]);
});

test("the serving one dies while its replacement starts: no third is started beside it", async () => {
  await serveFirst();
  const replaced = pullers.replace(1000);
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  kill(0);
  await vi.waitFor(() => expect(pullers.all).toHaveLength(1));
  // Longer than any pause.
  vi.advanceTimersByTime(60_000);
  vi.useRealTimers();
  expect(started).toEqual([1, 2]);
  haveListen(2);
  expect(await replaced).toBe(true);
  await untilThere("serving");
  expect(pullers.serving).toBe(pullers.all[0]);
});

test("a replacement that dies while the other serves costs nothing", async () => {
  await serveFirst();
  const replaced = pullers.replace(1000);
  await untilThere("serving", "starting");
  kill(1);
  expect(await replaced).toBe(false);
  await untilThere("serving");
  expect(started).toEqual([1, 2]);
});

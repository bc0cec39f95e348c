// Units and clock: what systemctl and timedatectl say, in the words that they say it in.

import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { checkClock, compareClocks } from "../../src/doctor/clock.ts";
import type { Context } from "../../src/doctor/doctor.ts";
import { checkSystemd } from "../../src/doctor/systemd.ts";
import { all, lines, MadeUpNode } from "./node.ts";

let node: MadeUpNode;

beforeEach(() => {
  node = new MadeUpNode();
});

afterEach(() => {
  node[Symbol.dispose]();
});

const never = new AbortController().signal;

/** A node with systemd, whose commands print this. */
function booted(output: string | Error): Context {
  node.folder("/run/systemd/system");
  const ask = async (): Promise<string> => {
    if (output instanceof Error) throw output;
    return await Promise.resolve(output);
  };
  return { ...node.context(), ask };
}

interface Unit {
  readonly load?: string;
  readonly enabled?: string;
  readonly active?: string;
  readonly sub?: string;
  readonly restarts?: number;
  readonly result?: string;
}

function shown(id: string, unit: Unit): string {
  const { load = "loaded", enabled = "enabled", active = "active", sub = "running" } = unit;
  const lineOf = (key: string, value: string | number): string => `${key}=${value}\n`;
  return [
    lineOf("NRestarts", unit.restarts ?? 0),
    lineOf("Result", unit.result ?? "success"),
    lineOf("Id", id),
    lineOf("LoadState", load),
    lineOf("ActiveState", active),
    lineOf("SubState", sub),
    lineOf("UnitFileState", load === "not-found" ? "" : enabled),
  ].join("");
}

async function service(unit: Unit): Promise<string> {
  const output = `${shown("hawser.socket", { sub: "listening" })}\n${shown("hawser.service", unit)}`;
  const [socket, own = ""] = lines(await all(checkSystemd(booted(output))));
  expect(socket).toBe("ok hawser.socket: enabled, active (listening)");
  return own;
}

describe("units", () => {
  test("without systemd, and with one that cannot be asked", async () => {
    expect(lines(await all(checkSystemd(node.context())))).toEqual([
      "unknown units: systemd does not run here",
    ]);
    const failure = Object.assign(new Error("spawn systemctl ENOENT"), { code: "ENOENT" });
    expect(lines(await all(checkSystemd(booted(failure))))).toEqual([
      "unknown units: systemctl cannot be asked: there is no such file",
    ]);
  });

  test.each<[Unit, string]>([
    [{}, "ok hawser.service: enabled, active (running)"],
    [{ enabled: "static" }, "ok hawser.service: static, active (running)"],
    [
      { load: "not-found", active: "inactive", sub: "dead" },
      "unknown hawser.service: is not installed -> hawser install",
    ],
    [
      { load: "bad-setting", active: "inactive", sub: "dead" },
      "broken hawser.service: cannot be loaded (bad-setting) -> systemctl status hawser.service",
    ],
    [
      { active: "failed", sub: "failed", result: "exit-code" },
      "broken hawser.service: is failed (exit-code): failed -> journalctl -u hawser.service, then systemctl start hawser.service",
    ],
    [
      { active: "inactive", sub: "dead" },
      "broken hawser.service: is inactive: dead -> journalctl -u hawser.service, then systemctl start hawser.service",
    ],
    [
      { active: "activating", sub: "auto-restart" },
      "broken hawser.service: is activating: auto-restart -> journalctl -u hawser.service, then systemctl start hawser.service",
    ],
    [
      { active: "activating", sub: "start" },
      "slow hawser.service: is activating: start -> journalctl -u hawser.service, then systemctl start hawser.service",
    ],
    [
      { enabled: "disabled" },
      "slow hawser.service: runs, but is disabled: not after the next boot -> systemctl enable hawser.service",
    ],
    [
      { restarts: 3 },
      "slow hawser.service: runs, after 3 restarts that nobody asked for -> journalctl -u hawser.service says why",
    ],
  ])("%j", async (unit, expected) => {
    expect(await service(unit)).toBe(expected);
  });
});

describe("clock", () => {
  const found = async (context: Context, now = Date.parse("2026-03-01T12:00:00.5Z")): Promise<string[]> =>
    lines(await all(checkClock(context, never, () => now)));

  test("right, and behind this program", async () => {
    expect(await found(node.context())).toEqual(["ok time: 2026-03-01T12:00:00Z"]);
    expect(await found(node.context(), Date.parse("2025-12-31T00:00:00Z"))).toEqual([
      "broken time: says 2025-12-31T00:00:00Z, which is before this program was made (2026-01-01): certificates and tokens look invalid -> set the clock (timedatectl set-ntp true)",
    ]);
  });

  test.each<[string | Error, string]>([
    ["NTPSynchronized=yes\n", "ok synchronization: with a time server"],
    [
      "NTPSynchronized=no\n",
      "slow synchronization: with no time server: the clock may drift away -> start a time service (timedatectl set-ntp true)",
    ],
    ["", "unknown synchronization: timedatectl cannot be asked"],
    [new Error("no bus"), "unknown synchronization: timedatectl cannot be asked"],
  ])("timedatectl says %j", async (output, expected) => {
    expect((await found(booted(output)))[1]).toBe(expected);
  });

  test.each([
    [0, "ok clock: agrees with this node's"],
    [29, "ok clock: agrees with this node's"],
    [
      31,
      "slow clock: 31 s ahead of this node's -> look at the clock lines; tokens and certificates depend on it",
    ],
    [
      -31,
      "slow clock: 31 s behind this node's -> look at the clock lines; tokens and certificates depend on it",
    ],
    [
      400,
      "broken clock: 400 s ahead of this node's -> look at the clock lines; tokens and certificates depend on it",
    ],
  ])("a registry %i s ahead", (seconds, expected) => {
    const now = Date.parse("2026-03-01T12:00:00Z");
    const date = new Date(now + seconds * 1000).toUTCString();
    const finding = compareClocks(date, now);
    expect(finding && lines([finding])).toEqual([expected]);
  });

  test("a registry that does not say", () => {
    expect(compareClocks("", 0)).toBeUndefined();
  });
});

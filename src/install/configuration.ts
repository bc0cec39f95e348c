// The configuration of an installed daemon, when the installer is given one: laid down, replaced, and put back.

import { readFile } from "node:fs/promises";
import type { Maker } from "./maker.ts";
import { configFor } from "./node.ts";
import { places } from "./places.ts";
import type { Record } from "./record.ts";

export interface Configuration {
  readonly text: string;
  /** What it names; undefined when it has none. */
  readonly adminSocket: string | undefined;
}

/** What was replaced. */
export interface Replaced {
  readonly adminSocket: string | undefined;
  undo(): Promise<void>;
}

/** Undefined when nothing changed: it is the same, or of somebody who was there before. */
export async function replaceConfiguration(
  maker: Maker,
  record: Record,
  { text: given, adminSocket }: Configuration,
  say: (line: string) => void,
): Promise<Replaced | undefined> {
  const text = configFor(record.now.containerd, given);
  const old = await readFile(places.config, "utf8").catch(() => "");
  if (old === text) return undefined;
  if (!record.now.made.some(({ path }) => path === places.config)) {
    say(`${places.config} was there before Hawser and stays as it is`);
    return undefined;
  }
  await maker.file(places.config, text);
  say(`${places.config} was replaced`);
  return { adminSocket, undo: async () => await maker.file(places.config, old) };
}

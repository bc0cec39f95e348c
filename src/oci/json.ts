// JSON of a registry, as far as containerd's reader and ours see the same in it.
//
// Go takes a field whatever the case of its name, and merges what stands under one name several times; JSON.parse does
// neither. A document in which that could matter is `unsupported`, so that containerd reads it alone; what neither of the
// two can read is `corrupt`. Nothing here knows what the fields mean.

import { PullError } from "../errors.ts";

export type Json = Readonly<Record<string, unknown>>;

/**
 * Most lists and objects of a document, and so its depth: Go goes 10,000 deep. An index of 1,000 has 3,000; millions, for
 * which there is room, would take seconds of the main thread.
 */
const openingsMax = 9_000;

/** The whole document as a value. */
export function parseJson(bytes: Uint8Array, what: string): unknown {
  const text = Buffer.from(bytes).toString("utf8");
  if (countOpenings(bytes) > openingsMax)
    throw new PullError("unsupported", `${what} of over ${openingsMax} lists and objects`);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new PullError("corrupt", `${what} is not JSON`, { cause: error });
  }
  // Each member of an object has one colon that is not in a string.
  if (withoutStrings(text).split(":").length - 1 !== countMembers(value))
    throw new PullError("unsupported", `${what} has a field twice in one object`);
  return value;
}

/** The value if it is an object in which nothing but these names can be taken for one of them. */
export function object(value: unknown, what: string, names: readonly string[]): Json {
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw malformed(`${what} that is no object`);
  const folded = new Map(names.map((name) => [fold(name), name]));
  for (const key of Object.keys(value)) {
    if ((folded.get(fold(key)) ?? key) !== key)
      throw new PullError("unsupported", `${what} with the field ${JSON.stringify(key)}`);
  }
  return value as Json;
}

export function list(value: unknown, what: string): readonly unknown[] {
  if (!Array.isArray(value)) throw malformed(`${what} that is no list`);
  return value;
}

export function malformed(what: string): PullError {
  return new PullError("corrupt", `malformed image: ${what}`);
}

/** Go compares by Unicode's simple folding, in which the long s and the Kelvin sign are letters of ASCII. */
function fold(key: string): string {
  return key.toUpperCase().toLowerCase();
}

/** Those that are letters in strings are counted as well: more are unusual there too. */
function countOpenings(bytes: Uint8Array): number {
  let count = 0;
  for (const byte of bytes) if (byte === openingBracket || byte === openingBrace) count += 1;
  return count;
}

const [openingBracket, openingBrace] = [0x5b, 0x7b];

/** What is left of JSON without what stands between quotes. */
export function withoutStrings(json: string): string {
  let bare = "";
  let end = 0;
  for (let start = json.indexOf('"'); start !== -1; start = json.indexOf('"', end)) {
    bare += json.slice(end, start);
    end = endOfString(json, start) + 1;
  }
  return bare + json.slice(end);
}

const [quote, backslash] = [0x22, 0x5c];

/** Where the string that begins here has its closing quote; there is one, since the document was parsed. */
function endOfString(text: string, start: number): number {
  let at = start + 1;
  while (text.charCodeAt(at) !== quote) at += text.charCodeAt(at) === backslash ? 2 : 1;
  return at;
}

/** How many of them are left when each name counts once. */
function countMembers(document: unknown): number {
  // A list of what is to be looked at instead of recursion: documents choose how deep they are.
  const pending: object[] = [];
  const add = (value: unknown): void => {
    if (typeof value === "object" && value !== null) pending.push(value);
  };
  let count = 0;
  add(document);
  for (let next = pending.pop(); next; next = pending.pop()) {
    const values: unknown[] = Object.values(next);
    if (!Array.isArray(next)) count += values.length;
    for (const value of values) add(value);
  }
  return count;
}

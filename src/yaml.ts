// The top level of a YAML or JSON document: read, and changed in place without touching a byte of anything else.
//
// It is what kubelet's and crictl's files are looked at through. Of several documents the first one counts, as it does
// for kubelet. A change is made in the text, where the parser says that a value is, and parsed again: unless exactly the
// wanted keys have changed by then, nothing is returned.

import { isDeepStrictEqual } from "node:util";
import { isMap, isNode, isScalar, parseAllDocuments, type Scalar, type YAMLMap } from "yaml";
import { PullError } from "./errors.ts";

export type Plain = string | number | boolean;
export type Changes = Readonly<Record<string, Plain | undefined>>;

/** Keys with their scalar values as text, as it is written there; throws `invalid` with the line of the mistake. */
export function readTopLevel(text: string): Map<string, string> {
  const found = new Map<string, string>();
  for (const { key, value } of scalarsOf(parse(text)))
    if (value.value !== null) found.set(String(key.source ?? key.value), String(value.source ?? value.value));
  return found;
}

/** The same with values of their types, for what is to be put back later. */
export function plainTopLevel(text: string): Map<string, Plain> {
  const found = new Map<string, Plain>();
  for (const { key, value } of scalarsOf(parse(text)))
    if (value.value !== null) found.set(String(key.value), value.value);
  return found;
}

/** The text with these keys at its top level, or without those that are undefined; throws `invalid` or `unsupported`. */
export function changeTopLevel(text: string, changes: Changes): string {
  let changed = text;
  for (const [key, value] of Object.entries(changes)) changed = change(changed, key, value);
  const [before, after] = [text, changed].map(objectOf) as [Fields, Fields];
  for (const [key, value] of Object.entries(changes)) {
    if (after[key] !== value) throw unsure(key);
    for (const fields of [before, after]) delete fields[key];
  }
  if (!isDeepStrictEqual(before, after)) throw unsure(Object.keys(changes).join(", "));
  return changed;
}

type Fields = Record<string, unknown>;

interface Entry {
  readonly key: Scalar<Plain>;
  readonly value: Scalar<Plain | null>;
}

function unsure(what: string): PullError {
  return new PullError("unsupported", `it is written in a way in which ${what} cannot be changed safely`);
}

/** Undefined for a text without a document. */
function parse(text: string): YAMLMap | undefined {
  // As kubelet's own parser understands it; JSON is YAML.
  const documents = parseAllDocuments(text, { version: "1.1", prettyErrors: true });
  const [first] = "empty" in documents ? [] : documents;
  const [error] = first?.errors ?? [];
  if (error) {
    const line = error.linePos?.[0].line;
    const [what = ""] = error.message.split(/ at line |\n/);
    throw new PullError("invalid", `${line === undefined ? "" : `line ${line}: `}${what}`);
  }
  const contents = first?.contents ?? undefined;
  if (contents === undefined || (isScalar(contents) && contents.value === null)) return undefined;
  if (!isMap(contents)) throw new PullError("invalid", "there are no keys at its top level");
  return contents;
}

/** Other values (dates, bytes, nothing but tags) are no matter of kubelet's settings. */
function scalarsOf(map: YAMLMap | undefined): Entry[] {
  const entries = (map?.items ?? []).map(({ key, value }) => ({ key, value }));
  return entries.filter((entry): entry is Entry => isPlain(entry.key) && isPlainOrNull(entry.value));
}

function isPlain(node: unknown): node is Scalar<Plain> {
  return isScalar(node) && ["string", "number", "boolean"].includes(typeof node.value);
}

function isPlainOrNull(node: unknown): node is Scalar<Plain | null> {
  return isPlain(node) || (isScalar(node) && node.value === null);
}

function objectOf(text: string): Fields {
  const map = parse(text);
  if (map === undefined) return {};
  try {
    // Aliases that unfold without end are refused by the parser.
    const [document] = parseAllDocuments(text, { version: "1.1" });
    return (document as { toJS: () => Fields }).toJS();
  } catch (error) {
    throw new PullError("unsupported", `it cannot be read as a whole: ${PullError.from(error).message}`);
  }
}

function change(text: string, key: string, value: Plain | undefined): string {
  const map = parse(text);
  const index = map?.items.findIndex((pair) => isScalar(pair.key) && pair.key.value === key) ?? -1;
  const pair = map?.items[index];
  if (pair !== undefined && !isScalar(pair.value)) throw unsure(key);
  if (value === undefined) return map === undefined || pair === undefined ? text : without(text, map, index);
  const written = writtenAs(value, map?.flow === true);
  if (pair !== undefined) return replaced(text, pair as unknown as Entry, written);
  if (map === undefined || map.items.length === 0) throw unsure(key);
  return map.flow ? withFlow(text, map, key, written) : withBlock(text, map, key, written);
}

function replaced(text: string, { key, value }: Entry, written: string): string {
  const [start, end] = value.range ?? [];
  if (start === undefined || end === undefined) throw unsure(String(key.value));
  // `key:` without a value has it where the key ends.
  const space = start === end && !/\s$/.test(text.slice(0, start)) ? " " : "";
  return `${text.slice(0, start)}${space}${written}${text.slice(end)}`;
}

/** Behind `kind`, where there is one, so that it stands at the head of the file; else before everything else. */
function withBlock(text: string, map: YAMLMap, key: string, written: string): string {
  const scalars = scalarsOf(map);
  const kind = scalars.find((pair) => pair.key.value === "kind");
  const lineEnd = text.includes("\r\n") ? "\r\n" : "\n";
  const first = startOf(map, 0);
  const lineStart = text.lastIndexOf("\n", first - 1) + 1;
  const line = `${text.slice(lineStart, first)}${key}: ${written}`;
  if (kind === undefined) return `${text.slice(0, lineStart)}${line}${lineEnd}${text.slice(lineStart)}`;
  const at = text.indexOf("\n", kind.value.range?.[1]);
  if (at === -1) return `${text}${lineEnd}${line}${lineEnd}`;
  return `${text.slice(0, at + 1)}${line}${lineEnd}${text.slice(at + 1)}`;
}

/** Before everything else, on a line of its own where the others are. */
function withFlow(text: string, map: YAMLMap, key: string, written: string): string {
  const first = startOf(map, 0);
  const [, space = ""] = /(\r?\n[ \t]*)$/.exec(text.slice(0, first)) ?? [];
  return `${text.slice(0, first)}${JSON.stringify(key)}: ${written},${space || " "}${text.slice(first)}`;
}

function without(text: string, map: YAMLMap, index: number): string {
  const end = (map.items[index] as unknown as Entry).value.range?.[1] ?? 0;
  const start = startOf(map, index);
  if (!map.flow) {
    const lineStart = text.lastIndexOf("\n", start - 1) + 1;
    const at = text.indexOf("\n", end);
    return text.slice(0, lineStart) + (at === -1 ? "" : text.slice(at + 1));
  }
  if (index + 1 < map.items.length) return text.slice(0, start) + text.slice(startOf(map, index + 1));
  const comma = text.lastIndexOf(",", start);
  return text.slice(0, index === 0 ? start : comma) + text.slice(end);
}

function startOf(map: YAMLMap, index: number): number {
  const key = map.items[index]?.key;
  return (isNode(key) ? key.range?.[0] : undefined) ?? 0;
}

function writtenAs(value: Plain, isFlow: boolean): string {
  const isSafe = typeof value !== "string" || (!isFlow && /^[a-z]+:\/\/\/[\w./-]+$/.test(value));
  return isSafe ? String(value) : JSON.stringify(value);
}

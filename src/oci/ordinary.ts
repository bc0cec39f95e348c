// Whether a document of an image is of the shape that everybody gives it, in every field that containerd reads.
//
// Go refuses a document for one field of another type, wherever it is, and manifest.ts looks only at what a pull needs.
// Where nobody else looks before an image is registered, the whole has to be such that Go cannot refuse it. What is not
// is no error: it is containerd's to judge. Nothing here says what a field means.

import { object, parseJson, withoutStrings } from "./json.ts";

type Shape = (value: unknown) => boolean;

/** Go takes null for anything, and leaves the field as it is. */
const optional =
  (shape: Shape): Shape =>
  (value) =>
    value === null || shape(value);

const text: Shape = optional((value) => typeof value === "string");
const flag: Shape = optional((value) => typeof value === "boolean");
const integer: Shape = optional((value) => Number.isSafeInteger(value));
/** RFC 3339, and a day that there is. */
const time: Shape = optional((value) => {
  const pattern = /^(\d{4}-\d\d-\d\dT[0-2]\d:[0-5]\d:[0-5]\d)(?:\.\d{1,9})?(?:Z|[+-][01]\d:[0-5]\d)$/;
  const [, moment] = pattern.exec(String(value)) ?? [];
  if (typeof value !== "string" || moment === undefined) return false;
  const parsed = new Date(`${moment}Z`);
  return !Number.isNaN(parsed.getTime()) && parsed.toISOString().startsWith(moment);
});

const listOf = (shape: Shape): Shape => optional((value) => Array.isArray(value) && value.every(shape));

const mapOf = (shape: Shape): Shape =>
  optional((value) => isObject(value) && Object.values(value).every(shape));

/** An object with these fields and any others, none of which Go would take for one of these. */
function structure(fields: Readonly<Record<string, Shape>>): Shape {
  const names = Object.keys(fields);
  return optional((value) => {
    if (!isObject(value)) return false;
    const json = object(value, "", names);
    return names.every((name) => json[name] === undefined || fields[name]?.(json[name]) === true);
  });
}

function isObject(value: unknown): value is object {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

const platform = {
  architecture: text,
  os: text,
  "os.version": text,
  "os.features": listOf(text),
  variant: text,
};

/** Bytes in base64 for Go, which nobody has a use for. */
const absent: Shape = optional(() => false);

const descriptor = structure({
  mediaType: text,
  digest: text,
  size: integer,
  urls: listOf(text),
  annotations: mapOf(text),
  data: absent,
  platform: structure(platform),
  artifactType: text,
});

const document = {
  schemaVersion: integer,
  mediaType: text,
  artifactType: text,
  subject: descriptor,
  annotations: mapOf(text),
};

const shapes = {
  index: structure({ ...document, manifests: listOf(descriptor) }),
  manifest: structure({ ...document, config: descriptor, layers: listOf(descriptor) }),
  config: structure({
    ...platform,
    created: time,
    author: text,
    config: structure({
      User: text,
      ExposedPorts: mapOf(structure({})),
      Env: listOf(text),
      Entrypoint: listOf(text),
      Cmd: listOf(text),
      Volumes: mapOf(structure({})),
      WorkingDir: text,
      Labels: mapOf(text),
      StopSignal: text,
      ArgsEscaped: flag,
    }),
    rootfs: structure({ type: text, diff_ids: listOf(text) }),
    history: listOf(
      structure({ created: time, created_by: text, author: text, comment: text, empty_layer: flag }),
    ),
  }),
} as const;

export type DocumentKind = keyof typeof shapes;

/** False also for what is merely unusual; never throws. */
export function isOrdinary(kind: DocumentKind, bytes: Uint8Array): boolean {
  try {
    // Parsed first: where strings end is only known of what is JSON.
    const value = parseJson(bytes, kind);
    return isPlain(Buffer.from(bytes).toString("utf8")) && shapes[kind](value);
  } catch {
    return false;
  }
}

/** No number that only JavaScript takes for a whole one. */
function isPlain(json: string): boolean {
  return !/\d[.eE]/.test(withoutStrings(json));
}

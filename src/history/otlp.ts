// A pull's record as OpenTelemetry has it: spans in OTLP's JSON (opentelemetry-proto 1.x, trace/v1), the pull itself below its
// caller's, its stages and layers below that, and what each layer was at below the layer.

import { randomBytes } from "node:crypto";
import type { LayerRecord, PullRecord, SpanRecord } from "./record.ts";
import { nameOf } from "./verdict.ts";

type Value =
  | { readonly stringValue: string }
  | { readonly boolValue: boolean }
  /** 64 bits do not fit into a number of JSON. */
  | { readonly intValue: string }
  | { readonly doubleValue: number };

interface Attribute {
  readonly key: string;
  readonly value: Value;
}

interface OtlpSpan {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly name: string;
  readonly kind: number;
  readonly startTimeUnixNano: string;
  readonly endTimeUnixNano: string;
  readonly attributes: readonly Attribute[];
  readonly status?: { readonly code: number; readonly message?: string };
}

const kinds = { internal: 1, server: 2 } as const;
const statusCodes = { ok: 1, error: 2 } as const;

/** The body of an export request. */
export function exportOf(records: readonly PullRecord[], version: string, node: string): object {
  return {
    resourceSpans: [
      {
        resource: {
          attributes: attributesOf({
            "service.name": "hawser",
            "service.version": version,
            "host.name": node,
          }),
        },
        scopeSpans: [{ scope: { name: "hawser", version }, spans: records.flatMap(spansOf) }],
      },
    ],
  };
}

function spansOf(record: PullRecord): readonly OtlpSpan[] {
  const { traceId, id } = record;
  const began = Date.parse(record.startedAt);
  /** To the millisecond, which is what is known. */
  const nano = (seconds: number): string => `${began + Math.round(1000 * seconds)}000000`;
  const make = (
    { name, startSeconds, endSeconds = record.seconds }: SpanRecord,
    parentSpanId: string,
    attributes: readonly Attribute[] = [],
  ): OtlpSpan => ({
    traceId,
    spanId: randomBytes(8).toString("hex"),
    parentSpanId,
    name,
    kind: kinds.internal,
    startTimeUnixNano: nano(startSeconds),
    endTimeUnixNano: nano(endSeconds),
    attributes,
  });
  const stages = record.stages.map((stage) => make(stage, id));
  const layers = record.layers.flatMap((layer) => {
    const whole = make(wholeOf(layer, record.seconds), id, layerAttributes(layer));
    return [whole, ...layer.spans.map((span) => make(span, whole.spanId))];
  });
  return [pullSpan(record, nano), ...stages, ...layers];
}

function pullSpan(record: PullRecord, nano: (seconds: number) => string): OtlpSpan {
  const { traceId, id, parentId, image, seconds, state, outcome, verdict, isAhead, layers } = record;
  const isOk = state === "ok";
  return {
    traceId,
    spanId: id,
    ...(parentId !== undefined && { parentSpanId: parentId }),
    name: "PullImage",
    kind: kinds.server,
    startTimeUnixNano: nano(0),
    endTimeUnixNano: nano(seconds),
    attributes: attributesOf({
      "hawser.image": image,
      "hawser.result": state,
      "hawser.path": outcome?.path,
      "hawser.delegation.reason": record.delegation?.reason,
      "hawser.records": outcome?.records,
      "hawser.ahead": isAhead,
      "hawser.bottleneck": verdict && nameOf(verdict),
      "hawser.bottleneck.share": verdict?.share,
      "hawser.layers.present": record.presentLayers,
      "hawser.layers.fetched": layers.length,
    }),
    status: isOk
      ? { code: statusCodes.ok }
      : { code: statusCodes.error, ...(outcome?.error !== undefined && { message: outcome.error }) },
  };
}

/** From the first of what it was at to the last. */
function wholeOf({ spans, index }: LayerRecord, now: number): SpanRecord {
  const starts = spans.map(({ startSeconds }) => startSeconds);
  const ends = spans.map(({ endSeconds = now }) => endSeconds);
  const startSeconds = Math.min(now, ...starts);
  return { name: `layer ${index + 1}`, startSeconds, endSeconds: Math.max(startSeconds, ...ends) };
}

function layerAttributes({ digest, bytes, presentBytes, receivedBytes, hosts, unpacked }: LayerRecord) {
  return attributesOf({
    "hawser.layer.digest": digest,
    "hawser.layer.bytes": bytes,
    "hawser.layer.bytes.present": presentBytes,
    "hawser.layer.bytes.received": receivedBytes,
    "hawser.layer.hosts": hosts.map(({ host }) => host).join(","),
    "hawser.layer.bytes.unpacked": unpacked?.bytes,
    "hawser.layer.entries": unpacked?.entries,
  });
}

/** What is undefined is left out. */
function attributesOf(
  values: Readonly<Record<string, string | number | boolean | undefined>>,
): readonly Attribute[] {
  return Object.entries(values).flatMap(([key, value]) =>
    value === undefined ? [] : [{ key, value: valueOf(value) }],
  );
}

function valueOf(value: string | number | boolean): Value {
  if (typeof value === "string") return { stringValue: value };
  if (typeof value === "boolean") return { boolValue: value };
  return Number.isInteger(value) ? { intValue: String(value) } : { doubleValue: value };
}

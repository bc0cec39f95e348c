// Traces of pulls that went past the process that pulls: containerd made them, and all that is known is how long it took.

import { randomBytes } from "node:crypto";
import type { ServiceError } from "@grpc/grpc-js";
import { parseTraceparent } from "../history/history.ts";
import type { Outcome, PullRecord } from "../history/record.ts";
import { verdictOf } from "../history/verdict.ts";

export interface Bypassed {
  /** PullImageRequest as it came. */
  readonly request: Buffer;
  readonly traceparent: string | undefined;
  readonly reason: string;
  readonly state: Outcome["state"];
  readonly error: ServiceError | undefined;
  readonly seconds: number;
}

export async function recordOfBypassed(pull: Bypassed): Promise<PullRecord> {
  const { reason, state, error, seconds, traceparent } = pull;
  const { traceID: traceId = randomBytes(16).toString("hex"), parentID: parentId } =
    parseTraceparent(traceparent);
  const record: PullRecord = {
    id: randomBytes(8).toString("hex"),
    traceId,
    ...(parentId !== undefined && { parentId }),
    image: await imageOf(pull.request),
    startedAt: new Date(Date.now() - 1000 * seconds).toISOString(),
    seconds,
    state,
    outcome: { state, path: "delegated", reason, ...(error && { error: error.details }) },
    isAhead: false,
    isJoined: false,
    presentLayers: 0,
    stages: [{ name: "containerd", startSeconds: 0, endSeconds: seconds }],
    layers: [],
    hosts: [],
  };
  const verdict = verdictOf(record);
  return verdict ? { ...record, verdict } : record;
}

/** Its message is read only here, so what reads it is loaded only then. */
async function imageOf(request: Buffer): Promise<string> {
  const { fromBinary } = await import("@bufbuild/protobuf");
  const { PullImageRequestSchema } = await import("../proto/gen/cri_pb.js");
  try {
    return fromBinary(PullImageRequestSchema, request).image?.image ?? "";
  } catch {
    return "";
  }
}

// Requests to the API and what is made of their answers: bounded bytes, JSON, objects.

import type { IncomingMessage } from "node:http";
import { PullError } from "../errors.ts";
import type { KubernetesObject } from "./cluster.ts";

/** etcd takes objects of up to 1.5 MiB, which may be more as JSON. */
export const objectBytesMax = 8 * 2 ** 20;

export interface Asked {
  readonly method: "GET" | "POST" | "PATCH" | "DELETE";
  readonly path: string;
  readonly query?: Readonly<Record<string, string>>;
  readonly body?: unknown;
  /** Of the body; JSON unless it is said. */
  readonly mediaType?: string;
  /** No part of the body may be waited for longer. */
  readonly silenceMs: number;
}

/** Sends a request; resolves with an answer of status 200 or 201, whose body is to be read or destroyed. */
export type Send = (asked: Asked, signal: AbortSignal) => Promise<IncomingMessage>;

/** As `unavailable`, unless it is known better. */
export function unreachable(error: unknown): PullError {
  if (error instanceof PullError) return error;
  const { code, message } = error as NodeJS.ErrnoException;
  const why = message || code || "no answer";
  return new PullError("unavailable", `the API cannot be reached: ${why}`, { temporary: true, cause: error });
}

export async function readAll(answer: IncomingMessage, bytesMax: number): Promise<Buffer> {
  const parts: Buffer[] = [];
  let bytes = 0;
  try {
    for await (const part of answer as AsyncIterable<Buffer>) {
      bytes += part.length;
      if (bytes > bytesMax) throw new PullError("unavailable", `the API sends over ${bytesMax} bytes`);
      parts.push(part);
    }
  } catch (error) {
    throw unreachable(error);
  }
  return Buffer.concat(parts);
}

export function objectOf(bytes: Uint8Array): KubernetesObject {
  let parsed: unknown;
  try {
    parsed = JSON.parse(Buffer.from(bytes).toString("utf8"));
  } catch {
    throw new PullError("unavailable", "the API's answer is not JSON", { temporary: true });
  }
  if (!isObject(parsed))
    throw new PullError("unavailable", "the API's answer is no object", { temporary: true });
  return parsed;
}

export function isObject(value: unknown): value is KubernetesObject {
  return (
    typeof value === "object" && value !== null && "metadata" in value && typeof value.metadata === "object"
  );
}

/** Of a refusal: its status, or how long the API asks to be left alone. */
export function causeOf(error: unknown): { readonly status?: number; readonly retryAfterMs?: number } {
  const cause = error instanceof PullError ? error.cause : undefined;
  return typeof cause === "object" && cause !== null ? cause : {};
}

// What the API answers instead of what was asked for: a status with a reason and a message, in Kubernetes' words.

import type { Target } from "./target.ts";

export class Refusal extends Error {
  readonly code: number;
  readonly reason: string;

  constructor(code: number, reason: string, message: string) {
    super(message);
    this.code = code;
    this.reason = reason;
  }

  /** The Status object that is sent. */
  get status(): object {
    return statusOf(this.code, this.message, this.reason);
  }

  static unknown(): Refusal {
    return new Refusal(404, "NotFound", "the server could not find the requested resource");
  }

  static missing(target: Target): Refusal {
    return new Refusal(404, "NotFound", `${target.qualified} "${target.name}" not found`);
  }

  static exists(target: Target, name: string): Refusal {
    return new Refusal(409, "AlreadyExists", `${target.qualified} "${name}" already exists`);
  }

  static conflict(target: Target, why: string): Refusal {
    const what = `Operation cannot be fulfilled on ${target.qualified} "${target.name}"`;
    return new Refusal(409, "Conflict", `${what}: ${why}`);
  }

  static forbidden(target: Target, why: string): Refusal {
    const name = target.name === "" ? "" : ` "${target.name}"`;
    return new Refusal(403, "Forbidden", `${target.qualified}${name} is forbidden: ${why}`);
  }

  static invalid(kind: unknown, name: string, why: string): Refusal {
    return new Refusal(422, "Invalid", `${String(kind)} "${name}" is invalid: ${why}`);
  }

  static bad(why: string): Refusal {
    return new Refusal(400, "BadRequest", why);
  }
}

export function statusOf(code: number, message: string, reason?: string): object {
  const status = { kind: "Status", apiVersion: "v1", metadata: {}, status: "Failure", message };
  return { ...status, ...(reason !== undefined && { reason }), code };
}

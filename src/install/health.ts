// Whether an installed daemon does what it is there for: pulls are accelerated, by the version that was installed.

import { setTimeout as sleep } from "node:timers/promises";
import { PullError } from "../errors.ts";
import type { Status } from "../front/admin.ts";
import { askAdmin } from "../front/client.ts";

/** From its start to the end of the self-test on a slow disk. */
const patienceMs = 60_000;
const pauseMs = 200;

/** Reasons that no waiting changes. */
const lasting = new Set(["unfit", "selinux", "configuration", "engine"]);

/** Throws `unavailable` with why it is not so; an operator's passthrough is as good as accelerating. */
export async function mustAccelerate(socket: string, version: string, signal: AbortSignal): Promise<void> {
  let why = "it does not answer";
  for (const until = performance.now() + patienceMs; performance.now() < until; ) {
    if (signal.aborted) throw new PullError("cancelled", "interrupted");
    const status = await askStatus(socket);
    if (typeof status === "string") why = status;
    else if (status.version !== version) why = `version ${status.version} is still the one that answers`;
    else if (status.accelerating || status.switch.kind === "on") return;
    else {
      why = status.detail ?? "it does not say why";
      if (lasting.has(status.reason ?? "")) break;
    }
    await sleep(pauseMs);
  }
  throw new PullError("unavailable", `the daemon does not accelerate pulls: ${why}`);
}

/** Or what hinders the answer. */
export async function askStatus(socket: string): Promise<Status | string> {
  try {
    return (await askAdmin(socket, "GET", "/status")) as Status;
  } catch (error) {
    return PullError.from(error).message;
  }
}

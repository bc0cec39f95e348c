// What the service manager is told (sd_notify(3)): ready, alive, what goes on, and which process is the main one.
//
// Without a service manager nothing is sent. A message that cannot be sent is lost: the manager then does what its
// timeouts say, and this process what it would do anyway.

import { spawn } from "node:child_process";
import { loadNative } from "../native.ts";

export interface Notifier extends Disposable {
  /** Assignments such as READY=1. */
  send(...lines: readonly string[]): void;
}

/** From the environment of a service: NOTIFY_SOCKET, and WATCHDOG_USEC for how often a sign of life is expected. */
export function createNotifier(environment: NodeJS.ProcessEnv): Notifier {
  const socket = environment["NOTIFY_SOCKET"];
  if (!socket) return { send: () => {}, [Symbol.dispose]: () => {} };
  const native = loadNative();
  const send = (...lines: readonly string[]): void => {
    if (native.kind === "loaded") native.binding.notify(socket, Buffer.from(lines.join("\n"), "utf8"));
    // Slower, and there for the node whose addon does not load: its calls are to pass through, not to be cut off.
    else spawn("systemd-notify", lines, { stdio: "ignore", env: environment }).on("error", () => {});
  };
  const watchdogMs = Number(environment["WATCHDOG_USEC"] ?? 0) / 1000;
  const timer = watchdogMs > 0 ? setInterval(() => send("WATCHDOG=1"), watchdogMs / 3) : undefined;
  timer?.unref();
  return { send, [Symbol.dispose]: () => clearInterval(timer) };
}

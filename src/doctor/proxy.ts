// Proxies: whether the daemon and containerd were started with the same ones. Only scheme and host of a proxy are ever
// shown, since its URL may hold a password.

import { type ProxySettings, proxySettings } from "../registry/proxy.ts";
import type { Context, Finding } from "./doctor.ts";
import { daemonOf } from "./processes.ts";

export async function* checkProxy({ options, processes }: Context): AsyncGenerator<Finding> {
  const what = "environment";
  const [containerd] = await processes.listening(options.containerd.address);
  if (containerd === undefined) {
    yield { state: "unknown", what, finding: "containerd's process was not found" };
    return;
  }
  const theirs = proxySettings(await processes.environment(containerd.pid));
  const daemon = daemonOf(await processes.listening(options.socket));
  if (daemon === undefined) {
    const todo = isNone(theirs) ? undefined : "set the same for hawser.service";
    yield {
      state: "unknown",
      what,
      finding: `the daemon does not run; containerd's: ${summary(theirs)}`,
      ...(todo && { todo }),
    };
    return;
  }
  const ours = proxySettings(await processes.environment(daemon.pid));
  const differences = [
    difference("HTTP_PROXY", shown(theirs.http), shown(ours.http), theirs.http === ours.http),
    difference("HTTPS_PROXY", shown(theirs.https), shown(ours.https), theirs.https === ours.https),
    difference("NO_PROXY", exceptions(theirs), exceptions(ours), exceptions(theirs) === exceptions(ours)),
  ].filter((one) => one !== undefined);
  yield* differences;
  if (differences.length === 0) yield { state: "ok", what, finding: `the same for both: ${summary(ours)}` };
}

/** Requests of the daemon that cannot get out are left to containerd, after a wait. */
function difference(name: string, theirs: string, ours: string, isSame: boolean): Finding | undefined {
  if (isSame) return undefined;
  const finding =
    theirs === ours
      ? `differs in its credentials (${theirs})`
      : `${theirs} for containerd, ${ours} for the daemon`;
  const todo = `set ${name} for hawser.service as for containerd.service (systemctl edit hawser.service), and restart it`;
  return { state: "slow", what: name, finding, todo };
}

function isNone({ http, https }: ProxySettings): boolean {
  return http === "" && https === "";
}

function summary(settings: ProxySettings): string {
  if (isNone(settings)) return "no proxy";
  return `http ${shown(settings.http)}, https ${shown(settings.https)}, except ${exceptions(settings)}`;
}

/** In any order, they mean the same. */
function exceptions({ no }: ProxySettings): string {
  const entries = no.split(",").map((one) => one.trim().toLowerCase());
  return (
    entries
      .filter((one) => one !== "")
      .sort()
      .join(",") || "none"
  );
}

/** Scheme and host. */
export function shown(proxy: string): string {
  if (proxy === "") return "none";
  const text = /^\w+:\/\//.test(proxy) ? proxy : `http://${proxy}`;
  if (!URL.canParse(text)) return "something that is no URL";
  const { protocol, host, username } = new URL(text);
  return `${protocol}//${host}${username === "" ? "" : " (with credentials)"}`;
}

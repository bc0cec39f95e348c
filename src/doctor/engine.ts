// The engine: whether the native addon loads, what this processor can do for it, and how many cores it may use.

import { availableParallelism } from "node:os";
import { availableCores } from "../cores.ts";
import { loadNative, type Native } from "../native.ts";
import type { Context, Finding } from "./doctor.ts";
import { daemonOf } from "./processes.ts";

export async function* checkEngine(
  context: Context,
  load: () => Native = loadNative,
): AsyncGenerator<Finding> {
  yield addon(context, load());
  const cpu = await context.tree.read("/proc/cpuinfo");
  yield* processor(cpu);
  yield await cores(context);
}

function addon({ options }: Context, native: Native): Finding {
  const what = "native addon";
  if (native.kind === "loaded") return { state: "ok", what, finding: "loads" };
  if (options.engine === "portable") {
    const todo = "take the addon of this version, and leave unpack.engine out";
    return { state: "slow", what, finding: `${native.reason}; the portable engine is used`, todo };
  }
  const finding = `${native.reason}: every pull goes through to containerd`;
  return { state: "broken", what, finding, todo: "install the bundle of this version for this architecture" };
}

/** Features that sha256 (OpenSSL) and inflating (ISA-L) choose their code by, in the kernel's words. */
function* processor(cpuinfo: string): Generator<Finding> {
  const [, list = ""] = /^(?:flags|Features)\s*:\s*(.*)$/m.exec(cpuinfo) ?? [];
  const has = new Set(list.split(" "));
  if (list === "") {
    yield { state: "unknown", what: "CPU", finding: "/proc/cpuinfo does not name its features" };
    return;
  }
  const isArm = /^Features/m.test(cpuinfo);
  const sha = isArm ? "sha2" : "sha_ni";
  const name = isArm ? "SHA-2 instructions" : "SHA-NI";
  if (has.has(sha)) yield { state: "ok", what: "sha256", finding: `the processor has ${name}` };
  else {
    const finding = `the processor has no ${name}: digests take about three times the CPU time`;
    yield {
      state: "slow",
      what: "sha256",
      finding,
      todo: "use a newer processor, or pass this feature on to the virtual machine",
    };
  }
  if (isArm) return;
  const missing = ["AVX2", "BMI2", "PCLMULQDQ"].filter((feature) => !has.has(feature.toLowerCase()));
  if (missing.length > 0) {
    const finding = `the processor has no ${missing.join(", no ")}: inflating takes more CPU time`;
    yield {
      state: "slow",
      what: "inflate",
      finding,
      todo: "use a newer processor, or pass these features on to the virtual machine",
    };
  } else {
    const wide = has.has("avx512f") && has.has("vpclmulqdq") ? "AVX2 and AVX-512" : "AVX2";
    yield { state: "ok", what: "inflate", finding: `the processor has ${wide}` };
  }
}

/** The daemon's own where it runs: its control group is seldom that of a shell. */
async function cores({ options, tree, processes }: Context): Promise<Finding> {
  const what = "cores";
  const daemon = daemonOf(await processes.listening(options.socket));
  const usable = availableCores(tree.at("/"), daemon?.pid);
  const all = availableParallelism();
  const whose = daemon === undefined ? "this shell" : "the daemon";
  const finding = `${whose} may use ${usable}${usable < all ? ` of ${all}, by its control group` : ""}`;
  if (usable > 1) return { state: "ok", what, finding };
  return {
    state: "slow",
    what,
    finding: `${finding}: layers are unpacked one after another`,
    todo: "give it two cores or more",
  };
}

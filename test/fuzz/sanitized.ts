// The addon's code that reads foreign bytes, built with sanitizers and fed damaged streams in a process of its own.
//
// A sanitizer ends that process at the first bad access, with a report on standard error.

import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));

export interface SanitizedResult {
  readonly executions: number;
  /** The sanitizer's report. */
  readonly crash: string | undefined;
}

export function fuzzSanitized(seconds: number, seed: number, driver = "inflate.mjs"): SanitizedResult {
  const folder = mkdtempSync(join(tmpdir(), "sanitized-"));
  try {
    const addon = join(folder, "hawser.node");
    execFileSync("make", ["-s", "-C", join(root, "native"), "sanitized", `SANITIZED=${addon}`], {
      stdio: "pipe",
    });
    const libraries = ["libasan.so", "libubsan.so"].map((name) =>
      execFileSync("g++", [`-print-file-name=${name}`], { encoding: "utf8" }).trim(),
    );
    const program = fileURLToPath(new URL(driver, import.meta.url));
    const run = spawnSync(process.execPath, [program, addon, String(seconds), String(seed)], {
      encoding: "utf8",
      env: {
        ...process.env,
        LD_PRELOAD: libraries.join(" "),
        // Node itself leaks what it does not need to free at its end.
        ASAN_OPTIONS: "detect_leaks=0:abort_on_error=0:exitcode=99",
        UBSAN_OPTIONS: "halt_on_error=1:exitcode=99",
      },
    });
    const executions = Number(/executions (\d+)/.exec(run.stdout)?.[1] ?? 0);
    const crash = run.status === 0 ? undefined : `seed ${seed}: ${run.stderr.slice(0, 4000)}`;
    return { executions, crash };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

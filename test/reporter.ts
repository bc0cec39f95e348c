// Ends a run with the time that it took, kind by kind, and with "N passed, N failed" on a line of its own. A file that could not be loaded, a hook that failed for a
// file or a suite, and an error outside of any test each count as a failure; so does a run without a single test.

import type { Reporter, SerializedError, TestModule } from "vitest/node";
import { spent } from "./budgets.ts";

export default class ClosingLine implements Reporter {
  onTestRunEnd(modules: readonly TestModule[], errors: readonly SerializedError[]): void {
    const tests = modules.flatMap((module) => [...module.children.allTests()]);
    const groups = modules.flatMap((module) => [module, ...module.children.allSuites()]);
    const count = (state: string): number => tests.filter((test) => test.result().state === state).length;
    // A failed hook leaves its tests skipped, and would otherwise be seen nowhere.
    const broken = groups.filter((group) => group.errors().length > 0).length;
    const failures = count("failed") + broken + errors.length;
    const failed = tests.length === 0 ? Math.max(1, failures) : failures;
    const skipped = count("skipped") + count("pending");
    if (failed > 0) process.exitCode = 1;
    const line = `${count("passed")} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`;
    const files = modules.map((module) => ({
      path: module.moduleId,
      seconds: module.diagnostic().duration / 1000,
    }));
    // Vitest prints its own summary when this returns; the closing line is to be the last.
    process.on("exit", () => process.stdout.write([...spent(files), line, ""].join("\n")));
  }
}

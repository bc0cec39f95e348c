// Ends a run with "N passed, N failed" on a line of its own. A file that could not be loaded, and an error outside of
// any test, count as failures; a run without a single test fails.

import type { Reporter, SerializedError, TestModule } from "vitest/node";

export default class ClosingLine implements Reporter {
  onTestRunEnd(modules: readonly TestModule[], errors: readonly SerializedError[]): void {
    const tests = modules.flatMap((module) => [...module.children.allTests()]);
    const count = (state: string): number => tests.filter((test) => test.result().state === state).length;
    const broken = modules.filter((module) => module.errors().length > 0).length;
    const failed = count("failed") + broken + errors.length;
    const skipped = count("skipped") + count("pending");
    const isEmpty = tests.length === 0;
    if (isEmpty || failed > 0) process.exitCode = 1;
    const line = `${count("passed")} passed, ${failed + (isEmpty ? 1 : 0)} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`;
    // Vitest prints its own summary when this returns; this line is to be the last.
    process.on("exit", () => process.stdout.write(`${line}\n`));
  }
}

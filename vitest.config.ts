import { defineConfig } from "vitest/config";

/** Of "npm run release:check" alone: they need a cross compiler, an emulator and buildah, and minutes. */
const beyond = ["test/release/arm64.int.test.ts", "test/release/image.int.test.ts"];
/** What they make slow is to be what takes the time, and not a core that others want as well. */
const alone = ["test/e2e/bottlenecks.int.test.ts"];

export default defineConfig({
  test: {
    reporters: ["default", "./test/reporter.ts"],
    projects: [
      {
        test: {
          name: "unit",
          include: ["test/**/*.test.ts"],
          exclude: ["test/**/*.int.test.ts"],
          pool: "forks",
          // A process for many files: to load the same modules for each again took a third of their CPU time. No file changes
          // what another one sees, and the gate looks behind each of them.
          isolate: false,
          // Most wait for something, so that a core for each is not needed.
          maxWorkers: 3,
          setupFiles: ["test/gate.ts"],
          testTimeout: 30_000,
        },
      },
      {
        test: {
          name: "integration",
          include: ["test/**/*.int.test.ts"],
          exclude: [...beyond, ...alone],
          pool: "forks",
          setupFiles: ["test/gate.ts"],
          // As above: a second of CPU time for each file.
          isolate: false,
          // Each file starts servers of its own and waits for them: of two cores a third file takes what two leave.
          maxWorkers: 3,
          sequence: { groupOrder: 1 },
          testTimeout: 120_000,
          hookTimeout: 120_000,
        },
      },
      {
        test: {
          name: "alone",
          include: alone,
          pool: "forks",
          setupFiles: ["test/gate.ts"],
          maxWorkers: 1,
          sequence: { groupOrder: 2 },
          testTimeout: 120_000,
          hookTimeout: 120_000,
        },
      },
      {
        test: {
          name: "release",
          include: beyond,
          pool: "forks",
          setupFiles: ["test/gate.ts"],
          // Emulation takes every core there is.
          maxWorkers: 1,
          sequence: { groupOrder: 3 },
          testTimeout: 120_000,
          hookTimeout: 120_000,
        },
      },
    ],
  },
});

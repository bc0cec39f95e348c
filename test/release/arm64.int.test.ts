// The bundle for arm64, cross-built on this machine and run by qemu's user emulation: program, addon, and the native
// tests themselves, on the arm64 Node that is shipped.

import { execFile } from "node:child_process";
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { run } from "../../config/release/command.ts";
import { checkFloor } from "../../config/release/floor.ts";
import { root as checkout, machines } from "../../config/release/place.ts";
import { testBundle } from "../harness/bundle.ts";
import { bareLibraries } from "../harness/debian.ts";

/** Modules, packages and a Node are fetched when they are asked for first. */
const firstTimeMs = 600_000;
const native = ["inflate", "fsat", "later"];
/** openat2 is unknown to the emulation before qemu 9.1, which answers ENOSYS; on amd64 this one is run by the kernel. */
const beyondEmulation = {
  test: "no call follows a link in its name, and none in a path",
  error: "expected -38 to be greater than or equal to 0",
};

let folder = "";
let top = "";
let libraries = "";

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "arm64-"));
  const { archive, name } = await testBundle("arm64");
  await run("tar", ["-xzf", archive, "-C", folder]);
  top = join(folder, name);
  libraries = await bareLibraries("arm64");
}, firstTimeMs);

afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

/** Runs the bundle's Node, which sees the bare libraries as the system's. */
async function node(...args: readonly string[]): Promise<string> {
  const env = { PATH: "/usr/bin:/bin", TMPDIR: folder };
  const options = { env, maxBuffer: 2 ** 24, cwd: "/" };
  const all = ["-L", libraries, join(top, "lib/node"), ...args];
  try {
    return (await promisify(execFile)("qemu-aarch64-static", all, options)).stdout;
  } catch (error) {
    // Node's runner tells of failed tests in what it prints; everything else is a failure of this test.
    const { stdout, stderr } = error as { readonly stdout: string; readonly stderr: string };
    if (stdout.startsWith("TAP version")) return stdout;
    throw new Error(`${stdout}\n${stderr}`, { cause: error });
  }
}

/** The native tests as JavaScript, where the bundle's addon is what they load, with a vitest that runs anywhere. */
async function layTests(): Promise<string> {
  const program = join(top, "lib/hawser");
  const configuration = {
    extends: join(checkout, "tsconfig.json"),
    compilerOptions: {
      noEmit: false,
      rootDir: checkout,
      outDir: program,
      sourceMap: false,
      typeRoots: [join(checkout, "node_modules/@types")],
    },
    include: [],
    files: native.map((name) => join(checkout, `test/native/${name}.test.ts`)),
  };
  writeFileSync(join(folder, "tsconfig.json"), JSON.stringify(configuration));
  await run(join(checkout, "node_modules/.bin/tsc"), ["-p", join(folder, "tsconfig.json")]);
  const modules = join(program, "test/node_modules");
  mkdirSync(join(modules, "vitest"), { recursive: true });
  copyFileSync(join(checkout, "test/release/vitest.mjs"), join(modules, "vitest/index.mjs"));
  writeFileSync(join(modules, "vitest/package.json"), '{ "exports": "./index.mjs" }');
  for (const name of ["fast-check", "@vitest/expect", "pako"]) {
    mkdirSync(dirname(join(modules, name)), { recursive: true });
    symlinkSync(join(checkout, "node_modules", name), join(modules, name));
  }
  return join(program, "test/native");
}

test("everything compiled in it is for arm64, within the same floor", async () => {
  const wants = await checkFloor(top, machines.arm64.elf);
  expect([...wants.keys()].sort()).toEqual(["CXXABI", "GCC", "GLIBC", "GLIBCXX"]);
});

test("it differs from amd64's in what is compiled and in nothing else", async () => {
  const { archive, name } = await testBundle("amd64");
  await run("tar", ["-xzf", archive, "-C", folder, `${name}/SHA256SUMS`]);
  const [other, own] = [join(folder, name), top].map((path) =>
    readFileSync(join(path, "SHA256SUMS"), "utf8").split("\n"),
  ) as [string[], string[]];
  const different = own.filter((line) => !other.includes(line)).map((line) => line.slice(66));
  expect(different).toEqual(["lib/hawser/native/build/hawser.node", "lib/libisal.so.2", "lib/node"]);
  expect(own.length).toBe(other.length);
});

test("the program runs", async () => {
  const main = join(top, "lib/hawser/dist/main.js");
  expect(await node(main, "version")).toMatch(/^hawser \d+\.\d+\.\d+ \(node v22\.\d+\.\d+\)\n$/);
  expect(await node("-p", "process.arch")).toBe("arm64\n");
});

describe("the native tests", () => {
  let tests = "";

  beforeAll(async () => {
    tests = await layTests();
  });

  test.each(native)("%s", { timeout: firstTimeMs }, async (name) => {
    const printed = await node("--test-reporter=tap", join(tests, `${name}.test.js`));
    const failed = [...printed.matchAll(/^ *not ok \d+ - (.*)$/gm)].map(([, title]) => title);
    expect(Number(/^# pass (\d+)$/m.exec(printed)?.[1])).toBeGreaterThan(0);
    expect(printed).toContain("# cancelled 0\n# skipped 0\n");
    const isBeyond = name === "fsat" && printed.includes(beyondEmulation.error);
    expect(failed, printed).toEqual(isBeyond ? [beyondEmulation.test] : []);
  });
});

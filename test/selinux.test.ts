// Labels over a fake of the system calls: inherited, refused, read back otherwise, unreadable, and not there at all.

import { mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { constants, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type LabelCalls, Selinux } from "../src/selinux.ts";

const { ENODATA, ENOTSUP, EPERM } = constants.errno;
const shared = "system_u:object_r:container_ro_file_t:s0";
const other = "system_u:object_r:container_var_lib_t:s0";

let root = "";
let ours = "";
let theirs = "";

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "selinux-"));
  [ours, theirs] = [join(root, "staging/1"), join(root, "snapshots")];
  for (const folder of [ours, theirs]) mkdirSync(folder, { recursive: true });
});

afterEach(() => {
  // Whatever was tried is gone.
  expect(readdirSync(ours)).toEqual([]);
  rmSync(root, { recursive: true });
});

/** A kernel that labels what is made after its folder; the files themselves are real. */
class FakeKernel implements LabelCalls {
  readonly labels = new Map([
    [root, other],
    [theirs, shared],
  ]);
  readonly asked: string[] = [];
  readonly given: string[] = [];

  isOn(): boolean {
    return true;
  }

  get(folder: string, name: string): string | number {
    const path = join(folder, name);
    this.asked.push(path);
    let above = path;
    while (!this.labels.has(above) && above !== "/") above = dirname(above);
    return this.labels.get(above) ?? -ENODATA;
  }

  set(folder: string, label: string): number {
    this.given.push(folder);
    this.labels.set(folder, label);
    return 0;
  }
}

test("our folder gets the label of containerd's, and one of each kind of file is tried in it", () => {
  const kernel = new FakeKernel();
  new Selinux(kernel).adopt(ours, theirs);
  expect(kernel.given).toEqual([ours]);
  expect(kernel.labels.get(ours)).toBe(shared);
  const tried = kernel.asked.filter((path) => path.startsWith(`${ours}/`));
  expect(tried.map((path) => path.slice(ours.length))).toEqual(
    ["", "/directory", "/file", "/link", "/whiteout"].map((name) => `/label-trial${name}`),
  );
});

test("what has the label already is not labelled again, and is tried all the same", () => {
  const kernel = new FakeKernel();
  // A file system with one label for everything (mount option context=) takes no other.
  kernel.labels.set(root, shared);
  kernel.set = () => -ENOTSUP;
  new Selinux(kernel).adopt(ours, theirs);
  expect(kernel.asked.some((path) => path.endsWith("/whiteout"))).toBe(true);
});

test("a trial that a killed process left is in nobody's way", () => {
  mkdirSync(join(ours, "label-trial/directory"), { recursive: true });
  new Selinux(new FakeKernel()).adopt(ours, theirs);
});

describe("pulls are left to containerd, with what and where", () => {
  test.each([
    ["EPERM", EPERM],
    ["ENOTSUP", ENOTSUP],
  ])("when our folder may not be labelled: %s", (name, errno) => {
    const kernel = new FakeKernel();
    kernel.set = () => -errno;
    expect(() => new Selinux(kernel).adopt(ours, theirs)).toThrow(
      expect.objectContaining({
        code: "unsupported",
        message:
          `SELinux is on, and ${ours} cannot be labelled ${shared} (${name}); ` +
          `"chcon --reference=${theirs} ${root}/staging" labels all that Hawser makes there`,
      }),
    );
  });

  test("when the label reads back as another", () => {
    const kernel = new FakeKernel();
    kernel.set = () => 0;
    expect(() => new Selinux(kernel).adopt(ours, theirs)).toThrow(
      `${ours} was labelled ${shared} and shows ${other}`,
    );
  });

  test.each(["directory", "file", "link", "whiteout"])(
    "when the policy labels one kind otherwise: %s",
    (kind) => {
      const kernel = new FakeKernel();
      kernel.labels.set(join(ours, "label-trial", kind), other);
      expect(() => new Selinux(kernel).adopt(ours, theirs)).toThrow(
        `what Hawser makes in ${ours} is labelled ${other} instead of ${shared} as in ${theirs}`,
      );
    },
  );

  test("when a label cannot be read", () => {
    const kernel = new FakeKernel();
    kernel.labels.clear();
    expect(() => new Selinux(kernel).adopt(ours, theirs)).toThrow(
      `the label of ${theirs} cannot be read (ENODATA)`,
    );
  });

  test("when nothing can be made to be tried", () => {
    const kernel = new FakeKernel();
    const missing = join(ours, "missing");
    expect(() => new Selinux(kernel).adopt(missing, theirs)).toThrow(`opening ${missing} failed (ENOENT)`);
  });
});

test("two folders are compared, and both labels are told", () => {
  const kernel = new FakeKernel();
  const selinux = new Selinux(kernel);
  selinux.mustBeEqual(join(theirs, "a"), join(theirs, "b"));
  expect(() => selinux.mustBeEqual(ours, theirs)).toThrow(
    expect.objectContaining({
      code: "unsupported",
      message: `SELinux is on, and ${ours} is labelled ${other}, and ${theirs} of containerd's ${shared}`,
    }),
  );
});

test("where SELinux is off no label is looked at", () => {
  const kernel = new FakeKernel();
  kernel.isOn = () => false;
  const selinux = new Selinux(kernel);
  selinux.adopt(ours, theirs);
  selinux.mustBeEqual(ours, theirs);
  expect([...kernel.asked, ...kernel.given]).toEqual([]);
});

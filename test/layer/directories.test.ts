// The tree of directories against the plainest possible model of it: a map of paths.

import fc from "fast-check";
import { expect, test } from "vitest";
import { Directories, directoriesMax, implicitOnes } from "../../src/layer/directories.ts";

interface Known {
  isImplicit: boolean;
  mtime: number | undefined;
}

const path = fc
  .array(fc.constantFrom("a", "b", "c"), { minLength: 1, maxLength: 4 })
  .map((parts) => parts.join("/"));
const step = fc.tuple(fc.constantFrom("imply", "name"), path, fc.nat(1000));

function below(parent: string, child: string): boolean {
  return child.startsWith(`${parent}/`);
}

test("whatever is implied and named, the same is known as in a map of paths", () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), fc.oneof(fc.constant(""), path), (steps, where) => {
      const directories = new Directories();
      const model = new Map<string, Known>();
      const at = (key: string): Known => {
        // The applier makes parents first; so does the model.
        for (let end = key.indexOf("/"); end >= 0; end = key.indexOf("/", end + 1)) ensure(key.slice(0, end));
        return ensure(key);
      };
      const ensure = (key: string): Known => {
        const known = model.get(key) ?? { isImplicit: false, mtime: undefined };
        model.set(key, known);
        return known;
      };
      for (const [kind, key, seconds] of steps) {
        const time = { seconds, nanoseconds: 0 };
        if (kind === "imply") {
          directories.imply(key);
          at(key).isImplicit = true;
        } else {
          directories.name(key, { mtime: time, atime: time });
          at(key).mtime = seconds;
        }
      }
      const implicit = [...implicitOnes(directories.implicit())];
      expect(new Map(implicit.map((one) => [one.path, one.named]))).toEqual(
        new Map(
          [...model]
            .filter(([, known]) => known.isImplicit)
            .map(([key, known]) => [key, known.mtime !== undefined]),
        ),
      );
      for (const [index, one] of implicit.entries()) {
        expect(implicit.slice(index).some((later) => below(later.path, one.path))).toBe(false);
      }
      const named = new Map<string, number>();
      directories.forEachNamed((key, { mtime }) => named.set(key, mtime.seconds));
      expect(named).toEqual(
        new Map(
          [...model].flatMap(([key, known]) =>
            known.mtime === undefined ? [] : [[key, known.mtime] as const],
          ),
        ),
      );
      const isUnnamed = [...model].some(
        ([key, known]) => known.mtime === undefined && (where === "" || below(where, key)),
      );
      expect(directories.hasUnnamedBelow(where)).toBe(isUnnamed);
    }),
  );
});

test("no more of them are kept in memory than there should be, implied or named, and none is made beyond that", () => {
  const time = { seconds: 0, nanoseconds: 0 };
  const directories = new Directories();
  for (let index = 0; index < directoriesMax / 4; index++) {
    directories.imply(`${index}/a/b`);
    directories.name(`${index}/a/c`, { mtime: time, atime: time });
  }
  directories.imply("0/a/b");
  for (const more of [
    () => directories.imply("more"),
    () => directories.name("more", { mtime: time, atime: time }),
  ]) {
    expect(more).toThrow(expect.objectContaining({ code: "exhausted" }));
  }
});

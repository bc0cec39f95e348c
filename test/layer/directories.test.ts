// The tree of directories against the plainest possible model of it: a map of paths.

import fc from "fast-check";
import { expect, test } from "vitest";
import { Directories } from "../../src/layer/directories.ts";

interface Known {
  isImplicit: boolean;
  mtime: number | undefined;
}

const path = fc
  .array(fc.constantFrom("a", "b", "c"), { minLength: 1, maxLength: 4 })
  .map((parts) => parts.join("/"));
const step = fc.tuple(fc.constantFrom("imply", "name", "remove"), path, fc.nat(1000));

function below(parent: string, child: string): boolean {
  return child.startsWith(`${parent}/`);
}

test("whatever is implied, named and removed, the same is known as in a map of paths", () => {
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
        } else if (kind === "name") {
          directories.name(key, { mtime: time, atime: time });
          at(key).mtime = seconds;
        } else {
          directories.remove(key);
          for (const other of Array.from(model.keys()))
            if (other === key || below(key, other)) model.delete(other);
        }
      }
      const implicit = directories.implicit();
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
      const unnamed = [...model]
        .filter(([key, known]) => known.mtime === undefined && (where === "" || below(where, key)))
        .map(([key]) => key);
      const uppermost = unnamed.filter((key) => !unnamed.some((other) => below(other, key)));
      expect(directories.unnamedBelow(where).sort()).toEqual(uppermost.sort());
    }),
  );
});

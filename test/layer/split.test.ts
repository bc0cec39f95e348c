// Paths of an archive are read as Go's filepath.Clean reads them, below a root that they cannot leave.

import { posix } from "node:path";
import fc from "fast-check";
import { expect, test } from "vitest";
import { split } from "../../src/layer/apply.ts";

test("any path is what it is after normalizing it below a root", () => {
  const part = fc.constantFrom("a", "b.c", ".d", ".", "..", "...", "", ".wh.a", "é");
  fc.assert(
    fc.property(fc.array(part, { maxLength: 6 }), (parts) => {
      const path = parts.join("/");
      const whole = posix.normalize(`/${path}`).replace(/\/$/, "");
      const { parent, name } = split(path);
      expect({ parent: parent === "" ? "" : `/${parent}`, name }).toEqual({
        parent: whole.slice(0, Math.max(0, whole.lastIndexOf("/"))),
        name: whole.slice(whole.lastIndexOf("/") + 1),
      });
    }),
    { numRuns: 2000 },
  );
});

// Stands in for vitest where that cannot run, such as on an emulated machine, for which its own compiled parts are
// missing: the same test files and the same matchers, on Node's own runner.

import {
  describe,
  afterEach as nodeAfterEach,
  beforeEach as nodeBeforeEach,
  test as nodeTest,
} from "node:test";
import { format } from "node:util";
import { chai, JestAsymmetricMatchers, JestChaiExpect } from "@vitest/expect";

chai.use(JestChaiExpect);
chai.use(JestAsymmetricMatchers);

export { describe };

export const expect = (value, message) => chai.expect(value, message);

export const test = (name, run) => nodeTest(name, () => run());

/** Rows of arguments, or single ones, with their first values in the name. */
test.each = (rows) => (name, run) => {
  for (const row of rows.map((one) => (Array.isArray(one) ? one : [one])))
    nodeTest(format(name, ...row), () => run(...row));
};

export const beforeEach = (run) => nodeBeforeEach(() => run());
export const afterEach = (run) => nodeAfterEach(() => run());

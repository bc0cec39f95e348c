// References by the rules of containerd's ParseDockerRef (distribution's grammar).

import fc from "fast-check";
import { expect, test } from "vitest";
import { parseReference } from "../../src/oci/reference.ts";

const digest = `sha256:${"a".repeat(64)}`;

test.each([
  ["busybox", "docker.io/library/busybox:latest"],
  ["busybox:1.36", "docker.io/library/busybox:1.36"],
  ["user/image", "docker.io/user/image:latest"],
  ["index.docker.io/user/image", "docker.io/user/image:latest"],
  ["docker.io/busybox", "docker.io/library/busybox:latest"],
  ["localhost/a", "localhost/a:latest"],
  ["localhost:5000/a:b", "localhost:5000/a:b"],
  ["reg.example.com/a/b/c:v1", "reg.example.com/a/b/c:v1"],
  ["[::1]:5000/a", "[::1]:5000/a:latest"],
  [`a@${digest}`, `docker.io/library/a@${digest}`],
  [`reg.example.com/a:tag@${digest}`, `reg.example.com/a@${digest}`],
  ["Upper.example/a", "Upper.example/a:latest"],
  ["a/b__c-d.e", "docker.io/a/b__c-d.e:latest"],
])("%s is %s", (text, name) => {
  expect(parseReference(text).name).toBe(name);
});

test.each([
  "",
  " ",
  "a".repeat(64),
  "UPPER",
  "reg.example.com/Upper",
  "a:",
  "a:tag:tag",
  "a@",
  "a@sha256:short",
  `a@${digest}@${digest}`,
  "a b",
  "-a",
  "a/",
  "/a",
  "a//b",
  "a:-tag",
  `a:${"t".repeat(129)}`,
  `reg.example.com/${"a".repeat(250)}`,
  "http://reg.example.com/a",
])("%j is refused", (text) => {
  expect(() => parseReference(text)).toThrow(expect.objectContaining({ code: "invalid" }) as Error);
});

test("another digest algorithm is containerd's", () => {
  expect(() => parseReference(`a@sha512:${"a".repeat(128)}`)).toThrow(
    expect.objectContaining({ code: "unsupported" }) as Error,
  );
});

test("whatever parses is canonical: its name parses to itself", () => {
  const part = fc.stringMatching(/^[a-z0-9._:@/-]{1,20}$/);
  fc.assert(
    fc.property(part, (text) => {
      let name: string;
      try {
        name = parseReference(text).name;
      } catch (error) {
        expect(error).toHaveProperty("code");
        return;
      }
      expect(parseReference(name).name).toBe(name);
    }),
    { numRuns: 2000 },
  );
});

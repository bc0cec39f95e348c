// JSON of a registry is read as it is, unless Go would read something else in it.

import fc from "fast-check";
import { expect, test } from "vitest";
import { object, parseJson } from "../../src/oci/json.ts";

const parse = (text: string): unknown => parseJson(Buffer.from(text), "text");

test("any JSON at all is the value that it says, however it is spaced", () => {
  fc.assert(
    fc.property(fc.jsonValue(), fc.constantFrom(0, 2), (value, indent) => {
      const text = JSON.stringify(value, undefined, indent);
      expect(parse(text)).toEqual(JSON.parse(text));
    }),
  );
});

test.each([
  '{"a":1,"a":1}',
  '{"x":[{"y":{"a":1,"b":2,"a":3}}]}',
  String.raw`{"a":1,"\u0061":2}`,
  String.raw`{"\\":":","\\":1}`,
  '{"__proto__":1,"__proto__":2}',
])("%s has a field twice", (text) => {
  expect(() => parse(text)).toThrow(expect.objectContaining({ code: "unsupported" }));
});

test.each(['{"a":":","b":"\\":\\\\"}', '[{"a":1},{"a":1}]', '{"a":{"a":{"a":":"}}}', '{"":"","\\\\":1}'])(
  "%s has none",
  (text) => {
    expect(parse(text)).toEqual(JSON.parse(text));
  },
);

test.each(["", "{", "{}{}", "\ufeff{}", "{}\0", "{'a':1}", "[1,]", "nul"])("%j is no JSON", (text) => {
  expect(() => parse(text)).toThrow(expect.objectContaining({ code: "corrupt" }));
});

test("an object has no names but the known ones that Go could take for one of them", () => {
  const names = ["mediaType", "size", "os.version"];
  const known = { mediaType: 1, size: 2, "os.version": 3, other: 4, media_type: 5 };
  expect(object(known, "it", names)).toBe(known);
  for (const key of ["mediatype", "MediaType", "Size", "SIZE", "\u017fize", "OS.Version"])
    expect(() => object({ [key]: 1 }, "it", names), key).toThrow(
      expect.objectContaining({ code: "unsupported" }),
    );
  expect(() => object({ "\u212a": 1 }, "it", ["k"])).toThrow(
    expect.objectContaining({ code: "unsupported" }),
  );
  for (const value of [null, [], "text", 1, undefined])
    expect(() => object(value, "it", names)).toThrow(expect.objectContaining({ code: "corrupt" }));
});

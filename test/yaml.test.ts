// The top level of YAML and JSON, as kubelet's and crictl's files have it: read, and changed.

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { parse, stringify } from "yaml";
import { changeTopLevel, plainTopLevel, readTopLevel } from "../src/yaml.ts";

const read = (text: string): Record<string, string> => Object.fromEntries(readTopLevel(text));

test("scalars of the top level, whatever is nested beside them", () => {
  const text = `# comment
apiVersion: kubelet.config.k8s.io/v1beta1
authentication:
  anonymous:
    enabled: false
  serializeImagePulls: true
clusterDNS:
- 10.96.0.10
- 10.96.0.11
imageServiceEndpoint: "unix:///run/hawser/hawser.sock"   # ours
containerRuntimeEndpoint: 'unix:///run/it''s.sock'
serializeImagePulls: false # one at a time no more
registryPullQPS:   0
evictionHard: {memory.available: 100Mi}
empty:
nothing: null
script: |
  serializeImagePulls: true
"quoted": a#b
`;
  expect(read(text)).toEqual({
    apiVersion: "kubelet.config.k8s.io/v1beta1",
    imageServiceEndpoint: "unix:///run/hawser/hawser.sock",
    containerRuntimeEndpoint: "unix:///run/it's.sock",
    serializeImagePulls: "false",
    registryPullQPS: "0",
    script: "serializeImagePulls: true\n",
    quoted: "a#b",
  });
});

test("the first document, wherever it begins, and lines of any system", () => {
  expect(read("%YAML 1.2\n---\r\na: 1\r\nb: 2\r\n---\nc: 3\n")).toEqual({ a: "1", b: "2" });
  expect(read("  a: 1\n  b:\n    c: 2\n  d: 3\n")).toEqual({ a: "1", d: "3" });
  expect(read("")).toEqual({});
});

test("JSON", () => {
  const json = {
    serializeImagePulls: false,
    maxParallelImagePulls: 3,
    nested: { a: 1 },
    list: [],
    none: null,
  };
  expect(read(JSON.stringify(json))).toEqual({ serializeImagePulls: "false", maxParallelImagePulls: "3" });
});

test("values of their types", () => {
  const text = "a: 1\nb: false\nc: text\nd: '1'\ne:\n  f: 1\n";
  expect(Object.fromEntries(plainTopLevel(text))).toEqual({ a: 1, b: false, c: "text", d: "1" });
});

test.each([
  ["a: 1\nsome words\n", /^line 2: /],
  ["{a: 1", /^line \d: /],
  ["a: 1\na: 2\n", "line 2: Map keys must be unique"],
  ["- a\n", "there are no keys at its top level"],
  ["words", "there are no keys at its top level"],
])("%j is refused", (text, message) => {
  expect(() => readTopLevel(text)).toThrow(message);
});

const endpoint = "unix:///run/hawser/hawser.sock";

describe("a change", () => {
  test("stands behind kind, or in the place of what was there, and nothing else moves", () => {
    const text = `# kubeadm made this
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration   # as it must be
serializeImagePulls: true # slow
clusterDNS:
- 10.96.0.10
...
`;
    const changes = { imageServiceEndpoint: endpoint, serializeImagePulls: false, maxParallelImagePulls: 8 };
    const changed = changeTopLevel(text, changes);
    expect(changed).toBe(`# kubeadm made this
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration   # as it must be
maxParallelImagePulls: 8
imageServiceEndpoint: ${endpoint}
serializeImagePulls: false # slow
clusterDNS:
- 10.96.0.10
...
`);
    const back = {
      imageServiceEndpoint: undefined,
      serializeImagePulls: true,
      maxParallelImagePulls: undefined,
    };
    expect(changeTopLevel(changed, back)).toBe(text);
  });

  test.each([
    [
      "without kind, indented, with a comment above",
      "# c\n  a: 1\n",
      `# c\n  imageServiceEndpoint: ${endpoint}\n  a: 1\n`,
    ],
    ["without an end of the last line", "kind: K", `kind: K\nimageServiceEndpoint: ${endpoint}\n`],
    ["of another system", "kind: K\r\na: 1\r\n", `kind: K\r\nimageServiceEndpoint: ${endpoint}\r\na: 1\r\n`],
    [
      "with an empty value",
      "imageServiceEndpoint:\nkind: K\n",
      `imageServiceEndpoint: ${endpoint}\nkind: K\n`,
    ],
    [
      "with a quoted value",
      'imageServiceEndpoint: ""\nkind: K\n',
      `imageServiceEndpoint: ${endpoint}\nkind: K\n`,
    ],
    [
      "in the first of two documents",
      "---\nkind: K\n---\nkind: L\n",
      `---\nkind: K\nimageServiceEndpoint: ${endpoint}\n---\nkind: L\n`,
    ],
    ["in one line of JSON", '{"kind":"K"}', `{"imageServiceEndpoint": "${endpoint}", "kind":"K"}`],
    [
      "in lines of JSON",
      '{\n  "kind": "K"\n}\n',
      `{\n  "imageServiceEndpoint": "${endpoint}",\n  "kind": "K"\n}\n`,
    ],
  ])("%s", (_name, text, wanted) => {
    expect(changeTopLevel(text, { imageServiceEndpoint: endpoint })).toBe(wanted);
  });

  test.each([
    ["", "cannot be changed safely"],
    ["{}", "cannot be changed safely"],
    ["imageServiceEndpoint:\n  a: 1\n", "cannot be changed safely"],
    ["a: &x 1\nimageServiceEndpoint: *x\n", "cannot be changed safely"],
    ["imageServiceEndpoint: &x a\nb: *x\n", "cannot be changed safely"],
    ["a: [\n", /^line \d: /],
  ])("of %j is refused, not guessed at", (text, message) => {
    expect(() => changeTopLevel(text, { imageServiceEndpoint: endpoint })).toThrow(message);
  });

  test("and its way back leave any document as it was", () => {
    const values = fc.oneof(
      fc.string(),
      fc.integer(),
      fc.boolean(),
      fc.constant(null),
      fc.array(fc.string()),
      fc.dictionary(fc.string(), fc.string()),
    );
    const documents = fc.dictionary(
      fc.string().filter((key) => key !== "<<" && key !== "image"),
      values,
      { minKeys: 1 },
    );
    fc.assert(
      fc.property(documents, fc.boolean(), fc.integer({ min: 0, max: 4 }), (document, isJson, indent) => {
        const text = isJson
          ? JSON.stringify(document, undefined, indent)
          : stringify(document, { version: "1.1" });
        const changed = changeTopLevel(text, { image: endpoint });
        expect(parse(changed, { version: "1.1" })).toEqual({
          ...parse(text, { version: "1.1" }),
          image: endpoint,
        });
        expect(changeTopLevel(changed, { image: undefined })).toBe(text);
      }),
    );
  });
});

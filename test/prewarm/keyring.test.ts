// Which credentials are tried for which image: kubelet's rules for the keys of a Docker configuration.

import { expect, test } from "vitest";
import { parseReference } from "../../src/oci/reference.ts";
import { Keyring } from "../../src/prewarm/keyring.ts";

/** Names of those that are tried for an image, where the keys are the users' names. */
function tried(keys: readonly string[], image: string): string[] {
  const auths = Object.fromEntries(
    keys.map((key) => [key, { auth: Buffer.from(`${key.replaceAll(":", "+")}:secret`).toString("base64") }]),
  );
  const keyring = Keyring.parse(JSON.stringify({ auths }));
  return keyring.of(parseReference(image)).map(({ username }) => username?.replaceAll("+", ":") ?? "");
}

test.each([
  {
    image: "registry.example.com/team/app:1",
    keys: ["registry.example.com", "other.example.com"],
    tried: ["registry.example.com"],
  },
  {
    image: "registry.example.com:5000/app",
    keys: ["registry.example.com:5000", "registry.example.com"],
    tried: ["registry.example.com:5000"],
  },
  {
    image: "registry.example.com/team/app",
    keys: ["registry.example.com", "registry.example.com/team", "registry.example.com/other"],
    tried: ["registry.example.com/team", "registry.example.com"],
  },
  {
    image: "registry.example.com/app",
    keys: ["https://registry.example.com/v1/"],
    tried: ["https://registry.example.com/v1/"],
  },
  {
    image: "eu.registry.example.com/app",
    keys: ["*.registry.example.com", "*.example.com", "e*.reg*y.example.com"],
    tried: ["e*.reg*y.example.com", "*.registry.example.com"],
  },
  {
    image: "busybox",
    keys: ["https://index.docker.io/v1/", "registry.example.com"],
    tried: ["https://index.docker.io/v1/"],
  },
  { image: "docker.io/team/app", keys: ["docker.io"], tried: ["docker.io"] },
  { image: "registry.example.com/app", keys: [], tried: [] },
])("$image is asked for with $tried", ({ image, keys, tried: expected }) => {
  expect(tried(keys, image)).toEqual(expected);
});

test("user and password, an identity token, and the older form without auths are understood", () => {
  const image = parseReference("registry.example.com/app");
  const of = (entry: object): unknown =>
    Keyring.parse(JSON.stringify({ "registry.example.com": entry })).of(image);
  expect(of({ username: "me", password: "secret" })).toEqual([{ username: "me", password: "secret" }]);
  expect(of({ identitytoken: "token" })).toEqual([{ identityToken: "token" }]);
  expect(of({ auth: Buffer.from("me:with:colons").toString("base64") })).toEqual([
    { username: "me", password: "with:colons" },
  ]);
  expect(of({ username: "me" })).toEqual([]);
});

test("what is no such file is told without a word of it", () => {
  expect(() => Keyring.parse("secret")).toThrow("the credentials are not JSON");
  expect(() => Keyring.parse("[]")).toThrow('the credentials have no "auths"');
});

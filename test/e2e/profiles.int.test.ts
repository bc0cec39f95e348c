// The registries that people use: containerd pulls from each, then Hawser, and secrets have been where containerd shows
// them and nowhere else.

import { randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Fakes, type Profile, profiles } from "../fakes/profiles.ts";
import { FakeRegistry } from "../fakes/registry.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";

let fakes: Fakes;
let certs = "";
let containerd: PrivateContainerd;
let hawser: PrivateHawser;

beforeAll(async () => {
  const [registry, tokens, store] = await Promise.all([
    FakeRegistry.start(),
    FakeRegistry.start(undefined, "127.0.0.3"),
    FakeRegistry.start(undefined, "127.0.0.2"),
  ]);
  fakes = { registry, tokens, store };
  certs = mkdtempSync(join(tmpdir(), "certs.d-"));
  mkdirSync(join(certs, "docker.io"));
  writeFileSync(join(certs, "docker.io/hosts.toml"), `server = "http://${registry.host}"\n[host]\n`);
  containerd = await PrivateContainerd.start({ configPath: certs });
  const config = `[download]\nchunk_size = "64KiB"\n[registry.host."${registry.host}"]\nstreams = 4\n[log]\nlevel = "trace"`;
  hawser = await PrivateHawser.start({ containerd: containerd.address, config });
});

afterAll(async () => {
  await hawser[Symbol.asyncDispose]();
  await containerd[Symbol.asyncDispose]();
  await Promise.all(Object.values(fakes).map((fake) => fake[Symbol.asyncDispose]()));
  rmSync(certs, { recursive: true });
});

/** Which of the fakes were shown which kind of secret, and for what. */
function shown(): Set<string> {
  const kinds = Object.entries(fakes).flatMap(([name, fake]: [string, FakeRegistry]) =>
    fake.asked.map(({ method, path, authorization }) => {
      const kind = /\/(manifests|blobs)\//.exec(path)?.[1] ?? path;
      const scheme = authorization?.split(" ", 1)[0] ?? "nothing";
      return `${name}: ${scheme} for ${kind}${method === "POST" ? " by POST" : ""}`;
    }),
  );
  return new Set(kinds);
}

let images = 0;

/** A pull of a new image by its name; what was shown to whom, and how often the layer's bytes were asked for. */
async function pull(by: "containerd" | "hawser", name: string, { login, play }: Profile) {
  images += 1;
  const isHub = name === "Docker Hub";
  const repository = `${isHub ? "library" : "team"}/app${images}`;
  const layers = [{ bytes: tarGz([file("noise", randomBytes(300_000))]) }];
  const image = Object.values(fakes).map((fake: FakeRegistry) => fake.put(`${repository}:v1`, layers))[0];
  play(fakes);
  for (const fake of Object.values(fakes)) fake.asked.length = 0;
  const reference = isHub ? `app${images}:v1` : `${fakes.registry.host}/${repository}:v1`;
  const client = by === "hawser" ? hawser.cri : containerd.cri;
  expect(await client.pull(reference, login)).toEqual({ value: image?.configDigest });
  const layer = image?.layers[0]?.digest ?? "?";
  const ranges = [...fakes.registry.rangesOf(layer), ...fakes.store.rangesOf(layer)].filter(Boolean);
  return { shown: shown(), ranges: ranges.length };
}

test.each(Object.entries(profiles))("%s", async (name, profile) => {
  const theirs = await pull("containerd", name, profile);
  const ours = await pull("hawser", name, profile);
  expect(ours.shown).toEqual(theirs.shown);
  expect([...ours.shown].filter((one) => one.startsWith("store: ") && !one.includes("nothing"))).toEqual([]);
  expect(ours.ranges).toBeGreaterThan(3);
  const metrics = await hawser.metrics();
  expect(metrics).not.toContain("hawser_fallbacks_total{");
  const { username = "", password = "", identityToken = "" } = { ...profile.login } as Record<string, string>;
  const said = hawser.logs() + metrics;
  const pair = Buffer.from(`${username}:${password}`).toString("base64");
  for (const secret of [password, identityToken, pair, "t0ken", "abc%2F123"].filter(
    (one) => one.length > 4,
  )) {
    expect(said).not.toContain(secret);
  }
});

// What the sides of a scenario pull, and from where: a registry with the images, over TLS and over a shaped network if the
// scenario asks for that.

import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Authority } from "../test/harness/authority.ts";
import { PrivateRegistry } from "../test/harness/registry.ts";
import { type BuiltImage, pushRecipe } from "./images.ts";
import { regional, ShapedNetwork } from "./network.ts";
import type { Scenario } from "./scenarios.ts";

export interface Load {
  /** Of the registry that serves it. */
  readonly registryPid: number;
  /** Of the shaped network, where there is one. */
  readonly networkPid?: number;
  /** The images as whoever pulls names them. */
  readonly references: readonly string[];
  readonly images: readonly BuiltImage[];
  /** certs.d of containerd, where the registry needs one. */
  readonly certs?: string;
}

/** Pushes a scenario's images and returns what `work` makes of them. `say` is told what takes long. */
export async function withLoad<T>(
  scenario: Scenario,
  say: (text: string) => void,
  signal: AbortSignal,
  work: (load: Load) => Promise<T>,
): Promise<T> {
  await using plain = await PrivateRegistry.start();
  const images: BuiltImage[] = [];
  for (const recipe of scenario.recipes) images.push(await pushRecipe(plain, recipe, say, signal));
  using authority = scenario.tls ? new Authority() : undefined;
  await using secured =
    authority && (await PrivateRegistry.start({ store: plain.store, tls: authority.issue("registry") }));
  const registry = secured ?? plain;
  await using network =
    scenario.network === "shaped" ? await ShapedNetwork.before(registry.host, regional) : undefined;
  const host = network?.host ?? registry.host;
  using certs = authority && new Certs(host, authority.cert);
  return await work({
    registryPid: registry.pid,
    ...(network && { networkPid: network.pid }),
    references: images.map(({ reference }) => `${host}${reference.slice(plain.host.length)}`),
    images,
    ...(certs && { certs: certs.folder }),
  });
}

/** A certs.d with one host, whose authority is named. */
class Certs implements Disposable {
  readonly folder = mkdtempSync(join(tmpdir(), "certs.d-"));

  constructor(host: string, authority: string) {
    mkdirSync(join(this.folder, host));
    const text = `server = "https://${host}"\nca = "${authority}"\n[host]\n`;
    writeFileSync(join(this.folder, host, "hosts.toml"), text);
  }

  [Symbol.dispose](): void {
    rmSync(this.folder, { recursive: true });
  }
}

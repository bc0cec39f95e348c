// kubectl of Debian's suites, unpacked into the cache and never installed: what renders the manifests of config/kubernetes.

import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { parseAllDocuments } from "yaml";
import { cached } from "../../config/release/cache.ts";
import { codename, unpackPackages } from "../../config/release/debian.ts";
import { root } from "../../config/release/place.ts";

/** Of bookworm, whose kustomize is 2.0, and of a suite of today. */
export const kubectls = {
  old: { suite: "bookworm", package: "kubernetes-client" },
  new: { suite: "trixie", package: "kubectl" },
} as const;

export interface Rendered {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: { readonly name: string; readonly namespace?: string };
  readonly [key: string]: unknown;
}

/** The objects of a folder below config/kubernetes. */
export async function render(folder: string, which: keyof typeof kubectls): Promise<Rendered[]> {
  const { suite, package: name } = kubectls[which];
  const place = await cached("kubectl", suite, async (into) => {
    unpackPackages({ names: [name], ...(suite !== codename() && { suite }) }, into);
  });
  const text = execFileSync(
    join(place, "usr/bin/kubectl"),
    ["kustomize", join(root, "config/kubernetes", folder)],
    { encoding: "utf8" },
  );
  return parseAllDocuments(text).map((document) => document.toJS() as Rendered);
}

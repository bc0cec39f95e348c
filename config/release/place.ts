// Where things are: the checkout that a release is made of, and the machines that it is made for.

import { fileURLToPath } from "node:url";
import { run } from "./command.ts";

export const root = fileURLToPath(new URL("../..", import.meta.url));

export const architectures = ["amd64", "arm64"] as const;

/** As Debian and container images call it. */
export type Architecture = (typeof architectures)[number];

export interface Machine {
  /** Prefix of its compiler, and name of its folder of libraries. */
  readonly triplet: string;
  /** As readelf prints it. */
  readonly elf: string;
  readonly crossPackage: string;
}

export const machines: Readonly<Record<Architecture, Machine>> = {
  amd64: {
    triplet: "x86_64-linux-gnu",
    elf: "Advanced Micro Devices X86-64",
    crossPackage: "crossbuild-essential-amd64",
  },
  arm64: { triplet: "aarch64-linux-gnu", elf: "AArch64", crossPackage: "crossbuild-essential-arm64" },
};

/** The architecture of the machine that this runs on. */
export async function ownArchitecture(): Promise<string> {
  return (await run("dpkg", ["--print-architecture"])).trim();
}

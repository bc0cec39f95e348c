// npm run release: builds the bundles that nodes install, into dist-release/.

import { join } from "node:path";
import { parseArgs } from "node:util";
import { type Bundle, buildBundle } from "./bundle.ts";
import { ReleaseError } from "./command.ts";
import { type Architecture, architectures, root } from "./place.ts";

const usage = `Usage: npm run release -- [--arch amd64|arm64]

Builds dist-release/hawser-VERSION-linux-ARCH.tar.gz, for both architectures unless one is named.
`;

class UsageError extends Error {}

async function main(args: readonly string[]): Promise<void> {
  const { arch, help } = parse(args);
  if (help) {
    process.stdout.write(usage);
    return;
  }
  for (const architecture of architecturesOf(arch)) {
    const units = join(root, "config/systemd");
    const bundle = await buildBundle({ architecture, units, out: join(root, "dist-release") });
    process.stdout.write(`${describe(bundle)}\n`);
  }
}

function architecturesOf(arch: string | undefined): readonly Architecture[] {
  if (arch === undefined) return architectures;
  const found = architectures.find((one) => one === arch);
  if (found === undefined) {
    throw new UsageError(
      `--arch is ${JSON.stringify(arch)}, and bundles are made for ${architectures.join(" and ")}`,
    );
  }
  return [found];
}

function parse(args: readonly string[]) {
  const options = { arch: { type: "string" }, help: { type: "boolean", short: "h" } } as const;
  try {
    return parseArgs({ args: [...args], options }).values;
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    throw new UsageError(text.split(". ", 1)[0]);
  }
}

function describe({ archive, packedBytes, unpackedBytes, wants }: Bundle): string {
  const [packed, unpacked] = [packedBytes, unpackedBytes].map((bytes) => (bytes / 2 ** 20).toFixed(1));
  const versions = [...wants].map(([space, version]) => `${space} ${version}`).toSorted();
  return `${archive}: ${packed} MiB, ${unpacked} MiB unpacked; needs ${versions.join(", ")}`;
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  const isUsage = error instanceof UsageError;
  const message =
    isUsage || error instanceof ReleaseError ? error.message : `unexpected fault: ${String(error)}`;
  process.stderr.write(`release: ${message}\n`);
  process.exitCode = isUsage ? 2 : 1;
}

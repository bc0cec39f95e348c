// Packages from the Debian that this machine is configured for, of any architecture and suite, unpacked into a folder.
//
// Nothing is installed: apt-get runs with a state of its own, so that neither the machine's lists nor its database
// change. The sources are the machine's own; another suite is asked for at the same place.

import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ReleaseError, runSync } from "./command.ts";

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";

export interface Wanted {
  /** Exactly these; what they depend on is not followed. */
  readonly names: readonly string[];
  /** As dpkg names it; the machine's own without. */
  readonly architecture?: string;
  /** Codename; the machine's own, with its updates, without. */
  readonly suite?: string;
}

/** Unpacks packages into a folder and returns their versions by name. */
export function unpackPackages(
  { names, architecture, suite }: Wanted,
  into: string,
): ReadonlyMap<string, string> {
  const work = mkdtempSync(join(tmpdir(), "debian-"));
  try {
    const apt = prepareApt(work, suite, architecture);
    runSync("apt-get", [...apt, "update", "-qq"], { cwd: work });
    runSync("apt-get", [...apt, "download", "-qq", ...names], { cwd: work });
    const versions = new Map<string, string>();
    for (const file of readdirSync(work).filter((name) => name.endsWith(".deb"))) {
      runSync("dpkg-deb", ["--extract", join(work, file), into]);
      const fields = runSync("dpkg-deb", [
        "--show",
        "--showformat=${Package}\\t${Version}",
        join(work, file),
      ]);
      const [name = "", version = ""] = fields.split("\t");
      versions.set(name, version);
    }
    const absent = names.filter((name) => !versions.has(name));
    if (absent.length > 0) throw new ReleaseError(`apt-get downloaded nothing for ${absent.join(", ")}`);
    return versions;
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/** Options for an apt-get that reads and writes this folder alone. */
function prepareApt(work: string, suite = codename(), architecture?: string): string[] {
  for (const name of ["lists/partial", "archives/partial"]) mkdirSync(join(work, name), { recursive: true });
  const lines = debianSources(suite).map(({ uri, name }) => `deb [signed-by=${keyring}] ${uri} ${name} main`);
  writeFileSync(join(work, "sources.list"), `${lines.join("\n")}\n`);
  writeFileSync(join(work, "status"), "");
  const options = {
    "Dir::State": work,
    "Dir::State::status": join(work, "status"),
    "Dir::Cache": work,
    "Dir::Etc::sourcelist": join(work, "sources.list"),
    "Dir::Etc::sourceparts": "-",
    "Dir::Etc::preferencesparts": "-",
    "APT::Sandbox::User": "root",
    "Acquire::Languages": "none",
    ...(architecture !== undefined && {
      "APT::Architecture": architecture,
      "APT::Architectures": architecture,
    }),
  };
  return Object.entries(options).flatMap(([key, value]) => ["-o", `${key}=${value}`]);
}

export interface Source {
  readonly uri: string;
  /** Suite, such as bookworm or bookworm-security. */
  readonly name: string;
}

/** The codename of the Debian that this machine runs. */
export function codename(): string {
  return /^VERSION_CODENAME=(\w+)$/m.exec(readFileSync("/etc/os-release", "utf8"))?.[1] ?? "";
}

/** Sources of a suite's main component, its archive first; updates are those of the machine's own suite alone. */
export function debianSources(suite = codename()): Source[] {
  const own = codename();
  const files = ["/etc/apt/sources.list", ...listed("/etc/apt/sources.list.d")].filter((path) =>
    existsSync(path),
  );
  const all = files.flatMap((path) => sourcesOf(readFileSync(path, "utf8")));
  const archive = all.find(({ name }) => name === own);
  if (archive === undefined) throw new ReleaseError(`no source of apt names ${own} and main`);
  if (suite !== own) return [{ uri: archive.uri, name: suite }];
  return [archive, ...all.filter(({ name }) => name.startsWith(`${own}-`))];
}

/** Both of apt's formats: lines of sources.list, and deb822's stanzas of "Key: value" lines. */
function sourcesOf(text: string): Source[] {
  const lines = text.matchAll(/^deb (?:\[[^\]]*\] )?(\S+) (\S+) .*\bmain\b/gm);
  const found = [...lines].map(([, uri = "", name = ""]) => ({ uri, name }));
  for (const stanza of text.replace(/^#.*\n/gm, "").split(/\n\s*\n/)) {
    const value = (key: string): string[] =>
      new RegExp(`^${key}:\\s*(.+)$`, "mi").exec(stanza)?.[1]?.trim().split(/\s+/) ?? [];
    const [uri] = value("URIs");
    if (uri === undefined || !value("Components").includes("main")) continue;
    found.push(...value("Suites").map((name) => ({ uri, name })));
  }
  return found;
}

function listed(directory: string): string[] {
  if (!existsSync(directory)) return [];
  return readdirSync(directory)
    .filter((name) => /\.(list|sources)$/.test(name))
    .map((name) => join(directory, name));
}

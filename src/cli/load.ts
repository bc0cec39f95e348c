// hawser load: the images of an archive into containerd, for nodes that reach no registry.

import { fstatSync } from "node:fs";
import type { Readable } from "node:stream";
import type { Loaded } from "../archive/load.ts";
import { loadConfig } from "../config.ts";
import { PullError } from "../errors.ts";
import { loadArchive } from "../loader.ts";
import { parseReference } from "../oci/reference.ts";
import { type Command, type Context, parseOptions, plainLine, UsageError } from "./command.ts";

const standardInput = 0;

export const load: Command = {
  name: "load",
  summary: "load the images of an archive into containerd, without a registry",
  help: `Usage: hawser load ARCHIVE [--name REFERENCE] [--json]

Loads every image of an OCI archive, or of one that "docker save" has written, compressed with gzip, zstd or not at all.
ARCHIVE is a file, or "-" for standard input. Of an image for several platforms it takes this node's. containerd has to
run, the daemon need not. Prints what was loaded; exit code 1 when an image could not be.

What is loaded is listed, as images are that kubelet has pulled: pods with imagePullPolicy IfNotPresent or Never start
from it without asking a registry. A name that is taken stands for the loaded image from then on.

Options:
  --name REFERENCE   what the archive's image is to be called, where the archive holds one
  --json             one object on a line for each image, for programs
  --config FILE      configuration (default /etc/hawser/hawser.toml, which need not exist)
`,
  run: async (args, context) => {
    const options = {
      config: { type: "string" },
      json: { type: "boolean" },
      name: { type: "string" },
    } as const;
    const { values, positionals } = parseOptions(args, options, 1);
    const [archive] = positionals;
    if (archive === undefined) throw new UsageError("expected an archive, such as images.tar");
    if (values.name !== undefined) nameOf(values.name);
    const { config, problems, file } = await loadConfig(values.config);
    const [problem] = problems;
    if (problem) throw new PullError("invalid", `${file}: ${problem.path}: ${problem.message}`);
    // Sockets and spools are root's alone; workers that unpack have a umask of their own.
    process.umask(0o077);
    const failed: string[] = [];
    const loaded = (outcome: Loaded): void => {
      if ("failure" in outcome) failed.push(outcome.name);
      tell(outcome, values.json ?? false, context);
    };
    const warn = ({ message }: PullError): void =>
      context.stderr(plainLine(`hawser: clearing up: ${message}`));
    const source = archive === "-" ? given() : archive;
    try {
      const job = { config, archive: source, name: values.name, loaded, warn };
      await loadArchive(job, context.interrupted);
    } catch (error) {
      const { message } = PullError.from(error);
      const what = archive === "-" ? "standard input" : archive;
      context.stderr(plainLine(`hawser: ${what}: ${context.interrupted.aborted ? "interrupted" : message}`));
      return 1;
    }
    return failed.length === 0 ? 0 : 1;
  },
};

/** A file that is redirected is read where it is needed. */
function given(): number | Readable {
  const kind = fstatSync(standardInput);
  return kind.isFile() || kind.isDirectory() ? standardInput : process.stdin;
}

function nameOf(text: string): void {
  const { tag } = parseReference(text);
  if (tag === undefined) throw new UsageError("a name for an archive's image cannot be a digest");
}

function tell(outcome: Loaded, isJson: boolean, { stdout, stderr }: Context): void {
  if (isJson) {
    const { name } = outcome;
    const fields =
      "failure" in outcome
        ? { name, error: outcome.failure.message, code: outcome.failure.code }
        : { name, id: outcome.id, seconds: Number(outcome.seconds.toFixed(3)) };
    stdout(`${JSON.stringify(fields)}\n`);
  } else if ("failure" in outcome) {
    stderr(plainLine(`hawser: cannot load ${outcome.name}: ${explain(outcome.failure)}`));
  } else {
    stdout(`${outcome.name}  ${outcome.id}  ${outcome.seconds.toFixed(2)} s\n`);
  }
}

function explain({ code, message }: PullError): string {
  if (code !== "unsupported") return message;
  return `${message.replace("left to containerd: ", "")} ("ctr -n k8s.io images import" may know how)`;
}

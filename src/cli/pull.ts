// hawser pull: asks a CRI socket for an image, as kubelet would.

import { randomBytes } from "node:crypto";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Metadata, type ServiceError, status } from "@grpc/grpc-js";
import { followAdmin } from "../front/client.ts";
import { clientOf } from "../grpc.ts";
import type { PullRecord } from "../history/record.ts";
import { PullImageRequestSchema, PullImageResponseSchema } from "../proto/gen/cri_pb.js";
import { configOf } from "./admin.ts";
import { type Command, type Context, parseOptions, plainLine, UsageError } from "./command.ts";
import { type Login, readLogin } from "./login.ts";
import { PlainProgress, type Progress, TerminalProgress } from "./progress.ts";

const defaultSocket = "/run/hawser/hawser.sock";

export const pull: Command = {
  name: "pull",
  summary: "pull an image through a CRI socket",
  help: `Usage: hawser pull REFERENCE [--cri SOCKET] [--config FILE] [--creds-stdin] [--json]

Pulls an image as kubelet would and prints its id, and on standard error how far it is and the seconds it took. The
progress is the daemon's own, over its admin socket; without that the pull is made all the same. Ctrl-C cancels it.

Options:
  --cri SOCKET    CRI socket to ask (default: that of the configuration, ${defaultSocket})
  --config FILE   configuration that names the sockets (default /etc/hawser/hawser.toml)
  --creds-stdin   read "user:password" for the registry from standard input
  --json          for programs: a JSON object a line, of the pull as it goes on and of its end
`,
  run: async (args, context) => {
    const options = {
      cri: { type: "string" },
      config: { type: "string" },
      "creds-stdin": { type: "boolean" },
      json: { type: "boolean" },
    } as const;
    const { values, positionals } = parseOptions(args, options, 1);
    const [reference] = positionals;
    if (reference === undefined) throw new UsageError("expected an image reference, such as busybox:1.36");
    const sockets = await socketsOf(values.cri, values.config);
    try {
      const login = values["creds-stdin"] ? await readLogin(context.interrupted) : undefined;
      await pullWith({ reference, login, ...sockets, isJson: values.json ?? false }, context);
      return 0;
    } catch (error) {
      if (error instanceof UsageError) throw error;
      const why = context.interrupted.aborted ? "interrupted" : explain(error as ServiceError);
      context.stderr(plainLine(`hawser: cannot pull ${reference} through ${sockets.cri}: ${why}`));
      return 1;
    }
  },
};

interface Wanted {
  readonly reference: string;
  readonly login: Login | undefined;
  readonly cri: string;
  readonly admin: string | undefined;
  readonly isJson: boolean;
}

/** Of the configuration where they are not given; a broken one names the defaults, as it does for the daemon. */
async function socketsOf(
  given: string | undefined,
  configFile: string | undefined,
): Promise<{ readonly cri: string; readonly admin: string | undefined }> {
  const config = await configOf(configFile);
  const cri = (given ?? config.cri.listen).replace(/^unix:(\/\/)?/, "");
  if (cri === "" || cri.includes("://"))
    throw new UsageError(`expected the path of a socket behind --cri, such as ${defaultSocket}`);
  return { cri, admin: config.admin.listen === "off" ? undefined : config.admin.listen };
}

/** Says on standard output and standard error what there is to say; rejects with a ServiceError. */
async function pullWith(wanted: Wanted, context: Context): Promise<void> {
  const { reference, login, cri, admin, isJson } = wanted;
  const { stdout, stderr } = context;
  // By which the daemon's notes of this pull are told from those of others (W3C Trace Context).
  const traceID = randomBytes(16).toString("hex");
  const began = performance.now();
  const told = (event: object): void => stdout(`${JSON.stringify(event)}\n`);
  const progress = isJson
    ? { show: (record: PullRecord) => told({ pull: record }), end: () => {} }
    : progressOn(context);
  const over = new AbortController();
  let last: PullRecord | undefined;
  const following =
    admin &&
    followAdmin(admin, `/events?trace=${traceID}`, over.signal, (data) => {
      last = (data as PullRecord | null) ?? last;
      if (last && !over.signal.aborted) progress.show(last);
    }).catch(() => {});
  let id: string;
  try {
    id = await ask(cri, reference, login, traceID, context.interrupted);
  } finally {
    over.abort();
    await following;
    progress.end();
  }
  const seconds = (performance.now() - began) / 1000;
  if (isJson) {
    told({ id, seconds: Number(seconds.toFixed(3)) });
    return;
  }
  stdout(`${id}\n`);
  const trace = last ? ` ("hawser trace ${last.id}" says what with)` : "";
  stderr(`pulled ${reference} in ${seconds.toFixed(2)} s${trace}\n`);
}

function progressOn({ stderr, errorTerminal }: Context): Progress {
  const first = errorTerminal();
  return first ? new TerminalProgress(stderr, () => errorTerminal() ?? first) : new PlainProgress(stderr);
}

function explain({ code, details, message }: ServiceError): string {
  const absent = /^No connection established\. Last error: (?:Error: )?(.*?)\. Resolution note: *$/s.exec(
    details,
  );
  if (code === status.UNAVAILABLE && absent)
    return `nobody answers there (${absent[1]}); is "hawser serve" running, and is this its socket (--cri)?`;
  return details || message;
}

async function ask(
  socket: string,
  reference: string,
  login: Login | undefined,
  traceID: string,
  signal: AbortSignal,
): Promise<string> {
  signal.throwIfAborted();
  const client = clientOf(socket);
  const request = create(PullImageRequestSchema, {
    image: { image: reference },
    ...(login && { auth: login }),
  });
  const metadata = new Metadata();
  metadata.set("traceparent", `00-${traceID}-${randomBytes(8).toString("hex")}-01`);
  try {
    return await new Promise((resolve, reject) => {
      const call = client.makeUnaryRequest(
        "/runtime.v1.ImageService/PullImage",
        (message: typeof request) => Buffer.from(toBinary(PullImageRequestSchema, message)),
        (bytes: Buffer) => fromBinary(PullImageResponseSchema, bytes),
        request,
        metadata,
        (error, response) => {
          if (error) reject(error);
          else resolve(response?.imageRef ?? "");
        },
      );
      signal.addEventListener("abort", () => call.cancel(), { once: true });
    });
  } finally {
    client.close();
  }
}

// hawser pull: asks a CRI socket for an image, as kubelet would.

import { addAbortSignal } from "node:stream";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Client, credentials, type ServiceError } from "@grpc/grpc-js";
import { PullImageRequestSchema, PullImageResponseSchema } from "../proto/gen/cri_pb.js";
import { type Command, parseOptions, UsageError } from "./command.ts";

const defaultSocket = "/run/hawser/hawser.sock";
/** Some registries' passwords are tokens of several kilobytes. */
const loginLengthMax = 64 * 1024;

interface Login {
  readonly username: string;
  readonly password: string;
}

export const pull: Command = {
  name: "pull",
  summary: "pull an image through a CRI socket",
  help: `Usage: hawser pull REFERENCE [--cri SOCKET] [--creds-stdin]

Pulls an image as kubelet would and prints its id, and on standard error the seconds it took.

Options:
  --cri SOCKET    CRI socket to ask (default ${defaultSocket})
  --creds-stdin   read "user:password" for the registry from standard input
`,
  run: async (args, context) => {
    const options = { cri: { type: "string" }, "creds-stdin": { type: "boolean" } } as const;
    const { values, positionals } = parseOptions(args, options, 1);
    const [reference] = positionals;
    if (reference === undefined) throw new UsageError("expected an image reference, such as busybox:1.36");
    const socket = (values.cri ?? defaultSocket).replace(/^unix:(\/\/)?/, "");
    try {
      const login = values["creds-stdin"] ? await readLogin(context.interrupted) : undefined;
      const began = performance.now();
      const id = await ask(socket, reference, login, context.interrupted);
      context.stdout(`${id}\n`);
      const seconds = ((performance.now() - began) / 1000).toFixed(2);
      context.stderr(`pulled ${reference} in ${seconds} s\n`);
      return 0;
    } catch (error) {
      if (error instanceof UsageError) throw error;
      const { details, message } = error as ServiceError;
      const why = context.interrupted.aborted ? "interrupted" : (details || message).replaceAll(/\s+/g, " ");
      context.stderr(`hawser: cannot pull ${reference} through ${socket}: ${why}\n`);
      return 1;
    }
  },
};

/** Not from the arguments, which every user of the machine can see. */
async function readLogin(signal: AbortSignal): Promise<Login> {
  let input = "";
  for await (const piece of addAbortSignal(signal, process.stdin.setEncoding("utf8"))) {
    input += String(piece);
    if (input.length > loginLengthMax) throw new UsageError("too much on standard input for credentials");
  }
  const [username, password] = input.replace(/\r?\n$/, "").split(/:(.*)/s, 2);
  if (!username || password === undefined) throw new UsageError('expected "user:password" on standard input');
  return { username, password };
}

async function ask(
  socket: string,
  reference: string,
  login: Login | undefined,
  signal: AbortSignal,
): Promise<string> {
  signal.throwIfAborted();
  const client = new Client(`unix:${socket}`, credentials.createInsecure(), {
    "grpc.default_authority": "localhost",
  });
  const request = create(PullImageRequestSchema, {
    image: { image: reference },
    ...(login && { auth: login }),
  });
  try {
    return await new Promise((resolve, reject) => {
      const call = client.makeUnaryRequest(
        "/runtime.v1.ImageService/PullImage",
        (message: typeof request) => Buffer.from(toBinary(PullImageRequestSchema, message)),
        (bytes: Buffer) => fromBinary(PullImageResponseSchema, bytes),
        request,
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

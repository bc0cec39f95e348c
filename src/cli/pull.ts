// hawser pull: asks a CRI socket for an image, as kubelet would.

import { text } from "node:stream/consumers";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Client, credentials, type ServiceError } from "@grpc/grpc-js";
import { parseReference } from "../oci/reference.ts";
import { PullImageRequestSchema, PullImageResponseSchema } from "../proto/gen/cri_pb.js";
import { type Command, parseOptions, UsageError } from "./command.ts";

const defaultSocket = "/run/hawser/hawser.sock";

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
    const socket = (values.cri ?? defaultSocket).replace(/^unix:\/\//, "");
    const login = values["creds-stdin"] ? readLogin(await text(process.stdin)) : undefined;
    const began = performance.now();
    try {
      const id = await ask(socket, reference, login, context.interrupted);
      context.stdout(`${id}\n`);
      const seconds = ((performance.now() - began) / 1000).toFixed(2);
      context.stderr(`pulled ${parseReference(reference).name} in ${seconds} s\n`);
      return 0;
    } catch (error) {
      const { details, message } = error as ServiceError;
      context.stderr(`hawser: cannot pull ${reference} through ${socket}: ${details || message}\n`);
      return 1;
    }
  },
};

function readLogin(line: string): Login {
  const [username, password] = line.replace(/\r?\n$/, "").split(/:(.*)/s, 2);
  if (!username || password === undefined) throw new UsageError('expected "user:password" on standard input');
  return { username, password };
}

async function ask(
  socket: string,
  reference: string,
  login: Login | undefined,
  signal: AbortSignal,
): Promise<string> {
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

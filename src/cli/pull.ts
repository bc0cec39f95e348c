// hawser pull: asks a CRI socket for an image, as kubelet would.

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { type ServiceError, status } from "@grpc/grpc-js";
import { clientOf } from "../grpc.ts";
import { PullImageRequestSchema, PullImageResponseSchema } from "../proto/gen/cri_pb.js";
import { type Command, parseOptions, plainLine, UsageError } from "./command.ts";
import { type Login, readLogin } from "./login.ts";

const defaultSocket = "/run/hawser/hawser.sock";

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
    if (socket === "" || socket.includes("://"))
      throw new UsageError(`expected the path of a socket behind --cri, such as ${defaultSocket}`);
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
      const why = context.interrupted.aborted ? "interrupted" : explain(error as ServiceError);
      context.stderr(plainLine(`hawser: cannot pull ${reference} through ${socket}: ${why}`));
      return 1;
    }
  },
};

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
  signal: AbortSignal,
): Promise<string> {
  signal.throwIfAborted();
  const client = clientOf(socket);
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

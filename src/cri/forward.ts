// Forwarding: a call's bytes go to containerd and its answer's bytes come back, untouched.
//
// A unary call is a server-streaming call with one answer as far as the wire is concerned, so one forwarder serves
// both. Metadata, trailers, status, deadline, cancellation and back-pressure pass through in both directions; no
// message is ever parsed here.

import {
  type ClientReadableStream,
  type Metadata,
  type ServerWritableStream,
  type ServiceError,
  status,
} from "@grpc/grpc-js";

/** What a forwarded call needs to know of the call that came in. */
export interface Incoming {
  readonly path: string;
  readonly request: Buffer;
  readonly metadata: Metadata;
  readonly deadline: Date | number;
}

/** Makes the call to containerd (Containerd.forward). */
export type Forward = (
  path: string,
  request: Buffer,
  metadata: Metadata,
  options: { readonly deadline: Date | number },
) => ClientReadableStream<Buffer>;

/** The answer of a unary call with all that came along with it. */
export interface Answer {
  readonly bytes: Buffer;
  readonly header: Metadata | undefined;
  readonly trailer: Metadata | undefined;
}

/** Headers of one hop; the next hop makes its own. */
const hopHeaders = ["user-agent", "grpc-accept-encoding", "accept-encoding", "content-type", "te"];

/** Relays one call from the server's side; the server's call is ended in every case. */
export function relay(call: ServerWritableStream<Buffer, Buffer>, forward: Forward): void {
  const upstream = forward(call.getPath(), call.request, outgoing(call.metadata), {
    deadline: call.getDeadline(),
  });
  call.on("cancelled", () => upstream.cancel());
  upstream.on("metadata", (metadata: Metadata) => call.sendMetadata(metadata));
  upstream.on("data", (bytes: Buffer) => {
    if (call.write(bytes)) return;
    upstream.pause();
    call.once("drain", () => upstream.resume());
  });
  let trailer: Metadata | undefined;
  upstream.on("status", (last: { metadata: Metadata }) => {
    trailer = last.metadata;
  });
  upstream.on("error", (error: ServiceError) => call.emit("error", explained(error)));
  // grpc-js gives the status before it ends the stream, so the trailer is known by now.
  upstream.on("end", () => call.end(trailer));
}

/** Forwards a unary call and waits for its answer; rejects with containerd's own ServiceError. */
export async function ask(incoming: Incoming, forward: Forward, signal: AbortSignal): Promise<Answer> {
  const { path, request, metadata, deadline } = incoming;
  return await new Promise((resolve, reject) => {
    const upstream = forward(path, request, outgoing(metadata), { deadline });
    const cancel = (): void => upstream.cancel();
    if (signal.aborted) cancel();
    signal.addEventListener("abort", cancel, { once: true });
    let header: Metadata | undefined;
    let trailer: Metadata | undefined;
    let bytes: Buffer = Buffer.alloc(0);
    upstream.on("metadata", (received: Metadata) => {
      header = received;
    });
    upstream.on("data", (received: Buffer) => {
      bytes = received;
    });
    upstream.on("error", (error: ServiceError) => {
      signal.removeEventListener("abort", cancel);
      reject(explained(error));
    });
    upstream.on("status", (last: { metadata: Metadata }) => {
      trailer = last.metadata;
    });
    // Not on the status, which may overtake the answer; after an error this settles nothing.
    upstream.on("end", () => {
      signal.removeEventListener("abort", cancel);
      resolve({ bytes, header, trailer });
    });
  });
}

function outgoing(metadata: Metadata): Metadata {
  const copy = metadata.clone();
  for (const name of hopHeaders) copy.remove(name);
  return copy;
}

/** containerd's own errors as they are; where it gave no answer, what that means instead of grpc-js's words for it. */
function explained(error: ServiceError): ServiceError {
  const { code, details } = error;
  if (code === status.DEADLINE_EXCEEDED && details.startsWith("Deadline exceeded after ")) {
    // What Go says on containerd's side, should it be the first to notice.
    error.details = "context deadline exceeded";
  } else if (code === status.INTERNAL && details.startsWith("Received RST_STREAM with code 2 ")) {
    error.details = "containerd's answer is too long to be passed on (over 64 KiB)";
  } else if (code === status.UNAVAILABLE) {
    const why = /^No connection established\. Last error: (?:Error: )?(.*?)\. Resolution note: *$/s.exec(
      details,
    );
    if (why) error.details = `containerd does not answer: ${why[1]}`;
  }
  return error;
}

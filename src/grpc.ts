// gRPC clients on unix sockets, and what grpc-js and Node need to be told before they serve a node well.

import http2 from "node:http2";
import { type ChannelOptions, Client, credentials, logVerbosity, setLogVerbosity } from "@grpc/grpc-js";

// grpc-js would write to standard error by itself: lines that are no log entries, with values of callers' metadata.
setLogVerbosity(logVerbosity.NONE);

/** Most bytes of an answer's header fields, and so of an error's text, that a server may send us. */
const headerBytesMax = 64 * 1024;

/**
 * A server that knows the limit ends the one call whose answer would be over it. Without, Node's HTTP/2 client meets a
 * field of over 64 KiB by reading no further, without an error, and every call on the connection waits for ever (seen
 * on 20.20). containerd's texts quote what registries say, so anybody's registry could bring that about. grpc-js has
 * no option for this setting, but looks `connect` up anew for each connection.
 */
function limitHeaders(): void {
  const { connect } = http2;
  const limited: typeof connect = (
    authority: string | URL,
    options?: unknown,
    listener?: Parameters<typeof connect>[2],
  ) => {
    const given = (typeof options === "object" ? options : {}) as http2.ClientSessionOptions;
    const settings = { maxHeaderListSize: headerBytesMax, ...given.settings };
    return connect(authority, { ...given, settings }, listener);
  };
  Object.assign(http2, { connect: limited });
}

limitHeaders();

/** Connects on the first call. */
export function clientOf(socket: string, options: ChannelOptions = {}): Client {
  return new Client(`unix:${socket}`, credentials.createInsecure(), {
    // Kubelet's authority; a Go server refuses the socket's path as one.
    "grpc.default_authority": "localhost",
    // Counts of calls and sockets that nobody here reads.
    "grpc.enable_channelz": 0,
    ...options,
  });
}

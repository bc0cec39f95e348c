// Asks a running daemon over its admin socket.

import { request } from "node:http";
import { PullError } from "../errors.ts";

/** Thousands of images that are fetched ahead. */
const answerBytesMax = 16 * 1024 * 1024;
const timeoutMs = 60_000;

/** The answer's JSON; throws `unavailable` when nobody answers, and `internal` with what the daemon says against it. */
export async function askAdmin(
  socketPath: string,
  method: "GET" | "PUT" | "POST",
  path: string,
  body?: unknown,
): Promise<unknown> {
  const { status, text } = await send(socketPath, method, path, body);
  const answer = parse(text);
  if (status === 200) return answer;
  const said =
    typeof answer === "object" && answer !== null && "error" in answer ? String(answer.error) : text;
  throw new PullError("internal", said);
}

/** What GET of a path that answers in plain text says; throws like {@link askAdmin}. */
export async function readAdmin(socketPath: string, path: string): Promise<string> {
  const { status, text } = await send(socketPath, "GET", path, undefined);
  if (status === 200) return text;
  throw new PullError("internal", `the daemon at ${socketPath} has no ${path}`);
}

/** Server-sent events of a path, until the signal is aborted or the daemon goes away; throws when it is not there at all. */
export async function followAdmin(
  socketPath: string,
  path: string,
  signal: AbortSignal,
  told: (data: unknown) => void,
): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const sent = request({ socketPath, path, agent: false, signal }, (response) => {
      if (response.statusCode !== 200) reject(new PullError("unavailable", `no ${path} at ${socketPath}`));
      let text = "";
      response.setEncoding("utf8").on("data", (piece: string) => {
        text += piece;
        if (text.length > answerBytesMax) sent.destroy();
        const events = text.split("\n\n");
        text = events.pop() ?? "";
        for (const event of events) told(parse(/^data: (.*)$/m.exec(event)?.[1] ?? ""));
      });
      response.on("close", resolve);
      response.on("error", () => resolve());
    });
    sent.on("error", (error) => (signal.aborted ? resolve() : reject(error)));
    sent.end();
  });
}

async function send(
  socketPath: string,
  method: string,
  path: string,
  body: unknown,
): Promise<{ readonly status: number | undefined; readonly text: string }> {
  return await new Promise((resolve, reject) => {
    const fail = (error: NodeJS.ErrnoException): void => {
      const isAbsent = error.code === "ENOENT" || error.code === "ECONNREFUSED";
      const why = isAbsent
        ? 'nobody listens there (is "hawser serve" running?)'
        : (error.code ?? error.message);
      reject(
        new PullError("unavailable", `cannot ask the daemon at ${socketPath}: ${why}`, { cause: error }),
      );
    };
    // A connection for each: one that is kept would go on speaking to a daemon that another has succeeded.
    const sent = request({ socketPath, method, path, timeout: timeoutMs, agent: false }, (response) => {
      let text = "";
      response.setEncoding("utf8").on("data", (piece: string) => {
        text += piece;
        if (text.length > answerBytesMax) sent.destroy(new Error("its answer is too long"));
      });
      response.on("end", () => resolve({ status: response.statusCode, text }));
      response.on("error", fail);
    });
    sent.on("timeout", () => sent.destroy(new Error("it does not answer")));
    sent.on("error", fail);
    sent.end(body === undefined ? undefined : JSON.stringify(body));
  });
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}

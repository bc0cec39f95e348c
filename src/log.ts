// The log: pino on standard error, without transports, with secrets taken out before anything is written.

import { type DestinationStream, destination, type Logger, pino } from "pino";

export type Log = Logger;
type Level = "trace" | "debug" | "info" | "warn" | "error";

export interface LogOptions {
  readonly level: Level;
  readonly format: "json" | "text";
}

/** Keys whose values never reach the log, at the top and one level down. */
const secrets = [
  "authorization",
  "Authorization",
  "auth",
  "password",
  "token",
  "access_token",
  "refresh_token",
  "identityToken",
  "registryToken",
];

/** Most characters of one field; what registries and callers say may be as long as they like. */
const fieldLengthMax = 2_000;

export function createLog(options: LogOptions, stream: DestinationStream = standardError()): Log {
  return pino(
    {
      level: options.level,
      base: null,
      redact: { paths: secrets.flatMap((key) => [key, `*.${key}`]), censor: "[redacted]" },
      timestamp: () => `,"time":"${new Date().toISOString()}"`,
      formatters: { level: (label) => ({ level: label }), log: cut },
    },
    options.format === "json" ? stream : { write: (line) => stream.write(readable(line)) },
  );
}

function cut(fields: Record<string, unknown>): Record<string, unknown> {
  const short = (value: unknown): unknown =>
    typeof value === "string" && value.length > fieldLengthMax
      ? `${value.slice(0, fieldLengthMax)}... (${value.length} characters)`
      : value;
  return Object.fromEntries(Object.entries(fields).map(([key, value]) => [key, short(value)]));
}

/**
 * A disk that is full, or a reader that has gone, must not end the daemon: lines that cannot be written wait, at most
 * a megabyte of them, and later ones are dropped.
 */
function standardError(): DestinationStream {
  const stream = destination({ fd: 2, sync: true, maxLength: 2 ** 20 });
  stream.on("error", () => {});
  return stream;
}

/** `TIME LEVEL message key=value …`, for a person at a terminal or in the journal. */
function readable(line: string): string {
  const { time, level, msg, ...rest } = JSON.parse(line) as Record<string, unknown> & {
    time: string;
    level: string;
    msg?: string;
  };
  const pairs = Object.entries(rest).map(([key, value]) => {
    const text = typeof value === "string" ? value : JSON.stringify(value);
    return ` ${key}=${/[\s"=]/.test(text) ? JSON.stringify(text) : text}`;
  });
  return `${escapeControls(`${time} ${level.padEnd(5)} ${msg ?? ""}${pairs.join("")}`)}\n`;
}

/** What registries say ends up in messages; it may neither begin a line of its own nor speak to the terminal. */
function escapeControls(text: string): string {
  return text.replace(/\p{Cc}/gu, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

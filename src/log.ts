// The log: pino on standard error, without transports, with secrets taken out before anything is written.

import { type DestinationStream, destination, type Logger, pino } from "pino";

export type Log = Logger;
type Level = "trace" | "debug" | "info" | "warn" | "error";

export interface LogOptions {
  readonly level: Level;
  readonly format: "json" | "text";
}

/** Keys whose values never reach the log, at the top and one level down. */
const secrets = ["authorization", "auth", "password", "token", "identityToken", "registryToken"];

export function createLog(
  options: LogOptions,
  stream: DestinationStream = destination({ fd: 2, sync: true }),
): Log {
  return pino(
    {
      level: options.level,
      base: null,
      redact: { paths: secrets.flatMap((key) => [key, `*.${key}`]), censor: "[redacted]" },
      timestamp: () => `,"time":"${new Date().toISOString()}"`,
      formatters: { level: (label) => ({ level: label }) },
    },
    options.format === "json" ? stream : { write: (line) => stream.write(readable(line)) },
  );
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
  return `${time} ${level.padEnd(5)} ${msg ?? ""}${pairs.join("")}\n`;
}

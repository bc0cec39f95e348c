// Credentials for a registry from standard input: not from the arguments, which every user of the machine can see.

import { addAbortSignal } from "node:stream";
import { UsageError } from "./command.ts";

/** Some registries' passwords are tokens of several kilobytes. */
const loginLengthMax = 64 * 1024;

export interface Login {
  readonly username: string;
  readonly password: string;
}

export async function readLogin(signal: AbortSignal): Promise<Login> {
  let input = "";
  for await (const piece of addAbortSignal(signal, process.stdin.setEncoding("utf8"))) {
    input += String(piece);
    if (input.length > loginLengthMax) throw new UsageError("too much on standard input for credentials");
  }
  const [username, password] = input.replace(/\r?\n$/, "").split(/:(.*)/s, 2);
  if (!username || password === undefined) throw new UsageError('expected "user:password" on standard input');
  return { username, password };
}

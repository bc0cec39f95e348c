// A kubeconfig: where the API is and as whom it is asked, by its current context.
//
// Whatever it names in other files is read each time, since kubelet's certificate and tokens are exchanged while we run.
// A program that it names for credentials (exec) is run when the last ones are about to end. Secrets stay in memory and are
// never part of a message.

import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import type { RequestOptions } from "node:https";
import { dirname, resolve } from "node:path";
import { promisify } from "node:util";
import { parse } from "yaml";
import { PullError } from "../errors.ts";

/** What node:https takes. */
export interface Target {
  readonly url: URL;
  readonly options: Pick<RequestOptions, "ca" | "cert" | "key" | "servername" | "rejectUnauthorized"> & {
    readonly headers: Readonly<Record<string, string>>;
  };
}

type Fields = Readonly<Record<string, unknown>>;

interface Granted {
  readonly token: string | undefined;
  readonly cert: string | undefined;
  readonly key: string | undefined;
  readonly untilMs: number;
}

const fileBytesMax = 2 ** 20;
const exec = { timeoutMs: 60_000, bytesMax: 2 ** 20, earlyMs: 60_000 } as const;

export class Kubeconfig {
  readonly #file: string;
  /** What a program has granted, for the text that named it. */
  #granted: (Granted & { readonly text: string }) | undefined;

  constructor(file: string) {
    this.#file = file;
  }

  /** Throws `invalid` with the file and what is wrong. */
  async read(signal?: AbortSignal): Promise<Target> {
    try {
      const text = await this.#readText(this.#file);
      const { cluster, user } = partsOf(fieldsOf(parse(text) as unknown));
      const url = new URL(wordOf(cluster["server"]) ?? "");
      if (cluster["proxy-url"] !== undefined) throw new Error("its proxy-url is not supported");
      const [ca, cert, key] = await Promise.all([
        this.#bytesOf(cluster, "certificate-authority"),
        this.#bytesOf(user, "client-certificate"),
        this.#bytesOf(user, "client-key"),
      ]);
      const granted =
        user["exec"] === undefined
          ? undefined
          : await this.#run(text, fieldsOf(user["exec"]), cluster, signal);
      const servername = wordOf(cluster["tls-server-name"]);
      return {
        url,
        options: {
          ...(ca && { ca }),
          ...((granted?.cert ?? cert) && { cert: granted?.cert ?? cert }),
          ...((granted?.key ?? key) && { key: granted?.key ?? key }),
          ...(servername && { servername }),
          ...(cluster["insecure-skip-tls-verify"] === true && { rejectUnauthorized: false }),
          headers: authorization(user, granted?.token ?? (await this.#tokenOf(user))),
        },
      };
    } catch (error) {
      const [why = ""] = PullError.from(error).message.split("\n", 1);
      throw new PullError("invalid", `the kubeconfig ${this.#file} cannot be used: ${why}`, { cause: error });
    }
  }

  /** What a program has granted is of no use any more. */
  forget(): void {
    this.#granted = undefined;
  }

  /** Given as base64, or as a file beside the kubeconfig. */
  async #bytesOf(fields: Fields, name: string): Promise<Buffer | string | undefined> {
    const data = wordOf(fields[`${name}-data`]);
    if (data) return Buffer.from(data, "base64");
    const path = wordOf(fields[name]);
    return path === undefined ? undefined : await this.#readText(this.#beside(path));
  }

  async #tokenOf(user: Fields): Promise<string | undefined> {
    const path = wordOf(user["tokenFile"]);
    return path === undefined ? wordOf(user["token"]) : (await this.#readText(this.#beside(path))).trim();
  }

  #beside(path: string): string {
    return resolve(dirname(this.#file), path);
  }

  async #readText(path: string): Promise<string> {
    const text = await readFile(path, "utf8");
    if (text.length > fileBytesMax) throw new Error(`${path} is over 1 MiB long`);
    return text;
  }

  /** A credential plugin: a program that prints an ExecCredential (client.authentication.k8s.io). */
  async #run(
    text: string,
    plugin: Fields,
    cluster: Fields,
    signal: AbortSignal | undefined,
  ): Promise<Granted> {
    const now = Date.now();
    if (this.#granted?.text === text && this.#granted.untilMs - exec.earlyMs > now) return this.#granted;
    const command = wordOf(plugin["command"]);
    if (command === undefined) throw new Error("its exec names no command");
    const apiVersion = wordOf(plugin["apiVersion"]) ?? "client.authentication.k8s.io/v1";
    const own = listOf(plugin["env"]).map(({ name, value }) => [String(name), String(value)]);
    const information = {
      kind: "ExecCredential",
      apiVersion,
      spec: { interactive: false, ...(plugin["provideClusterInfo"] === true && { cluster }) },
    };
    const { stdout } = await promisify(execFile)(
      command.includes("/") ? this.#beside(command) : command,
      wordsOf(plugin["args"]),
      {
        env: {
          PATH: usualPath,
          ...Object.fromEntries(own),
          KUBERNETES_EXEC_INFO: JSON.stringify(information),
        },
        timeout: exec.timeoutMs,
        maxBuffer: exec.bytesMax,
        ...(signal && { signal }),
      },
    ).catch((error: NodeJS.ErrnoException) => {
      // What it printed may be what nobody is to see.
      throw new Error(`${command} failed: ${error.code ?? "it was ended"}`);
    });
    this.#granted = { text, ...grantedBy(stdout) };
    return this.#granted;
  }
}

/** What programs are looked for in when a service has no PATH of its own. */
const usualPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

function grantedBy(stdout: string): Granted {
  const status = fieldsOf(fieldsOf(parseJson(stdout))["status"]);
  const until = Date.parse(wordOf(status["expirationTimestamp"]) ?? "");
  return {
    token: wordOf(status["token"]),
    cert: wordOf(status["clientCertificateData"]),
    key: wordOf(status["clientKeyData"]),
    untilMs: Number.isNaN(until) ? Number.POSITIVE_INFINITY : until,
  };
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new Error("its exec printed no JSON");
  }
}

function partsOf(document: Fields): { readonly cluster: Fields; readonly user: Fields } {
  const named = (list: string, name: unknown): Fields | undefined =>
    listOf(document[list]).find((one) => one["name"] === name);
  const current = document["current-context"];
  const context = fieldsOf(named("contexts", current)?.["context"]);
  const cluster = named("clusters", context["cluster"])?.["cluster"];
  if (cluster === undefined) throw new Error("its current context names no cluster");
  return { cluster: fieldsOf(cluster), user: fieldsOf(named("users", context["user"])?.["user"]) };
}

function authorization(user: Fields, token: string | undefined): Readonly<Record<string, string>> {
  if (token) return { authorization: `Bearer ${token}` };
  const [name, password] = [wordOf(user["username"]), wordOf(user["password"])];
  if (name === undefined || password === undefined) return {};
  return { authorization: `Basic ${Buffer.from(`${name}:${password}`).toString("base64")}` };
}

function fieldsOf(value: unknown): Fields {
  const isFields = typeof value === "object" && value !== null && !Array.isArray(value);
  return isFields ? (value as Fields) : {};
}

function listOf(value: unknown): readonly Fields[] {
  return Array.isArray(value) ? value.map(fieldsOf) : [];
}

function wordOf(value: unknown): string | undefined {
  return typeof value === "string" && value !== "" ? value : undefined;
}

function wordsOf(value: unknown): string[] {
  return Array.isArray(value) ? value.map(String) : [];
}

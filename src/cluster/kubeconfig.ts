// A kubeconfig: where the API is and as whom it is asked, by its current context or another one. Of several files, what
// comes first counts, as kubectl has it.
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
import { PullError, whileNotAborted } from "../errors.ts";
import { type Fields, fieldsOf, listOf, wordOf } from "./fields.ts";

/** What node:https takes. */
export interface Target {
  readonly url: URL;
  readonly options: Pick<RequestOptions, "ca" | "cert" | "key" | "servername" | "rejectUnauthorized"> & {
    readonly headers: Readonly<Record<string, string>>;
  };
}

export interface KubeconfigOptions {
  /** At least one. */
  readonly files: readonly string[];
  /** Another context than the current one. */
  readonly context?: string | undefined;
  /** What programs for credentials are run with besides what the kubeconfig says. */
  readonly environment?: Readonly<Record<string, string | undefined>>;
  /** For one piece of work by somebody who may choose another context meanwhile: that one stays with what it began with. */
  readonly isOfOneUse?: boolean;
}

/** What a context comes to: its cluster and user, each with the folder that its files are beside. */
interface Parts {
  readonly cluster: Fields;
  readonly user: Fields;
  readonly context: string;
  readonly clusterFolder: string;
  readonly userFolder: string;
  readonly namespace: string | undefined;
}

interface Granted {
  readonly token: string | undefined;
  readonly cert: string | undefined;
  readonly key: string | undefined;
  readonly untilMs: number;
}

const fileBytesMax = 2 ** 20;
const exec = { timeoutMs: 60_000, bytesMax: 2 ** 20, earlyMs: 60_000 } as const;

export class Kubeconfig {
  readonly #options: KubeconfigOptions;
  /** What a program has granted, for the text that named it. */
  #granted: (Granted & { readonly text: string }) | undefined;
  #granting: { readonly text: string; readonly promise: Promise<Granted> } | undefined;
  /** What it came to first, where it has to come to that again. */
  #first: { readonly context: string; readonly server: unknown } | undefined;

  constructor(options: KubeconfigOptions) {
    this.#options = options;
  }

  /** Of the context, if it has one. Throws like {@link read}. */
  async namespace(): Promise<string | undefined> {
    return await this.#using(async ({ namespace }) => namespace);
  }

  /** Throws `invalid` with the file and what is wrong. */
  async read(signal?: AbortSignal): Promise<Target> {
    return await this.#using(async (parts) => await this.#targetOf(parts, signal));
  }

  /** What a program has granted is of no use any more. */
  forget(): void {
    this.#granted = undefined;
  }

  async #using<Value>(use: (parts: Parts) => Promise<Value>): Promise<Value> {
    const { files, context, isOfOneUse } = this.#options;
    try {
      const texts = await Promise.all(files.map(readText));
      const documents = texts.map((text, index) => ({
        folder: dirname(files[index] ?? ""),
        fields: fieldsOf(parsed(text)),
      }));
      const parts = partsOf(documents, this.#first?.context ?? context);
      const server = parts.cluster["server"];
      if (this.#first && server !== this.#first.server)
        throw new Error(`its context ${parts.context} has become another cluster`);
      const value = await use(parts);
      if (isOfOneUse) this.#first = { context: parts.context, server };
      return value;
    } catch (error) {
      const [why = ""] = PullError.from(error).message.split("\n", 1);
      // What was of use once may be being written, or its program be out of luck.
      const temporary = this.#first !== undefined;
      const text = `the kubeconfig ${files.join(":")} cannot be used: ${why}`;
      throw new PullError("invalid", text, { cause: error, temporary });
    }
  }

  async #targetOf(
    { cluster, user, clusterFolder, userFolder }: Parts,
    signal: AbortSignal | undefined,
  ): Promise<Target> {
    const server = wordOf(cluster["server"]) ?? "";
    if (!URL.canParse(server))
      throw new Error(`Invalid URL: its cluster's server is ${JSON.stringify(server)}`);
    const url = new URL(server);
    if (cluster["proxy-url"] !== undefined) throw new Error("its proxy-url is not supported");
    const [ca, cert, key] = await Promise.all([
      bytesOf(cluster, "certificate-authority", clusterFolder),
      bytesOf(user, "client-certificate", userFolder),
      bytesOf(user, "client-key", userFolder),
    ]);
    const granted =
      user["exec"] === undefined
        ? undefined
        : await this.#grant(userFolder, fieldsOf(user["exec"]), cluster, signal);
    const servername = wordOf(cluster["tls-server-name"]);
    return {
      url,
      options: {
        ...(ca && { ca }),
        ...((granted?.cert ?? cert) && { cert: granted?.cert ?? cert }),
        ...((granted?.key ?? key) && { key: granted?.key ?? key }),
        ...(servername && { servername }),
        ...(cluster["insecure-skip-tls-verify"] === true && { rejectUnauthorized: false }),
        headers: authorization(user, granted?.token ?? (await tokenOf(user, userFolder))),
      },
    };
  }

  /** A credential plugin: a program that prints an ExecCredential (client.authentication.k8s.io). */
  async #grant(
    folder: string,
    plugin: Fields,
    cluster: Fields,
    signal: AbortSignal | undefined,
  ): Promise<Granted> {
    const now = Date.now();
    const text = JSON.stringify([folder, plugin, cluster]);
    if (this.#granted?.text === text && this.#granted.untilMs - exec.earlyMs > now) return this.#granted;
    if (this.#granting?.text !== text) {
      // Whoever else waits for it is not to miss it because the first one went away.
      const promise = this.#run(folder, plugin, cluster).finally(() => {
        this.#granting = undefined;
      });
      this.#granting = { text, promise };
    }
    const { promise } = this.#granting;
    const granted = await (signal ? whileNotAborted(promise, signal) : promise);
    this.#granted = { text, ...granted };
    return granted;
  }

  async #run(folder: string, plugin: Fields, cluster: Fields): Promise<Granted> {
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
      command.includes("/") ? resolve(folder, command) : command,
      wordsOf(plugin["args"]),
      {
        env: {
          PATH: usualPath,
          ...this.#options.environment,
          ...Object.fromEntries(own),
          KUBERNETES_EXEC_INFO: JSON.stringify(information),
        },
        timeout: exec.timeoutMs,
        maxBuffer: exec.bytesMax,
      },
    ).catch((error: NodeJS.ErrnoException & { readonly stderr?: string }) => {
      // What it printed may be what nobody is to see; what it has to say to a person it says on its standard error.
      const [said = ""] = this.#options.isOfOneUse ? (error.stderr ?? "").trim().split("\n") : [];
      throw new Error(
        `${command} failed: ${error.code ?? "it was ended"}${said && `: ${said.slice(0, 300)}`}`,
      );
    });
    return grantedBy(stdout);
  }
}

/** Given as base64, or as a file beside the kubeconfig. */
async function bytesOf(fields: Fields, name: string, folder: string): Promise<Buffer | string | undefined> {
  const data = wordOf(fields[`${name}-data`]);
  if (data) return Buffer.from(data, "base64");
  const path = wordOf(fields[name]);
  return path === undefined ? undefined : await readText(resolve(folder, path));
}

async function tokenOf(user: Fields, folder: string): Promise<string | undefined> {
  const path = wordOf(user["tokenFile"]);
  return path === undefined ? wordOf(user["token"]) : (await readText(resolve(folder, path))).trim();
}

async function readText(path: string): Promise<string> {
  const text = await readFile(path, "utf8");
  if (text.length > fileBytesMax) throw new Error(`${path} is over 1 MiB long`);
  return text;
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

/** Throws with no word of what stands in it. */
function parsed(text: string): unknown {
  let where = "";
  try {
    return parse(text);
  } catch (error) {
    const { linePos } = error as { readonly linePos?: readonly { readonly line: number }[] };
    if (linePos?.[0]) where = ` (line ${linePos[0].line})`;
  }
  throw new Error(`it cannot be read as YAML${where}`);
}

interface Document {
  readonly folder: string;
  readonly fields: Fields;
}

function partsOf(documents: readonly Document[], wanted: string | undefined): Parts {
  const named = (
    list: string,
    name: unknown,
  ): { readonly folder: string; readonly found: Fields } | undefined => {
    const all = documents.flatMap(({ folder, fields }) =>
      listOf(fields[list]).map((found) => ({ folder, found })),
    );
    return all.find(({ found }) => found["name"] === name);
  };
  const [own] = documents.flatMap(({ fields }) => wordOf(fields["current-context"]) ?? []);
  const current = wanted ?? own;
  const found = named("contexts", current);
  if (found === undefined && wanted !== undefined) throw new Error(`it has no context ${wanted}`);
  const context = fieldsOf(found?.found["context"]);
  const cluster = named("clusters", context["cluster"]);
  if (cluster?.found["cluster"] === undefined) throw new Error("its current context names no cluster");
  const user = named("users", context["user"]);
  return {
    cluster: fieldsOf(cluster.found["cluster"]),
    user: fieldsOf(user?.found["user"]),
    context: String(current),
    clusterFolder: cluster.folder,
    userFolder: user?.folder ?? cluster.folder,
    namespace: wordOf(context["namespace"]),
  };
}

function authorization(user: Fields, token: string | undefined): Readonly<Record<string, string>> {
  if (token) return { authorization: `Bearer ${token}` };
  const [name, password] = [wordOf(user["username"]), wordOf(user["password"])];
  if (name === undefined || password === undefined) return {};
  return { authorization: `Basic ${Buffer.from(`${name}:${password}`).toString("base64")}` };
}

function wordsOf(value: unknown): string[] {
  return Array.isArray(value) ? value.map(String) : [];
}

// A private Prometheus: a server of its own that scrapes one daemon, and promtool, which judges files.

import { spawnSync } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { scratch } from "./containerd.ts";
import { eventually, freePort, ServerProcess } from "./process.ts";

/** A series of a query's answer, with its last value. */
export interface Sample {
  readonly metric: Readonly<Record<string, string>>;
  readonly value: readonly [number, string];
}

interface Alert {
  readonly labels: Readonly<Record<string, string>>;
  readonly annotations: Readonly<Record<string, string>>;
  readonly state: "pending" | "firing";
}

export interface PrometheusOptions {
  /** Its configuration, in which the rules are a file beside it. */
  readonly config: string;
  readonly rules: string;
}

export class PrivatePrometheus implements AsyncDisposable {
  readonly #root: string;
  readonly #url: string;
  readonly #process: ServerProcess;

  private constructor(root: string, port: number) {
    this.#root = root;
    this.#url = `http://127.0.0.1:${port}`;
    this.#process = new ServerProcess("prometheus", [
      `--config.file=${root}/prometheus.yaml`,
      `--storage.tsdb.path=${root}/data`,
      `--web.listen-address=127.0.0.1:${port}`,
      // What the package would read from the system.
      "--web.console.templates=/nonexistent",
      "--web.console.libraries=/nonexistent",
    ]);
  }

  /** Resolves once it answers. */
  static async start({ config, rules }: PrometheusOptions): Promise<PrivatePrometheus> {
    const root = await mkdtemp(join(scratch(), "prometheus-"));
    await writeFile(join(root, "prometheus.yaml"), config);
    await writeFile(join(root, "hawser.rules.yaml"), rules);
    const prometheus = new PrivatePrometheus(root, await freePort());
    try {
      await eventually(async () => {
        prometheus.#process.throwIfOver();
        if (!(await fetch(`${prometheus.#url}/-/ready`)).ok) throw new Error("not ready");
      }, "a Prometheus that is ready");
    } catch (error) {
      await prometheus[Symbol.asyncDispose]();
      throw error;
    }
    return prometheus;
  }

  /** What an expression comes to now; throws with what is said against it. */
  async query(expression: string): Promise<readonly Sample[]> {
    const { result } = (await this.#ask(`/api/v1/query?query=${encodeURIComponent(expression)}`)) as {
      result: readonly Sample[];
    };
    return result;
  }

  /** Of rules that cannot be computed, what is said against them. */
  async ruleErrors(): Promise<readonly string[]> {
    const { groups } = (await this.#ask("/api/v1/rules")) as {
      groups: readonly {
        readonly rules: readonly { readonly name: string; readonly lastError?: string }[];
      }[];
    };
    return groups.flatMap(({ rules }) =>
      rules.flatMap(({ name, lastError }) => (lastError ? [`${name}: ${lastError}`] : [])),
    );
  }

  /** Alerts that fire now. */
  async firing(): Promise<readonly Alert[]> {
    const { alerts } = (await this.#ask("/api/v1/alerts")) as { alerts: readonly Alert[] };
    return alerts.filter(({ state }) => state === "firing");
  }

  async untilFiring(name: string): Promise<Alert> {
    return await eventually(async () => {
      const all = await this.firing();
      const found = all.find(({ labels }) => labels["alertname"] === name);
      if (found) return found;
      throw new Error(`these fire: ${all.map(({ labels }) => labels["alertname"]).join(", ")}`);
    }, name);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process.stop();
    await rm(this.#root, { recursive: true, force: true });
  }

  async #ask(path: string): Promise<unknown> {
    const response = await fetch(`${this.#url}${path}`);
    const { data, error } = (await response.json()) as { data: unknown; error?: string };
    if (error !== undefined) throw new Error(`${path}: ${error}`);
    return data;
  }
}

/** What promtool says, and whether it is content. */
export function promtool(...args: readonly string[]): {
  readonly status: number | null;
  readonly text: string;
} {
  const { status, stdout, stderr } = spawnSync("promtool", args, { encoding: "utf8" });
  return { status, text: stdout + stderr };
}

// The operator's switch: while it is on, every pull goes through to containerd.
//
// It is kept in memory, and in a file if it is to outlast this process. A file that cannot be read counts as on: what
// an operator has decided against is not begun with because a disk is full.

import { mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { PullError } from "../errors.ts";

export type SwitchState = { readonly kind: "off" } | { readonly kind: "on"; readonly persistent: boolean };

export class PassThroughSwitch {
  readonly #file: string;
  #state: SwitchState;

  private constructor(file: string, state: SwitchState) {
    this.#file = file;
    this.#state = state;
  }

  /** As the file says; it holds a sentence for people, and being there is what counts. */
  static async open(file: string): Promise<PassThroughSwitch> {
    const isOn = await readFile(file).then(
      () => true,
      (error: NodeJS.ErrnoException) => error.code !== "ENOENT" && error.code !== "ENOTDIR",
    );
    return new PassThroughSwitch(file, isOn ? { kind: "on", persistent: true } : { kind: "off" });
  }

  get state(): SwitchState {
    return this.#state;
  }

  /** Throws `internal`, with nothing changed, when the file cannot be written or removed. */
  async set(state: SwitchState): Promise<void> {
    try {
      if (state.kind === "on" && state.persistent) await this.#write();
      else await rm(this.#file, { force: true });
    } catch (error) {
      const code = error instanceof Error && "code" in error ? String(error.code) : String(error);
      throw new PullError("internal", `the switch cannot be kept in ${this.#file}: ${code}`, {
        cause: error,
      });
    }
    this.#state = state;
  }

  async #write(): Promise<void> {
    await mkdir(dirname(this.#file), { recursive: true, mode: 0o755 });
    const temporary = `${this.#file}.new`;
    await writeFile(
      temporary,
      'Every pull goes through to containerd; "hawser passthrough off" ends that.\n',
    );
    await rename(temporary, this.#file);
  }
}

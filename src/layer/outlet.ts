// Where a tar stream goes as it comes out of a decompressor, which writes straight into the place that it is given.

import type { Output } from "./decompress.ts";

/** Part of a buffer, never empty. */
export interface Room {
  readonly buffer: Buffer;
  readonly start: number;
  readonly end: number;
}

export interface Outlet {
  /** Room for the next bytes of the stream. May wait for it. */
  room(): Room;
  /** The first bytes of the last room are filled. They may be passed on now, or together with more. */
  filled(bytes: number): void;
  /** Nothing more comes for a while: passes on what is filled. */
  flush(): void;
}

const bufferBytes = 1024 * 1024;

/** Hands the stream to a callback in the same thread, in pieces as large as its one buffer where they come close together. */
export class CallbackOutlet implements Outlet {
  readonly #output: Output;
  readonly #buffer = Buffer.allocUnsafeSlow(bufferBytes);
  #filledBytes = 0;

  constructor(output: Output) {
    this.#output = output;
  }

  room(): Room {
    return { buffer: this.#buffer, start: this.#filledBytes, end: bufferBytes };
  }

  filled(bytes: number): void {
    this.#filledBytes += bytes;
    if (this.#filledBytes === bufferBytes) this.flush();
  }

  flush(): void {
    const end = this.#filledBytes;
    this.#filledBytes = 0;
    if (end > 0) this.#output(this.#buffer, 0, end);
  }
}

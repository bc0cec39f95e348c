// Memory that a connection receives into, used over and over: what came and was not taken yet, in parts.
//
// Two blocks are filled in turn. A part is good until it is given back; a block is filled again once all of its parts
// were. Over TLS a few parts may come after the connection was told to pause, and have more memory made for them.

const blockBytes = 256 * 1024;
/** Where less is left of a block, the next one is filled. */
const roomBytesMin = 64 * 1024;

interface Block {
  readonly memory: Buffer;
  filledBytes: number;
  /** Parts of it that were not given back. */
  parts: number;
}

interface Part {
  readonly bytes: Buffer;
  readonly block: Block;
}

export class Inbox {
  #blocks: Block[] = [makeBlock()];
  #parts: Part[] = [];
  #taken: Part | undefined;
  #unreadBytes = 0;

  get unreadBytes(): number {
    return this.#unreadBytes;
  }

  /** Where the next bytes are to be put; asked for once before each {@link came}. */
  room(): Buffer {
    const [first] = this.#blocks;
    if (first && first.memory.length - first.filledBytes >= roomBytesMin)
      return first.memory.subarray(first.filledBytes);
    const free = this.#blocks.find(({ parts }) => parts === 0) ?? makeBlock();
    free.filledBytes = 0;
    this.#blocks = [free, ...this.#blocks.filter((block) => block !== free)].slice(0, 2);
    return free.memory;
  }

  /** So many bytes are in the room that was given. */
  came(bytes: number): void {
    const [block] = this.#blocks;
    if (block === undefined || bytes === 0) return;
    const end = block.filledBytes + bytes;
    this.#parts.push({ bytes: block.memory.subarray(block.filledBytes, end), block });
    block.filledBytes = end;
    block.parts += 1;
    this.#unreadBytes += bytes;
  }

  /** The next part, at most so long, good until the next call; undefined when there is none. */
  take(bytesMax: number): Buffer | undefined {
    this.giveBack();
    this.#taken = this.#parts.shift();
    if (this.#taken === undefined) return undefined;
    const { bytes, block } = this.#taken;
    if (bytes.length > bytesMax) {
      this.#parts.unshift({ bytes: bytes.subarray(bytesMax), block });
      block.parts += 1;
    }
    const part = bytes.subarray(0, bytesMax);
    this.#unreadBytes -= part.length;
    return part;
  }

  /** Of the part that was taken last. */
  giveBack(): void {
    if (this.#taken) this.#taken.block.parts -= 1;
    this.#taken = undefined;
  }
}

function makeBlock(): Block {
  return { memory: Buffer.allocUnsafeSlow(blockBytes), filledBytes: 0, parts: 0 };
}

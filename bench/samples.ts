// What perf saw a process do: each sample of a thread that ran, put down to one kind of work by where it was.
//
// The kernel's part of a stack is reliable and says which call it was. Of the program's part only the innermost function
// counts, since the libraries that do most of the work keep no frame pointers.

/** A kind of work, in the order in which it is told. */
const kinds = [
  { name: "inflate", where: /^(?:isal_|decode_huffman|crc32_gzip|.*_isal|ZSTD|HUF|FSE|XXH)|libisal/ },
  { name: "sha256", where: /^(?:sha256_|SHA256_)/ },
  { name: "copies in memory", where: /^(?:__mem|mem(?:cpy|move|set))|(?:__memmove|__memset|__memcpy)/ },
  {
    name: "V8 collects garbage",
    where: /v8::internal::(?:Scaveng|Heap|Mark|Sweep|Concurrent|GC|Evacuat|.*(?:Scavenge|Marking|Sweeper))/,
  },
  {
    name: "V8 compiles",
    where: /v8::internal::(?:compiler|baseline|interpreter|maglev|Compiler|Parser|Pars|wasm)/,
  },
  { name: "the addon's own code", where: /hawser\.node/ },
] as const;
const rest = "JavaScript, Node and V8";

export interface Sample {
  readonly tid: number;
  readonly kind: string;
}

/** Reads what `perf script -F pid,tid,ip,sym,dso` prints. */
export function* samplesOf(text: string): Generator<Sample> {
  for (const block of text.split(/\n\s*\n/)) {
    const [head = "", ...frames] = block.trim().split("\n");
    const tid = /^\d+\/(\d+)/.exec(head)?.[1];
    if (tid === undefined) continue;
    // Address, symbol (with an offset or not), and the file in parentheses.
    const stack = frames.map((frame) => frame.trim().replace(/^[0-9a-f]+ /, ""));
    yield { tid: Number(tid), kind: kindOf(stack) };
  }
}

function kindOf(stack: readonly string[]): string {
  const [leaf = ""] = stack;
  const isKernel = (frame: string): boolean =>
    /\(\[(?:kernel|guest|vdso)/.test(frame) || frame.endsWith(".ko)");
  if (isKernel(leaf)) {
    const kernel = stack.filter(isKernel);
    const call = kernel
      .map((frame) => /^(?:__\w+_sys_|ksys_)(\w+?)(?:\+| |$)/.exec(frame)?.[1])
      .find(Boolean);
    if (call !== undefined) return `kernel: ${call}`;
    if (kernel.some((frame) => frame.includes("page_fault"))) return "kernel: page faults";
    return kernel.some((frame) => frame.startsWith("do_syscall"))
      ? "kernel: the way in and out"
      : "kernel: interrupts and switches";
  }
  return kinds.find(({ where }) => where.test(leaf))?.name ?? rest;
}

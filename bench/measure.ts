// What a process has cost so far, and how figures of several runs are put together.

import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { cpus, release, totalmem } from "node:os";

/** Ticks a second of /proc's times; fixed in the kernel's interface to user space. */
const ticks = 100;

/** CPU seconds of a process, its children, and those that it has waited for (unpigz among them). */
export function cpuSeconds(pid: number): number {
  return sumOf(pid, (one) => {
    const fields = readFileSync(`/proc/${one}/stat`, "utf8")
      .replace(/^.*\) /, "")
      .split(" ");
    return [11, 12, 13, 14].reduce((sum, index) => sum + Number(fields[index]), 0) / ticks;
  });
}

/** Peak resident memory of a process and its children, in MiB; what they share is counted for each. */
export function peakMiB(pid: number): number {
  return sumOf(pid, (one) => {
    const text = readFileSync(`/proc/${one}/status`, "utf8");
    return Number(/VmHWM:\s+(\d+) kB/.exec(text)?.[1] ?? 0) / 1024;
  });
}

function sumOf(pid: number, measure: (pid: number) => number): number {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").split(" ").filter(Boolean);
  return children.reduce((sum, child) => sum + measure(Number(child)), measure(pid));
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const [low = 0, high = 0] =
    sorted.length % 2 === 1 ? [sorted[middle], sorted[middle]] : [sorted[middle - 1], sorted[middle]];
  return (low + high) / 2;
}

/** Least and greatest. */
export function spread(values: readonly number[]): string {
  return `${Math.min(...values).toFixed(2)}-${Math.max(...values).toFixed(2)}`;
}

export function machine(): string {
  const [first] = cpus();
  const memory = `${Math.round(totalmem() / 2 ** 30)} GiB`;
  return `${cpus().length} x ${first?.model ?? "unknown processor"}, ${memory}, Linux ${release()}`;
}

/**
 * Versions of what is compared. Throws where containerd would not use unpigz: it looks for that in PATH, says nothing
 * when it is not there, and is then not at its best.
 */
export function programs(): string {
  if (process.env["CONTAINERD_DISABLE_PIGZ"]) throw new Error("CONTAINERD_DISABLE_PIGZ is set");
  const said = (command: string): string => execFileSync(command, ["--version"], { encoding: "utf8" }).trim();
  const containerd = said("containerd").split(" ")[2] ?? "";
  return `Node ${process.version}, containerd ${containerd} with unpigz (${said("unpigz")})`;
}

/** Rows under a heading, columns aligned. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  return rows
    .map((row) =>
      row
        .map((cell, column) =>
          column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0),
        )
        .join("  "),
    )
    .join("\n");
}

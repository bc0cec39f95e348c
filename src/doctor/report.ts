// Findings as text for people, aligned and grouped by subject, and as JSON for machines.

import type { Finding, Report, State } from "./doctor.ts";

const states: readonly State[] = ["ok", "slow", "broken", "unknown"];

/** Select Graphic Rendition (ECMA-48): green, yellow, red, magenta. */
const colours: Readonly<Record<State, number>> = { ok: 32, slow: 33, broken: 31, unknown: 35 };
const bold = 1;

/** One subject, each line ending in a newline. */
export function renderReport({ subject, findings }: Report, isColoured: boolean): string {
  const paint = (text: string, code: number): string =>
    isColoured ? `\u001b[${code}m${text}\u001b[0m` : text;
  const lines = findings.flatMap(({ state, what, finding, todo }) => [
    `  ${paint(state.padEnd(7), colours[state])}  ${what}: ${finding}`,
    ...(todo === undefined ? [] : [`           do: ${todo}`]),
  ]);
  return [paint(subject, bold), ...lines].map((line) => `${line}\n`).join("");
}

/** How many of each, in one line. */
export function renderSum(reports: readonly Report[]): string {
  const all = reports.flatMap(({ findings }) => findings);
  return `${states.map((state) => `${countOf(all, state)} ${state}`).join(", ")}\n`;
}

export function renderJson(reports: readonly Report[], version: string): string {
  const findings = reports.flatMap(({ subject, findings: own }) =>
    own.map(({ state, what, finding, todo }) => ({
      subject,
      state,
      what,
      finding,
      ...(todo !== undefined && { do: todo }),
    })),
  );
  const counts = Object.fromEntries(states.map((state) => [state, countOf(findings, state)]));
  return `${JSON.stringify({ version, counts, findings }, undefined, 2)}\n`;
}

export function isBroken(reports: readonly Report[]): boolean {
  return reports.some(({ findings }) => countOf(findings, "broken") > 0);
}

function countOf(findings: readonly Pick<Finding, "state">[], state: State): number {
  return findings.filter((one) => one.state === state).length;
}

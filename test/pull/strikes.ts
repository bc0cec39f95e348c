// What containerd answers instead, and when: a fault at one step of a row of steps, or at all of a name.

import { status } from "@grpc/grpc-js";
import type { Fault } from "../fakes/memory/serving.ts";

/** The last one comes once the step is done, as when the connection breaks over the answer. */
export const faults: readonly Fault[] = [
  { code: status.ALREADY_EXISTS, moment: "before" },
  { code: status.NOT_FOUND, moment: "before" },
  { code: status.UNAVAILABLE, moment: "before" },
  { code: status.UNAVAILABLE, moment: "after" },
];

export interface Strike {
  readonly step: string;
  /** Which of the steps with this name, counted from 1. */
  readonly which: number | "all";
  readonly fault: Fault;
}

export function answered({ code, moment }: Fault): string {
  return moment === "before" ? status[code] : `${status[code]} ${moment} it is done`;
}

export function nameOf({ step, which, fault }: Strike): string {
  return `${answered(fault)} at ${which === "all" ? "every" : `number ${which} of`} ${step}`;
}

/** To be asked at each step; counts how often it struck. */
export function strikeOf(strikes: readonly Strike[]): {
  fault(step: string): Fault | undefined;
  count(): number;
} {
  const seen = new Map<string, number>();
  let count = 0;
  return {
    fault: (step) => {
      const number = (seen.get(step) ?? 0) + 1;
      seen.set(step, number);
      const strike = strikes.find(
        ({ step: name, which }) => name === step && (which === "all" || which === number),
      );
      if (strike) count += 1;
      return strike?.fault;
    },
    count: () => count,
  };
}

/** One strike at each of these steps, from the first of a name on. */
export function strikesAt(steps: readonly string[], fault: Fault, from = steps[0] ?? ""): Strike[] {
  const numbered = steps.map((step, at) => {
    const which = steps.slice(0, at + 1).filter((one) => one === step).length;
    return { step, which, fault };
  });
  const wanted = numbered.slice(steps.indexOf(from));
  return wanted.filter((strike) => !isLie(strike) && !isRepetition(strike));
}

/** That a lease or a namespace is gone is believed, so it must not be said of one that is there. */
function isLie({ step, fault }: Strike): boolean {
  return fault.code === status.NOT_FOUND && /^(?:Leases|Namespaces)\/Delete$/.test(step);
}

/** What only reads is the same before and after. */
function isRepetition({ step, fault }: Strike): boolean {
  return (
    fault.moment === "after" && /\/(?:Get|Info|List|ListResources|Plugins|Stat|Status|Version)$/.test(step)
  );
}

// Who comes first among those who wait: smaller is more urgent. One that may change says how urgent it is when it is asked,
// and whoever changes it has the waiters looked at again.

export type Urgency = number | { readonly value: number };

export function valueOf(urgency: Urgency): number {
  return typeof urgency === "number" ? urgency : urgency.value;
}

/** Puts one that comes now behind those that are as urgent. */
export function enqueue<Waiter extends { readonly urgency: Urgency }>(
  waiters: Waiter[],
  waiter: Waiter,
): void {
  const after = waiters.findIndex((other) => valueOf(other.urgency) > valueOf(waiter.urgency));
  waiters.splice(after === -1 ? waiters.length : after, 0, waiter);
}

/** Brings them in order where an urgency has changed; those that are as urgent stay in theirs. */
export function reorder(waiters: { readonly urgency: Urgency }[]): void {
  waiters.sort((one, other) => valueOf(one.urgency) - valueOf(other.urgency));
}

// A CloneSet and its pods are watched by two streams. Where the CloneSet's told first that all was done, nobody looked again
// when the pods' did, and an upgrade that had succeeded was rolled back once its time was over.

import { expect, test } from "vitest";
import { eventually } from "../harness/process.ts";
import { Rig } from "../inplace/rig.ts";

test("a CloneSet that says it is done before its pods are heard of is believed once they are", async () => {
  const rig = await Rig.open(2, { kind: "cloneset" });
  try {
    let hear = (): void => {};
    const heard = new Promise<void>((resolve) => {
      hear = resolve;
    });
    rig.onEvent = (event) => {
      if (event.event !== "pod" || event.step !== "restarting") return;
      rig.onEvent = () => {};
      rig.api.behave = ({ identity, path, query }) =>
        identity === "operator" && query["watch"] && path.endsWith("/pods") ? { hold: heard } : undefined;
      rig.api.endWatches();
    };
    const done = rig.upgrade({ timeoutMs: 5_000 });
    await eventually(async () => {
      const status = await Promise.resolve(rig.workload?.["status"]);
      expect([rig.template, status]).toEqual(["app:2", expect.objectContaining({ updatedReadyReplicas: 2 })]);
    }, "a CloneSet that is done");
    hear();
    expect(await done).toEqual({ kind: "upgraded", pods: 2 });
  } finally {
    await rig[Symbol.asyncDispose]();
  }
});

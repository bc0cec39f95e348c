// Upgrades in place, end to end against fakes of the cluster that pull nothing.

import { afterEach, expect, test } from "vitest";
import { Rig } from "./rig.ts";

let rig: Rig;

afterEach(async () => {
  await rig[Symbol.asyncDispose]();
});

test("a StatefulSet's pods get the image in place, one after another, and its template last", async () => {
  rig = await Rig.open();
  const uids = rig.all.map(({ metadata }) => metadata["uid"]);
  const outcome = await rig.upgrade();
  expect(outcome).toEqual({ kind: "upgraded", pods: 3 });
  expect(rig.images).toEqual({ "web-0": "app:2", "web-1": "app:2", "web-2": "app:2" });
  expect(rig.template).toBe("app:2");
  expect(rig.all.map(({ metadata }) => metadata["uid"])).toEqual(uids);
  expect(rig.worst).toBe(1);
  expect(rig.annotations).toEqual([]);
  expect(rig.api.list("/apis/coordination.k8s.io/v1/leases")).toEqual([]);
});

// The contract of the face containerd/containerd.ts, for whatever answers on the other side of the socket: each
// containerd to be had, and the fake that stands for them where a real one cannot be made to fail as wanted.

import { afterAll, afterEach, beforeAll, describe } from "vitest";
import { Bench, type Start } from "./bench.ts";
import { describeConnection } from "./connection.ts";
import { describeAdoption, describeContent } from "./content.ts";
import { describeLeases } from "./leases.ts";
import { describeSnapshots } from "./snapshots.ts";
import { describeWrite } from "./write.ts";

export function describeContainerd(name: string, start: Start): void {
  describe(name, () => {
    let opened: Bench;
    const bench = (): Bench => opened;

    beforeAll(async () => {
      opened = await Bench.open(start);
    });

    afterEach(async () => {
      await opened.endTest();
    });

    afterAll(async () => {
      await opened[Symbol.asyncDispose]();
    });

    describeLeases(bench);
    describeContent(bench);
    describeAdoption(bench);
    describeWrite(bench, start);
    describeSnapshots(bench);
    describeConnection(bench);
  });
}

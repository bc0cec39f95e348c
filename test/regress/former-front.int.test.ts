// A client that kept its connection to the admin socket kept the former front after an upgrade, and had its answers: no
// process that pulls, and the version that was.

import { Agent, request } from "node:http";
import { join } from "node:path";
import { expect, test } from "vitest";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { eventually } from "../harness/process.ts";

test("after a succession a client that keeps its connection is answered by the successor", async () => {
  await using containerd = await PrivateContainerd.start();
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  const socketPath = join(hawser.root, "admin.sock");
  const ask = async (): Promise<{ pid: number; isKept: boolean }> =>
    await new Promise((resolve, reject) => {
      const sent = request({ socketPath, path: "/status", agent }, (response) => {
        let text = "";
        response.setEncoding("utf8").on("data", (piece: string) => {
          text += piece;
        });
        response.on("end", () =>
          resolve({ ...(JSON.parse(text) as { pid: number }), isKept: sent.reusedSocket }),
        );
      });
      sent.on("error", reject);
      sent.end();
    });
  const former = hawser.pid;
  await ask();
  // Only what is asked on a connection that was kept can show the fault.
  expect(await ask()).toMatchObject({ pid: former, isKept: true });
  process.kill(former, "SIGUSR2");
  const successor = await eventually(async () => {
    const { pid } = await ask();
    if (pid === former) throw new Error("the former answers");
    return pid;
  }, "an answer of the successor");
  await eventually(async () => expect(() => process.kill(former, 0)).toThrow(/ESRCH/), "the former's end");
  expect(await ask()).toMatchObject({ pid: successor });
  agent.destroy();
});

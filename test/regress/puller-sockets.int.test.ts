// A front and its puller that were killed at once left the puller's socket for good: a file for each crash of a node.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { eventually } from "../harness/process.ts";

/** Names beside the front's socket that are like those of pullers' sockets. */
function sockets(hawser: PrivateHawser): string[] {
  return readdirSync(hawser.root).filter((name) => /^hawser\.sock\.\d/.test(name));
}

test("the next front removes the sockets of dead fronts, and no others", async () => {
  await using containerd = await PrivateContainerd.start();
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const own = sockets(hawser);
  expect(own).toEqual([`hawser.sock.${hawser.pid}.1`]);
  // This process is alive, and for the front it is a front like any other.
  const living = `hawser.sock.${process.pid}.1`;
  const foreign = "hawser.sock.1x.1";
  // A shell that becomes another program never learns that its child has ended.
  const script = "sleep 0.2 & echo $!; exec sleep 1000";
  const parent = spawn("sh", ["-c", script], { stdio: ["ignore", "pipe", "ignore"] });
  const [said] = (await once(parent.stdout, "data")) as [Buffer];
  const pid = said.toString().trim();
  await eventually(async () => expect(readFileSync(`/proc/${pid}/cmdline`, "utf8")).toBe(""), "its end");
  const unreaped = `hawser.sock.${pid}.1`;
  for (const name of [living, foreign, unreaped]) writeFileSync(join(hawser.root, name), "");
  await hawser.stop("SIGKILL");
  expect(sockets(hawser)).toEqual(expect.arrayContaining(own));
  await hawser.startAgain();
  expect(sockets(hawser).sort()).toEqual([living, foreign, `hawser.sock.${hawser.pid}.1`].sort());
  parent.kill();
  await once(parent, "exit");
  await hawser.stop();
  expect(sockets(hawser).sort()).toEqual([living, foreign].sort());
});

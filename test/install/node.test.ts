// What an installation makes different for a node whose containerd is not the usual one.

import { expect, test } from "vitest";
import { configFor, dropInFor } from "../../src/install/node.ts";

const at = (address: string, root: string, snapshots = `${root}/io.containerd.snapshotter.v1.overlayfs`) => ({
  address,
  content: `${root}/io.containerd.content.v1.content`,
  snapshots,
});
const usual = at("/run/containerd/containerd.sock", "/var/lib/containerd");
const k3s = at("/run/k3s/containerd/containerd.sock", "/var/lib/rancher/k3s/agent/containerd");

/** The lines that set something. */
const settings = (text: string | undefined): string[] =>
  (text ?? "").split("\n").filter((line) => line !== "" && !line.startsWith("#"));

test("a usual node needs nothing", () => {
  expect(dropInFor(usual)).toBeUndefined();
  expect(settings(configFor(usual))).toEqual([]);
});

test("k3s and RKE2: their socket, and their root in place of the usual one", () => {
  expect(settings(dropInFor(k3s))).toEqual([
    "[Service]",
    "Environment=HAWSER_CONTAINERD=/run/k3s/containerd/containerd.sock",
    "ReadWritePaths=",
    "ReadWritePaths=/var/lib/rancher/k3s/agent/containerd",
  ]);
  expect(settings(configFor(k3s))).toEqual([
    "[containerd]",
    'address = "/run/k3s/containerd/containerd.sock"',
  ]);
});

test("a configuration that is given keeps its words, and has what the node needs unless it says so itself", () => {
  const given = "# of a cluster\n[download]\nretries = 1\n";
  expect(configFor(usual, given)).toBe(given);
  expect(settings(configFor(k3s, given))).toEqual([
    "[download]",
    "retries = 1",
    "[containerd]",
    'address = "/run/k3s/containerd/containerd.sock"',
  ]);
  const whole = '[containerd]\naddress = "/elsewhere.sock"\n';
  expect(configFor(k3s, whole)).toBe(whole);
});

test("snapshots elsewhere are a second path; a root in a home is not hidden", () => {
  const elsewhere = at(usual.address, "/home/containerd", "/data/snapshots");
  expect(settings(dropInFor(elsewhere)).slice(2)).toEqual([
    "ReadWritePaths=",
    "ReadWritePaths=/home/containerd",
    "ReadWritePaths=/data/snapshots",
    "ProtectHome=no",
  ]);
});

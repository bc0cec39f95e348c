// The fake kubelet with all that is real: images pulled through Hawser, containers run by containerd, and one of them
// exchanged in a pod that runs.

import { afterAll, beforeAll, expect, test } from "vitest";
import { FakeApi } from "../fakes/api.ts";
import { FakeKubelet } from "../fakes/kubelet.ts";
import type { ContainerStatus } from "../fakes/kubernetes/podstatus.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { busyboxLayers, type PushedImage, pushImage, pushPause } from "../harness/images.ts";
import { eventually } from "../harness/process.ts";
import { PrivateRegistry } from "../harness/registry.ts";

const pods = "/api/v1/pods";

let registry: PrivateRegistry;
let containerd: PrivateContainerd;
let hawser: PrivateHawser;
let api: FakeApi;

beforeAll(async () => {
  [registry, api] = await Promise.all([PrivateRegistry.start(), FakeApi.start()]);
  const pause = await pushPause(registry);
  containerd = await PrivateContainerd.start({ sandboxImage: pause.reference });
  hawser = await PrivateHawser.start({ containerd: containerd.address });
});

afterAll(async () => {
  await hawser[Symbol.asyncDispose]();
  await containerd[Symbol.asyncDispose]();
  await api[Symbol.asyncDispose]();
  await registry[Symbol.asyncDispose]();
});

async function push(tag: string, index: boolean): Promise<PushedImage> {
  const config = { config: { Entrypoint: ["/bin/busybox", "sleep", "1000000"], Env: [`TAG=${tag}`] } };
  return await pushImage(registry, `app:${tag}`, busyboxLayers(), { config, index });
}

function containerOf(name: string): ContainerStatus | undefined {
  const status = api.read(pods, "web", "default")?.["status"] as { containerStatuses?: ContainerStatus[] };
  return status.containerStatuses?.find((one) => one.name === name);
}

async function untilRunning(name: string, { reference, repository, target }: PushedImage): Promise<void> {
  const imageID = `${registry.host}/${repository}@${target.digest}`;
  const expected = { image: reference, imageID, ready: true, state: { running: {} } };
  await eventually(
    async () => expect(containerOf(name)).toMatchObject(expected),
    `${name} with ${reference}`,
  );
}

test("a container really runs, and runs again with another image, which a pull through Hawser has brought", async () => {
  const [first, second] = [await push("1", false), await push("2", true)];
  const kubelet = new FakeKubelet({ api, images: hawser.cri, containerd });
  try {
    const containers = ["app", "side"].map((name) => ({ name, image: first.reference }));
    const metadata = { name: "web", namespace: "default" };
    api.put(pods, { metadata, spec: { nodeName: api.nodeName, containers } });
    for (const name of ["app", "side"]) await untilRunning(name, first);
    const [app, side] = [containerOf("app"), containerOf("side")];
    api.update(pods, "web", "default", (pod) => {
      const [, other] = containers;
      const spec = { nodeName: api.nodeName, containers: [{ name: "app", image: second.reference }, other] };
      return { ...pod, spec };
    });
    await untilRunning("app", second);
    expect(containerOf("app")).toMatchObject({ restartCount: 1 });
    expect(containerOf("app")?.containerID).not.toBe(app?.containerID);
    expect(containerOf("side")).toEqual(side);
    const running = containerd.ctr("tasks", "ls");
    const idOf = (name: string): string =>
      containerOf(name)?.containerID?.replace("containerd://", "") ?? "none";
    for (const name of ["app", "side"]) expect(running).toContain(idOf(name));
    expect(running).not.toContain(app?.containerID?.replace("containerd://", ""));
    expect(kubelet.events.filter((event) => event.startsWith("Pulling"))).toEqual([
      `Pulling web/app: ${first.reference}`,
      `Pulling web/app: ${second.reference}`,
    ]);
    expect(await hawser.metrics()).toMatch(/hawser_pulls_total\{[^}]*\} 2/);
  } finally {
    await kubelet[Symbol.asyncDispose]();
  }
  expect(containerd.ctr("containers", "ls", "-q").trim()).toBe("");
});

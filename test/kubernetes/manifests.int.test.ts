// The manifests of config/kubernetes: they render, are what Kubernetes' own schemas say, have no field that is not in them,
// and start the agent with a command line that it takes.

import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import { PodMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor";
import { PrometheusRule } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PrometheusRule";
import { DaemonSet, type IDaemonSet } from "kubernetes-models/apps/v1/DaemonSet";
import { ClusterRole } from "kubernetes-models/rbac.authorization.k8s.io/v1/ClusterRole";
import { Role } from "kubernetes-models/rbac.authorization.k8s.io/v1/Role";
import { RoleBinding } from "kubernetes-models/rbac.authorization.k8s.io/v1/RoleBinding";
import { ConfigMap, type IConfigMap } from "kubernetes-models/v1/ConfigMap";
import { Namespace } from "kubernetes-models/v1/Namespace";
import { ServiceAccount } from "kubernetes-models/v1/ServiceAccount";
import { describe, expect, test } from "vitest";
import { parse } from "yaml";
import { root } from "../../config/release/place.ts";
import { parseConfig } from "../../src/config.ts";
import { endpoint } from "../../src/install/places.ts";
import { type kubectls, type Rendered, render } from "../harness/kubectl.ts";

const models = {
  ClusterRole,
  ConfigMap,
  DaemonSet,
  Namespace,
  PodMonitor,
  PrometheusRule,
  Role,
  RoleBinding,
  ServiceAccount,
};
const operator = "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
/** Where the type of a kind is, to find fields that no schema knows, which schemas let pass. */
const types: Readonly<Record<keyof typeof models, string>> = {
  ClusterRole: "kubernetes-models/rbac.authorization.k8s.io/v1/ClusterRole",
  ConfigMap: "kubernetes-models/v1/ConfigMap",
  DaemonSet: "kubernetes-models/apps/v1/DaemonSet",
  Namespace: "kubernetes-models/v1/Namespace",
  PodMonitor: `${operator}/PodMonitor`,
  PrometheusRule: `${operator}/PrometheusRule`,
  Role: "kubernetes-models/rbac.authorization.k8s.io/v1/Role",
  RoleBinding: "kubernetes-models/rbac.authorization.k8s.io/v1/RoleBinding",
  ServiceAccount: "kubernetes-models/v1/ServiceAccount",
};

const whole = ["Namespace", "ServiceAccount", "Role", "RoleBinding", "ConfigMap", "ConfigMap", "DaemonSet"];
const rendered: readonly (readonly [string, keyof typeof kubectls, readonly string[]])[] = [
  ["base", "old", whole],
  ["base", "new", whole],
  ["k3s", "new", whole],
  ["rke2", "new", whole],
  ["upgrade", "old", ["ClusterRole"]],
  ["upgrade", "new", ["ClusterRole"]],
  ["prometheus", "old", ["PodMonitor", "PrometheusRule"]],
  ["prometheus", "new", ["PodMonitor", "PrometheusRule"]],
];

function modelOf({ kind }: Rendered): keyof typeof models {
  if (!(kind in models)) throw new Error(`no model of ${kind}`);
  return kind as keyof typeof models;
}

describe.each(rendered)("%s, with kubectl of the %s suite", (folder, which, kinds) => {
  test("renders to objects that the schemas of Kubernetes find right", async () => {
    const objects = await render(folder, which);
    expect(objects.map(({ kind }) => kind).toSorted()).toEqual([...kinds].toSorted());
    for (const object of objects) {
      const Model = models[modelOf(object)] as new (
        data: Rendered,
      ) => { apiVersion: string; validate(): void };
      const model = new Model(object);
      expect(() => model.validate(), object.kind).not.toThrow();
      expect(() => new Model({ ...object, metadata: 1 } as unknown as Rendered).validate()).toThrow();
      // The model says its own.
      expect(new Model({} as Rendered).apiVersion).toBe(object.apiVersion);
    }
  });
});

test("who is to upgrade workloads is bound to a role of the name that the README has", async () => {
  const [role] = await render("upgrade", "new");
  expect(role?.metadata).toMatchObject({ name: "hawser-upgrade" });
});

test("no object has a field that its type has not", async () => {
  const folders = ["rke2", "prometheus", "upgrade"];
  const objects = (await Promise.all(folders.map(async (folder) => await render(folder, "new")))).flat();
  const spoilt: Rendered = { ...(objects[0] as Rendered), sped: {} };
  const problems = await excessOf([...objects, spoilt]);
  // One is there to be found.
  expect(problems).toHaveLength(1);
  expect(problems[0]).toContain("sped");
});

/** What the compiler has against the objects as literals of their types. */
async function excessOf(objects: readonly Rendered[]): Promise<string[]> {
  // Below the root, where modules are found.
  const folder = await mkdtemp(join(root, "node_modules/.cache/manifests-"));
  try {
    const file = join(folder, "objects.mts");
    const lines = objects.map((object, index) => {
      const kind = modelOf(object);
      const type = `import("${types[kind]}").I${kind}`;
      return `export const object${index}: ${type} = ${JSON.stringify(object)};`;
    });
    writeFileSync(file, lines.join("\n"));
    const options = ["--ignoreConfig", "--noEmit", "--strict", "--skipLibCheck", "--pretty", "false"];
    const kinds = ["--module", "nodenext", "--target", "es2022"];
    const { stdout } = spawnSync(join(root, "node_modules/.bin/tsc"), [...options, ...kinds, file], {
      encoding: "utf8",
    });
    return stdout.split("\n").filter((line) => /\berror TS/.test(line));
  } finally {
    await rm(folder, { recursive: true });
  }
}

function optionsOf(objects: readonly Rendered[]): Readonly<Record<string, string>> {
  const options = objects.find(({ metadata }) => metadata.name.startsWith("hawser-options-")) as
    | (IConfigMap & Rendered)
    | undefined;
  return options?.data ?? {};
}

/** The arguments as kubelet expands them. */
function argumentsOf(objects: readonly Rendered[]): string[] {
  const { spec } = objects.find(({ kind }) => kind === "DaemonSet") as IDaemonSet & Rendered;
  const values = new Map([
    ...Object.entries(optionsOf(objects)),
    ["POD_NAMESPACE", "hawser"],
    ["POD_IP", "127.0.0.1"],
  ]);
  const container = spec?.template.spec?.containers[0];
  const named = new Set(container?.env?.map(({ name }) => name));
  return (container?.args ?? []).map((argument) =>
    argument.replaceAll(/\$\((\w+)\)/g, (_, name: string) => {
      if (!named.has(name)) throw new Error(`${name} is not in the container's environment`);
      return values.get(name) ?? "";
    }),
  );
}

test.each(["base", "k3s", "rke2"])("the agent takes the arguments of %s", async (folder) => {
  const args = argumentsOf(await render(folder, "new"));
  const main = join(root, "dist/main.js");
  const run = (...more: readonly string[]) =>
    spawnSync("unshare", ["--pid", "--fork", "--mount-proc", process.execPath, main, ...args, ...more], {
      encoding: "utf8",
      env: { KUBERNETES_SERVICE_HOST: "127.0.0.1", KUBERNETES_SERVICE_PORT: "1", PATH: process.env["PATH"] },
    });
  // In a pod without hostPID, so that this machine stays as it is.
  const ended = run();
  expect(ended.stderr).toContain("the pod needs hostPID: true and a privileged container");
  expect(ended.status).toBe(1);
  expect(run("--unknown").status).toBe(2);
});

test("the configuration is one, and the account may ask for just that DaemonSet", async () => {
  const objects = await render("base", "new");
  const config = objects.find(({ metadata }) => metadata.name.startsWith("hawser-config-")) as IConfigMap &
    Rendered;
  expect(parseConfig(config.data?.["hawser.toml"] ?? "spoilt", "hawser.toml").problems).toEqual([]);
  const daemonSet = objects.find(({ kind }) => kind === "DaemonSet");
  const role = objects.find(({ kind }) => kind === "Role");
  expect(role?.["rules"]).toEqual([
    {
      apiGroups: ["apps"],
      resources: ["daemonsets"],
      resourceNames: [daemonSet?.metadata.name],
      verbs: ["get"],
    },
    { apiGroups: [""], resources: ["namespaces"], verbs: ["get"] },
  ]);
  const [account, asked] =
    argumentsOf(objects)
      .find((argument) => argument.startsWith("--daemonset="))
      ?.slice("--daemonset=".length)
      .split("/") ?? [];
  expect([account, asked]).toEqual([daemonSet?.metadata.namespace, daemonSet?.metadata.name]);
});

test("kruise-daemon is sent to the socket that the units make, and has its jobs turned on", () => {
  const read = (name: string): Record<string, unknown> =>
    parse(readFileSync(join(root, "config/kubernetes/kruise", name), "utf8")) as Record<string, unknown>;
  const { daemon, featureGates } = read("values.yaml") as {
    daemon: { socketLocation: string; socketFile: string };
    featureGates: string;
  };
  // It has the folder mounted, and knows the socket by its name in there; /var/run is /run.
  const socket = join(daemon.socketLocation.replace(/^\/var/, ""), daemon.socketFile);
  expect(`unix://${socket}`).toBe(endpoint);
  expect(featureGates.split(",")).toContain("ImagePullJobGate=true");
  expect(read("imagepulljob.yaml")).toMatchObject({
    kind: "ImagePullJob",
    spec: { image: expect.any(String) },
  });
});

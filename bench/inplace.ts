// npm run inplace: how long a pod of a StatefulSet is not ready while its image is exchanged: in place with the image on
// the node before, in place without, and by another pod in its stead, pulled through Hawser or by containerd alone.
//
// Every figure is of a node of its own: a private containerd and Hawser, a fake API with the StatefulSet's controller, and
// a fake kubelet that runs real containers. `hawser upgrade` is the command as it ships.

import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { readinessGate } from "../src/cluster/marks.ts";
import { FakeApi } from "../test/fakes/api.ts";
import { FakeControllers } from "../test/fakes/controllers.ts";
import { FakeKubelet } from "../test/fakes/kubelet.ts";
import { PrivateContainerd } from "../test/harness/containerd.ts";
import { PrivateHawser } from "../test/harness/hawser.ts";
import { pushPause } from "../test/harness/images.ts";
import { ServerProcess } from "../test/harness/process.ts";
import { PrivateRegistry } from "../test/harness/registry.ts";
import { collections, namespace, roleRules } from "../test/inplace/rig.ts";
import { type BuiltImage, pushRecipe } from "./images.ts";
import { interruptible } from "./interrupt.ts";
import { machine, median, programs, spread, table } from "./measure.ts";
import { regional, ShapedNetwork } from "./network.ts";
import { goLike, type Recipe } from "./recipes.ts";
import { Service } from "./service.ts";
import { mustBeAccelerated, touchMemory } from "./sides.ts";

const usage = `Usage: npm run inplace [-- --rounds N]

  --rounds N  of each way (default 5), in turn, each on fresh directories
`;

const caption = `Not ready is from the change by which the API has the pod no longer ready, or no longer at all, to the one by which it
has it ready again. In all is from the command, or the change of the template, to the end.
The API, kubelet and controller are fakes, and there is no scheduler, network plugin or volume: another pod needs all of
these once more on a cluster, so that recreation takes longer there. Nor is there a probe, whose periods come on top of each
of these, or anything that takes time to stop or to start: a container is killed at once, another pod is made while the
former one is still being stopped, and a container is ready as soon as it runs. --grace is 0 here; its time (10 s unless it
is said) is added to both upgrades in place, and the former container runs on meanwhile.
Hawser follows the pods of its node (prewarm.pods) wherever it takes part, so that it begins with a pod's image before kubelet.
`;

/** A pod's images: the same programs packed again, so that nothing but the base is there before. */
const config = { config: { Entrypoint: ["/bin/sleep", "1000000"] } };
const formerRecipe: Recipe = { ...goLike, name: "former", config };
const nextRecipe: Recipe = {
  ...formerRecipe,
  name: "next",
  layers: goLike.layers.map((packages, index) => (index === 0 ? packages : packages.concat("hostname"))),
};

const program = fileURLToPath(new URL("../dist/main.js", import.meta.url));
const [statefulSet, podName] = ["web", "web-0"] as const;
/** Whatever still goes on behind the answer to the first pull has ended by then. */
const restMs = 1000;

const { values } = parseArgs({
  options: { rounds: { type: "string", default: "5" }, help: { type: "boolean" } },
});
const rounds = Number(values.rounds);
if (values.help || !Number.isInteger(rounds) || rounds < 1) {
  console.log(usage);
  process.exit(values.help ? 0 : 2);
}

interface Way {
  readonly title: string;
  readonly pulledBy: "Hawser" | "containerd";
  /** Options of the command; another pod in its stead without. */
  readonly inPlace?: readonly string[];
}

const ways: readonly Way[] = [
  { title: "in place, image on the node first (hawser upgrade)", pulledBy: "Hawser", inPlace: [] },
  { title: "in place, --no-prewarm", pulledBy: "Hawser", inPlace: ["--no-prewarm"] },
  { title: "recreation, pulled through Hawser", pulledBy: "Hawser" },
  { title: "recreation, containerd alone", pulledBy: "containerd" },
];

interface Measured {
  readonly unready: number;
  readonly inAll: number;
}

/** What all nodes have in common. */
interface Images {
  readonly pause: string;
  readonly former: string;
  readonly next: string;
  readonly built: BuiltImage;
}

await interruptible(async (signal) => {
  const say = (text: string): void => console.error(text);
  await using registry = await PrivateRegistry.start();
  await using network = await ShapedNetwork.before(registry.host, regional);
  const pause = await pushPause(registry);
  const former = await pushRecipe(registry, formerRecipe, say, signal);
  const next = await pushRecipe(registry, nextRecipe, say, signal);
  const seen = ({ reference }: BuiltImage): string =>
    `${network.host}${reference.slice(registry.host.length)}`;
  const images = {
    pause: pause.reference,
    former: seen(former),
    next: seen(next),
    built: next,
  };
  const found = new Map<Way, Measured[]>(ways.map((way) => [way, []]));
  for (let round = 0; round < rounds; round++) {
    // Who goes first is another one in each round.
    for (let index = 0; index < ways.length; index++) {
      const way = ways[(round + index) % ways.length];
      if (way === undefined) continue;
      const one = await measure(way, images, signal);
      found.get(way)?.push(one);
      say(`round ${round + 1}, ${way.title}: not ready ${one.unready.toFixed(2)} s`);
    }
  }
  console.log(`${machine()}\n${programs()}\n${described(former, next)}\n\n${report(found)}\n\n${caption}`);
});

function described(former: BuiltImage, next: BuiltImage): string {
  const known = new Set(former.layers.map(({ digest }) => digest));
  const fresh = next.layers.filter(({ digest }) => !known.has(digest));
  const mib = (bytes: number): string => `${Math.round(bytes / 2 ** 20)} MiB`;
  const compressed = fresh.reduce((sum, { size }) => sum + size, 0);
  return (
    `${next.layers.length} layers, ${mib(next.compressedBytes)} compressed, ${mib(next.unpackedBytes)} unpacked; ` +
    `the node lacks ${fresh.length} of them, ${mib(compressed)}; over the shaped network`
  );
}

function report(found: ReadonlyMap<Way, readonly Measured[]>): string {
  const rows = [...found].map(([{ title }, all]) => {
    const unready = all.map((one) => one.unready);
    const inAll = median(all.map((one) => one.inAll));
    return [title, median(unready).toFixed(2), spread(unready), inAll.toFixed(2)];
  });
  return table([[`one pod, medians of ${rounds}`, "not ready, s", "least-most", "in all, s"], ...rows]);
}

/** One exchange of an image, on a node that has run the former one. */
async function measure(way: Way, images: Images, signal: AbortSignal): Promise<Measured> {
  await using api = await FakeApi.start();
  api.put("/api/v1/nodes", { metadata: { name: api.nodeName } });
  await using containerd = await PrivateContainerd.start({ sandboxImage: images.pause });
  await using hawser = way.pulledBy === "Hawser" ? await startHawser(containerd, api) : undefined;
  using service = new Service(api, podName);
  await using kubelet = new FakeKubelet({ api, images: hawser?.cri ?? containerd.cri, containerd });
  putStatefulSet(api, way, images.former);
  using _controllers = new FakeControllers({ api, rolls: true });
  await service.untilServing(images.former, kubelet, signal);
  await sleep(restMs, undefined, { signal });
  await touchMemory([images.built], signal);
  const uid = service.uid;
  service.forget();
  const began = performance.now();
  if (way.inPlace) await runCommand(api, images.next, way.inPlace, signal);
  else putStatefulSet(api, way, images.next);
  await service.untilServing(images.next, kubelet, signal);
  const inAll = (performance.now() - began) / 1000;
  if ((service.uid === uid) !== (way.inPlace !== undefined))
    throw new Error(`${way.title}: the pod was ${service.uid === uid ? "" : "not "}the same one behind it`);
  // That it was there already is what the command is to see to.
  if (hawser) await mustBeAccelerated(hawser, 2);
  return { unready: service.unreadySeconds, inAll };
}

async function startHawser(containerd: PrivateContainerd, api: FakeApi): Promise<PrivateHawser> {
  const prewarm = `[prewarm]\npods = true\nkubeconfig = "${api.kubeconfig}"\nmin_free_disk = "1GiB"\n`;
  return await PrivateHawser.start({ containerd: containerd.address, config: prewarm });
}

/** Puts it there, or gives its template another image. Only what is upgraded in place needs a gate. */
function putStatefulSet(api: FakeApi, { inPlace }: Way, image: string): void {
  const labels = { app: statefulSet };
  const gates = inPlace ? { readinessGates: [{ conditionType: readinessGate }] } : {};
  const spec = {
    replicas: 1,
    selector: { matchLabels: labels },
    updateStrategy: { type: inPlace ? "OnDelete" : "RollingUpdate" },
    template: { metadata: { labels }, spec: { ...gates, containers: [{ name: "app", image }] } },
  };
  const former = api.read(collections.statefulset, statefulSet, namespace);
  const metadata = { ...former?.metadata, name: statefulSet, namespace };
  api.put(collections.statefulset, { ...former, metadata, spec });
}

async function runCommand(
  api: FakeApi,
  image: string,
  options: readonly string[],
  signal: AbortSignal,
): Promise<void> {
  signal.throwIfAborted();
  const kubeconfig = api.kubeconfigFor({ name: "operator", rules: roleRules });
  const words = ["upgrade", `statefulset/${statefulSet}`, `app=${image}`, "--grace", "0s", ...options];
  const where = ["--namespace", namespace, "--kubeconfig", kubeconfig];
  const command = new ServerProcess(process.execPath, [program, ...words, ...where]);
  // It would roll back first, and nobody is there any more with whom it could.
  const kill = (): void => void command.stop("SIGKILL");
  signal.addEventListener("abort", kill, { once: true });
  try {
    await command.exited;
  } finally {
    signal.removeEventListener("abort", kill);
  }
  if (command.exitCode !== 0) throw new Error(`hawser upgrade: ${command.logs()}`);
}

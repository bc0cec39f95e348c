// The crash soak: pulls, kill -9 at random moments, a new daemon, again; then everything must be as containerd makes it.
//
// A seed decides on images, moments and choices, so that a run can be repeated as far as a scheduler allows. Checks run
// between rounds: every image of the node pulled through Hawser, its trees, records and labels compared with those of a
// containerd of its own, and nothing of Hawser's left over.

import { setTimeout as sleep } from "node:timers/promises";
import { type FakeImage, type FakeLayer, FakeRegistry } from "../fakes/registry.ts";
import { dir, file, symlink, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { eventually } from "../harness/process.ts";
import { activeExtracts, leftovers, readLayers, readLeases, readState } from "../harness/state.ts";
import { differences, namesBelow } from "../harness/tree.ts";
import { randomness } from "./random.ts";

export interface SoakOptions {
  readonly seconds: number;
  /** On a machine that is slow it goes on until there were so many. */
  readonly killsMin?: number;
  readonly seed: number;
  readonly log: (line: string) => void;
}

export interface SoakResult {
  readonly kills: number;
  readonly pulls: number;
  readonly checks: number;
  /** What differs from containerd's own result, a line each. */
  readonly wrong: readonly string[];
  /** What should not be there any more. */
  readonly leftovers: readonly string[];
}

const config = '[download]\nchunk_size = "64KiB"\nretries = 3\n[unpack]\nmax_concurrent = 2';
const killsBetweenChecks = 12;

export async function soak({ seconds, killsMin = 0, seed, log }: SoakOptions): Promise<SoakResult> {
  const random = randomness(seed);
  await using fake = await FakeRegistry.start();
  await using oracle = await PrivateContainerd.start();
  await using containerd = await PrivateContainerd.start();
  await using hawser = await PrivateHawser.start({ containerd: containerd.address, config });
  const images = putImages(fake, random);
  for (const { reference } of images) await oracle.cri.mustPull(reference);
  const result = { kills: 0, pulls: 0, checks: 0, wrong: [] as string[], leftovers: [] as string[] };
  const check = async (): Promise<void> => {
    fake.behave = () => undefined;
    for (const { reference } of images) await hawser.cri.mustPull(reference);
    result.pulls += images.length;
    result.checks += 1;
    result.leftovers.push(...(await findLeftovers(containerd)));
    result.wrong.push(...(await findWrong(oracle, containerd)));
    log(`soak: ${result.kills} kills, ${result.pulls} pulls, ${result.checks} checks`);
  };
  const end = Date.now() + seconds * 1000;
  while (Date.now() < end || result.kills < killsMin) {
    misbehave(fake, random);
    // Without images there is something to pull again; layers that others share stay.
    for (const { reference } of images) if (random.chance(0.5)) await containerd.cri.removeImage(reference);
    const pulls = random.some(images, 3).map(({ reference }) => hawser.cri.pull(reference));
    result.pulls += pulls.length;
    await sleep(random.integer(600));
    await hawser.stop("SIGKILL");
    result.kills += 1;
    await Promise.all(pulls);
    await hawser.startAgain();
    if (result.kills % killsBetweenChecks === 0) await check();
  }
  await check();
  return result;
}

/** Eight images that share some of their layers. */
function putImages(fake: FakeRegistry, random: ReturnType<typeof randomness>): FakeImage[] {
  const layers: FakeLayer[] = Array.from({ length: 12 }, (_, index) => ({
    bytes: tarGz([
      dir(`d${index}`, { mode: 0o750, uid: index }),
      ...Array.from({ length: random.integer(40) + 1 }, (_none, each) =>
        file(`d${index}/f${each}`, random.bytes(random.integer(60_000)), { mode: 0o640, gid: each }),
      ),
      symlink(`d${index}/link`, "f0"),
      file(`d${index - 1}/.wh.f0`),
    ]),
  }));
  return Array.from({ length: 8 }, (_, index) => fake.put(`soak/image-${index}:v1`, random.some(layers, 5)));
}

function misbehave(fake: FakeRegistry, random: ReturnType<typeof randomness>): void {
  fake.behave = ({ path }) => {
    if (!path.includes("/blobs/") || !random.chance(0.1)) return undefined;
    return random.chance(0.5) ? { status: 503 } : { after: random.integer(50_000), afterwards: "reset" };
  };
}

async function findLeftovers(containerd: PrivateContainerd): Promise<string[]> {
  const find = async (): Promise<string[]> => [
    ...(await readLeases(containerd)),
    ...leftovers(containerd),
    ...(await activeExtracts(containerd)),
    ...namesBelow(`${containerd.root}/root/io.hawser/instances`).slice(1),
  ];
  try {
    await eventually(async () => {
      if ((await find()).length > 0) throw new Error("something is left");
    }, "the end of what follows pulls");
    return [];
  } catch {
    return await find();
  }
}

async function findWrong(oracle: PrivateContainerd, containerd: PrivateContainerd): Promise<string[]> {
  const [theirs, ours] = [await readState(oracle), await readState(containerd)];
  const wrong = [
    ...unequal("image", theirs.images, ours.images),
    ...unequal("snapshot", theirs.snapshots, ours.snapshots),
    ...unequal("content", theirs.content.map(withoutSource), ours.content.map(withoutSource)),
  ];
  const [left, right] = [await readLayers(oracle), await readLayers(containerd)];
  for (const [chainID, tree] of left) {
    const other = right.get(chainID);
    const found = other ? differences(tree, other, implicitDirectories(tree)) : ["missing"];
    wrong.push(...found.map((line) => `${chainID}: ${line}`));
  }
  return wrong;
}

/** The source label lists the repositories that a blob was pulled from, which depends on the order of pulls. */
function withoutSource(line: string): string {
  const [digest = "", size = "", labels = ""] = line.split(" ");
  const others = labels
    .split(",")
    .filter((label) => /^containerd\.io\/(?!distribution\.source\.)/.test(label));
  return `${digest} ${size} ${others.join(",")}`;
}

/** Parents of whiteouts, which no layer names: their times are those of the unpacking. */
function implicitDirectories(tree: ReadonlyMap<string, unknown>): ReadonlySet<string> {
  return new Set([...tree.keys()].filter((path) => !path.includes("/")));
}

function unequal(what: string, theirs: readonly string[], ours: readonly string[]): string[] {
  return [
    ...theirs.filter((line) => !ours.includes(line)).map((line) => `${what}: missing ${line}`),
    ...ours.filter((line) => !theirs.includes(line)).map((line) => `${what}: too much ${line}`),
  ];
}

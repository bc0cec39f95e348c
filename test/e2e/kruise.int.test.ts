// OpenKruise's daemon on our socket: what it asks when it starts, pulls as it makes them (ImagePullJob, ImageListPullJob
// and NodeImage all end in these), and that nobody's pod waits for them. Source of its habits: kruise 1.9,
// pkg/daemon/criruntime and pkg/daemon/imagepuller.

import { create, toBinary } from "@bufbuild/protobuf";
import { type ServiceError, status } from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { PullImageRequestSchema } from "../../src/proto/gen/cri_pb.js";
import { FakeRegistry, gate } from "../fakes/registry.ts";
import { file, tarGz } from "../fakes/tar.ts";
import { PrivateContainerd } from "../harness/containerd.ts";
import { type CriClient, fields, message, textOf } from "../harness/cri.ts";
import { PrivateHawser } from "../harness/hawser.ts";
import { eventually } from "../harness/process.ts";
import { containerdRelease, minors } from "../harness/versions.ts";

const runtime = "/runtime.v1.RuntimeService";
const images = "/runtime.v1.ImageService";
const right = { username: "robot", password: "right" };

interface Login {
  readonly username: string;
  readonly password: string;
}

/** A worker of the daemon's, for one image. */
class Kruise {
  readonly #cri: CriClient;

  constructor(cri: CriClient) {
    this.#cri = cri;
  }

  /** Everything that it asks before it takes a socket for a runtime's; the name that the runtime gives itself. */
  async begin(): Promise<string> {
    await this.#cri.raw(`${images}/ImageFsInfo`, new Uint8Array());
    await this.#cri.raw(`${images}/ListImages`, new Uint8Array());
    // Once when its client is made, and once more.
    await this.#cri.raw(`${runtime}/Version`, message([1, "0.1.0"]));
    return textOf(fields(await this.#cri.raw(`${runtime}/Version`, message([1, "0.1.0"]))), 2);
  }

  /** With the secrets of the job one after another, and without any where there are none. */
  async pull(name: string, tag: string, logins: readonly Login[], signal?: AbortSignal): Promise<void> {
    if (await this.has(name, tag)) return;
    const failures: ServiceError[] = [];
    for (const auth of logins.length === 0 ? [undefined] : logins) {
      const request = create(PullImageRequestSchema, {
        image: { image: `${name}:${tag}` },
        ...(auth && { auth }),
        sandboxConfig: { annotations: { "apps.kruise.io/pulling-image-by": "kruise-daemon" } },
      });
      try {
        await this.#cri.raw(`${images}/PullImage`, toBinary(PullImageRequestSchema, request), signal);
        return;
      } catch (error) {
        failures.push(error as ServiceError);
      }
    }
    throw failures.at(-1) ?? new Error("there was nothing to try");
  }

  /** What it reports as the image's id. */
  async has(name: string, tag: string): Promise<string> {
    const listed = fields(await this.#cri.raw(`${images}/ListImages`, new Uint8Array())).get(1) ?? [];
    for (const one of listed) {
      const image = fields(one as Uint8Array);
      const tags = (image.get(2) ?? []).map((value) => Buffer.from(value as Uint8Array).toString());
      if (tags.includes(`${name}:${tag}`)) return textOf(image, 1);
    }
    return "";
  }
}

let registry: FakeRegistry;

beforeAll(async () => {
  registry = await FakeRegistry.start();
});

afterAll(async () => {
  await registry[Symbol.asyncDispose]();
});

function makeImage(name: string) {
  const image = registry.put(`${name}:v1`, [{ bytes: tarGz([file(name, `content of ${name}`.repeat(50))]) }]);
  return { ...image, repository: image.reference.replace(/:v1$/, "") };
}

function requestsFor({ layers }: ReturnType<typeof makeImage>): number {
  return layers.reduce((sum, { digest }) => sum + registry.rangesOf(digest).length, 0);
}

/** Its layer comes to a halt after some bytes, until the gate is opened. */
function stall({ layers: [layer] }: ReturnType<typeof makeImage>) {
  const held = gate();
  registry.behave = ({ path }) =>
    path.endsWith(layer?.digest ?? "none") ? { after: 20, afterwards: held.opened } : undefined;
  return held;
}

describe.each(minors)("on containerd %s", (minor) => {
  test("our socket is a runtime's, secrets are tried in turn, and what it has pulled is there for kubelet", async () => {
    await using containerd = await PrivateContainerd.start({ release: containerdRelease(minor) });
    await using hawser = await PrivateHawser.start({ containerd: containerd.address });
    const kruise = new Kruise(hawser.cri);
    expect(await kruise.begin()).toBe(await new Kruise(containerd.cri).begin());
    expect(await kruise.begin()).toBe("containerd");
    const image = makeImage(`kruise/private-${minor}`);
    const authorization = `Basic ${Buffer.from(`${right.username}:${right.password}`).toString("base64")}`;
    registry.behave = (request) =>
      request.authorization === authorization
        ? undefined
        : { status: 401, headers: { "www-authenticate": 'Basic realm="fake"' } };
    try {
      const wrong = { ...right, password: "wrong" };
      const refused = await kruise
        .pull(image.repository, "v1", [wrong])
        .catch((error: ServiceError) => error);
      const theirs = await new Kruise(containerd.cri)
        .pull(image.repository, "v1", [wrong])
        .catch((error: ServiceError) => error);
      expect((refused as ServiceError).code).toBe(status.UNKNOWN);
      expect((refused as ServiceError).details).toBe((theirs as ServiceError).details);
      await kruise.pull(image.repository, "v1", [wrong, right]);
      expect(await kruise.has(image.repository, "v1")).toBe(image.configDigest);
      const before = requestsFor(image);
      await kruise.pull(image.repository, "v1", [right]);
      expect(await hawser.cri.mustPull(image.reference, right)).toBe(image.configDigest);
      expect(requestsFor(image)).toBe(before);
      expect(await hawser.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 2');
    } finally {
      registry.behave = () => undefined;
    }
  });
});

test("its pulls make way for one that a pod waits for, go on behind that, and end when their time is over", async () => {
  await using containerd = await PrivateContainerd.start();
  // Nothing else has a request sent again.
  const config = '[download]\nprogress_timeout = "10m"\n';
  await using hawser = await PrivateHawser.start({ containerd: containerd.address, config });
  const kruise = new Kruise(hawser.cri);
  const [job, pod] = [makeImage("kruise/job"), makeImage("kruise/pod")];
  const held = stall(job);
  try {
    const pulled = kruise.pull(job.repository, "v1", []);
    await eventually(async () => expect(requestsFor(job)).toBe(1), "a request for the job's layer");
    await hawser.cri.mustPull(pod.reference);
    await eventually(async () => expect(requestsFor(job)).toBe(2), "another one, for what was broken off");
    held.open();
    await pulled;
    expect(await kruise.has(job.repository, "v1")).toBe(job.configDigest);
    expect(await hawser.metrics()).toContain('hawser_pulls_total{result="ok",path="accelerated"} 2');

    const late = makeImage("kruise/late");
    const never = stall(late);
    const abort = new AbortController();
    const over = kruise.pull(late.repository, "v1", [], abort.signal).catch((error: ServiceError) => error);
    await eventually(async () => expect(requestsFor(late)).toBe(1), "a request for the layer");
    abort.abort();
    expect(((await over) as ServiceError).code).toBe(status.CANCELLED);
    await hawser.untilMetric(/hawser_pulls_total\{result="cancelled",path="accelerated"\} 1/);
    never.open();
    expect(await kruise.has(late.repository, "v1")).toBe("");
  } finally {
    registry.behave = () => undefined;
  }
});

test("a pod that comes to want what it is pulling has it as if the pod had asked first", async () => {
  await using containerd = await PrivateContainerd.start();
  await using hawser = await PrivateHawser.start({ containerd: containerd.address });
  const kruise = new Kruise(hawser.cri);
  const [job, other] = [makeImage("kruise/joined"), makeImage("kruise/beside")];
  const held = stall(job);
  try {
    const pulled = kruise.pull(job.repository, "v1", []);
    await eventually(async () => expect(requestsFor(job)).toBe(1), "a request for the job's layer");
    const wanted = hawser.cri.mustPull(job.reference);
    await hawser.untilMetric(/hawser_in_flight\{what="pulls"\} 2/);
    // What is awaited is not broken off by somebody else who waits.
    await hawser.cri.mustPull(other.reference);
    held.open();
    expect(await wanted).toBe(job.configDigest);
    await pulled;
    expect(requestsFor(job)).toBe(1);
  } finally {
    registry.behave = () => undefined;
  }
});

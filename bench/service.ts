// How long a pod is not ready, by the changes that the API tells, whoever makes them: those of one pod, or of all that have
// its name one after another.

import { setTimeout as sleep } from "node:timers/promises";
import type { FakeApi } from "../test/fakes/api.ts";
import type { FakeKubelet } from "../test/fakes/kubelet.ts";
import { specOf } from "../test/fakes/kubernetes/podstatus.ts";
import type { ApiChange } from "../test/fakes/kubernetes/store.ts";
import { isReady, pods } from "../test/fakes/kubernetes/workload.ts";
import { namespace } from "../test/inplace/rig.ts";

const waitMs = 300_000;

/** Whether the pod is ready, as the API's own changes tell it. */
export class Service implements Disposable {
  readonly #api: FakeApi;
  readonly #name: string;
  readonly #silence: () => void;
  #lostAt: number | undefined;
  #unreadyMs = 0;

  constructor(api: FakeApi, name: string) {
    this.#api = api;
    this.#name = name;
    this.#silence = api.listen((change) => this.#hear(change));
  }

  /** Of the pod that there is now. */
  get uid(): unknown {
    return this.#pod?.metadata["uid"];
  }

  /** So long there was none that was ready, since this was forgotten; throws where there always was one. */
  get unreadySeconds(): number {
    if (this.#unreadyMs === 0) throw new Error("the pod was ready all the time");
    return this.#unreadyMs / 1000;
  }

  forget(): void {
    this.#unreadyMs = 0;
  }

  /** Until the pod is of this image and ready. */
  async untilServing(image: string, kubelet: FakeKubelet, signal: AbortSignal): Promise<void> {
    const deadline = performance.now() + waitMs;
    for (;;) {
      const pod = this.#pod;
      if (pod && isReady(pod) && specOf(pod).containers?.[0]?.image === image) return;
      if (performance.now() > deadline)
        throw new Error(`no pod that is ready with ${image}:\n${kubelet.events.join("\n")}`);
      await sleep(10, undefined, { signal });
    }
  }

  [Symbol.dispose](): void {
    this.#silence();
  }

  get #pod() {
    return this.#api.read(pods, this.#name, namespace);
  }

  #hear({ type, collection, object }: ApiChange): void {
    if (collection !== pods || object.metadata.name !== this.#name) return;
    const isServing = type !== "DELETED" && isReady(object);
    const now = performance.now();
    if (!isServing) this.#lostAt ??= now;
    if (!isServing || this.#lostAt === undefined) return;
    this.#unreadyMs += now - this.#lostAt;
    this.#lostAt = undefined;
  }
}

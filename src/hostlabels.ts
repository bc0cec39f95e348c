// The names of registry hosts as labels of metrics. References name hosts, and anybody may make those up, so only so many get
// a label of their own for as long as a process runs; all others share one.

const labelsMax = 32;

export const otherHosts = "other";

export class HostLabels {
  readonly #known = new Set<string>();

  /** Of a host (host:port). */
  of(host: string): string {
    if (this.#known.has(host)) return host;
    if (this.#known.size >= labelsMax) return otherHosts;
    this.#known.add(host);
    return host;
  }
}

// Leases of the fake containerd.

import { status } from "@grpc/grpc-js";
import { leases } from "../../../src/containerd/methods.ts";
import { Status } from "../containerd.ts";
import type { Lease, Metadata } from "./metadata.ts";
import type { Serving } from "./serving.ts";

export function serveLeases(serving: Serving, metadata: Metadata): void {
  const find = (namespace: string, id: string): Lease => {
    const lease = metadata.of(namespace).leases.get(id);
    if (lease === undefined) throw new Status(status.NOT_FOUND, `lease "${id}": not found`);
    return lease;
  };

  serving.unary(leases.create, ({ id, labels }, { namespace }) => {
    const { leases: known } = metadata.within(namespace);
    if (known.has(id)) throw new Status(status.ALREADY_EXISTS, `lease "${id}": already exists`);
    known.set(id, { labels, resources: new Map() });
    return { lease: { id, labels } };
  });

  serving.unary(leases.delete, ({ id, sync }, { namespace }) => {
    find(namespace, id);
    metadata.of(namespace).leases.delete(id);
    if (sync) metadata.collect();
    else metadata.deleted();
    return {};
  });

  serving.unary(leases.list, ({ filters }, { namespace }) => {
    const all = [...metadata.of(namespace).leases].map(([id, { labels }]) => ({ id, labels }));
    return { leases: all.filter(({ labels }) => filters.length === 0 || filters.some(matches(labels))) };
  });

  // What is named need not exist, just as in containerd.
  serving.unary(leases.addResource, ({ id, resource }, { namespace }) => {
    metadata.hold({ namespace, lease: id }, resource?.type ?? "", resource?.id ?? "");
    return {};
  });

  serving.unary(leases.listResources, ({ id }, { namespace }) => {
    const { resources } = find(namespace, id);
    const all = [...resources].flatMap(([type, ids]) => [...ids].map((one) => ({ type, id: one })));
    return { resources: all };
  });
}

/** The one kind of filter that Hawser uses: that a label is there. */
function matches(labels: Readonly<Record<string, string>>): (filter: string) => boolean {
  return (filter) => {
    const [, quoted] = /^labels\.(".*")$/.exec(filter) ?? [];
    if (quoted === undefined) throw new Status(status.INVALID_ARGUMENT, `filter ${filter} is not understood`);
    return labels[JSON.parse(quoted) as string] !== undefined;
  };
}

// What only containerd's own client asks of the fake: lists of everything, image records, namespaces. Messages are
// made by hand from field numbers, since Hawser has no use for them.

import { readFileSync } from "node:fs";
import { create, toBinary } from "@bufbuild/protobuf";
import { status } from "@grpc/grpc-js";
import { criImages, images, namespaces } from "../../../src/containerd/methods.ts";
import { ContentInfoSchema, SnapshotInfoSchema } from "../../../src/proto/gen/containerd_pb.js";
import { fields, message, textOf } from "../../harness/cri.ts";
import { Status } from "../containerd.ts";
import type { Metadata } from "./metadata.ts";
import type { Serving } from "./serving.ts";
import { kinds } from "./snapshots.ts";

const services = "/containerd.services";

export function serveLists(serving: Serving, metadata: Metadata): void {
  serving.list(`${services}.content.v1.Content/List`, ({ namespace }) =>
    [...metadata.of(namespace).blobs].map(([digest, blob]) =>
      message([1, toBinary(ContentInfoSchema, create(ContentInfoSchema, { digest, ...blob }))]),
    ),
  );
  serving.bytes(`${services}.content.v1.Content/ListStatuses`, (_request, { namespace }) => {
    const refs = [...metadata.of(namespace).ingests.keys()];
    return message(...refs.map((ref) => [1, message([3, ref])] as const));
  });
  serving.list(`${services}.snapshots.v1.Snapshots/List`, ({ namespace }) =>
    [...metadata.of(namespace).snapshots].map(([name, { kind, parent, labels }]) => {
      const info = create(SnapshotInfoSchema, { name, parent, kind: kinds[kind], labels });
      return message([1, toBinary(SnapshotInfoSchema, info)]);
    }),
  );
}

export function serveImages(serving: Serving, metadata: Metadata): void {
  serving.unary(images.get, ({ name }, { namespace }) => {
    const image = metadata.of(namespace).images.get(name);
    if (image === undefined) throw new Status(status.NOT_FOUND, `image "${name}": not found`);
    const { labels, ...target } = image;
    return { image: { name, labels, target } };
  });
  serving.unary(images.create, ({ image }, { namespace }) => {
    const { name = "", labels = {}, target } = image ?? {};
    const { images: known } = metadata.within(namespace);
    if (known.has(name)) throw new Status(status.ALREADY_EXISTS, `image "${name}": already exists`);
    const { mediaType = "", digest = "", size = 0n } = target ?? {};
    known.set(name, { labels, mediaType, digest, size });
    return image ? { image } : {};
  });
  serving.unary(images.update, ({ image }, { namespace }) => {
    const { name = "", labels = {}, target } = image ?? {};
    const { images: known } = metadata.of(namespace);
    if (!known.has(name)) throw new Status(status.NOT_FOUND, `image "${name}": not found`);
    const { mediaType = "", digest = "", size = 0n } = target ?? {};
    known.set(name, { labels, mediaType, digest, size });
    metadata.deleted();
    return image ? { image } : {};
  });
  serving.unary(criImages.status, ({ image }) => {
    const found = statusOf(image?.image ?? "", metadata);
    return found ? { image: found } : {};
  });
  serving.bytes(`${services}.images.v1.Images/Delete`, (request, { namespace }) => {
    const name = textOf(fields(request), 1);
    if (!metadata.of(namespace).images.delete(name))
      throw new Status(status.NOT_FOUND, `image "${name}": not found`);
    metadata.deleted();
    return Buffer.alloc(0);
  });
}

export function serveNamespaces(serving: Serving, metadata: Metadata): void {
  serving.bytes(`${services}.namespaces.v1.Namespaces/List`, () =>
    message(...[...metadata.namespaces.keys()].map((name) => [1, message([1, name])] as const)),
  );
  serving.unary(namespaces.delete, ({ name }) => {
    const namespace = metadata.namespaces.get(name);
    if (namespace === undefined) throw new Status(status.NOT_FOUND, `namespace "${name}": not found`);
    const rest = Object.entries(namespace).find(
      ([, records]: [string, Map<string, unknown>]) => records.size > 0,
    );
    if (rest) {
      const text = `namespace "${name}" must be empty, but it still has ${rest[0]}: failed precondition`;
      throw new Status(status.FAILED_PRECONDITION, text);
    }
    metadata.namespaces.delete(name);
    return {};
  });
}

/** As CRI answers for a manifest's record, or for an id that one of them leads to. */
function statusOf(name: string, metadata: Metadata) {
  const { images: known } = metadata.of("k8s.io");
  const ids = new Map([...known].map(([record, { digest }]) => [record, configOf(digest, metadata)]));
  const id = ids.get(name) ?? [...ids.values()].find((one) => one === name);
  if (id === undefined) return undefined;
  const names = [...ids].filter(([record, one]) => one === id && record !== id).map(([record]) => record);
  const isDigest = (record: string): boolean => record.includes("@");
  return {
    id,
    repoTags: names.filter((record) => !isDigest(record)),
    repoDigests: names.filter((record) => isDigest(record)),
  };
}

function configOf(manifest: string, metadata: Metadata): string {
  const { config } = JSON.parse(readFileSync(metadata.blobPath(manifest), "utf8")) as {
    readonly config: { readonly digest: string };
  };
  return config.digest;
}

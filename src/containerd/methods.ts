// The methods of containerd that Hawser calls, with their messages. Nothing else names a path of containerd's API.

import * as pb from "../proto/gen/containerd_pb.js";
import * as cri from "../proto/gen/cri_pb.js";

const services = "/containerd.services";

export const leases = {
  create: {
    path: `${services}.leases.v1.Leases/Create`,
    request: pb.CreateLeaseRequestSchema,
    response: pb.CreateLeaseResponseSchema,
  },
  delete: {
    path: `${services}.leases.v1.Leases/Delete`,
    request: pb.DeleteLeaseRequestSchema,
    response: pb.EmptySchema,
  },
  list: {
    path: `${services}.leases.v1.Leases/List`,
    request: pb.ListLeasesRequestSchema,
    response: pb.ListLeasesResponseSchema,
  },
  addResource: {
    path: `${services}.leases.v1.Leases/AddResource`,
    request: pb.AddResourceRequestSchema,
    response: pb.EmptySchema,
  },
  listResources: {
    path: `${services}.leases.v1.Leases/ListResources`,
    request: pb.ListResourcesRequestSchema,
    response: pb.ListResourcesResponseSchema,
  },
} as const;

export const content = {
  info: {
    path: `${services}.content.v1.Content/Info`,
    request: pb.ContentInfoRequestSchema,
    response: pb.ContentInfoResponseSchema,
  },
  update: {
    path: `${services}.content.v1.Content/Update`,
    request: pb.UpdateContentRequestSchema,
    response: pb.UpdateContentResponseSchema,
  },
  write: {
    path: `${services}.content.v1.Content/Write`,
    request: pb.WriteContentRequestSchema,
    response: pb.WriteContentResponseSchema,
  },
  abort: {
    path: `${services}.content.v1.Content/Abort`,
    request: pb.AbortIngestRequestSchema,
    response: pb.EmptySchema,
  },
} as const;

export const snapshots = {
  prepare: {
    path: `${services}.snapshots.v1.Snapshots/Prepare`,
    request: pb.PrepareSnapshotRequestSchema,
    response: pb.PrepareSnapshotResponseSchema,
  },
  view: {
    path: `${services}.snapshots.v1.Snapshots/View`,
    request: pb.PrepareSnapshotRequestSchema,
    response: pb.PrepareSnapshotResponseSchema,
  },
  commit: {
    path: `${services}.snapshots.v1.Snapshots/Commit`,
    request: pb.CommitSnapshotRequestSchema,
    response: pb.EmptySchema,
  },
  remove: {
    path: `${services}.snapshots.v1.Snapshots/Remove`,
    request: pb.SnapshotRequestSchema,
    response: pb.EmptySchema,
  },
  stat: {
    path: `${services}.snapshots.v1.Snapshots/Stat`,
    request: pb.SnapshotRequestSchema,
    response: pb.StatSnapshotResponseSchema,
  },
} as const;

export const images = {
  get: {
    path: `${services}.images.v1.Images/Get`,
    request: pb.GetImageRequestSchema,
    response: pb.GetImageResponseSchema,
  },
  create: {
    path: `${services}.images.v1.Images/Create`,
    request: pb.CreateImageRequestSchema,
    response: pb.CreateImageResponseSchema,
  },
  update: {
    path: `${services}.images.v1.Images/Update`,
    request: pb.UpdateImageRequestSchema,
    response: pb.UpdateImageResponseSchema,
  },
  delete: {
    path: `${services}.images.v1.Images/Delete`,
    request: pb.DeleteImageRequestSchema,
    response: pb.EmptySchema,
  },
} as const;

export const namespaces = {
  list: {
    path: `${services}.namespaces.v1.Namespaces/List`,
    request: pb.ListNamespacesRequestSchema,
    response: pb.ListNamespacesResponseSchema,
  },
  delete: {
    path: `${services}.namespaces.v1.Namespaces/Delete`,
    request: pb.DeleteNamespaceRequestSchema,
    response: pb.EmptySchema,
  },
} as const;

export const introspection = {
  plugins: {
    path: `${services}.introspection.v1.Introspection/Plugins`,
    request: pb.PluginsRequestSchema,
    response: pb.PluginsResponseSchema,
  },
  version: {
    path: `${services}.version.v1.Version/Version`,
    request: pb.EmptySchema,
    response: pb.VersionResponseSchema,
  },
} as const;

export const runtime = {
  status: {
    path: "/runtime.v1.RuntimeService/Status",
    request: cri.StatusRequestSchema,
    response: cri.StatusResponseSchema,
  },
} as const;

export const criImages = {
  status: {
    path: "/runtime.v1.ImageService/ImageStatus",
    request: cri.ImageStatusRequestSchema,
    response: cri.ImageStatusResponseSchema,
  },
} as const;

// Every method of the CRI, in both versions, so that whatever is asked of our socket has somewhere to go.
//
// grpc-js serves methods by name only, hence the list: it is that of cri-api 0.37 and a superset of every earlier one.
// What this containerd does not know is answered by it with UNIMPLEMENTED, as if it had been asked directly.

const imageMethods = ["ListImages", "StreamImages", "ImageStatus", "PullImage", "RemoveImage", "ImageFsInfo"];

const runtimeMethods = [
  "Version",
  "RunPodSandbox",
  "StopPodSandbox",
  "RemovePodSandbox",
  "PodSandboxStatus",
  "ListPodSandbox",
  "StreamPodSandboxes",
  "CreateContainer",
  "StartContainer",
  "StopContainer",
  "RemoveContainer",
  "ListContainers",
  "StreamContainers",
  "ContainerStatus",
  "UpdateContainerResources",
  "ReopenContainerLog",
  "ExecSync",
  "Exec",
  "Attach",
  "PortForward",
  "ContainerStats",
  "ListContainerStats",
  "StreamContainerStats",
  "PodSandboxStats",
  "ListPodSandboxStats",
  "StreamPodSandboxStats",
  "UpdateRuntimeConfig",
  "Status",
  "CheckpointContainer",
  "GetContainerEvents",
  "ListMetricDescriptors",
  "ListPodSandboxMetrics",
  "StreamPodSandboxMetrics",
  "RuntimeConfig",
  "UpdatePodSandboxResources",
];

const versions = ["runtime.v1", "runtime.v1alpha2"] as const;

/** Full paths, `/runtime.v1.ImageService/ListImages` and so on. */
export function methodPaths(): string[] {
  return versions.flatMap((version) => [
    ...imageMethods.map((name) => `/${version}.ImageService/${name}`),
    ...runtimeMethods.map((name) => `/${version}.RuntimeService/${name}`),
  ]);
}

/** The paths of PullImage, the one method that Hawser answers itself. */
export const pullPaths: ReadonlySet<string> = new Set(
  versions.map((version) => `/${version}.ImageService/PullImage`),
);

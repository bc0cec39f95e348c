// The table of settings: what each key is, what it defaults to, and what it does, in the order of config/hawser.toml.

import {
  address,
  choice,
  count,
  duration,
  flag,
  hosts,
  hostTable,
  httpURL,
  identifier,
  type Kind,
  listenSocket,
  localAddress,
  nodeName,
  or,
  path,
  paths,
  references,
  size,
  socket,
  space,
} from "./settings.ts";

export interface Setting<Value> {
  readonly kind: Kind<Value>;
  /** As it would be written in the file. */
  readonly preset: unknown;
  readonly help: string;
}

const requests = count(1, 256);

export const schema = {
  cri: {
    listen: setting(
      listenSocket,
      "/run/hawser/hawser.sock",
      "Socket that kubelet's imageServiceEndpoint points at.",
    ),
    max_message_size: setting(
      size("16MiB", "1GiB"),
      "16MiB",
      "Largest request that is accepted; kubelet's own limit is 16 MiB.",
    ),
  },
  containerd: {
    address: setting(socket, "/run/containerd/containerd.sock", "Containerd's socket."),
    namespace: setting(
      identifier,
      "k8s.io",
      "Containerd's namespace for Kubernetes; change it only where containerd's CRI plugin was built with another.",
    ),
    snapshotter: setting(
      or("auto", identifier),
      "auto",
      'Snapshotter that images are unpacked for; "auto" asks containerd. Anything but overlayfs is left to containerd.',
    ),
    config_file: setting(
      path,
      "/etc/containerd/config.toml",
      "Containerd's configuration, read for what containerd 2.x does not tell over its socket.",
    ),
    registration: setting(
      choice("auto", "containerd"),
      "auto",
      'Who writes image records; "auto" is Hawser where all is as usual, and "containerd" is always a PullImage of its own, which asks the registry once more.',
    ),
  },
  registry: {
    config_path: setting(
      or("auto", paths),
      "auto",
      'Directories with hosts.toml files (certs.d); "auto" takes those of containerd.',
    ),
    include: setting(hosts, [], "If not empty, only images of these registry hosts are accelerated."),
    exclude: setting(hosts, [], "Images of these registry hosts are left to containerd."),
    host: setting(
      hostTable,
      {},
      "Per host that requests go to (registry-1.docker.io for docker.io): streams (connections for one blob) and max_concurrent (blob requests at once).",
    ),
  },
  download: {
    max_concurrent: setting(
      or("auto", requests),
      "auto",
      'Blob requests that may be open at once on this node; "auto" is 64, which bounds memory and not speed.',
    ),
    max_concurrent_per_image: setting(
      or("auto", requests),
      "auto",
      'Blob requests that one image may have open at once; "auto" is as many as its host may have.',
    ),
    max_concurrent_per_host: setting(
      or("auto", requests),
      "auto",
      'Blob requests that may be open at once to one registry host; "auto" is from 1 to 32, more while more come faster, and fewer once the host refuses some.',
    ),
    chunk_size: setting(
      size("64KiB", "1GiB"),
      "8MiB",
      "Bytes that one ranged request asks for; smaller blobs are fetched in one piece.",
    ),
    bandwidth_limit: setting(
      or("off", size("1MiB", "1TiB")),
      "off",
      'Bytes a second that all blobs together may take on this node, such as "100MiB".',
    ),
    progress_timeout: setting(
      duration("1s", "1h"),
      "30s",
      "A request that receives next to nothing (under 512 bytes a second) for this long is given up and tried again.",
    ),
    connect_timeout: setting(
      duration("100ms", "5m"),
      "5s",
      "Longest wait for a connection, TLS included; below fallback.after, so that a mirror that is down costs no delegation.",
    ),
    retries: setting(
      count(0, 20),
      4,
      "How often a request is tried again without progress, with growing pauses.",
    ),
  },
  unpack: {
    engine: setting(
      choice("auto", "native", "portable"),
      "auto",
      '"auto" and "native" use the addon and pass calls through without it; "portable" is slower, needs no addon and takes only plain layers.',
    ),
    max_concurrent: setting(
      or("auto", count(1, 64)),
      "auto",
      'Layers that are unpacked at once on this node, each in a thread of its own; "auto" is one for each available core.',
    ),
    max_concurrent_per_image: setting(
      or("auto", count(1, 64)),
      "auto",
      'Layers of one image that are unpacked at once; "auto" is max_concurrent.',
    ),
    max_entries: setting(
      count(1, 100_000_000),
      5_000_000,
      "Layers with more files than this are left to containerd.",
    ),
    max_layer_size: setting(
      size("1MiB", "1024TiB"),
      "1TiB",
      "Layers that are larger than this when unpacked are left to containerd.",
    ),
    max_ratio: setting(
      count(1, 1_000_000),
      2_000,
      "Layers that grow more than so many times when unpacked are left to containerd (gzip's own limit is 1032).",
    ),
    durability: setting(
      choice("containerd", "syncfs"),
      "containerd",
      '"containerd" does as containerd is configured (image_pull_with_sync_fs), which leaves the writing of unpacked files to the kernel by default; "syncfs" has them on disk before a layer is committed, so that a power cut cannot leave an image with empty files.',
    ),
  },
  content: {
    keep_layers: setting(
      or("auto", flag),
      "auto",
      'Whether compressed layers stay in containerd\'s content store; "auto" does as containerd is configured (discard_unpacked_layers).',
    ),
    spool_max_size: setting(
      size("1MiB", "1024TiB"),
      "64GiB",
      "Disk that blobs on their way may take, with what broken-off pulls left to be gone on with; layers larger than this are left to containerd.",
    ),
    spool_max_age: setting(
      duration("1s", "720h"),
      "1h",
      "How long the bytes of a broken-off pull wait for the next attempt; they go at once when the disk is nearly full.",
    ),
  },
  fallback: {
    enabled: setting(
      flag,
      true,
      "Whether containerd pulls what Hawser could not; false returns Hawser's errors, for testing. Images that Hawser does not take on are delegated all the same.",
    ),
    after: setting(
      duration("100ms", "10m"),
      "10s",
      "A pull for which no host has answered by then is left to containerd.",
    ),
    breaker_failures: setting(
      count(1, 1000),
      3,
      "A host that failed so often in a row is not asked any more.",
    ),
    breaker_reset: setting(
      duration("1s", "24h"),
      "30s",
      "After this long such a host is probed, and asked again once it answers.",
    ),
  },
  prewarm: {
    images: setting(
      references,
      [],
      'References of images to have on this node before anybody asks, such as ["docker.io/library/busybox:1.36"].',
    ),
    directory: setting(
      or("off", path),
      "off",
      'Directory whose files name more of them, one on a line ("#" begins a comment); a ConfigMap can be mounted there.',
    ),
    pods: setting(
      flag,
      false,
      "Whether the images of pods are fetched all at once as soon as they are bound to this node, by kubelet's own access to the cluster's API; what became of those that a pod's annotation hawser.dev/prewarm names is said on the pod, and its readiness gate InPlaceUpdateReady, where no controller opens it, is opened.",
    ),
    kubeconfig: setting(
      or("auto", path),
      "auto",
      'File that says how to reach the API, and as whom; "auto" is kubelet\'s, in the usual places.',
    ),
    node_name: setting(
      or("auto", nodeName),
      "auto",
      'Name of this node in the cluster; "auto" asks the API, which knows nodes by name.',
    ),
    credentials: setting(
      path,
      "/var/lib/kubelet/config.json",
      "File of registry credentials for these images, in Docker's form; it need not exist, and kubelet reads this one too.",
    ),
    list_anonymous: setting(
      flag,
      false,
      "List what needed no credentials: a pod then starts from it without the registry, where its policy lets it.",
    ),
    max_concurrent: setting(count(1, 64), 2, "Images that are fetched ahead at once."),
    bandwidth_limit: setting(
      or("off", size("64KiB", "1TiB")),
      "off",
      "Bytes a second that they may take together, besides that they make way for pulls that somebody waits for.",
    ),
    min_free_disk: setting(
      space,
      "20%",
      "Nothing is fetched ahead that could leave less than this free; kubelet deletes images below 15 % and evicts pods.",
    ),
    refresh: setting(
      duration("1m", "720h"),
      "1h",
      "How often the registry is asked whether the tag of a wanted image has moved.",
    ),
    keep: setting(
      duration("1m", "720h"),
      "24h",
      "How long an image stays on the node once nobody wants it any more, unless a pod has come to use it.",
    ),
  },
  admin: {
    listen: setting(
      or("off", listenSocket),
      "/run/hawser/admin.sock",
      "Socket, root's alone, that Hawser's other commands speak to, and that has the status page, or \"off\".",
    ),
    page: setting(
      localAddress,
      "off",
      'Address on loopback where the status page can be looked at without that socket, such as "127.0.0.1:9465"; whoever is on the node sees it then.',
    ),
    state_dir: setting(
      path,
      "/var/lib/hawser",
      'Directory of what outlasts a restart: traces of pulls, wishes of "hawser prewarm add", the switch of "hawser passthrough on --persist".',
    ),
  },
  trace: {
    keep: setting(
      count(0, 1000),
      200,
      'Pulls whose traces are kept, over restarts, for "hawser trace" and the status page; 0 keeps none.',
    ),
    otlp_endpoint: setting(
      or("off", httpURL),
      "off",
      'Collector that every pull is sent to as OpenTelemetry spans (OTLP over HTTP), such as "http://127.0.0.1:4318".',
    ),
  },
  metrics: {
    listen: setting(
      address,
      "127.0.0.1:9464",
      'Address of /metrics and /healthz; set the node\'s address to have it scraped, or "off".',
    ),
  },
  log: {
    level: setting(
      choice("trace", "debug", "info", "warn", "error"),
      "info",
      "Least severity that is logged, on standard error.",
    ),
    format: setting(choice("text", "json"), "text", '"text" for people, "json" for machines.'),
  },
} as const;

function setting<Value>(kind: Kind<Value>, preset: unknown, help: string): Setting<Value> {
  return { kind, preset, help };
}

// The table of settings: what each key is, what it defaults to, and what it does, in the order of config/hawser.toml.

import {
  address,
  choice,
  count,
  duration,
  Expected,
  flag,
  type Kind,
  or,
  path,
  paths,
  size,
  text,
  texts,
} from "./settings.ts";

export interface Setting<Value> {
  readonly kind: Kind<Value>;
  /** As it would be written in the file. */
  readonly preset: unknown;
  readonly help: string;
}

/** Settings of one registry host; absent means those of [download]. */
export interface HostSettings {
  readonly streams?: number;
  readonly max_concurrent?: number;
}

const requests = count(1, 256);

export const schema = {
  cri: {
    listen: setting(path, "/run/hawser/hawser.sock", "Socket that kubelet's imageServiceEndpoint points at."),
    max_message_size: setting(
      size("16MiB", "1GiB"),
      "16MiB",
      "Largest request that is accepted; kubelet's own limit is 16 MiB.",
    ),
  },
  containerd: {
    address: setting(path, "/run/containerd/containerd.sock", "Containerd's socket."),
    namespace: setting(
      text,
      "k8s.io",
      "Containerd's namespace for Kubernetes; change it only where containerd's CRI plugin was built with another.",
    ),
    snapshotter: setting(
      or("auto", text),
      "auto",
      'Snapshotter that images are unpacked for; "auto" asks containerd. Anything but overlayfs is left to containerd.',
    ),
    config_file: setting(
      path,
      "/etc/containerd/config.toml",
      "Containerd's configuration, read for what containerd 2.x does not tell over its socket.",
    ),
  },
  registry: {
    config_path: setting(
      or("auto", paths),
      "auto",
      'Directories with hosts.toml files (certs.d); "auto" takes those of containerd.',
    ),
    include: setting(texts, [], "If not empty, only images of these registry hosts are accelerated."),
    exclude: setting(texts, [], "Images of these registry hosts are left to containerd."),
    host: setting(
      hosts(),
      {},
      'Per host, as [registry.host."registry.example.com"]: streams (connections for one blob) and max_concurrent (blob requests at once).',
    ),
  },
  download: {
    max_concurrent: setting(requests, 16, "Blob requests that may be open at once on this node."),
    max_concurrent_per_image: setting(requests, 8, "Blob requests that one image may have open at once."),
    max_concurrent_per_host: setting(
      requests,
      12,
      "Blob requests that may be open at once to one registry host.",
    ),
    chunk_size: setting(
      size("64KiB", "1GiB"),
      "8MiB",
      "Bytes that one ranged request asks for; smaller blobs are fetched in one piece.",
    ),
    progress_timeout: setting(
      duration("1s", "1h"),
      "30s",
      "A request that receives nothing for this long is given up and tried again.",
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
  },
  content: {
    keep_layers: setting(
      or("auto", flag),
      "auto",
      'Whether compressed layers stay in containerd\'s content store; "auto" does as containerd is configured (discard_unpacked_layers).',
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

function hosts(): Kind<ReadonlyMap<string, HostSettings>> {
  const known = new Set(["streams", "max_concurrent"]);
  return {
    parse: (value) => {
      if (!isTable(value)) throw new Expected('tables, such as [registry.host."registry.example.com"]');
      const entries = Object.entries(value).map(([host, given]): [string, HostSettings] => {
        if (!isTable(given)) throw new Expected(`a table for ${host}`);
        const strange = Object.keys(given).find((key) => !known.has(key));
        if (strange !== undefined) throw new Expected(`streams or max_concurrent for ${host}`);
        for (const number of Object.values(given)) requests.parse(number);
        return [host, given];
      });
      return new Map(entries);
    },
  };
}

function setting<Value>(kind: Kind<Value>, preset: unknown, help: string): Setting<Value> {
  return { kind, preset, help };
}

export function isTable(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Date);
}

// Where an installation lies on a node, every path of it.

export const places = {
  /** One folder a version, each a whole bundle. */
  versions: "/opt/hawser/versions",
  /** Link to the version that is in force; replaced by rename(2), so that it always leads somewhere. */
  current: "/opt/hawser/current",
  command: "/usr/local/bin/hawser",
  units: "/etc/systemd/system",
  /** What is special about this node: another containerd than the usual one. */
  dropIn: "/etc/systemd/system/hawser.service.d/10-node.conf",
  config: "/etc/hawser/hawser.toml",
  /** The units' StateDirectory. */
  state: "/var/lib/hawser",
  /** Files whose lines name images, as an agent puts them there. */
  images: "/var/lib/hawser/images",
  record: "/var/lib/hawser/install.json",
  /** Kubelet's configuration as it was. */
  kubeletBefore: "/var/lib/hawser/kubelet-config.before",
  /** The units' RuntimeDirectory. */
  runtime: "/run/hawser",
  lock: "/run/hawser-install.lock",
  /** A release on its way into the node from a container, on the file system where it will lie. */
  incoming: "/opt/hawser.incoming",
} as const;

export const unitNames = ["hawser.socket", "hawser.service"] as const;

/** Kubelet's endpoint for images; the path is that of hawser.socket. */
export const endpoint = "unix:///run/hawser/hawser.sock";

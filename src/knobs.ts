// What becomes of a setting that is too low or too high, and where that is seen: the notes beside the keys of
// config/hawser.toml that are numbers. "hawser trace" names the key where a pull was slow because of one.

export interface Knob {
  readonly low: string;
  readonly high: string;
  /** How to tell. */
  readonly seen: string;
}

/** By key path. Keys that are no matter of more or less are not here. */
export const knobs: ReadonlyMap<string, Knob> = new Map<string, Knob>([
  [
    "cri.max_message_size",
    {
      low: "calls with many or large annotations are refused (RESOURCE_EXHAUSTED)",
      high: "one call may take as much memory",
      seen: "kubelet's events name the size",
    },
  ],
  [
    "download.max_concurrent",
    {
      low: "several pulls at once wait for each other's requests while the link has room",
      high: "each open request may hold 512 KiB, and a small link is divided among more of them",
      seen: 'verdict "limit download.max_concurrent" of hawser trace; hawser_in_flight{what="downloads"} stays at it',
    },
  ],
  [
    "download.max_concurrent_per_image",
    {
      low: "one image alone cannot fill a link whose registry bounds each connection",
      high: "one image may crowd out others that come while it is pulled",
      seen: 'verdict "limit download.max_concurrent_per_image"',
    },
  ],
  [
    "download.max_concurrent_per_host",
    {
      low: "a registry that bounds each connection is not used to what it can give",
      high: "a registry that bounds clients answers 429, and every such answer costs a pause",
      seen: 'verdict "limit download.max_concurrent_per_host", or "registry" with 429 in its evidence',
    },
  ],
  [
    "download.chunk_size",
    {
      low: "more requests, each with its wait for a first byte: slow where the registry is far",
      high: "a large layer comes over fewer connections, and the last one is waited for",
      seen: "the requests of each layer on the status page, and how long their first bytes took",
    },
  ],
  [
    "download.bandwidth_limit",
    {
      low: "pulls take as long as it says, whatever else is idle",
      high: "pulls take what they can get from whatever shares the node's link",
      seen: 'verdict "limit download.bandwidth_limit"',
    },
  ],
  [
    "download.progress_timeout",
    {
      low: "a registry that pauses for a moment is asked anew, and may never finish",
      high: "a connection that is dead is waited for so long before another is made",
      seen: 'hawser_retries_total{reason="slow"}, and failures in the evidence of hawser trace',
    },
  ],
  [
    "download.connect_timeout",
    {
      low: "a far or busy registry is taken for one that is down",
      high: "a mirror that is down delays every pull by as much",
      seen: "resolve takes that long in hawser trace",
    },
  ],
  [
    "download.retries",
    {
      low: "a moment's trouble of a registry has containerd start over",
      high: "a registry that is down is waited for longer before containerd is asked, in vain as well",
      seen: 'hawser_fallbacks_total{reason="unavailable"}, hawser_retries_total',
    },
  ],
  [
    "unpack.max_concurrent",
    {
      low: "layers wait for each other while cores are idle",
      high: "layers share cores and caches, each slower, and each takes 16 MiB and more of memory",
      seen: 'verdict "limit unpack.max_concurrent"; hawser_in_flight{what="unpacks"} stays at it',
    },
  ],
  [
    "unpack.max_concurrent_per_image",
    {
      low: "an image of many layers waits for its own while cores are idle",
      high: "one image may take all threads while others wait",
      seen: 'verdict "limit unpack.max_concurrent_per_image"',
    },
  ],
  [
    "unpack.max_entries",
    {
      low: "large images are left to containerd, which is slower",
      high: "a hostile layer may make so many files before it is stopped",
      seen: 'hawser_fallbacks_total{reason="exhausted"}; the log names the layer',
    },
  ],
  [
    "unpack.max_layer_size",
    {
      low: "large layers are left to containerd, which is slower",
      high: "a hostile layer may fill the disk",
      seen: 'hawser_fallbacks_total{reason="exhausted"}; the log names the layer',
    },
  ],
  [
    "unpack.max_ratio",
    {
      low: "layers of zeros or repetitions are left to containerd, which is slower",
      high: "a small hostile layer may fill the disk",
      seen: 'hawser_fallbacks_total{reason="exhausted"}; the log names the layer',
    },
  ],
  [
    "content.spool_max_size",
    {
      low: "layers wait for room before they are downloaded, and large ones are left to containerd",
      high: "broken-off pulls may hold as much of the disk, until spool_max_age or until it is short",
      seen: 'verdict "limit content.spool_max_size"; hawser_spool_bytes near it',
    },
  ],
  [
    "content.spool_max_age",
    {
      low: "a pull that kubelet tries again after its pauses (up to five minutes) starts from nothing",
      high: "the disk holds what nobody comes back for",
      seen: 'hawser_spool_bytes{state="parked"}',
    },
  ],
  [
    "fallback.after",
    {
      low: "a registry that is slow to answer is given up while it works, and asked again by containerd",
      high: "a pull from a registry that hangs is held so long before containerd tries",
      seen: 'hawser_fallbacks_total{reason="slow"}',
    },
  ],
  [
    "fallback.breaker_failures",
    {
      low: "a moment's trouble has a registry's images pulled by containerd until it is probed",
      high: "more pulls wait for a registry that is down",
      seen: "hawser_breaker_open",
    },
  ],
  [
    "fallback.breaker_reset",
    {
      low: "a registry that is down is probed often",
      high: "a registry that is back is not used for so long",
      seen: "hawser_breaker_open",
    },
  ],
  [
    "prewarm.max_concurrent",
    {
      low: "a long list takes longer to be there",
      high: "more images are half there at once, and more of the disk is spoken for",
      seen: 'hawser prewarm list; hawser_prewarm_images{state="wanted"}',
    },
  ],
  [
    "prewarm.bandwidth_limit",
    {
      low: "images are not there when they are needed",
      high: "what shares the node's link, besides pulls, feels it",
      seen: 'hawser_prewarm_oldest_wanted_seconds; verdict "limit prewarm.bandwidth_limit"',
    },
  ],
  [
    "prewarm.min_free_disk",
    {
      low: "kubelet begins to delete images, those that are used next among them",
      high: "nothing is fetched ahead on disks that are rather full",
      seen: "hawser prewarm list says what each image waits for",
    },
  ],
  [
    "prewarm.refresh",
    {
      low: "registries are asked often, once for each image (HEAD, which no quota counts)",
      high: "a tag that has moved is fetched by the pod that needs it",
      seen: 'hawser_prewarm_fetches_total{result="unchanged"}',
    },
  ],
  [
    "prewarm.keep",
    {
      low: "an image is fetched again that comes and goes",
      high: "the disk holds what nobody wants any more",
      seen: "hawser prewarm list",
    },
  ],
  [
    "trace.keep",
    {
      low: "the pull that somebody asks about is gone",
      high: "each takes some kilobytes of admin.state_dir, and a list reads them all",
      seen: "how far back hawser pulls goes",
    },
  ],
]);

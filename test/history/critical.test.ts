// The critical path: what a pull's time is laid to, on records made by hand, whose answers are known.

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Part, partsOf } from "../../src/history/critical.ts";
import type { LayerRecord, PullRecord, SpanRecord } from "../../src/history/record.ts";

function spans(all: Readonly<Record<string, readonly [number, number]>>): SpanRecord[] {
  return Object.entries(all).map(([name, [startSeconds, endSeconds]]) => ({
    name,
    startSeconds,
    endSeconds,
  }));
}

function layer(index: number, more: Partial<LayerRecord>): LayerRecord {
  return {
    digest: `sha256:${index}`,
    index,
    bytes: 1000,
    presentBytes: 0,
    receivedBytes: 1000,
    bytesPerSecond: 0,
    requestsMost: 1,
    spans: [],
    downloadWaits: {},
    unpackWaits: {},
    hosts: [],
    ...more,
  };
}

function pull(
  seconds: number,
  stages: Parameters<typeof spans>[0],
  more: Partial<PullRecord> = {},
): PullRecord {
  return {
    id: "0".repeat(16),
    traceId: "0".repeat(32),
    image: "example.com/image:1",
    startedAt: "2026-01-01T00:00:00.000Z",
    seconds,
    state: "ok",
    isAhead: false,
    isJoined: false,
    presentLayers: 0,
    stages: spans(stages),
    layers: [],
    hosts: [],
    ...more,
  };
}

function host(answeredSeconds: number, openSeconds: number) {
  return {
    host: "example.com",
    requests: 1,
    bytes: 1000,
    answeredSeconds,
    openSeconds,
    pausedSeconds: 0,
    failures: {},
  };
}

/** One that waits for all of its bytes first, unless otherwise is said. */
function unpacked(waitedSeconds: number, onCoreSeconds: number, queuedSeconds = 0) {
  const caughtUpSeconds = waitedSeconds;
  const unpaused = { bytes: 1, entries: 1, waitedSeconds, caughtUpSeconds, onCoreSeconds, queuedSeconds };
  return { ...unpaused, pausedSeconds: 0 };
}

const idle = { coresBusy: 0.2, mainBusy: 0.1, mainOnCore: 0.1, mainQueued: 0 };

test("an image that was there: the registry's answer, and containerd's to what is asked of it", () => {
  const record = pull(1, { resolve: [0, 0.9], registry: [0.1, 0.8] });
  expect(partsOf(record)).toEqual([
    { cause: "registry", seconds: 0.7 },
    { cause: "containerd", seconds: 0.2 },
    { cause: "hawser", seconds: 0.1 },
  ]);
});

test("what is left to containerd is containerd's", () => {
  expect(partsOf(pull(4, { containerd: [0, 4] }))).toEqual([{ cause: "containerd", seconds: 4 }]);
});

test("a layer that waits for its bytes: its requests' time, in their proportion", () => {
  const one = layer(0, {
    spans: spans({ open: [0, 0], room: [0, 0], worker: [0, 0], unpack: [0, 9], commit: [9, 10] }),
    hosts: [host(2, 8)],
    unpacked: unpacked(8, 1),
  });
  expect(partsOf(pull(10, { layers: [0, 10] }, { layers: [one], machine: idle }))).toEqual([
    { cause: "network", seconds: 6 },
    { cause: "registry", seconds: 2 },
    { cause: "containerd", seconds: 1 },
    { cause: "cpu", seconds: 1 },
  ]);
});

test.each<[string, Partial<LayerRecord>, Partial<PullRecord["machine"]>, Part]>([
  [
    "a bandwidth",
    { downloadWaits: { "download.bandwidth_limit": 8 } },
    {},
    limit("download.bandwidth_limit", 8),
  ],
  [
    "a limit on requests",
    { downloadWaits: { "download.max_concurrent": 24 } },
    {},
    limit("download.max_concurrent", 6),
  ],
  ["pulls that go first", { downloadWaits: { others: 24 } }, {}, { cause: "others", seconds: 6 }],
  ["a host that takes no more", { downloadWaits: { host: 24 } }, {}, { cause: "network", seconds: 8 }],
  [
    "the thread that receives, at work",
    {},
    { mainBusy: 0.95, mainOnCore: 0.9 },
    { cause: "cpu", seconds: 8 },
  ],
  [
    "the thread that receives, at a stand",
    {},
    { mainBusy: 0.95, mainOnCore: 0.1 },
    { cause: "disk", seconds: 8 },
  ],
])("bytes that came no sooner because of %s", (_name, more, machine, part) => {
  const one = layer(0, {
    spans: spans({ open: [0, 0], room: [0, 0], worker: [0, 0], unpack: [0, 8], commit: [8, 8] }),
    hosts: [host(0, 8)],
    unpacked: unpacked(8, 0),
    ...more,
  });
  const record = pull(8, { layers: [0, 8] }, { layers: [one], machine: { ...idle, ...machine } });
  expect(partsOf(record)[0]).toEqual(part);
});

function limit(key: string, seconds: number): Part {
  return { cause: "limit", key, seconds };
}

test.each<[string, number, readonly Part[]]>([
  [
    "on its core",
    0,
    [
      { cause: "disk", seconds: 6 },
      { cause: "cpu", seconds: 2 },
    ],
  ],
  [
    "on its core or kept from it",
    5,
    [
      { cause: "cpu", seconds: 7 },
      { cause: "disk", seconds: 1 },
    ],
  ],
])("a thread that is not %s waits for the disk", (_name, queued, parts) => {
  const one = layer(0, {
    spans: spans({ open: [0, 0], room: [0, 0], worker: [0, 0], unpack: [0, 8], commit: [8, 8] }),
    unpacked: unpacked(0, 2, queued),
  });
  expect(partsOf(pull(8, { layers: [0, 8] }, { layers: [one], machine: idle }))).toEqual(parts);
});

test("a thread that stood still for layers that go first had no disk to wait for", () => {
  const one = layer(0, {
    spans: spans({ open: [0, 0], room: [0, 0], worker: [0, 0], unpack: [0, 8], commit: [8, 8] }),
    unpacked: { ...unpacked(0, 2), pausedSeconds: 5 },
  });
  expect(partsOf(pull(8, { layers: [0, 8] }, { layers: [one], machine: idle }))).toEqual([
    { cause: "others", seconds: 5 },
    { cause: "cpu", seconds: 2 },
    { cause: "disk", seconds: 1 },
  ]);
});

describe("two layers with one worker", () => {
  const two = (key: string, waitedSeconds: number): readonly LayerRecord[] => [
    layer(0, {
      spans: spans({ open: [0, 0], room: [0, 0], worker: [0, 0], unpack: [0, 5], commit: [5, 5] }),
      hosts: [host(0, 5)],
      unpacked: unpacked(waitedSeconds, 5 - waitedSeconds),
    }),
    layer(1, {
      spans: spans({ open: [0, 0], room: [0, 0], worker: [0, 5], unpack: [5, 10], commit: [10, 10] }),
      hosts: [host(0, 1)],
      unpackWaits: { [key]: 5 },
      unpacked: unpacked(0, 5),
    }),
  ];
  const partsWith = (key: string, waited: number, coresBusy: number): readonly Part[] =>
    partsOf(pull(10, { layers: [0, 10] }, { layers: two(key, waited), machine: { ...idle, coresBusy } }));

  test("a limit that is set kept the second from its core", () => {
    expect(partsWith("unpack.max_concurrent", 0, 0.5)).toEqual([
      { cause: "cpu", seconds: 5 },
      limit("unpack.max_concurrent", 5),
    ]);
  });

  test("with busy cores more at once would not have helped", () => {
    expect(partsWith("unpack.max_concurrent", 0, 0.95)).toEqual([{ cause: "cpu", seconds: 10 }]);
  });

  test("one for each core is no limit of anybody's", () => {
    expect(partsWith("cores", 0, 0.5)).toEqual([{ cause: "cpu", seconds: 10 }]);
  });

  test("whoever held the worker waited for the network", () => {
    expect(partsWith("unpack.max_concurrent", 5, 0.5)).toEqual([
      { cause: "cpu", seconds: 5 },
      { cause: "network", seconds: 5 },
    ]);
  });
});

describe("a layer that is unpacked while its bytes come", () => {
  const partsWith = (caughtUpSeconds: number, arrived: number): readonly Part[] => {
    const one = layer(0, {
      spans: spans({ download: [0, arrived], worker: [1, 1], unpack: [1, 10], commit: [10, 10] }),
      hosts: [host(0, 10)],
      unpacked: { ...unpacked(3, 4, 1), caughtUpSeconds },
    });
    return partsOf(pull(10, { layers: [1, 10] }, { layers: [one], machine: idle }));
  };

  test("and is behind until the end, has its cores and its disk to thank for that", () => {
    expect(partsWith(0, 9)).toEqual([
      { cause: "cpu", seconds: 7.5 },
      { cause: "disk", seconds: 1.5 },
      { cause: "hawser", seconds: 1 },
    ]);
  });

  test("and keeps up with them, ends when they have come, whatever it did meanwhile", () => {
    expect(partsWith(9, 10)).toEqual([
      { cause: "network", seconds: 9 },
      { cause: "hawser", seconds: 1 },
    ]);
  });

  test("and had caught up once, waited for bytes until then, and for none behind that", () => {
    expect(partsWith(4, 9)).toEqual([
      { cause: "cpu", seconds: 4.167 },
      { cause: "network", seconds: 4 },
      { cause: "hawser", seconds: 1 },
      { cause: "disk", seconds: 0.833 },
    ]);
  });

  test("and got its core long after the last of them, waited for the core", () => {
    expect(partsWith(9, 4)).toEqual([
      { cause: "cpu", seconds: 5 },
      { cause: "network", seconds: 3 },
      { cause: "hawser", seconds: 1 },
      { cause: "disk", seconds: 1 },
    ]);
  });

  test("and had them all before it began, waited for none", () => {
    expect(partsWith(9, 0.5).map(({ cause }) => cause)).not.toContain("network");
  });
});

test("a layer that waited for the one below: that one's time counts, and not its own", () => {
  const below = layer(0, {
    spans: spans({
      open: [0, 0],
      room: [0, 0],
      worker: [0, 0],
      unpack: [0, 6],
      settle: [6, 7],
      commit: [6, 8],
    }),
    hosts: [host(0, 6)],
    unpacked: unpacked(6, 0),
  });
  const above = layer(1, {
    spans: spans({
      open: [0, 0],
      room: [0, 0],
      worker: [0, 0],
      unpack: [0, 3],
      parent: [3, 8],
      commit: [8, 9],
    }),
    unpacked: unpacked(0, 3),
  });
  expect(partsOf(pull(9, { layers: [0, 9] }, { layers: [below, above], machine: idle }))).toEqual([
    { cause: "network", seconds: 6 },
    { cause: "containerd", seconds: 2 },
    { cause: "disk", seconds: 1 },
  ]);
});

test("a host that was left alone behind a failure counts as the registry", () => {
  const one = layer(0, {
    spans: spans({ open: [0, 0], worker: [0, 0], unpack: [0, 4], commit: [4, 4] }),
    hosts: [{ ...host(0, 1), pausedSeconds: 3 }],
    unpacked: unpacked(4, 0),
  });
  expect(partsOf(pull(4, { layers: [0, 4] }, { layers: [one], machine: idle }))).toEqual([
    { cause: "registry", seconds: 3 },
    { cause: "network", seconds: 1 },
  ]);
});

test("a layer whose own requests say nothing waits for what the image's others wait for", () => {
  const done = layer(0, {
    spans: spans({ open: [0, 0], worker: [0, 0], unpack: [0, 1], commit: [1, 1] }),
    hosts: [host(1, 1)],
    unpacked: unpacked(0, 1),
  });
  const last = layer(1, {
    spans: spans({ open: [0, 0], worker: [0, 0], unpack: [0, 4], commit: [4, 4] }),
    unpacked: unpacked(4, 0),
  });
  expect(partsOf(pull(4, { layers: [0, 4] }, { layers: [done, last], machine: idle }))).toEqual([
    { cause: "registry", seconds: 4 },
  ]);
});

test("whoever was over before a layer began to wait did not keep it waiting", () => {
  const earlier = layer(0, {
    spans: spans({ open: [0, 0], worker: [0, 0], unpack: [0, 1], commit: [1, 1] }),
    hosts: [host(1, 1)],
    unpacked: unpacked(1, 0),
  });
  const waiting = layer(1, {
    spans: spans({ open: [2, 2], worker: [2, 5], unpack: [5, 6], commit: [6, 6] }),
    unpackWaits: { "unpack.max_concurrent": 3 },
    unpacked: unpacked(0, 1),
  });
  expect(partsOf(pull(6, { layers: [0, 6] }, { layers: [earlier, waiting], machine: idle }))).toEqual([
    limit("unpack.max_concurrent", 3),
    { cause: "containerd", seconds: 2 },
    { cause: "cpu", seconds: 1 },
  ]);
});

test("time until a process was found to be gone is Hawser's own", () => {
  expect(partsOf(pull(4, { lost: [0, 3], containerd: [3, 4] }))).toEqual([
    { cause: "hawser", seconds: 3 },
    { cause: "containerd", seconds: 1 },
  ]);
});

test("room in the spool is a limit of its own", () => {
  const one = layer(0, {
    spans: spans({ room: [0, 4], open: [0, 4], worker: [4, 4], unpack: [4, 5], commit: [5, 5] }),
    unpacked: unpacked(0, 1),
  });
  expect(partsOf(pull(5, { layers: [0, 5] }, { layers: [one], machine: idle }))[0]).toEqual(
    limit("content.spool_max_size", 4),
  );
});

test("what goes on is laid to what its requests wait for", () => {
  const one = layer(0, {
    spans: [
      ...spans({ open: [0, 0], room: [0, 0], worker: [0, 0] }),
      { name: "download", startSeconds: 0 },
      { name: "unpack", startSeconds: 0 },
    ],
    hosts: [host(0, 3)],
  });
  const record = pull(3, {}, { layers: [one], state: "running" });
  const stages = [{ name: "layers", startSeconds: 0 }];
  expect(partsOf({ ...record, stages })).toEqual([{ cause: "network", seconds: 3 }]);
});

test("whatever a record says, the parts add up to the pull's time, and none is negative", () => {
  const second = fc.double({ min: -5, max: 20, noNaN: true });
  const span = fc.record(
    {
      name: fc.constantFrom("open", "room", "download", "worker", "unpack", "parent", "commit", "settle"),
      startSeconds: second,
      endSeconds: second,
    },
    { requiredKeys: ["name", "startSeconds"] },
  );
  const waits = fc.dictionary(
    fc.constantFrom("host", "cores", "others", "unpack.max_concurrent"),
    fc.double({ min: 0, max: 9, noNaN: true }),
  );
  const layers = fc.array(
    fc.record({
      spans: fc.array(span as fc.Arbitrary<SpanRecord>, { maxLength: 10 }),
      downloadWaits: waits,
      unpackWaits: waits,
      hosts: fc.array(fc.constantFrom(host(1, 2), host(0, 0), host(3, 1)), { maxLength: 2 }),
      unpacked: fc
        .record({ caughtUpSeconds: second, pausedSeconds: second.map(Math.abs) })
        .map((times) => Object.assign(unpacked(1, 1), times)),
    }),
    { maxLength: 6 },
  );
  const share = fc.double({ min: 0, max: 1, noNaN: true });
  const machine = fc.record({ coresBusy: share, mainBusy: share, mainOnCore: share, mainQueued: share });
  const end = fc.double({ min: 0.1, max: 20, noNaN: true });
  fc.assert(
    fc.property(layers, end, end, machine, (made, start, seconds, busy) => {
      const record = pull(
        seconds,
        { resolve: [0, start], layers: [start, seconds] },
        {
          layers: made.map((more, index) => layer(index, more)),
          machine: busy,
        },
      );
      const parts = partsOf(record);
      const all = parts.reduce((sum, part) => sum + part.seconds, 0);
      // Each is rounded to the millisecond.
      expect(Math.abs(all - Math.max(seconds, start))).toBeLessThan(0.01);
      expect(parts.filter((part) => part.seconds < 0)).toEqual([]);
    }),
  );
});

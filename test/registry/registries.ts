// A registry client for tests, with short patience; each test says only what it is about.

import { createRegistry, type RegistryOptions } from "../../src/registry/client.ts";
import type { Registry, RequestPermits } from "../../src/registry/registry.ts";
import { wordingOf } from "../../src/registry/wording.ts";

export function testRegistry(options: Partial<RegistryOptions> = {}): Registry {
  return createRegistry({
    configPath: [],
    userAgent: "test",
    wording: wordingOf("1.6.20"),
    chunkBytes: 65_536,
    streams: 4,
    hostStreams: new Map(),
    connectTimeoutMs: 1000,
    progressTimeoutMs: 2000,
    retries: 2,
    fallbackAfterMs: 5000,
    breaker: { failures: 2, resetMs: 50 },
    proxy: { http: "", https: "", no: "" },
    events: { bytes: () => {}, retry: () => {}, breaker: () => {} },
    ...options,
  });
}

/** For whoever asks. */
export const permits: RequestPermits = {
  acquire: async () => {
    const nothing = (): void => {};
    return {
      slow: nothing,
      answered: nothing,
      received: nothing,
      throttled: nothing,
      troubled: nothing,
      failed: nothing,
      [Symbol.dispose]: nothing,
    };
  },
  paused: () => {},
};

// Loads the native addon, and is the only file that does. A missing or broken addon is a state to report, not a crash.

import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import type { Binding } from "../native/binding.d.ts";

export type { Binding, Inflater } from "../native/binding.d.ts";

export type Native =
  | { readonly kind: "loaded"; readonly binding: Binding }
  | { readonly kind: "missing"; readonly reason: string };

/** The same from src/ and from dist/: both are beside native/. */
const file = fileURLToPath(new URL("../native/build/hawser.node", import.meta.url));

export function loadNative(): Native {
  try {
    return { kind: "loaded", binding: createRequire(import.meta.url)(file) as Binding };
  } catch (error) {
    const text = error instanceof Error ? (error.message.split("\n")[0] ?? "") : String(error);
    return { kind: "missing", reason: `the native addon cannot be loaded: ${text}` };
  }
}

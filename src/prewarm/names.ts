// Images by the names that their records have.

import { parseReference } from "../oci/reference.ts";

/** As records are named, so that one image is not fetched under two spellings. Throws `invalid`. */
export function nameOf(reference: string): string {
  return parseReference(reference).name;
}

/** Of those that are references; the others are left out. */
export function namesOf(references: readonly string[]): string[] {
  return references.flatMap((reference) => {
    try {
      return [nameOf(reference)];
    } catch {
      return [];
    }
  });
}

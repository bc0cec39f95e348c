// Selectors as the API takes them in a query: of labels, and of the few fields that it knows.

import { Refusal } from "./refusal.ts";
import type { ApiObject } from "./store.ts";

export interface Selection {
  readonly namespace: string;
  readonly isSelected: (object: ApiObject) => boolean;
}

type Test = (object: ApiObject) => boolean;

/** Throws what the API says of selectors that it does not take. */
export function selectionOf(namespace: string, query: Readonly<Record<string, string>>): Selection {
  const tests = [...fieldTests(query["fieldSelector"] ?? ""), ...labelTests(query["labelSelector"] ?? "")];
  return {
    namespace,
    isSelected: (object) =>
      (namespace === "" || object.metadata.namespace === namespace) && tests.every((test) => test(object)),
  };
}

function fieldTests(selector: string): Test[] {
  return selector
    .split(",")
    .filter((term) => term !== "")
    .map((term) => {
      const [, field = "", sign = "", value = ""] = /^([^=!]+)(==?|!=)(.*)$/.exec(term) ?? [];
      const read = fields[field];
      if (read === undefined) throw Refusal.bad(`field label not supported: ${field}`);
      return (object) => (read(object) === value) === (sign !== "!=");
    });
}

const fields: Readonly<Record<string, (object: ApiObject) => unknown>> = {
  "metadata.name": ({ metadata }) => metadata.name,
  "metadata.namespace": ({ metadata }) => metadata.namespace ?? "",
  "spec.nodeName": (object) => (object["spec"] as { nodeName?: string } | undefined)?.nodeName ?? "",
  "status.phase": (object) => (object["status"] as { phase?: string } | undefined)?.phase ?? "",
};

function labelTests(selector: string): Test[] {
  // Commas between parentheses are of a set.
  const terms = selector.match(/(?:\([^)]*\)|[^,(])+/g) ?? [];
  return terms.map((term) => {
    const test = labelTest(term.trim());
    return ({ metadata }) => test((metadata["labels"] ?? {}) as Readonly<Record<string, string>>);
  });
}

function labelTest(term: string): (labels: Readonly<Record<string, string>>) => boolean {
  const [, setKey, not, values = ""] = /^(\S+)\s+(not)?in\s*\(([^)]*)\)$/.exec(term) ?? [];
  if (setKey !== undefined) {
    const set = new Set(values.split(",").map((value) => value.trim()));
    return (labels) => set.has(labels[setKey] ?? "\0") === (not === undefined);
  }
  const [, key, sign, value = ""] = /^([^\s=!]+)\s*(==?|!=)\s*(\S*)$/.exec(term) ?? [];
  if (key !== undefined) return (labels) => (labels[key] === value) === (sign !== "!=");
  const [, absent, present] = /^(!?)\s*([^\s=!()]+)$/.exec(term) ?? [];
  if (present === undefined) throw Refusal.bad(`unable to parse requirement: ${term}`);
  return (labels) => (labels[present] !== undefined) === (absent === "");
}

// What a request's path names: a collection, in one namespace or in all of them, an object in it, or a part of that.

export interface Target {
  /** The path under which all objects of the kind are kept, whatever their namespace: "/api/v1/pods". */
  readonly collection: string;
  /** Empty for the core group. */
  readonly group: string;
  readonly resource: string;
  /** As messages have it: "pods", "statefulsets.apps". */
  readonly qualified: string;
  /** Empty for all namespaces and for what has none. */
  readonly namespace: string;
  /** Empty for the collection. */
  readonly name: string;
  /** "status", or nothing. */
  readonly subresource: string;
}

/** Undefined for what is no path of objects. */
export function targetOf(path: string): Target | undefined {
  const found = /^(\/api\/v1|\/apis\/([^/]+)\/[^/]+)\/(.+)$/.exec(path);
  if (found === null) return undefined;
  const [, base = "", group = "", rest = ""] = found;
  const words = rest.split("/").map(decodeURIComponent);
  const isNamespaced = words[0] === "namespaces" && words.length > 2;
  const [resource = "", name = "", subresource = ""] = isNamespaced ? words.slice(2) : words;
  if (words.length > (isNamespaced ? 5 : 3)) return undefined;
  return {
    collection: `${base}/${resource}`,
    group,
    resource,
    qualified: group === "" ? resource : `${resource}.${group}`,
    namespace: isNamespaced ? (words[1] ?? "") : "",
    name,
    subresource,
  };
}

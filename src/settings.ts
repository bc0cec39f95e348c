// Kinds of settings: what a TOML value must look like, and what it becomes. Sizes come in bytes, durations in
// milliseconds. The words "auto" and "off" are values of the kinds that allow them.

/** One kind of value. `parse` throws an Expected, and nothing else. */
export interface Kind<Value> {
  readonly parse: (value: unknown) => Value;
}

export interface Problem {
  /** `download.chunk_size`, or empty for the file as a whole. */
  readonly path: string;
  readonly message: string;
}

/** Completes the sentence "expected …"; or, for a table, says what is wrong inside of it. */
export class Expected extends Error {
  readonly inside: readonly Problem[];

  constructor(message: string, inside: readonly Problem[] = []) {
    super(message);
    this.inside = inside;
  }
}

/** What an Expected says of the value at this key path. */
export function problemsAt(path: string, error: Expected, value: unknown): Problem[] {
  if (error.inside.length === 0)
    return [{ path, message: `expected ${error.message}, not ${toToml(value)}` }];
  return error.inside.map((problem) => ({ path: `${path}.${problem.path}`, message: problem.message }));
}

/** What to say of a key that is not known: the nearest one that is. */
export function unknownKey(name: string, known: readonly string[]): string {
  const near = known.map((one) => ({ one, far: distance(name, one) })).sort((a, b) => a.far - b.far)[0];
  const isNear = near !== undefined && near.far <= Math.min(3, name.length / 2);
  return isNear ? `is not known; did you mean ${near.one}?` : "is not known";
}

/** A value on one line, as it would be written in the file; near enough for a message. */
export function toToml(value: unknown): string {
  return typeof value === "number" ? String(value) : JSON.stringify(value);
}

const sizeUnits: Readonly<Record<string, number>> = {
  B: 1,
  KiB: 2 ** 10,
  MiB: 2 ** 20,
  GiB: 2 ** 30,
  TiB: 2 ** 40,
};
const durationUnits: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 };

/** An absolute path. */
export const path: Kind<string> = {
  parse: (value) => {
    if (typeof value === "string" && value.startsWith("/") && !/\p{Cc}/u.test(value)) return value;
    throw new Expected('an absolute path, such as "/run/hawser/hawser.sock"');
  },
};

/** A unix socket's path; sun_path has 108 bytes, of which one ends it (unix(7)). */
export const socket: Kind<string> = {
  parse: (value) => {
    const absolute = path.parse(value);
    if (absolute.endsWith("/")) throw new Expected("the path of a file, without a slash at its end");
    if (Buffer.byteLength(absolute) <= 107) return absolute;
    throw new Expected("a path of at most 107 bytes, which is all that a socket may have");
  },
};

/** A socket that is listened on; beside it lie others, whose names may be a little longer. */
export const listenSocket: Kind<string> = {
  parse: (value) => {
    const absolute = socket.parse(value);
    if (Buffer.byteLength(absolute) <= 90) return absolute;
    throw new Expected("a path of at most 90 bytes");
  },
};

/** What containerd takes for a namespace or a plugin's name. */
export const identifier: Kind<string> = {
  parse: (value) => {
    const isName = typeof value === "string" && /^[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*$/.test(value);
    if (isName && value.length <= 76) return value;
    throw new Expected('a name as containerd has them, such as "k8s.io" or "overlayfs"');
  },
};

/** What Kubernetes takes for a node's name (RFC 1123 subdomain). */
export const nodeName: Kind<string> = {
  parse: (value) => {
    const isName = typeof value === "string" && /^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$/.test(value);
    if (isName) return value;
    throw new Expected('the name of a node, such as "node-1.example.com"');
  },
};

export const flag: Kind<boolean> = {
  parse: (value) => {
    if (typeof value === "boolean") return value;
    throw new Expected("true or false");
  },
};

/** Registry hosts as they stand in references. */
export const hosts: Kind<readonly string[]> = {
  parse: (value) => {
    const isHost = (one: unknown): boolean =>
      typeof one === "string" && /^(\[[0-9a-fA-F:]+\]|[\w.-]+)(:\d{1,5})?$/.test(one);
    if (Array.isArray(value) && value.includes("index.docker.io"))
      throw new Expected('"docker.io" for Docker Hub');
    if (Array.isArray(value) && value.every(isHost)) return value as string[];
    throw new Expected('a list of registry hosts, such as ["docker.io", "registry.example.com:5000"]');
  },
};

export function isTable(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Date);
}

export const paths: Kind<readonly string[]> = {
  parse: (value) => {
    const list = Array.isArray(value) ? value : [value];
    // containerd divides at colons; here a list is a list.
    const isPath = (one: unknown): boolean => typeof one === "string" && /^\/[^:\p{Cc}]*$/u.test(one);
    if (list.every(isPath)) return list as string[];
    throw new Expected('absolute paths, such as ["/etc/containerd/certs.d"]');
  },
};

export function choice<const Words extends readonly string[]>(...words: Words): Kind<Words[number]> {
  return {
    parse: (value) => {
      const found = words.find((word) => word === value);
      if (found !== undefined) return found;
      throw new Expected(words.map((word) => JSON.stringify(word)).join(" or "));
    },
  };
}

export function count(min: number, max: number): Kind<number> {
  return {
    parse: (value) => {
      if (typeof value === "number" && Number.isInteger(value) && value >= min && value <= max) return value;
      throw new Expected(`a whole number from ${min} to ${max}`);
    },
  };
}

export function size(min: string, max: string): Kind<number> {
  return amount(sizeUnits, "a size", min, max);
}

export function duration(min: string, max: string): Kind<number> {
  return amount(durationUnits, "a duration", min, max);
}

/** Images, as they stand in a pod. One that is misspelt is no reason to accelerate nothing: that is told where it is used. */
export const references: Kind<readonly string[]> = {
  parse: (value) => {
    if (Array.isArray(value) && value.every((one) => typeof one === "string")) return value;
    throw new Expected('a list of image references, such as ["docker.io/library/busybox:1.36"]');
  },
};

/** Part of a file system: a share of it, or bytes. */
export type Space =
  | { readonly kind: "share"; readonly share: number }
  | { readonly kind: "bytes"; readonly bytes: number };

export const space: Kind<Space> = {
  parse: (value) => {
    const percent = typeof value === "string" ? /^(\d{1,2}(?:\.\d+)?) ?%$/.exec(value)?.[1] : undefined;
    if (percent !== undefined) return { kind: "share", share: Number(percent) / 100 };
    const bytes = measure(sizeUnits, value);
    if (bytes !== undefined) return { kind: "bytes", bytes };
    throw new Expected('a share or a size of a file system, such as "20%" or "50GiB"');
  },
};

/** `host:port`, for what listens; "off" for what does not. */
export const address: Kind<{ readonly host: string; readonly port: number } | "off"> = {
  parse: (value) => {
    const parsed = parseAddress(value);
    if (parsed === undefined) throw new Expected('"host:port", such as "127.0.0.1:9464", or "off"');
    return parsed;
  },
};

function parseAddress(value: unknown): { readonly host: string; readonly port: number } | "off" | undefined {
  if (value === "off") return "off";
  const match = typeof value === "string" ? /^(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d{1,5})$/.exec(value) : null;
  const port = Number(match?.[2]);
  if (match?.[1] === undefined || port > 65_535) return undefined;
  return { host: match[1].replace(/^\[|\]$/g, ""), port };
}

/** An address that nobody else's machine reaches. */
export const localAddress: Kind<{ readonly host: string; readonly port: number } | "off"> = {
  parse: (value) => {
    const parsed = parseAddress(value);
    const isLocal =
      parsed === "off" || /^(127\.\d{1,3}\.\d{1,3}\.\d{1,3}|::1|localhost)$/.test(parsed?.host ?? "");
    if (parsed !== undefined && isLocal) return parsed;
    throw new Expected('an address of this machine itself, such as "127.0.0.1:9465", or "off"');
  },
};

/** Without credentials, which would come to be shown. */
export const httpURL: Kind<URL> = {
  parse: (value) => {
    const url = typeof value === "string" && URL.canParse(value) ? new URL(value) : undefined;
    const isHttp = url?.protocol === "http:" || url?.protocol === "https:";
    if (url && isHttp && url.username === "" && url.password === "" && url.search === "" && url.hash === "")
      return url;
    throw new Expected('a URL such as "http://127.0.0.1:4318"');
  },
};

/** The kind, or one of these words as it is. */
export function or<const Word extends string, Value>(word: Word, kind: Kind<Value>): Kind<Word | Value> {
  return {
    parse: (value) => {
      if (value === word) return word;
      try {
        return kind.parse(value);
      } catch (error) {
        throw error instanceof Expected ? new Expected(`${error.message}, or "${word}"`) : error;
      }
    },
  };
}

function amount(
  units: Readonly<Record<string, number>>,
  what: string,
  min: string,
  max: string,
): Kind<number> {
  const [least, most] = [measure(units, min), measure(units, max)];
  return {
    parse: (value) => {
      const measured = measure(units, value);
      if (measured !== undefined && measured >= (least ?? 0) && measured <= (most ?? 0)) return measured;
      throw new Expected(
        `${what} as a string from "${min}" to "${max}" (units: ${Object.keys(units).join(", ")})`,
      );
    },
  };
}

function measure(units: Readonly<Record<string, number>>, value: unknown): number | undefined {
  const match = typeof value === "string" ? /^(\d+(?:\.\d+)?) ?([A-Za-z]+)$/.exec(value) : null;
  const unit = units[match?.[2] ?? ""];
  return match === null || unit === undefined ? undefined : Math.round(Number(match[1]) * unit);
}

/** Levenshtein's distance. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const change = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(change, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}

/** Settings of one registry host; absent means those of [download]. */
export interface HostSettings {
  readonly streams?: number;
  readonly max_concurrent?: number;
}

const hostKeys: readonly string[] = ["streams", "max_concurrent"] satisfies (keyof HostSettings)[];

export const hostTable: Kind<ReadonlyMap<string, HostSettings>> = {
  parse: (value) => {
    if (!isTable(value)) throw new Expected('tables, such as [registry.host."registry.example.com"]');
    const inside = Object.entries(value).flatMap(([host, given]) => hostProblems(host, given));
    if (inside.length > 0) throw new Expected("", inside);
    return new Map(Object.entries(value as Record<string, HostSettings>));
  },
};

function hostProblems(host: string, given: unknown): Problem[] {
  const key = JSON.stringify(host);
  if (host === "docker.io") return [{ path: key, message: "is asked as registry-1.docker.io; say that" }];
  // Permits and connections are counted by a URL's host; a key that is spelled otherwise would never be met.
  const url = `https://${host.replace(/^\w+:\/\//, "")}`;
  const urlHost = URL.canParse(url) ? new URL(url).host : "";
  if (urlHost === "" || urlHost !== host) {
    const such = JSON.stringify(urlHost || "registry.example.com:5000");
    return [{ path: key, message: `expected a host without scheme and path, such as ${such}` }];
  }
  if (!isTable(given)) return [{ path: key, message: `expected a table, [registry.host.${key}]` }];
  return Object.entries(given).flatMap(([name, number]): Problem[] => {
    const keyPath = `${key}.${name}`;
    if (!hostKeys.includes(name)) return [{ path: keyPath, message: unknownKey(name, hostKeys) }];
    try {
      count(1, 256).parse(number);
      return [];
    } catch (error) {
      if (!(error instanceof Expected)) throw error;
      return problemsAt(keyPath, error, number);
    }
  });
}

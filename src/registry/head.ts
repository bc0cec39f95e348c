// The head of an HTTP/1.1 answer, read strictly: whatever is unusual is left to undici, which reads everything.

export interface Head {
  readonly status: number;
  /** In lower case; what was sent more than once is joined by commas. */
  readonly headers: Readonly<Record<string, string | undefined>>;
}

/** RFC 9112, 4 and 5: one line of status, and fields without white space before the colon or at the start of a line. */
const statusLine = /^HTTP\/1\.1 ([1-9]\d\d)(?: [\t\x20-\x7e\x80-\xff]*)?$/;
const fieldLine = /^([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t\x20-\x7e\x80-\xff]*)$/;

/** Takes the text before the empty line, one character per byte; undefined when it is none that this understands. */
export function parseHead(text: string): Head | undefined {
  const [first = "", ...lines] = text.split("\r\n");
  const status = statusLine.exec(first)?.[1];
  if (status === undefined) return undefined;
  const headers = Object.create(null) as Record<string, string | undefined>;
  for (const line of lines) {
    const [, name, padded] = fieldLine.exec(line) ?? [];
    if (name === undefined || padded === undefined) return undefined;
    const value = withoutBlanks(padded);
    const key = name.toLowerCase();
    const before = headers[key];
    headers[key] = before === undefined ? value : `${before}, ${value}`;
  }
  return { status: Number(status), headers };
}

/** Not by an expression, whose time would grow with the square of the blanks. */
function withoutBlanks(text: string): string {
  const isBlank = (at: number): boolean => text[at] === " " || text[at] === "\t";
  let [start, end] = [0, text.length];
  while (start < end && isBlank(start)) start += 1;
  while (end > start && isBlank(end - 1)) end -= 1;
  return text.slice(start, end);
}

/** How long the body is; undefined unless that is said in just one way. */
export function bodyBytesOf({ headers }: Head): number | undefined {
  const length = headers["content-length"] ?? "";
  if (headers["transfer-encoding"] !== undefined || !/^\d{1,15}$/.test(length)) return undefined;
  return Number(length);
}

/** Whether the connection can serve again. */
export function isKept({ headers }: Head): boolean {
  return !/(?:^|,)\s*close\s*(?:,|$)/i.test(headers["connection"] ?? "");
}

/** Seconds in `Keep-Alive: timeout=5`, after which the server may close an idle connection. */
export function keptSeconds({ headers }: Head): number | undefined {
  const seconds = /(?:^|[,\s])timeout=(\d{1,6})(?:\D|$)/i.exec(headers["keep-alive"] ?? "")?.[1];
  return seconds === undefined ? undefined : Number(seconds);
}

/** What decides how messages are framed or connections used is never a caller's to say. */
const reserved =
  /^(?:connection|content-length|expect|host|keep-alive|te|trailer|transfer-encoding|upgrade)$/i;

/** A request without a body; undefined when a field cannot be sent as it is. */
export function formatGet(url: URL, headers: Readonly<Record<string, string>>): string | undefined {
  const lines = [`GET ${url.pathname}${url.search} HTTP/1.1`, `host: ${url.host}`];
  for (const [name, value] of Object.entries(headers)) {
    const line = `${name}: ${value}`;
    if (reserved.test(name) || !fieldLine.test(line)) return undefined;
    lines.push(line);
  }
  return `${lines.join("\r\n")}\r\n\r\n`;
}

// HTML and SVG as values that know what is text and what is markup: whatever is put into a template is escaped, unless it
// was made by one. Names of images and hosts come from elsewhere.

export class Markup {
  readonly text: string;

  constructor(text: string) {
    this.text = text;
  }
}

type Part = string | number | Markup | undefined | readonly Markup[];

/** Text is escaped, markup stays, a list is put together, undefined is nothing. */
export function html(strings: TemplateStringsArray, ...parts: readonly Part[]): Markup {
  const texts = strings.map((text, index) => `${text}${textOf(parts[index])}`);
  return new Markup(texts.join(""));
}

function textOf(part: Part): string {
  if (part === undefined) return "";
  if (part instanceof Markup) return part.text;
  if (typeof part === "object") return part.map(({ text }) => text).join("");
  return escape(String(part));
}

const entities: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

/** For text between tags and in quoted attributes; what is not to be seen, or turns text round, is a space. */
function escape(text: string): string {
  return text.replaceAll(/\p{C}/gu, " ").replaceAll(/[&<>"']/g, (character) => entities[character] ?? "");
}

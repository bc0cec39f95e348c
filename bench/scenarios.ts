// What is measured: which images, over which network, and how much faster than containerd 1.6 they are meant to be.

import { type Recipe, recipes } from "./recipes.ts";

export interface Scenario {
  readonly name: string;
  readonly title: string;
  /** Pulled at once; what counts is the last of them. */
  readonly recipes: readonly Recipe[];
  readonly network: "loopback" | "shaped";
  readonly tls?: true;
  /** How many times as fast as containerd 1.6 it must be, and how many it had better be. */
  readonly goal?: { readonly must: number; readonly aim: number };
}

function recipe(name: string): Recipe {
  const found = recipes[name];
  if (found === undefined) throw new Error(`there is no recipe ${name}`);
  return found;
}

function one(name: string, goal?: Scenario["goal"]): Scenario {
  const made = recipe(name);
  return { name, title: made.title, recipes: [made], network: "loopback", ...(goal && { goal }) };
}

function shaped(name: string, goal?: Scenario["goal"]): Scenario {
  const { title, ...rest } = one(name, goal);
  return { ...rest, name: `${name}-shaped`, title: `${title}, over the shaped network`, network: "shaped" };
}

function secured({ title, ...rest }: Scenario): Scenario {
  return { ...rest, name: `${rest.name}-tls`, title: `${title}, by TLS`, tls: true };
}

export const scenarios: readonly Scenario[] = [
  one("go", { must: 3.2, aim: 4 }),
  one("jdk", { must: 2.5, aim: 3.2 }),
  one("fat", { must: 2.8, aim: 3.6 }),
  one("small", { must: 2.8, aim: 3.6 }),
  one("zstd", { must: 2, aim: 2.6 }),
  one("plain", { must: 2, aim: 2.6 }),
  one("tiny"),
  shaped("go", { must: 2.7, aim: 3.3 }),
  shaped("fat", { must: 4, aim: 5 }),
  secured(one("go")),
  secured(shaped("go")),
  {
    name: "four",
    title: "four images at once, the last one",
    recipes: ["go", "jdk", "small", "zstd"].map(recipe),
    network: "loopback",
    goal: { must: 2.8, aim: 3.5 },
  },
];

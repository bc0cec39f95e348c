// What one layer has said of the directories in it: which ones the archive named, and which it only implied.
//
// A tree of names, to which nothing but more names is ever added. What is known of the implicit ones leaves the worker in
// a form that is as small as their names. Nothing here touches the disk.

import { PullError } from "../errors.ts";
import type { Time } from "./entry.ts";
import { type ImplicitDirectories, implicitKinds } from "./layer.ts";

export interface Times {
  readonly mtime: Time;
  readonly atime: Time;
}

/** One of the directories of {@link ImplicitDirectories}. */
export interface ImplicitDirectory {
  /** Relative to the layer's root, no leading slash. */
  readonly path: string;
  /** The archive named it later. */
  readonly named: boolean;
}

/** Nothing implicit. */
export const noDirectories: ImplicitDirectories = {
  names: "",
  depths: new Uint16Array(),
  kinds: new Uint8Array(),
};

/**
 * A directory costs some 250 bytes for as long as its layer is unpacked, and three times that where it is alone in
 * another one; a few bytes of an archive can imply thousands of them. Layers of more directories are left to containerd.
 */
export const directoriesMax = 200_000;

interface Node {
  /** Undefined where there are none, since most directories have no directories. */
  children: Map<string, Node> | undefined;
  isImplicit: boolean;
  /** Set once the archive has named the directory. */
  times: Times | undefined;
}

/** Paths are real ones: components below the layer's root joined by "/", none of them a symbolic link. */
export class Directories {
  readonly #root: Node = { children: undefined, isImplicit: false, times: undefined };
  /** Nodes that were made, those that are gone again included. */
  #count = 0;

  /** The directory is made because something in it was named. */
  imply(path: string): void {
    this.#make(path).isImplicit = true;
  }

  /** The archive named the directory; of several times the last ones count. */
  name(path: string, times: Times): void {
    this.#make(path).times = times;
  }

  implicit(): ImplicitDirectories {
    const names: string[] = [];
    const depths: number[] = [];
    const kinds: number[] = [];
    /** Names from the root to the node that is visited; the first `written` of them are among the results. */
    const way: string[] = [];
    let written = 0;
    const pending: { name: string; depth: number; node: Node }[] = [];
    const descend = ({ children }: Node, depth: number): void => {
      for (const [name, node] of children ?? []) pending.push({ name, depth, node });
    };
    descend(this.#root, 0);
    for (let next = pending.pop(); next; next = pending.pop()) {
      const { name, depth, node } = next;
      way.length = depth;
      way.push(name);
      written = Math.min(written, depth);
      for (; node.isImplicit && written <= depth; written++) {
        names.push(way[written] ?? "");
        depths.push(written);
        kinds.push(written < depth ? implicitKinds.way : kindOf(node));
      }
      descend(node, depth + 1);
    }
    return { names: names.join("/"), depths: Uint16Array.from(depths), kinds: Uint8Array.from(kinds) };
  }

  /** True when there is a directory below a path that the archive has not named. */
  hasUnnamedBelow(path: string): boolean {
    const start = this.#find(path);
    let found = false;
    if (start === undefined) return found;
    visit(start, path, (_below, { times }) => {
      found ||= times === undefined;
      return !found;
    });
    return found;
  }

  forEachNamed(act: (path: string, times: Times) => void): void {
    visit(this.#root, "", (path, { times }) => {
      if (times !== undefined) act(path, times);
      return true;
    });
  }

  #find(path: string): Node | undefined {
    if (path === "") return this.#root;
    let current: Node | undefined = this.#root;
    for (const name of path.split("/")) current = current?.children?.get(name);
    return current;
  }

  #make(path: string): Node {
    let current = this.#root;
    for (const name of path.split("/")) {
      current.children ??= new Map();
      let next = current.children.get(name);
      if (next === undefined) {
        this.#mustBeFew();
        next = { children: undefined, isImplicit: false, times: undefined };
        current.children.set(name, next);
      }
      current = next;
    }
    return current;
  }

  #mustBeFew(): void {
    this.#count += 1;
    if (this.#count <= directoriesMax) return;
    throw new PullError("exhausted", `the layer has over ${directoriesMax} directories`);
  }
}

/** The directories one after another, parents before their children. */
export function* implicitOnes({ names, depths, kinds }: ImplicitDirectories): Generator<ImplicitDirectory> {
  const way: string[] = [];
  let start = 0;
  for (const [index, depth] of depths.entries()) {
    const slash = names.indexOf("/", start);
    const end = slash === -1 ? names.length : slash;
    way.length = depth;
    way.push(names.slice(start, end));
    start = end + 1;
    const kind = kinds[index];
    if (kind !== implicitKinds.way) yield { path: way.join("/"), named: kind === implicitKinds.named };
  }
}

function kindOf({ times }: Node): number {
  return times === undefined ? implicitKinds.unnamed : implicitKinds.named;
}

/** Calls back for every node below one, parents first; goes below a node when the answer is true. */
function visit(start: Node, startPath: string, callback: (path: string, node: Node) => boolean): void {
  // A list of what is to be done instead of recursion: archives choose how deep a tree is.
  const pending: [path: string, node: Node][] = [[startPath, start]];
  for (let next = pending.pop(); next; next = pending.pop()) {
    const [path, node] = next;
    if (node !== start && !callback(path, node)) continue;
    for (const [name, child] of node.children ?? []) {
      pending.push([path === "" ? name : `${path}/${name}`, child]);
    }
  }
}

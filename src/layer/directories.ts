// What one layer has said of the directories in it: which ones the archive named, and which it only implied.
//
// A tree of names, so that a removal forgets all that was below at the cost of its path's length, however many
// directories there are. Nothing here touches the disk.

import type { Time } from "./entry.ts";
import type { ImplicitDirectory } from "./layer.ts";

export interface Times {
  readonly mtime: Time;
  readonly atime: Time;
}

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

  /** The directory was made because something in it was named. */
  imply(path: string): void {
    this.#make(path).isImplicit = true;
  }

  /** The archive named the directory; of several times the last ones count. */
  name(path: string, times: Times): void {
    this.#make(path).times = times;
  }

  /** Whatever was there is gone, with all that was below it. */
  remove(path: string): void {
    const slash = path.lastIndexOf("/");
    const parent = this.#find(path.slice(0, Math.max(0, slash)));
    parent?.children?.delete(path.slice(slash + 1));
  }

  /** Parents first. */
  implicit(): ImplicitDirectory[] {
    const found: ImplicitDirectory[] = [];
    visit(this.#root, "", (path, { isImplicit, times }) => {
      if (isImplicit) found.push({ path, named: times !== undefined });
      return true;
    });
    return found;
  }

  /** The uppermost directories below a path that the archive has not named. */
  unnamedBelow(path: string): string[] {
    const found: string[] = [];
    const start = this.#find(path);
    if (start === undefined) return found;
    visit(start, path, (below, { times }) => {
      if (times === undefined) found.push(below);
      return times !== undefined;
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
        next = { children: undefined, isImplicit: false, times: undefined };
        current.children.set(name, next);
      }
      current = next;
    }
    return current;
  }
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

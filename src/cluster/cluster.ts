// The face of the cluster room: the Kubernetes API, asked and followed with the identity that a kubeconfig gives.
//
// Objects come in as JSON and are handed on as such; whoever asked for them reads what it needs of them. What the API
// sends is bounded, however long it goes on. This room never changes anything in the cluster but where it is told to, and
// what a secret holds is in no message.

/** An object of the API, as far as everybody needs it. */
export interface KubernetesObject {
  readonly metadata: {
    readonly name: string;
    readonly namespace?: string;
    readonly uid?: string;
    readonly resourceVersion?: string;
  };
  readonly [key: string]: unknown;
}

/** What is followed: a collection's path, such as "/api/v1/pods", and which of its objects. */
export interface Collection {
  readonly path: string;
  readonly fieldSelector?: string;
  readonly labelSelector?: string;
  /** Listed as it is now, rather than as the API has it at hand. */
  readonly isCurrent?: boolean;
}

/** What is done to an object, or beside it; a path names the object, and for "create" the collection. */
export type Change =
  /** Of a review, which is a question, the API's answer is what it makes of it. */
  | { readonly kind: "create"; readonly path: string; readonly object: unknown }
  /** Lists are replaced (RFC 7386); with metadata.resourceVersion in it, only what is still of that version is changed. */
  | { readonly kind: "merge"; readonly path: string; readonly patch: unknown }
  /** Lists are merged by the keys that Kubernetes has for them; for its own kinds alone. */
  | { readonly kind: "strategic"; readonly path: string; readonly patch: unknown }
  /** Only of this version, where one is given. */
  | { readonly kind: "remove"; readonly path: string; readonly version?: string | undefined };

/** Told in order, and never after the signal is aborted. */
export interface Follower {
  /** All objects that there are, at first and whenever changes may have been missed. */
  replaced(objects: readonly KubernetesObject[]): void;
  changed(object: KubernetesObject): void;
  deleted(object: KubernetesObject): void;
  /** Why nothing is heard of the API, told when that changes; undefined when it is heard again. */
  trouble(why: string | undefined): void;
}

export interface Cluster {
  /**
   * One object. Throws `not_found`, `refused` (401, 403), `unavailable` for anything else that may pass, and `invalid` for a
   * kubeconfig that cannot be used.
   */
  get(path: string, signal: AbortSignal): Promise<KubernetesObject>;

  /** All objects of a collection. Throws like {@link get}. */
  list(collection: Collection, signal: AbortSignal): Promise<readonly KubernetesObject[]>;

  /**
   * Changes one object, and returns what the API makes of it. Throws like {@link get}, and `exists` for one that is there,
   * `conflict` for one that has changed meanwhile, `invalid` for a change that the API does not take.
   */
  write(change: Change, signal: AbortSignal): Promise<KubernetesObject>;

  /** Follows a collection until the signal is aborted. Never rejects: whatever goes wrong is told and tried again. */
  follow(collection: Collection, follower: Follower, signal: AbortSignal): Promise<void>;
}

// The contract of hawser.node. Every call but the last two is synchronous, bounded by the buffers that it is given,
// keeps none of them, and starts no thread.
//
// Names are byte strings: one character per byte ("latin1"), so that names that are not UTF-8 are exact. A name is one
// path component, and no call follows a symbolic link in it. Results that may fail are numbers: 0 or more for success,
// a negative errno for failure. A wrong argument throws a TypeError. Descriptors that a thread leaves open are closed
// when it ends.

/** State of one decompression. Made by createGzip or createZstd, and used by one thread. */
export interface Inflater {
  readonly brand: unique symbol;
}

export interface Binding {
  /** Reads gzip members one after another; header, CRC and length of each are checked. */
  createGzip(): Inflater;
  /** Reads zstd frames one after another, skippable ones included. */
  createZstd(): Inflater;
  /**
   * Consumes some of input[inputStart, inputEnd) and fills some of output[outputStart, outputEnd); the two counts go
   * to results[0] and results[1]. Returns 1 when all consumed input ends at the end of a member or frame, 0 when more
   * must follow, and -1 for corrupt input. When nothing was consumed and nothing filled, one of the two is empty.
   */
  inflate(
    inflater: Inflater,
    input: Uint8Array,
    inputStart: number,
    inputEnd: number,
    output: Uint8Array,
    outputStart: number,
    outputEnd: number,
    results: Float64Array,
  ): number;
  /** Gives an inflater's memory back at once; it cannot be used any more. Else that waits for garbage collection. */
  release(inflater: Inflater): void;

  /** Opens a directory by its path (the only call that takes one); the descriptor is good for the calls below. */
  openRoot(path: string): number;
  openDirectory(dir: number, name: string): number;
  /** Opens a directory below root by a relative path without symbolic links; ELOOP when there is one in it. */
  openBelow(root: number, path: string): number;
  /** Closes a descriptor that a call of the same thread opened; EBADF for any other. */
  close(fd: number): number;
  /**
   * Puts mode (with type), uid, gid, rdev, atime (s, ns) and mtime (s, ns) into results[0..7]. For an empty name these
   * are the directory's own.
   */
  status(dir: number, name: string, results: Float64Array): number;
  /** The target, or a negative errno (EINVAL when it is no symbolic link). */
  readLink(dir: number, name: string): string | number;
  makeDirectory(dir: number, name: string, mode: number): number;
  makeSymlink(dir: number, name: string, target: string): number;
  makeLink(targetDir: number, targetName: string, dir: number, name: string): number;
  /** `mode` includes the type (S_IFCHR, S_IFBLK, S_IFIFO). */
  makeNode(dir: number, name: string, mode: number, major: number, minor: number): number;
  /** A descriptor for writing; EEXIST when anything is there. */
  createFile(dir: number, name: string): number;
  writeFile(fd: number, bytes: Uint8Array, start: number, end: number): number;
  /** A regular file's whole life in one call: create, write, chown, chmod, times, close. */
  putFile(
    dir: number,
    name: string,
    bytes: Uint8Array,
    start: number,
    end: number,
    uid: number,
    gid: number,
    mode: number,
    mtimeSeconds: number,
    mtimeNanoseconds: number,
    atimeSeconds: number,
    atimeNanoseconds: number,
  ): number;
  setOwner(dir: number, name: string, uid: number, gid: number): number;
  /** Never for a symbolic link: this call would follow it. */
  setMode(dir: number, name: string, mode: number): number;
  setTimes(
    dir: number,
    name: string,
    mtimeSeconds: number,
    mtimeNanoseconds: number,
    atimeSeconds: number,
    atimeNanoseconds: number,
  ): number;
  /** For an empty name, of the directory itself. */
  setXattr(dir: number, name: string, key: string, value: Uint8Array): number;
  /** Keys of the attributes, each followed by a NUL character. For an empty name, of the directory itself. */
  listXattrs(dir: number, name: string): string | number;
  /** Fills `value` with an attribute and returns its length; ERANGE when it does not fit. */
  getXattr(dir: number, name: string, key: string, value: Uint8Array): number;
  /** Removes whatever is there; EISDIR for a directory. */
  removeFile(dir: number, name: string): number;
  /** Removes whatever is there, with all that is below it, unless that is over 2048 levels deep (ENAMETOOLONG). */
  removeTree(dir: number, name: string): number;
  /** Gives the calling thread a umask of its own, which is 0. For worker threads: the main thread's is the process's. */
  ownUmask(): number;
  /** The calling thread, as the kernel numbers it. */
  threadID(): number;
  /** Has a thread of this process take only what nobody else wants of the cores (1), or its share of them (0). */
  setIdle(threadID: number, isIdle: 0 | 1): number;

  /** syncfs(2) on the file system of a directory, in a thread of libuv's pool: 0 or a negative errno. */
  syncFileSystem(path: string): Promise<number>;
  /** Removes whatever is at a path, with all that is below it, in a thread of libuv's pool: 0 or a negative errno. */
  removePath(path: string): Promise<number>;

  /** Sends one datagram to a unix socket; a path that begins with "@" is in the abstract namespace (sd_notify(3)). */
  notify(socket: string, message: Uint8Array): number;
}

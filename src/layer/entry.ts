// What one entry of an archive says, in the words of the tar header. Strings are byte strings ("latin1").

export type EntryType = "file" | "directory" | "symlink" | "hardlink" | "char" | "block" | "fifo";

export interface Time {
  readonly seconds: number;
  readonly nanoseconds: number;
}

export interface Entry {
  readonly type: EntryType;
  readonly name: string;
  /** Target of a symbolic or hard link, else empty. */
  readonly linkName: string;
  /** Permission bits with setuid, setgid and sticky. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Bytes of content that follow; 0 unless it is a file. */
  readonly sizeBytes: number;
  readonly mtime: Time;
  /** As applied: never before mtime (reference 4.2, step 8). */
  readonly atime: Time;
  readonly major: number;
  readonly minor: number;
  readonly xattrs: readonly (readonly [key: string, value: Buffer])[];
}

/** Receives an archive's entries in order. A file's content comes whole or in pieces, between begin and finish. */
export interface EntrySink {
  /** A global header, which describes nothing, but has a name and therefore a place. */
  global(name: string): void;
  /** An entry whose content, if any, is buffer[start, end). */
  whole(entry: Entry, buffer: Buffer, start: number, end: number): void;
  /** A file whose content follows in pieces. */
  begin(entry: Entry): void;
  piece(buffer: Buffer, start: number, end: number): void;
  finish(): void;
}

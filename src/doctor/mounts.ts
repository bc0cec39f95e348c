// Mounts as a process sees them (proc_pid_mountinfo(5)): whether two folders are on one, since rename(2) and link(2) do
// not reach from one mount into another, not even of the same file system.

export interface Mount {
  readonly id: string;
  readonly point: string;
  readonly type: string;
  readonly isReadOnly: boolean;
}

/** In the order of the file, in which later mounts cover earlier ones. */
export function parseMounts(text: string): Mount[] {
  return text.split("\n").flatMap((line): Mount[] => {
    const [before = "", after = ""] = line.split(" - ", 2);
    const [id, , , , point, options = ""] = before.split(" ");
    const [type = "", , superOptions = ""] = after.split(" ");
    if (id === undefined || point === undefined) return [];
    const isReadOnly = [options, superOptions].some((list) => list.split(",").includes("ro"));
    return [{ id, point: unescape(point), type, isReadOnly }];
  });
}

/** The mount that a path is on. */
export function mountOf(mounts: readonly Mount[], path: string): Mount | undefined {
  let best: Mount | undefined;
  for (const mount of mounts) {
    const isAbove = mount.point === "/" || path === mount.point || path.startsWith(`${mount.point}/`);
    if (isAbove && mount.point.length >= (best?.point.length ?? 0)) best = mount;
  }
  return best;
}

function unescape(path: string): string {
  return path.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
}

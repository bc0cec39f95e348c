// How long each kind of test may take in a run of all, on two cores that do nothing else: sums over files, of which three
// run at a time. They are told, and do not fail anything: a machine that is busy is no fault of a test's.

interface Budget {
  readonly name: string;
  readonly secondsMax: number;
  readonly files: RegExp;
}

/** A file belongs to the first that its path matches. */
const budgets: readonly Budget[] = [
  { name: "parity", secondsMax: 360, files: /\/e2e\/(?:parity|life|layers|metadata)\.int/ },
  { name: "soak", secondsMax: 60, files: /\/soak\// },
  { name: "fuzz", secondsMax: 60, files: /\/fuzz\// },
  {
    name: "nodes and releases",
    secondsMax: 500,
    files: /\/(?:release|kubernetes)\/|\/e2e\/(?:agent|install|service|front)\.int/,
  },
  {
    name: "faults",
    secondsMax: 600,
    files:
      /\/registry\/|\/pull\/\w+\.int|\/e2e\/(?:faults|containerd|crash|disk|concurrency|hostile|registries|asking|refusals|profiles)\.int/,
  },
  {
    name: "the cluster",
    secondsMax: 360,
    files: /\/(?:inplace|cluster|prewarm)\/|\/e2e\/(?:upgrade|pods|kruise|kubelet|prewarm)\.int/,
  },
  {
    name: "what is told of pulls",
    secondsMax: 400,
    files: /\/(?:history|page|metrics|doctor|cli)\/|\/e2e\/(?:page|trace|prometheus|bottlenecks|readme)\.int/,
  },
  { name: "all else", secondsMax: 600, files: /./ },
];

/** A line for each budget that any of the files counts for. */
export function spent(
  files: readonly { readonly path: string; readonly seconds: number }[],
): readonly string[] {
  const kindOf = (path: string): Budget | undefined => budgets.find((budget) => budget.files.test(path));
  return budgets.flatMap((budget) => {
    const own = files.filter(({ path }) => kindOf(path) === budget);
    if (own.length === 0) return [];
    const seconds = Math.round(own.reduce((sum, file) => sum + file.seconds, 0));
    const within = seconds > budget.secondsMax ? ": OVER" : "";
    return [`time for ${budget.name}: ${seconds} s of ${budget.secondsMax} s, ${own.length} files${within}`];
  });
}

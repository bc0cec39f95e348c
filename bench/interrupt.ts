// Ctrl-C and SIGTERM in programs that start servers: the work unwinds, so that nothing of it stays behind.

/**
 * Runs work whose `await using` declarations stop and remove what it starts. At a signal its AbortSignal fires and the
 * work is expected to throw. Further signals change nothing: npm and shells send the same one on.
 *
 * Needs to be run as `node --import tsx`: the tsx command kills a child that does not notice a signal within 60 ms.
 */
export async function interruptible(work: (signal: AbortSignal) => Promise<void>): Promise<void> {
  const interruption = new AbortController();
  for (const name of ["SIGINT", "SIGTERM"] as const) process.on(name, () => interruption.abort());
  try {
    await work(interruption.signal);
  } catch (error) {
    // Ctrl-C reaches the servers as well, so that the work may fail by their end before it looks at its own signal.
    await new Promise(setImmediate);
    if (!interruption.signal.aborted) throw error;
    console.error("\nInterrupted. What was started has been stopped and removed.");
    process.exitCode = 130;
  }
}

// Failpoints: named places where a test ends the process as kill -9 would, at a chosen passage.
//
// Nothing is armed unless HAWSER_FAILPOINT says so when the program starts, which main.ts alone reads; then a passage
// costs one comparison. A failpoint never does anything but end the process.

let armed: { readonly name: string; passages: number } | undefined;

/** `name` or `name=N`: the process ends at the Nth passage (the first without a number). */
export function armFailpoint(text: string | undefined): void {
  const [name = "", passages = "1"] = (text ?? "").split("=", 2);
  armed = name === "" ? undefined : { name, passages: Number(passages) };
}

export function failpoint(name: string): void {
  if (armed === undefined || armed.name !== name) return;
  armed.passages -= 1;
  if (armed.passages === 0) process.kill(process.pid, "SIGKILL");
}

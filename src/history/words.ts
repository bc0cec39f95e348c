// Numbers as people read them, the same in the terminal and on the page.

/** 12.3 s, 35 ms, 4 min 5 s. */
export function secondsText(seconds: number): string {
  if (seconds < 0.9995) return `${Math.round(1000 * seconds)} ms`;
  if (seconds < 99.95) return `${seconds.toFixed(seconds < 9.95 ? 2 : 1)} s`;
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** In whole seconds, minutes, hours or days. */
export function agoText(seconds: number): string {
  const units = [
    [86_400, "d"],
    [3_600, "h"],
    [60, "min"],
  ] as const;
  const [size, unit] = units.find(([least]) => seconds >= least) ?? [1, "s"];
  return `${Math.floor(Math.max(0, seconds) / size)} ${unit} ago`;
}

/** In powers of 1000, as disks and links are sold and crictl shows them. */
export function bytesText(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let [value, unit] = [bytes, 0];
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : 1;
  return `${value.toFixed(digits)} ${units[unit]}`;
}

export function rateText(bytesPerSecond: number): string {
  return `${bytesText(bytesPerSecond)}/s`;
}

/** What hosts and registries are named may not speak to a terminal, nor turn it round. */
export function plain(text: string): string {
  return text.replaceAll(/[\s\p{C}]+/gu, " ").trim();
}

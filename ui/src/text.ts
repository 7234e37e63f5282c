// Figures and points in time, as people read them.

export function rate(value: number): string {
  if (value === 0) return "0/s";
  if (value < 0.1) return "<0.1/s";
  return `${value < 100 ? value.toFixed(1) : Math.round(value).toLocaleString("en")}/s`;
}

export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined) return "–";
  const ms = seconds * 1000;
  if (ms < 1) return `${Math.round(ms * 1000)} µs`;
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  return ms < 1000 ? `${Math.round(ms)} ms` : `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
}

export function share(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0 %";
  return value < 0.001 ? "<0.1 %" : `${(value * 100).toFixed(value < 0.1 ? 1 : 0)} %`;
}

/** How long from now: `3 h 20 min`. */
export function remaining(ms: number): string {
  const seconds = Math.floor(ms / 1000);
  const [days, hours, minutes] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  if (days > 0) return hours && days < 3 ? `${days} d ${hours} h` : `${days} d`;
  if (hours > 0) return minutes ? `${hours} h ${minutes} min` : `${hours} h`;
  return minutes > 0 ? `${minutes} min` : `${Math.max(0, seconds)} s`;
}

/** The time of day, with milliseconds. */
export function clock(at: string): string {
  const date = new Date(at);
  if (Number.isNaN(date.getTime())) return at;
  const two = (value: number) => String(value).padStart(2, "0");
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

export const plural = (count: number, one: string, many = `${one}s`): string => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

/** How a key came, in words. */
export function cameBy(from: string | null | undefined): string {
  switch (from) {
    case "arrived": return "arrived with the request";
    case "kept": return "forwarded by the application";
    case "restored": return "restored by the trace";
    case "stamped": return "given by the caller's own environment";
    case "absent": return "absent";
    case "lost": return "lost by the application";
    case "unclear": return "absent, perhaps lost";
    case "contradicting": return "contradicts the trace";
    case "untrusted": return "not trusted from this sender";
    default: return from ?? "";
  }
}

/** `pr-9` before `pr-10`. */
export const compareIds = new Intl.Collator("en", { numeric: true }).compare;

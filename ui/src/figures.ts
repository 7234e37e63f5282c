// Counts that only grow, as the API has them, and what two of them say: rates, shares, percentiles.

/** An upper bound in seconds, and how many were at most as large. The last bound is no number: there is none above. */
export type Bucket = [le: number | string | null, count: number];

/** What is counted of requests. */
export interface Counts {
  requests: number;
  errors: number;
  seconds: number;
  buckets: Bucket[];
}

export interface ServiceCounts extends Counts {
  /** The key; empty without one. */
  overlay: string;
  service: string;
  via: string;
}

export interface EdgeCounts extends Counts {
  overlay: string;
  /** Who calls; empty from outside. */
  from: string;
  to: string;
  environment: string;
  via: string;
}

export interface Stats {
  proxies: number;
  services: ServiceCounts[];
  edges: EdgeCounts[];
  overhead: { buckets: Bucket[] } | Bucket[] | null;
}

export const NOTHING: Counts = { requests: 0, errors: 0, seconds: 0, buckets: [] };

const bound = ([le]: Bucket): number => (typeof le === "number" ? le : le === null ? Infinity : Number(le.replace("+Inf", "Infinity")));

/** How many were at most `le`, of counts that may lack some bounds. */
function at(buckets: Bucket[], le: number): number {
  let count = 0;
  for (const bucket of buckets) {
    if (bound(bucket) > le) break;
    count = bucket[1];
  }
  return count;
}

function combined(one: Bucket[], other: Bucket[], sign: 1 | -1): Bucket[] {
  // Nearly always both have the same bounds.
  if (one.length === other.length && one.every((bucket, index) => bound(bucket) === bound(other[index]!))) {
    return one.map(([le, count], index) => [le, count + sign * other[index]![1]]);
  }
  const bounds = [...new Set([...one, ...other].map(bound))].sort((a, b) => a - b);
  return bounds.map((le) => [le === Infinity ? null : le, at(one, le) + sign * at(other, le)]);
}

/** What both counted together. */
export function sum(one: Counts, other: Counts): Counts {
  return {
    requests: one.requests + other.requests,
    errors: one.errors + other.errors,
    seconds: one.seconds + other.seconds,
    buckets: combined(one.buckets, other.buckets, 1),
  };
}

/** What came between `before` and `now`; null where a count went down, since a process started anew in between. */
export function between(now: Counts, before: Counts | undefined): Counts | null {
  if (!before) return now;
  const buckets = combined(now.buckets, before.buckets, -1);
  const difference = {
    requests: now.requests - before.requests,
    errors: now.errors - before.errors,
    seconds: now.seconds - before.seconds,
    buckets,
  };
  return difference.requests < 0 || difference.errors < 0 || buckets.some(([, count]) => count < 0) ? null : difference;
}

/** Of cumulative counts, the value in seconds that a share `q` of all stays below; null without any. In a bucket, values are taken to
 * lie evenly, as Prometheus does; above the last bound, that bound is all that is known. */
export function percentile(buckets: Bucket[], q: number): number | null {
  const all = buckets.at(-1)?.[1] ?? 0;
  if (all <= 0) return null;
  const wanted = q * all;
  let [below, lower] = [0, 0];
  for (const bucket of buckets) {
    const [upper, count] = [bound(bucket), bucket[1]];
    if (count >= wanted && count > below) {
      return upper === Infinity ? lower : lower + ((upper - lower) * (wanted - below)) / (count - below);
    }
    [below, lower] = [count, upper === Infinity ? lower : upper];
  }
  return lower;
}

/** What is shown of some counts over a time. */
export interface Figures {
  /** Requests per second. */
  rate: number;
  /** The share of 5xx among them, 0 to 1; null without requests. */
  errors: number | null;
  /** Seconds; null without requests. */
  p50: number | null;
  p95: number | null;
  p99: number | null;
}

export function figures(counts: Counts, seconds: number): Figures {
  const of = (q: number) => percentile(counts.buckets, q);
  return {
    rate: seconds > 0 ? counts.requests / seconds : 0,
    errors: counts.requests > 0 ? counts.errors / counts.requests : null,
    p50: of(0.5),
    p95: of(0.95),
    p99: of(0.99),
  };
}

/** Counts by what they are of. */
export interface Sample {
  /** When it came, in milliseconds. */
  at: number;
  proxies: number;
  services: Map<string, ServiceCounts>;
  edges: Map<string, EdgeCounts>;
  overhead: Counts | null;
}

const name = (...parts: string[]): string => parts.join("\n");

/** Adds up what has the same name: the views do not tell code classes or proxies apart. */
function named<T extends Counts>(all: T[], of: (one: T) => string): Map<string, T> {
  const map = new Map<string, T>();
  for (const one of all) {
    const known = map.get(of(one));
    map.set(of(one), known ? { ...one, ...sum(known, one) } : one);
  }
  return map;
}

/** `at` is when they came, in milliseconds of a clock that goes evenly: the server's own is told in seconds. */
export function sample(stats: Stats, at: number): Sample {
  const overhead = Array.isArray(stats.overhead) ? stats.overhead : stats.overhead?.buckets;
  return {
    at,
    proxies: stats.proxies,
    services: named(stats.services, (one) => name(one.overlay, one.service, one.via)),
    edges: named(stats.edges, (one) => name(one.overlay, one.from, one.to, one.environment, one.via)),
    overhead: overhead ? { ...NOTHING, requests: overhead.at(-1)?.[1] ?? 0, buckets: overhead } : null,
  };
}

/** What came between two samples. */
export interface Span {
  /** How long, in seconds. */
  seconds: number;
  services: ServiceCounts[];
  edges: EdgeCounts[];
  overhead: Counts | null;
}

function differences<T extends Counts>(now: Map<string, T>, before: Map<string, T>): T[] | null {
  const all: T[] = [];
  for (const [name, counts] of now) {
    const difference = between(counts, before.get(name));
    if (!difference) return null;
    if (difference.requests > 0) all.push({ ...counts, ...difference });
  }
  return all;
}

/** Null where the two cannot be compared: a process went, came, or started anew. */
export function span(now: Sample, before: Sample): Span | null {
  if (now.proxies !== before.proxies || now.at <= before.at) return null;
  const [services, edges] = [differences(now.services, before.services), differences(now.edges, before.edges)];
  if (!services || !edges) return null;
  const overhead = now.overhead && between(now.overhead, before.overhead ?? undefined);
  return { seconds: (now.at - before.at) / 1000, services, edges, overhead };
}

/** The last samples, oldest first. They are bounded by what they hold. */
export class History {
  readonly samples: Sample[] = [];

  constructor(
    private readonly most = 150,
    private readonly series = 60_000,
  ) {}

  add(one: Sample): void {
    if (this.samples.at(-1)?.at === one.at) return;
    this.samples.push(one);
    const size = one.services.size + one.edges.size;
    const most = Math.max(2, Math.min(this.most, Math.floor(this.series / Math.max(1, size))));
    this.samples.splice(0, Math.max(0, this.samples.length - most));
  }

  /** What came lately: over `seconds`, or as far back as it can be compared. */
  recent(seconds = 10): Span | null {
    const now = this.samples.at(-1);
    if (!now) return null;
    let found: Span | null = null;
    for (let index = this.samples.length - 2; index >= 0; index -= 1) {
      const before = this.samples[index]!;
      const one = span(now, before);
      if (!one) break;
      found = one;
      if (one.seconds >= seconds) break;
    }
    return found;
  }

  /** Each span, oldest first, with when it ended; null where two samples cannot be compared. */
  spans(): { at: number; span: Span | null }[] {
    return this.samples.slice(1).map((now, index) => ({ at: now.at, span: span(now, this.samples[index]!) }));
  }
}

/** The sum of some. */
export const total = (all: Counts[]): Counts => all.reduce(sum, NOTHING);

/** What an overlay's requests came to: each that entered, or where none is known to have entered, each that was served under its key. */
export function ofOverlay(span: Pick<Span, "services" | "edges">, overlay: string): Counts {
  const entered = span.edges.filter((edge) => edge.overlay === overlay && edge.from === "");
  return total(entered.length > 0 ? entered : span.services.filter((service) => service.overlay === overlay));
}

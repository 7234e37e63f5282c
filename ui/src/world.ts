// What the page knows, and how it learns of it: the proxies' state again and again, environments when they changed, counts as long as
// they are told.

import { type Environment, type Status, Problem, ask, told } from "./api.ts";
import { compareIds } from "./text.ts";
import { History, type Stats, sample } from "./figures.ts";

/** How often, in milliseconds. */
const EVERY = 2000;
/** At the latest, since leases end by themselves. */
const LISTS_EVERY = 30_000;
/** What is slow to answer is asked less often: this many times as long as it took. */
const PAUSES = 8;

/** Of how many baselines the header is asked for. */
const BASELINES = 50;
const DEFAULT_HEADER = "x-overlay-id";

/** A baseline, and the header that its blueprint names. */
async function header(id: string): Promise<[string, string]> {
  const blueprint = await ask<{ routing?: { headerName?: string } }>(`api/v1/baselines/${encodeURIComponent(id)}`).catch(() => null);
  return [id, blueprint?.routing?.headerName ?? DEFAULT_HEADER];
}

export interface World {
  status: Status | null;
  baselines: Environment[];
  overlays: Environment[];
  /** By id, both kinds. */
  environments: Map<string, Environment>;
  /** The header that the key travels in, by baseline. */
  headers: Record<string, string>;
  /** Whether environments were told yet. */
  known: boolean;
  history: History;
  /** Grows with each sample. */
  samples: number;
  /** Whether counts are told at all. */
  counted: boolean;
  /** Why nothing new comes. */
  trouble: string | null;
  /** Whether a token is wanted, and what was said of the one that was shown. */
  locked: string | null;
}

export class Watch {
  world: World = {
    status: null,
    baselines: [],
    overlays: [],
    environments: new Map(),
    headers: {},
    known: false,
    history: new History(),
    samples: 0,
    counted: true,
    trouble: null,
    locked: null,
  };
  private generations = "";
  private listsAt = 0;
  private pauseUntil: Record<string, number> = {};
  private timer: number | undefined;
  private running = false;

  constructor(private readonly changed: (world: World) => void) {}

  start(): void {
    document.addEventListener("visibilitychange", () => this.soon());
    this.soon();
  }

  /** Asks now: after a token was given, or when the page is looked at again. */
  soon(): void {
    window.clearTimeout(this.timer);
    if (!document.hidden && !this.running) void this.turn();
  }

  private async turn(): Promise<void> {
    this.running = true;
    try {
      await Promise.all([this.status(), this.stats()]);
      this.set({ trouble: null, locked: null });
    } catch (error) {
      const locked = error instanceof Problem && (error.status === 401 || error.status === 403);
      this.set(locked ? { locked: error.message } : { trouble: told(error) });
    }
    this.running = false;
    // Without a token there is nothing to ask again.
    if (!document.hidden && !this.world.locked) this.timer = window.setTimeout(() => void this.turn(), EVERY);
  }

  private set(some: Partial<World>): void {
    this.world = { ...this.world, ...some };
    this.changed(this.world);
  }

  /** Runs it unless it was slow lately. */
  private async paced(what: string, run: () => Promise<void>): Promise<void> {
    const began = performance.now();
    if (began < (this.pauseUntil[what] ?? 0)) return;
    await run();
    const now = performance.now();
    this.pauseUntil[what] = now + (now - began) * PAUSES;
  }

  private async status(): Promise<void> {
    const status = await ask<Status>("api/v1/status");
    this.set({ status });
    const generations = `${status.revision} ${status.instances.map(({ id, generation }) => `${id}=${generation}`).join(" ")}`;
    if (generations === this.generations && performance.now() < this.listsAt + LISTS_EVERY) return;
    await this.paced("lists", async () => {
      const list = async (kind: Environment["kind"]): Promise<Environment[]> => {
        const { items } = await ask<{ items: Environment[] }>(`api/v1/${kind}s`);
        return items.map((one) => ({ ...one, kind })).sort((a, b) => compareIds(a.id, b.id));
      };
      const [baselines, overlays] = await Promise.all([list("baseline"), list("overlay")]);
      const headers = Object.fromEntries(await Promise.all(baselines.slice(0, BASELINES).map(({ id }) => header(id))));
      [this.generations, this.listsAt] = [generations, performance.now()];
      this.set({ baselines, overlays, environments: new Map([...baselines, ...overlays].map((one) => [one.id, one])), headers, known: true });
    });
  }

  private async stats(): Promise<void> {
    await this.paced("stats", async () => {
      try {
        this.world.history.add(sample(await ask<Stats>("api/v1/stats"), performance.now()));
        this.set({ samples: this.world.samples + 1, counted: true });
      } catch (error) {
        // An older proxy tells none.
        if (!(error instanceof Problem) || error.status !== 404) throw error;
        this.pauseUntil["stats"] = performance.now() + LISTS_EVERY;
        this.set({ counted: false });
      }
    });
  }
}

/** The header that an environment's key travels in. */
export function keyHeader(world: World, environment: Environment): string {
  return world.headers[environment.baseline ?? environment.id] ?? DEFAULT_HEADER;
}

/** An environment and its ancestors, nearest first. */
export function lineage(world: World, id: string): Environment[] {
  const found: Environment[] = [];
  let at = world.environments.get(id);
  while (at && !found.includes(at)) {
    found.push(at);
    at = at.parent ? world.environments.get(at.parent) : undefined;
  }
  return found;
}

export interface Served {
  service: string;
  owner: Environment;
  /** How far up the lineage; 0: its own. */
  depth: number;
}

/** Every service that an environment has, by who serves it: the nearest owner. */
export function served(world: World, id: string): Served[] {
  const all = new Map<string, Served>();
  lineage(world, id).forEach((owner, depth) => {
    for (const { name } of owner.services ?? []) if (!all.has(name)) all.set(name, { service: name, owner, depth });
  });
  return [...all.values()].sort((a, b) => a.depth - b.depth || a.service.localeCompare(b.service));
}

/** Why a service of an environment cannot be reached, as far as any proxy says. */
export function unavailable(world: World, environment: string, service: string): string | null {
  for (const { unavailable } of world.status?.instances ?? []) {
    const found = unavailable.find((one) => one.environment === environment && one.service === service);
    if (found) return found.why;
  }
  return null;
}

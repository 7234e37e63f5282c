// What there is: each baseline with its overlays, what they own, how their requests fare; and how one gets into one of them.

import { useEffect, useMemo, useState } from "preact/hooks";
import { type Dump, type Environment, type Health, type Lineage, ask, query } from "../api.ts";
import { Chart } from "../chart.tsx";
import { type Figures, NOTHING, type Span, figures, ofOverlay, total } from "../figures.ts";
import { Choice, Copy, Empty, Icon, Line, Named, Note, Search, State, Tile, useMedia } from "../parts.tsx";
import { type Route, go, link } from "../route.ts";
import { type Column, type Sort, Table } from "../table.tsx";
import { duration, plural, rate, remaining, share } from "../text.ts";
import { type World, keyHeader, lineage, served, unavailable } from "../world.ts";

interface Declared {
  environment: Environment;
  baseline: boolean;
  inherits: number;
}

interface Shown extends Declared {
  figures: Figures;
  state: string;
}

/** An environment's key in counts: a baseline's requests have none. */
export const keyOf = (environment: Environment) => (environment.kind === "baseline" ? "" : environment.id);

/** What the store says of it, and where that is good, what the proxies say. */
function state(environment: Environment, broken: Map<string, string[]>): string {
  const services = broken.get(environment.id);
  return environment.status === "READY" && services ? `UNAVAILABLE(${services.join(",")})` : environment.status;
}

/** `PENDING` of `PENDING(web)`. */
const base = (state: string) => state.replace(/\(.*/, "");

/** The services that a proxy cannot reach, by their environments. */
function broken(world: World): Map<string, string[]> {
  const found = new Map<string, string[]>();
  for (const { environment, service } of world.status?.instances.flatMap(({ unavailable }) => unavailable) ?? []) {
    const known = found.get(environment) ?? [];
    if (!known.includes(service)) found.set(environment, [...known, service]);
  }
  return found;
}

function declared(world: World): Declared[] {
  // Many overlays of one parent inherit the same.
  const known = new Map<string, Set<string>>();
  const all = (id: string) => {
    const found = known.get(id) ?? new Set(served(world, id).map(({ service }) => service));
    known.set(id, found);
    return found;
  };
  return [...world.baselines, ...world.overlays].map((environment) => {
    const inherited = environment.parent ? all(environment.parent) : new Set<string>();
    const own = environment.services?.filter(({ name }) => inherited.has(name)).length ?? 0;
    return { environment, baseline: environment.kind === "baseline", inherits: inherited.size - own };
  });
}

const IDLE = figures(NOTHING, 1);

function shown(all: Declared[], span: Span | null, broken: Map<string, string[]>): Shown[] {
  const [services, edges] = [grouped(span?.services ?? [], (one) => one.overlay), grouped(span?.edges ?? [], (one) => one.overlay)];
  return all.map((one) => {
    const key = one.baseline ? "" : one.environment.id;
    const busy = services.has(key) || edges.has(key);
    const counts = () => ofOverlay({ services: services.get(key) ?? [], edges: edges.get(key) ?? [] }, key);
    return { ...one, figures: busy ? figures(counts(), span?.seconds ?? 1) : IDLE, state: state(one.environment, broken) };
  });
}

function grouped<T>(all: T[], by: (one: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const one of all) {
    const group = groups.get(by(one));
    if (group) group.push(one);
    else groups.set(by(one), [one]);
  }
  return groups;
}

const ORDERS: Record<string, (one: Shown) => number | string> = {
  owns: (one) => one.environment.services?.length ?? 0,
  rate: (one) => one.figures.rate,
  errors: (one) => one.figures.errors ?? -1,
  p95: (one) => one.figures.p95 ?? -1,
  lease: (one) => (one.environment.expiresAt ? -Date.parse(one.environment.expiresAt) : -Infinity),
  state: (one) => one.state,
};

function ordered(all: Shown[], sort: Sort): Shown[] {
  // By id they are in order already, and what is equal stays in it.
  const order = ORDERS[sort.by];
  const compared = (a: Shown, b: Shown) => {
    const [one, other] = order ? [order(a), order(b)] : [0, 0];
    const result = typeof one === "string" || typeof other === "string" ? String(one).localeCompare(String(other)) : one - other;
    return sort.down ? -result : result;
  };
  // Overlays stand below their baseline.
  const groups = grouped(all, (one) => (one.baseline ? one.environment.id : (one.environment.baseline ?? "")));
  return [...groups.values()].flatMap((group) => [
    ...group.filter(({ baseline }) => baseline),
    ...(order ? group.filter(({ baseline }) => !baseline).sort(compared) : byId(group.filter(({ baseline }) => !baseline), sort.down)),
  ]);
}

const byId = (all: Shown[], down: boolean) => (down ? all.reverse() : all);

function matches({ environment }: Shown, text: string): boolean {
  const { id, owner, labels, services, parent } = environment;
  const words = [id, owner ?? "", parent ?? "", ...Object.entries(labels ?? {}).map(([key, value]) => `${key}=${value}`), ...(services ?? []).map(({ name }) => name)];
  return text.toLowerCase().split(/\s+/).every((part) => words.some((word) => word.toLowerCase().includes(part)));
}

function Lease({ environment }: { environment: Environment }) {
  if (!environment.expiresAt) return <span class="muted">none</span>;
  const left = Date.parse(environment.expiresAt) - Date.now();
  return <span class={left < 600_000 ? "soon" : ""} title={environment.expiresAt}>{left > 0 ? remaining(left) : "over"}</span>;
}

function columns(world: World, narrow: boolean): Column<Shown>[] {
  const figure = (one: Shown, text: string) => (one.figures.rate > 0 ? text : <span class="muted">–</span>);
  return [
    {
      id: "id", title: "Environment", sortable: true,
      cell: ({ environment, baseline, state }, stop) => (
        <div class="two-lines">
          <span>
            <a {...stop} class="row-link" href={link("overlays", environment.id)}>{environment.id}</a>
            {baseline && <span class="tag">baseline</span>}
          </span>
          <span class="muted">
            {narrow ? <State is={state} /> : null}
            {!baseline && environment.parent !== environment.baseline && environment.parent ? `of ${environment.parent}` : ""}
            {environment.owner ? ` ${environment.owner}` : ""}
            {Object.entries(environment.labels ?? {}).slice(0, 3).map(([key, value]) => ` ${key}=${value}`).join("")}
          </span>
        </div>
      ),
    },
    {
      id: "owns", title: "Owns", sortable: true, class: "wide",
      cell: ({ environment, baseline, inherits }) => (
        <span class="chips">
          {(environment.services ?? []).slice(0, 3).map(({ name }) => <span key={name} class="chip">{name}</span>)}
          {(environment.services?.length ?? 0) > 3 && <span class="muted">+{environment.services!.length - 3}</span>}
          {!baseline && <span class="muted">inherits {inherits}</span>}
        </span>
      ),
    },
    { id: "rate", title: "Requests", sortable: true, class: "number", cell: (one) => (world.counted ? rate(one.figures.rate) : "–") },
    { id: "errors", title: "Errors", sortable: true, class: "number", cell: (one) => figure(one, share(one.figures.errors)) },
    { id: "p95", title: "p95", sortable: true, class: "number", cell: (one) => figure(one, duration(one.figures.p95)) },
    { id: "lease", title: "Lease", sortable: true, class: "number wide lease", cell: ({ environment }) => <Lease environment={environment} /> },
    { id: "state", title: "State", sortable: true, class: "wide state-column", cell: ({ state }) => <State is={state} /> },
  ];
}

export function Overlays({ world, route, dump, theme }: { world: World; route: Route; dump: Dump | null; theme: string }) {
  const narrow = useMedia("(max-width: 760px)");
  const aside = useMedia("(min-width: 1100px)");
  const [text, setText] = useState("");
  const [only, setOnly] = useState("");
  const [baseline, setBaseline] = useState("");
  const [sort, setSort] = useState<Sort>({ by: "rate", down: true });
  const span = useMemo(() => world.history.recent(10), [world.samples]);
  const known = useMemo(() => declared(world), [world.environments]);
  const down = broken(world);
  const all = useMemo(() => shown(known, span, down), [known, span, JSON.stringify([...down])]);
  const rows = useMemo(() => {
    const filtered = all.filter((one) =>
      (!text || matches(one, text.trim())) && (!only || base(one.state) === only) && (!baseline || (one.environment.baseline ?? one.environment.id) === baseline));
    return ordered(filtered, sort);
  }, [all, text, only, baseline, sort]);
  const states = [...new Set(all.map(({ state }) => base(state)))].sort();
  const open = world.environments.get(route.id);
  return (
    <div class={route.id ? "beside" : ""}>
      {(!route.id || aside) && (
        <section aria-label="Environments">
          <div class="bar">
            <h1 tabIndex={-1}>Overlays</h1>
            <Search value={text} set={setText} label="Search overlays" hint="Id, service, owner, label" />
            {world.baselines.length > 1 && <Choice label="Baseline" value={baseline} set={setBaseline} options={[["", "all"], ...world.baselines.map(({ id }): [string, string] => [id, id])]} />}
            {states.length > 1 && <Choice label="State" value={only} set={setOnly} options={[["", "all"], ...states.map((one): [string, string] => [one, one.toLowerCase()])]} />}
          </div>
          {!route.id && <Summary world={world} span={span} />}
          {world.known && world.environments.size === 0 && <NoEnvironments />}
          {world.environments.size > 0 && <>
            <p class="sr" role="status">{plural(rows.length, "environment")} shown</p>
            <Table caption="Environments, baselines before their overlays" columns={columns(world, narrow)} rows={rows} height={narrow ? 56 : 48} keyOf={({ environment }) => environment.id}
              rowClass={({ environment, baseline }) => `${baseline ? "group" : ""}${environment.id === route.id ? " current" : ""}`} sort={sort} setSort={setSort} />
            {rows.length === 0 && <Empty title="Nothing is found."><p>Another word, or <button type="button" class="as-link" onClick={() => (setText(""), setOnly(""), setBaseline(""))}>show all</button>.</p></Empty>}
            {world.overlays.length === 0 && world.baselines[0] && <NoOverlays baseline={world.baselines[0].id} />}
          </>}
        </section>
      )}
      {route.id && (open
        ? <Panel key={open.id} alone={!aside} world={world} environment={open} span={span} dump={dump} theme={theme} />
        : world.known && <Gone id={route.id} />)}
    </div>
  );
}

function Summary({ world, span }: { world: World; span: Span | null }) {
  const entered = span?.edges.filter(({ from }) => from === "") ?? [];
  const all = figures(total(entered.length > 0 ? entered : (span?.services ?? [])), span?.seconds ?? 1);
  const overhead = span?.overhead ? figures(span.overhead, span.seconds) : null;
  const instances = world.status?.instances ?? [];
  const stale = instances.filter(({ status }) => status === "STALE").length;
  return (
    <dl class="tiles">
      <Tile label="Overlays" value={world.known ? world.overlays.length.toLocaleString("en") : "…"} more={`of ${plural(world.baselines.length, "baseline")}`} />
      <Tile label="Requests" value={world.counted ? rate(all.rate) : "–"} more="last 10 s" />
      <Tile label="Errors" value={share(all.errors)} more="5xx" />
      <Tile label="p95" value={duration(all.p95)} more={`p50 ${duration(all.p50)}`} />
      {overhead && <Tile label="Added by Overlane" value={duration(overhead.p95)} more={`p95, p50 ${duration(overhead.p50)}`} />}
      <Tile label="Proxies" value={instances.length} more={stale ? <State is="STALE" word={`${stale} stale`} /> : <State is="SYNCED" word="synced" />} />
    </dl>
  );
}

function NoEnvironments() {
  return (
    <Empty title="There are no environments yet.">
      <p>A baseline is complete and shared; overlays own only what changed. Write one, and it is here at once:</p>
      <Line label="Baseline" text="overlane baseline create --file staging.yaml" />
      <Line label="Overlay" text="overlane overlay create --baseline staging --file overlay.yaml" />
      <p>Or see a whole mesh first:</p>
      <Line label="Demo" text="overlane demo" />
    </Empty>
  );
}

function NoOverlays({ baseline }: { baseline: string }) {
  return (
    <Empty title="There are no overlays yet.">
      <p>An overlay owns only what changed, and inherits the rest of <code>{baseline}</code>:</p>
      <Line label="Overlay" text={`overlane apply --id pr-12 --baseline ${baseline} --url SERVICE=http://127.0.0.1:4001`} />
    </Empty>
  );
}

function Gone({ id }: { id: string }) {
  return (
    <Empty title={`There is no environment ${id}.`}>
      <p>It may have expired, or been deleted. <a href={link("overlays")}>All overlays</a></p>
    </Empty>
  );
}

/** Asks for something of an environment, and again whenever `anew` is another. */
function useAsked<T>(path: string | null, anew: unknown): T | null {
  const [value, set] = useState<T | null>(null);
  useEffect(() => {
    if (!path) return;
    const control = new AbortController();
    ask<T>(path, { signal: control.signal }).then(set, () => set(null));
    return () => control.abort();
  }, [path, anew]);
  return value;
}

function Panel({ alone, world, environment, span, dump, theme }: { alone: boolean; world: World; environment: Environment; span: Span | null; dump: Dump | null; theme: string }) {
  const { id } = environment;
  const baseline = environment.kind === "baseline";
  const kind = baseline ? "baselines" : "overlays";
  const told = useAsked<Lineage>(baseline ? null : `api/v1/overlays/${encodeURIComponent(id)}/lineage`, environment);
  const health = useAsked<Health>(environment.services && `api/v1/${kind}/${encodeURIComponent(id)}/health`, environment);
  // A hub routes nothing itself, and has no addresses to tell.
  const routed = useAsked<Dump>(dump ? query("config_dump", { id }) : null, environment);
  const chain = lineage(world, id);
  const close = (event: KeyboardEvent) => event.key === "Escape" && go(link("overlays"));
  return (
    <aside class="panel" aria-label={`Environment ${id}`} onKeyDown={close}>
      <div class="bar">
        <a class="icon-button" href={link("overlays")} aria-label="All overlays" title="All overlays"><Icon name="close" /></a>
        {alone && <h1 class="sr">Overlays</h1>}
        <h2 tabIndex={-1}>{id}</h2>
        <State is={state(environment, broken(world))} />
      </div>
      <p class="lineage">
        {chain.map((one, depth) => <span key={one.id}>{depth > 0 && <span aria-hidden="true" class="muted"> ‹ </span>}<Named id={one.id} depth={depth} baseline={one.kind === "baseline"} /></span>)}
      </p>
      {environment.problems.map((problem) => <Note key={problem} tone="bad"><code class="wrap">{problem}</code></Note>)}
      {environment.services && !baseline && <Entering world={world} environment={environment} told={told} dump={dump} />}
      <nav class="links" aria-label={`More of ${id}`}>
        <a class="button small" href={link("lineage", id)}>Service graph</a>
        <a class="button small" href={link("live", "", baseline ? {} : { overlay: id })}>Live</a>
        <a class="button small" href={link("explain", "", baseline ? { host: "localhost", path: "/" } : { host: "localhost", path: "/", h: `${keyHeader(world, environment)}: ${id}` })}>Explain</a>
      </nav>
      {world.counted && <Charts world={world} environment={environment} theme={theme} />}
      <Services world={world} environment={environment} span={span} health={health} />
      <Facts environment={environment} routed={routed} />
    </aside>
  );
}

export function entrance(dump: Dump | null): string {
  const gateway = dump?.listeners.find(({ role }) => role === "gateway");
  if (!gateway || gateway.address.startsWith("unix")) return "http://GATEWAY/";
  const [, host = "", port = ""] = /^(.*):(\d+)$/.exec(gateway.address) ?? [];
  const here = host === "0.0.0.0" || host === "[::]" ? location.hostname : host;
  return `${gateway.tls ? "https" : "http"}://${here}:${port}/`;
}

/** On a laptop previews are below `localhost`, at whatever port the gateway has. */
function preview(url: string, dump: Dump | null): string {
  const port = /:(\d+)\/$/.exec(entrance(dump))?.[1];
  return port ? url.replace(/^(http:\/\/[^/:]+\.localhost):\d+/, `$1:${port}`) : url;
}

function Entering({ world, environment, told, dump }: { world: World; environment: Environment; told: Lineage | null; dump: Dump | null }) {
  const header = `${keyHeader(world, environment)}: ${environment.id}`;
  return (
    <section aria-label="How to enter it">
      <h3>Enter it</h3>
      <Line label="curl" text={`curl -i -H '${header}' ${entrance(dump)}`} />
      <Line label="Header" text={header} />
      <Line label="Baggage" text={`baggage: overlay-id=${environment.id}`} />
      {told?.links?.map(({ service, url: address }) => ({ service, url: preview(address, dump) })).map(({ service, url }) => (
        <div key={url} class="line">
          <span class="line-label">Preview</span>
          <a href={url} target="_blank" rel="noopener noreferrer">{url}<Icon name="out" /><span class="sr"> ({service}, in a new tab)</span></a>
          <Copy text={url} what={`the preview of ${service}`} />
        </div>
      ))}
    </section>
  );
}

function Charts({ world, environment, theme }: { world: World; environment: Environment; theme: string }) {
  const key = keyOf(environment);
  const { times, rates, errors, p95 } = useMemo(() => {
    // A few samples together: single ones jump.
    const spans = world.history.spans();
    const points = spans.map(({ at, span }) => ({ at: (performance.timeOrigin + at) / 1000, figures: span && figures(ofOverlay(span, key), span.seconds) }));
    return {
      times: points.map(({ at }) => at),
      rates: points.map(({ figures }) => figures?.rate ?? null),
      errors: points.map(({ figures }) => (figures ? figures.rate * (figures.errors ?? 0) : null)),
      p95: points.map(({ figures }) => (figures?.p95 == null ? null : figures.p95 * 1000)),
    };
  }, [world.samples, key]);
  const last = <T,>(all: (T | null)[]) => all.findLast((one) => one !== null) ?? null;
  return (
    <div class="charts">
      <Chart title="Requests per second" said={`now ${rate(last(rates) ?? 0)}, of which errors ${rate(last(errors) ?? 0)}`} times={times} theme={theme} format={(value) => value.toFixed(value < 10 ? 1 : 0)}
        series={[{ label: "all", colour: "--accent", values: rates }, { label: "errors", colour: "--bad", values: errors }]} />
      <Chart title="p95 in milliseconds" said={`now ${duration((last(p95) ?? 0) / 1000)}`} times={times} theme={theme} format={(value) => value.toFixed(value < 10 ? 1 : 0)}
        series={[{ label: "p95", colour: "--accent", values: p95 }]} />
    </div>
  );
}

function Services({ world, environment, span, health }: { world: World; environment: Environment; span: Span | null; health: Health | null }) {
  const [key, base] = [keyOf(environment), environment.kind === "overlay"];
  const of = (overlay: string, service: string) => figures(total(span?.services.filter((one) => one.overlay === overlay && one.service === service) ?? []), span?.seconds ?? 1);
  return (
    <section aria-label="Services">
      <h3>Services</h3>
      <div class="scroll" tabIndex={0} role="group" aria-label="Services, as a table">
        <table class="plain">
          <thead><tr><th scope="col">Service</th><th scope="col">Served by</th><th scope="col" class="number">Requests</th><th scope="col" class="number">p95</th>{base && <th scope="col" class="number">without key</th>}</tr></thead>
          <tbody>
            {served(world, environment.id).map(({ service, owner, depth }) => {
              const own = of(key, service);
              const why = unavailable(world, owner.id, service) ?? (depth === 0 ? health?.services.find((one) => one.service === service)?.problem : null);
              return (
                <tr key={service}>
                  <th scope="row">{service}{why && <span class="why"><State is="UNAVAILABLE" word={why} /></span>}</th>
                  <td><Named id={owner.id} depth={depth} baseline={owner.kind === "baseline"} /></td>
                  <td class="number">{own.rate > 0 ? rate(own.rate) : <span class="muted">–</span>}</td>
                  <td class="number">{own.rate > 0 ? duration(own.p95) : <span class="muted">–</span>}</td>
                  {base && <td class="number">{duration(of("", service).p95)}</td>}
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
    </section>
  );
}

function Facts({ environment, routed }: { environment: Environment; routed: Dump | null }) {
  const { owner, labels, expiresAt, file, services, id, parent } = environment;
  const where = (services ?? []).filter(({ urls, image }) => urls.length > 0 || image);
  /** To which addresses names lead now. */
  const addresses = (name: string, urls: string[]) => {
    const all = routed?.environments[id]?.services?.find(({ service }) => service === name)?.addresses ?? [];
    return all.filter((address) => !urls.some((url) => url.includes(address)));
  };
  return (
    <section aria-label="What is declared">
      <h3>Declared</h3>
      <dl class="facts">
        {owner && <><dt>Owner</dt><dd>{owner}</dd></>}
        {Object.keys(labels ?? {}).length > 0 && <><dt>Labels</dt><dd>{Object.entries(labels ?? {}).map(([key, value]) => <span key={key} class="chip">{key}={value}</span>)}</dd></>}
        {parent && <><dt>Lease</dt><dd><Lease environment={environment} />{expiresAt && <span class="muted"> until {expiresAt}</span>}</dd></>}
        {where.map(({ name, urls, image, attached }) => (
          <div key={name} class="fact"><dt>{name}</dt><dd><code class="wrap">{urls.join(" ") || "no address yet"}</code>{addresses(name, urls).length > 0 && <span class="muted"> at {addresses(name, urls).join(", ")}</span>}{attached.length > 0 && <span class="tag">attached</span>}{image && <code class="wrap muted">{image}</code>}</dd></div>
        ))}
        {file && <><dt>Blueprint</dt><dd><code class="wrap">{file}</code></dd></>}
      </dl>
      {expiresAt && <Line label="Extend" text={`overlane overlay extend ${id} --ttl 4h`} />}
    </section>
  );
}

// Requests as they pass: the proxies' decisions, sampled where there are too many.

import { useEffect, useRef, useState } from "preact/hooks";
import { type Decision, type Why, ask, query, token } from "../api.ts";
import { Choice, Empty, Field, Icon, Line, Note, useMedia } from "../parts.tsx";
import { type Route, go, link } from "../route.ts";
import { type State, follow } from "../stream.ts";
import { type Column, Table } from "../table.tsx";
import { clock, duration, plural } from "../text.ts";
import { type World, keyHeader } from "../world.ts";
import { Code, Findings, Hops, question, who } from "./hops.tsx";
import { entrance } from "./overlays.tsx";
import type { Dump } from "../api.ts";

/** As many are kept. */
const KEPT = 500;
/** As often are they shown, in milliseconds. */
const SHOWN_EVERY = 250;

const AGAIN = 2000;

const FILTERS = ["overlay", "service", "status", "path", "maxRps"] as const;
type Filter = Record<(typeof FILTERS)[number], string>;
type Row = Decision & { number: number };

const columns = (narrow: boolean, select: (row: Row) => void, selected: number | null): Column<Row>[] => [
  {
    id: "at", title: "Time", class: "time",
    cell: (row, stop) => <button {...stop} type="button" class="row-link mono" aria-pressed={row.number === selected} onClick={() => select(row)}>{narrow ? clock(row.at).slice(0, 8) : clock(row.at)}<span class="sr"> {who(row)}: hops</span></button>,
  },
  { id: "request", title: "Request", cell: (row) => <div class={narrow ? "two-lines" : ""}><span class="cut">{who(row)}</span> <span class="muted cut mono">{row.method} {row.path}</span></div> },
  { id: "key", title: "Key", class: "wide", cell: (row) => (row.key ? <code>{row.key}</code> : <span class="muted">{row.keyFrom === "lost" ? "lost" : "none"}</span>) },
  { id: "by", title: "Served by", class: "wide", cell: (row) => (row.environment ? <>{row.environment} <span class="muted">{row.via}{row.reason && row.reason !== "owned" ? `, ${row.reason}` : ""}</span></> : <span class="muted">{row.reason ?? "–"}</span>) },
  { id: "status", title: "Status", class: "number code-column", cell: (row) => <Code status={row.status} /> },
  { id: "ms", title: "Time taken", class: "number wide", cell: (row) => duration(row.durationMs / 1000) },
];

export function Live({ world, route, dump }: { world: World; route: Route; dump: Dump | null }) {
  const narrow = useMedia("(max-width: 760px)");
  const aside = useMedia("(min-width: 1100px)");
  const filter = Object.fromEntries(FILTERS.map((name) => [name, route.query.get(name) ?? ""])) as Filter;
  const [paused, setPaused] = useState(false);
  const [rows, setRows] = useState<Row[]>([]);
  const [missed, setMissed] = useState(0);
  const [state, setState] = useState<State | null>(null);
  const [selected, setSelected] = useState<Row | null>(null);
  const [waiting, setWaiting] = useState(0);
  const held = useRef<Row[]>([]);
  const number = useRef(0);
  const isPaused = useRef(paused);
  isPaused.current = paused;
  const path = query("api/v1/tap", { ...filter, maxRps: filter.maxRps || 100 });

  useEffect(() => {
    const control = new AbortController();
    setRows([]);
    setMissed(0);
    held.current = [];
    const heard = (events: { name: string; data: string }[]) => {
      for (const { name, data } of events) {
        const told = parsed(data);
        if (name === "missed") setMissed((missed) => missed + (Number((told as { missed?: number })?.missed) || 0));
        else if (told) held.current.push({ ...(told as Decision), number: (number.current += 1) });
      }
      held.current.splice(0, Math.max(0, held.current.length - KEPT));
    };
    void follow(path, control.signal, heard, setState);
    const timer = window.setInterval(() => {
      if (isPaused.current) return setWaiting(held.current.length);
      setWaiting(0);
      if (held.current.length === 0) return;
      const more = held.current.splice(0).reverse();
      setRows((rows) => [...more, ...rows].slice(0, KEPT));
    }, SHOWN_EVERY);
    return () => (control.abort(), window.clearInterval(timer));
  }, [path, token.get()]);

  const set = (name: keyof Filter) => (value: string) => {
    const next = Object.fromEntries(Object.entries({ ...filter, [name]: value }).filter(([, value]) => value));
    go(link("live", "", next), true);
  };
  const first = world.overlays.find(({ id }) => id === filter.overlay) ?? world.overlays[0];
  return (
    <div class={selected ? "beside" : ""}>
      {(!selected || aside) && <section aria-label="Requests">
        <div class="bar">
          <h1 tabIndex={-1}>Live</h1>
          <button type="button" class="button" aria-pressed={paused} onClick={() => setPaused(!paused)}><Icon name={paused ? "play" : "pause"} />{paused ? `Go on${waiting ? ` (${waiting})` : ""}` : "Pause"}</button>
          <button type="button" class="button" onClick={() => setRows([])}>Clear</button>
          <span class="muted" role="status">{state === null ? "Connecting…" : !state.open ? "Not connected" : paused ? "Paused" : `${plural(rows.length, "request")} shown`}{missed > 0 ? `, ${missed.toLocaleString("en")} passed unseen` : ""}</span>
        </div>
        <form class="fields" onSubmit={(event) => event.preventDefault()} aria-label="Filters">
          <Field label="Overlay" value={filter.overlay} set={set("overlay")} hint="any" list="overlays" />
          <Field label="Service" value={filter.service} set={set("service")} hint="any" list="services" />
          <Field label="Status" value={filter.status} set={set("status")} hint="5xx,404" />
          <Field label="Path begins with" value={filter.path} set={set("path")} hint="/cart" />
          <Choice label="At most" value={filter.maxRps} set={set("maxRps")} options={[["10", "10/s"], ["", "100/s"], ["1000", "1000/s"]]} />
          <datalist id="overlays">{world.overlays.slice(0, 200).map(({ id }) => <option key={id} value={id} />)}</datalist>
          <datalist id="services">{[...new Set(world.baselines.flatMap(({ services }) => services?.map(({ name }) => name) ?? []))].map((name) => <option key={name} value={name} />)}</datalist>
        </form>
        {state && !state.open && (state.again ? <Note>{state.why} Trying again.</Note> : <Note tone="bad">{state.why.startsWith("there is no such page") ? "This proxy is older than the page: it does not tell its requests." : state.why}</Note>)}
        {rows.length > 0 && <Table caption="Requests, the newest first" columns={columns(narrow, setSelected, selected?.number ?? null)} rows={rows} height={narrow ? 50 : 34} keyOf={(row) => String(row.number)} rowClass={(row) => (row.number === selected?.number ? "current" : "")} />}
        {rows.length === 0 && state?.open && (
          <Empty title="Nothing has passed yet.">
            <p>Requests are shown as they are answered. Send one, or the same in a terminal:</p>
            <Line label="curl" text={`curl ${first ? `-H '${keyHeader(world, first)}: ${first.id}' ` : ""}${entrance(dump)}`} />
            <Line label="Terminal" text={`overlane tap${filter.overlay ? ` --overlay ${filter.overlay}` : ""}`} />
          </Empty>
        )}
      </section>}
      {selected && <Detail key={selected.number} alone={!aside} row={selected} close={() => setSelected(null)} header={first ? keyHeader(world, first) : "x-overlay-id"} />}
    </div>
  );
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** What else of the request is known: by its trace, or by its own id. */
function Detail({ alone, row, close, header }: { alone: boolean; row: Row; close: () => void; header: string }) {
  const [story, setStory] = useState<Why | null>(null);
  const title = useRef<HTMLHeadingElement>(null);
  const id = row.trace ?? row.requestId;
  useEffect(() => {
    title.current?.focus();
    if (!id) return;
    const control = new AbortController();
    // What is not kept any more is shown as it passed.
    const look = () => ask<Why>(`api/v1/why/${encodeURIComponent(id)}`, { signal: control.signal }).then(setStory, () => undefined);
    void look();
    // What was called is over before who called it: of a request that is new, more is known a moment later.
    const again = window.setTimeout(() => void look(), AGAIN);
    return () => (control.abort(), window.clearTimeout(again));
  }, []);
  const hops = story?.hops ?? [row];
  return (
    <aside class="panel" aria-label="A request" onKeyDown={(event) => event.key === "Escape" && close()}>
      <div class="bar">
        <button type="button" class="icon-button" aria-label="Close" title="Close" onClick={close}><Icon name="close" /></button>
        {alone && <h1 class="sr">Live</h1>}
        <h2 ref={title} tabIndex={-1}>{who(row)}</h2><Code status={row.status} />
      </div>
      <nav class="links" aria-label="More of this request">
        <a class="button small" href={question(row, header)}>Explain</a>
        {id && <a class="button small" href={link("why", id)}>Why</a>}
        {row.key && <a class="button small" href={link("overlays", row.key)}>{row.key}</a>}
      </nav>
      <h3>{plural(hops.length, "hop")}</h3>
      <Findings all={story?.findings ?? []} />
      <Hops hops={hops} header={header} />
      {!id && <p class="muted">The request has no trace and no request id, so its other hops are not known. Let its sender add <code>traceparent</code>, or start proxies with <code>--request-ids</code>.</p>}
      {id && <Line label={row.trace ? "Trace" : "Request id"} text={id} />}
    </aside>
  );
}

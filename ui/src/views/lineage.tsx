// The tree of environments, and the services of one of them as its requests really flowed.

import { useMemo, useState } from "preact/hooks";
import type { Calls, Dump } from "../api.ts";
import { type Counts, type EdgeCounts, NOTHING, figures, sum } from "../figures.ts";
import { type GraphEdge, type GraphNode, ServiceGraph, nodeTitle } from "../graph.tsx";
import { Empty, Line, Named, Note, Search, State, useMedia } from "../parts.tsx";
import { type Route, link } from "../route.ts";
import { List } from "../table.tsx";
import { compareIds, duration, plural, rate, share } from "../text.ts";
import { type Served, type World, keyHeader, lineage, served, unavailable } from "../world.ts";
import { entrance, keyOf } from "./overlays.tsx";

/** Over how long rates are, in seconds. */
const LATELY = 60;
/** As many services are drawn although nothing called them. */
const QUIET = 24;

interface Branch {
  id: string;
  depth: number;
  status: string;
}

/** Depth first, each below its parent; what is refused stands for itself. */
function tree(world: World): Branch[] {
  const children = new Map<string, string[]>();
  for (const { id, parent } of world.overlays) {
    const at = parent ?? "";
    const known = children.get(at);
    if (known) known.push(id);
    else children.set(at, [id]);
  }
  const found: Branch[] = [];
  const waiting: [string, number][] = [...world.baselines.map(({ id }) => id), ...(children.get("") ?? [])].reverse().map((id) => [id, 0]);
  for (let next = waiting.pop(); next; next = waiting.pop()) {
    const [id, depth] = next;
    found.push({ id, depth, status: world.environments.get(id)?.status ?? "" });
    for (const child of [...(children.get(id) ?? [])].sort(compareIds).reverse()) waiting.push([child, depth + 1]);
  }
  return found;
}

export function Lineages({ world, route, dump }: { world: World; route: Route; dump: Dump | null }) {
  const [text, setText] = useState("");
  const all = useMemo(() => tree(world), [world.environments]);
  const rows = useMemo(() => all.filter(({ id }) => id.includes(text.trim().toLowerCase())), [all, text]);
  const id = route.id || world.overlays[0]?.id || world.baselines[0]?.id || "";
  return (
    <div class="tree-and-graph">
      <section class="tree" aria-label="Environments">
        <div class="bar"><h1 tabIndex={-1}>Lineage</h1><Search value={text} set={setText} label="Search environments" hint="Id" /></div>
        {rows.length > 0 && <List label="Environments, overlays below their parents" rows={rows} height={30} keyOf={(one) => one.id} level={(one) => (text ? 0 : one.depth)}
          row={(one, stop) => (
            <a {...stop} href={link("lineage", one.id)} aria-current={one.id === id ? "true" : undefined}>
              <span aria-hidden="true" class={`dot tone-${world.environments.get(one.id)?.kind === "baseline" ? "base" : 0}`} />
              <span class="cut">{one.id}</span>
              {one.status !== "READY" && <State is={one.status} />}
            </a>
          )} />}
        {rows.length === 0 && world.known && <p class="muted pad">{text ? "Nothing is found." : "There are no environments yet."}</p>}
      </section>
      {world.environments.has(id)
        ? <Flow key={id} id={id} world={world} dump={dump} />
        : world.known && <Empty title={id ? `There is no environment ${id}.` : "There is nothing to draw yet."}><Line label="Baseline" text="overlane baseline create --file staging.yaml" /></Empty>}
    </div>
  );
}

/** What its requests did, by who called whom: structure from all that was counted, figures from lately. */
function flows(world: World, key: string, services: Map<string, Served>): { edges: GraphEdge[]; found: boolean } {
  const all = [...(world.history.samples.at(-1)?.edges.values() ?? [])].filter((edge) => edge.overlay === key);
  const span = world.history.recent(LATELY);
  const pairs = new Map<string, { edge: GraphEdge; counts: Counts }>();
  const name = ({ from, to }: EdgeCounts) => `${from}\n${to}`;
  for (const edge of all) {
    const known = pairs.get(name(edge)) ?? { edge: { from: edge.from, to: edge.to, rate: 0, p95: null, errors: null, elsewhere: [] }, counts: NOTHING };
    const owner = services.get(edge.to)?.owner.id;
    if (edge.environment && owner && edge.environment !== owner && !known.edge.elsewhere.includes(edge.environment)) known.edge.elsewhere.push(edge.environment);
    pairs.set(name(edge), known);
  }
  for (const edge of span?.edges ?? []) {
    const pair = edge.overlay === key && pairs.get(name(edge));
    if (pair) pair.counts = sum(pair.counts, edge);
  }
  const edges = [...pairs.values()].map(({ edge, counts }) => ({ ...edge, ...pick(figures(counts, span?.seconds ?? 1)) }));
  return { edges: edges.sort((a, b) => a.from.localeCompare(b.from) || a.to.localeCompare(b.to)), found: all.length > 0 };
}

const pick = ({ rate, p95, errors }: { rate: number; p95: number | null; errors: number | null }) => ({ rate, p95, errors });

/** Calls that lost the key, between services that are drawn. */
function lost(world: World, services: Map<string, Served>): Calls[] {
  const calls = world.status?.instances.flatMap(({ calls }) => calls) ?? [];
  return calls.filter(({ result, service, peer, count }) => result === "lost" && count > 0 && services.has(service) && services.has(peer));
}

function Flow({ id, world, dump }: { id: string; world: World; dump: Dump | null }) {
  const upright = useMedia("(max-width: 900px)");
  const [selected, select] = useState<string | null>(null);
  const [whole, setWhole] = useState(false);
  const environment = world.environments.get(id)!;
  const baseline = environment.kind === "baseline";
  const chain = lineage(world, id);
  const services = useMemo(() => new Map(served(world, id).map((one) => [one.service, one])), [world.environments, id]);
  const { edges, found } = useMemo(() => flows(world, keyOf(environment), services), [world.samples, services]);
  const touched = new Set(edges.flatMap(({ from, to }) => [from, to]));
  const quiet = [...services.values()].filter(({ service, depth }) => !touched.has(service) && (baseline || depth > 0));
  const hidden = !whole && quiet.length > QUIET ? new Set(quiet.map(({ service }) => service)) : new Set<string>();
  const nodes: GraphNode[] = [...(touched.has("") ? [""] : []), ...services.keys(), ...[...touched].filter((one) => one && !services.has(one))]
    .filter((service) => !hidden.has(service))
    .map((service) => {
      const owner = services.get(service);
      return {
        id: service, environment: owner?.owner.id ?? "elsewhere", depth: owner?.depth ?? 4, baseline: owner ? owner.owner.kind === "baseline" : true,
        unavailable: owner ? unavailable(world, owner.owner.id, service) : null,
      };
    });
  return (
    <section class="flow" aria-label={`Services of ${id}`}>
      <div class="bar">
        <h2>{id}</h2><State is={environment.status} />
        <p class="lineage">{chain.slice(1).map((one, depth) => <span key={one.id}><span aria-hidden="true" class="muted"> ‹ </span><Named id={one.id} depth={depth + 1} baseline={one.kind === "baseline"} to={link("lineage", one.id)} /></span>)}</p>
        <a class="button small" href={link("overlays", id)}>Details</a>
      </div>
      {environment.problems.map((problem) => <Note key={problem} tone="bad"><code class="wrap">{problem}</code></Note>)}
      <div class="canvas" tabIndex={0} role="group" aria-label="Drawing of the services; the same is in the table below">
        <ServiceGraph label={`Services of ${id}, and who calls whom`} nodes={nodes} edges={edges.filter(({ from, to }) => !hidden.has(from) && !hidden.has(to))} upright={upright} selected={selected} select={select} />
      </div>
      <Legend chain={chain.map(({ id, kind }) => ({ id, baseline: kind === "baseline" }))} broken={nodes.some(({ unavailable }) => unavailable)} />
      {quiet.length > QUIET && <p><button type="button" class="button small" onClick={() => setWhole(!whole)}>{whole ? "Hide" : "Show"} {plural(quiet.length, "service")} that nothing called</button></p>}
      {!found && <Quiet world={world} counted={world.counted} baseline={baseline} curl={`curl -i ${baseline ? "" : `-H '${keyHeader(world, environment)}: ${id}' `}${entrance(dump)}`} />}
      {lost(world, services).map(({ service, peer, count }) => (
        <Note key={`${service} ${peer}`}><code>{service}</code> lost the key in {plural(count, "call")} to <code>{peer}</code>: those calls are drawn at the baseline. <a href={link("state")}>What became of keys</a></Note>
      ))}
      {selected && <Selected id={selected} world={world} services={services} edges={edges} />}
      <details class="as-table" open={nodes.length > 0 && upright}>
        <summary>The same as a table</summary>
        <FlowTable nodes={nodes} edges={edges} />
      </details>
    </section>
  );
}

function Quiet({ counted, baseline, curl }: { world: World; counted: boolean; baseline: boolean; curl: string }) {
  if (!counted) return <Note tone="info">This proxy does not tell who calls whom. Its services are drawn as they are declared.</Note>;
  return (
    <Note tone="info">
      {baseline ? "No request without a key has come yet." : "No request has carried its key yet."} Send one, and its way is drawn here:
      <Line label="curl" text={curl} />
    </Note>
  );
}

function Legend({ chain, broken }: { chain: { id: string; baseline: boolean }[]; broken: boolean }) {
  return (
    <ul class="legend" aria-label="Legend">
      {chain.map(({ id, baseline }, depth) => (
        <li key={id}><span aria-hidden="true" class={`swatch tone-${baseline ? "base" : Math.min(depth, 4)}${depth === 0 && !baseline ? " own" : ""}`} />{depth === 0 && !baseline ? `owned by ${id}` : `from ${id}`}</li>
      ))}
      {broken && <li><span aria-hidden="true" class="swatch hatched" />unavailable</li>}
      <li><span aria-hidden="true" class="stroke" />requests per second · p95, last minute</li>
    </ul>
  );
}

function Selected({ id, world, services, edges }: { id: string; world: World; services: Map<string, Served>; edges: GraphEdge[] }) {
  const owner = services.get(id);
  const why = owner && unavailable(world, owner.owner.id, id);
  const urls = owner?.owner.services?.find(({ name }) => name === id)?.urls ?? [];
  return (
    <section class="card" aria-label={nodeTitle({ id } as GraphNode)}>
      <h3>{id}</h3>
      <dl class="facts">
        {owner && <><dt>Served by</dt><dd><Named id={owner.owner.id} depth={owner.depth} baseline={owner.owner.kind === "baseline"} /></dd></>}
        <dt>Called by</dt><dd>{edges.filter(({ to }) => to === id).map(({ from }) => from || "outside").join(", ") || "nobody yet"}</dd>
        <dt>Calls</dt><dd>{edges.filter(({ from }) => from === id).map(({ to }) => to).join(", ") || "nobody yet"}</dd>
        {urls.length > 0 && <><dt>Address</dt><dd><code class="wrap">{urls.join(" ")}</code></dd></>}
        {why && <><dt>State</dt><dd><State is="UNAVAILABLE" word={why} /></dd></>}
      </dl>
    </section>
  );
}

function FlowTable({ nodes, edges }: { nodes: GraphNode[]; edges: GraphEdge[] }) {
  return (
    <div class="scroll" tabIndex={0} role="group" aria-label="Calls, as a table">
      <table class="plain">
        <thead><tr><th scope="col">Service</th><th scope="col">Served by</th><th scope="col">Called by</th><th scope="col" class="number">Requests</th><th scope="col" class="number">p95</th><th scope="col" class="number">Errors</th></tr></thead>
        <tbody>
          {nodes.filter(({ id }) => id).flatMap((node) => {
            const calls = edges.filter(({ to }) => to === node.id);
            return (calls.length > 0 ? calls : [null]).map((edge, index) => (
              <tr key={`${node.id} ${edge?.from}`}>
                <th scope="row">{node.id}{index === 0 && node.unavailable && <span class="why"><State is="UNAVAILABLE" word={node.unavailable} /></span>}</th>
                <td>{edge && edge.elsewhere.length > 0 ? edge.elsewhere.join(", ") : node.environment}</td>
                <td>{edge ? edge.from || "outside" : <span class="muted">nobody yet</span>}</td>
                <td class="number">{edge ? rate(edge.rate) : "–"}</td><td class="number">{duration(edge?.p95)}</td><td class="number">{share(edge?.errors)}</td>
              </tr>
            ));
          })}
        </tbody>
      </table>
    </div>
  );
}

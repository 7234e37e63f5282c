// The service graph of an environment, laid out by dagre and drawn as SVG. Whose a service is, is told by its fill, its colour and its words.

import { Graph as Layout, layout } from "@dagrejs/dagre";
import { useMemo, useRef, useState } from "preact/hooks";
import { duration, rate, share } from "./text.ts";

export interface GraphNode {
  /** The service's name; empty for what is outside. */
  id: string;
  /** Who serves it. */
  environment: string;
  /** How far up the lineage; 0: the environment's own. */
  depth: number;
  baseline: boolean;
  /** Why it cannot be reached. */
  unavailable: string | null;
}

export interface GraphEdge {
  from: string;
  to: string;
  rate: number;
  p95: number | null;
  errors: number | null;
  /** Who served other than the node says, as after a fallback. */
  elsewhere: string[];
}

interface Placed {
  width: number;
  height: number;
  nodes: (GraphNode & { x: number; y: number; width: number; height: number })[];
  edges: (GraphEdge & { points: { x: number; y: number }[]; x: number; y: number; lines: string[] })[];
}

const OUTSIDE = "outside";
const LETTER = 7.2;
const HEIGHT = 46;

export const nodeTitle = (node: GraphNode) => (node.id === "" ? "outside" : node.id);

function owner(node: GraphNode): string {
  if (node.unavailable) return `unavailable, ${node.environment}`;
  return node.depth === 0 && !node.baseline ? `owned by ${node.environment}` : `from ${node.environment}`;
}

function told(edge: GraphEdge): string[] {
  const lines = [`${rate(edge.rate)}${edge.p95 === null ? "" : ` · ${duration(edge.p95)}`}`];
  if (edge.errors) lines.push(`${share(edge.errors)} errors`);
  if (edge.elsewhere.length > 0) lines.push(`by ${edge.elsewhere.join(", ")}`);
  return lines;
}

/** As long as most labels become. Figures grow, and the drawing should stand still. */
const LABEL = 16;
const labelWidth = (lines: string[]) => Math.max(LABEL, ...lines.map((line) => line.length)) * 6.2;

function place(nodes: GraphNode[], edges: GraphEdge[], upright: boolean): Placed {
  const graph = new Layout({ multigraph: false });
  graph.setGraph({ rankdir: upright ? "TB" : "LR", nodesep: upright ? 18 : 26, ranksep: upright ? 52 : 40, edgesep: 14, marginx: 6, marginy: 6 });
  graph.setDefaultEdgeLabel(() => ({}));
  for (const node of nodes) {
    const width = node.id === "" ? 76 : Math.max(120, Math.min(240, LETTER * Math.max(node.id.length + 1, owner(node).length * 0.86) + 26));
    graph.setNode(node.id || OUTSIDE, { width, height: node.id === "" ? 30 : HEIGHT });
  }
  for (const edge of edges) {
    const lines = told(edge);
    graph.setEdge(edge.from || OUTSIDE, edge.to || OUTSIDE, { width: labelWidth(lines), height: 15 * lines.length, labelpos: "c" });
  }
  layout(graph);
  const { width = 0, height = 0 } = graph.graph() as { width?: number; height?: number };
  return {
    width, height,
    nodes: nodes.map((node) => ({ ...node, ...(graph.node(node.id || OUTSIDE) as { x: number; y: number; width: number; height: number }) })),
    edges: edges.map((edge) => {
      const { points, x, y } = graph.edge(edge.from || OUTSIDE, edge.to || OUTSIDE) as { points: { x: number; y: number }[]; x: number; y: number };
      return { ...edge, points, x, y, lines: told(edge) };
    }),
  };
}

/** A line through points, rounded at each. */
function path(points: { x: number; y: number }[]): string {
  const [first, ...rest] = points;
  if (!first) return "";
  let text = `M${first.x.toFixed(1)},${first.y.toFixed(1)}`;
  rest.forEach((point, index) => {
    const next = rest[index + 1];
    text += next
      ? `Q${point.x.toFixed(1)},${point.y.toFixed(1)} ${((point.x + next.x) / 2).toFixed(1)},${((point.y + next.y) / 2).toFixed(1)}`
      : `L${point.x.toFixed(1)},${point.y.toFixed(1)}`;
  });
  return text;
}

/** The node that an arrow key leads to: along the calls, or to the nearest beside. */
function neighbour(placed: Placed, from: string, key: string, upright: boolean): string | null {
  const own = placed.nodes.find(({ id }) => id === from);
  if (!own) return null;
  const ahead = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[key];
  if (!ahead) return null;
  const [dx, dy] = ahead as [number, number];
  const along = upright ? dy !== 0 : dx !== 0;
  const forward = dx + dy > 0;
  const linked = placed.edges.filter((edge) => (forward ? edge.from : edge.to) === from).map((edge) => (forward ? edge.to : edge.from));
  const candidates = placed.nodes.filter((node) => node.id !== from && (node.x - own.x) * dx + (node.y - own.y) * dy > 1);
  const distance = (node: { id: string; x: number; y: number }) =>
    Math.hypot(node.x - own.x, node.y - own.y) - (along && linked.includes(node.id) ? 10_000 : 0);
  return candidates.sort((a, b) => distance(a) - distance(b))[0]?.id ?? null;
}

export function ServiceGraph({ label, nodes, edges, upright, selected, select }: {
  label: string;
  nodes: GraphNode[];
  edges: GraphEdge[];
  upright: boolean;
  selected: string | null;
  select: (id: string | null) => void;
}) {
  // Figures change all the time, and need no other layout.
  const shape = JSON.stringify([nodes, edges.map(({ from, to, elsewhere, errors }) => [from, to, elsewhere, !!errors]), upright]);
  const laid = useMemo(() => place(nodes, edges, upright), [shape]);
  const placed = { ...laid, edges: laid.edges.map((edge, index) => ({ ...edge, ...edges[index]!, lines: told(edges[index]!) })) };
  const [at, setAt] = useState<string | null>(null);
  const box = useRef<SVGSVGElement>(null);
  const stop = placed.nodes.some(({ id }) => id === at) ? at : placed.nodes[0]?.id;
  const onKeyDown = (event: KeyboardEvent, id: string) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      select(selected === id ? null : id);
      return;
    }
    const to = neighbour(placed, id, event.key, upright);
    if (to === null) return;
    event.preventDefault();
    setAt(to);
    box.current?.querySelector<SVGElement>(`[data-node="${CSS.escape(to)}"]`)?.focus();
  };
  return (
    <svg ref={box} class="graph" viewBox={`0 0 ${placed.width} ${placed.height}`} width={placed.width} height={placed.height} role="group" aria-label={label}>
      <defs>
        <marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse"><path class="arrow" d="M0,0.5 L7.5,4 L0,7.5 z" /></marker>
        <pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect class="hatch-ground" width="7" height="7" /><rect class="hatch-line" width="2" height="7" /></pattern>
      </defs>
      <g aria-hidden="true">
        {placed.edges.map((edge) => {
          const near = selected !== null && (edge.from === selected || edge.to === selected);
          return <path key={`${edge.from}\n${edge.to}`} class={`edge${edge.rate > 0 ? "" : " idle"}${edge.errors ? " failing" : ""}${near ? " near" : ""}`} d={path(edge.points)} marker-end="url(#arrow)" />;
        })}
        {placed.edges.map((edge) => (
          <g key={`${edge.from}\n${edge.to}`} transform={`translate(${edge.x},${edge.y - 15 * (edge.lines.length / 2)})`}>
            <rect class="label-ground" x={-labelWidth(edge.lines) / 2} width={labelWidth(edge.lines)} height={15 * edge.lines.length} />
            <text class="edge-label" text-anchor="middle">
              {edge.lines.map((line, index) => <tspan key={index} class={index > 0 ? "failing" : ""} x={0} y={15 * index + 11}>{line}</tspan>)}
            </text>
          </g>
        ))}
      </g>
      {placed.nodes.map((node) => (
        <g
          key={node.id} data-node={node.id} class={`node tone-${node.baseline ? "base" : Math.min(node.depth, 4)}${node.id === "" ? " outside" : ""}${node.depth === 0 && !node.baseline ? " own" : ""}${node.unavailable ? " unavailable" : ""}${selected === node.id ? " selected" : ""}`}
          transform={`translate(${node.x - node.width / 2},${node.y - node.height / 2})`} role="button" tabIndex={node.id === stop ? 0 : -1} aria-pressed={selected === node.id}
          onClick={() => select(selected === node.id ? null : node.id)} onKeyDown={(event) => onKeyDown(event, node.id)} onFocus={() => setAt(node.id)}
        >
          <rect width={node.width} height={node.height} rx={node.id === "" ? 15 : 7} />
          {node.id === ""
            ? <text class="node-name" x={node.width / 2} y={19} text-anchor="middle">outside</text>
            : <>
                <text class="node-name" x={13} y={19}>{node.id.length > 30 ? `${node.id.slice(0, 29)}…` : node.id}{" "}</text>
                <text class="node-owner" x={13} y={35}>{node.unavailable ? "▲ " : ""}{owner(node)}</text>
              </>}
        </g>
      ))}
    </svg>
  );
}

// The hops of one request, in the order of time, and where its key went.

import type { Decision } from "../api.ts";
import { Marked, State } from "../parts.tsx";
import { asQuery, link } from "../route.ts";
import { depths } from "../hops.ts";
import { cameBy, clock, duration } from "../text.ts";

/** Ways for a key to come that are worth a warning. */
const GONE = ["absent", "lost", "unclear", "contradicting", "untrusted"];

/** Whether a hop had no key although another had. */
const isGone = (hop: Decision, hops: Decision[]) => (!hop.key && hops.some(({ key }) => key)) || GONE.slice(1).includes(hop.keyFrom ?? "");

export function who(hop: Decision): string {
  const service = hop.service ?? hop.authority;
  if (hop.role === "outbound") return `${hop.caller ?? "?"} → ${service}`;
  return hop.role === "gateway" ? `outside → ${service}` : service;
}

/** The question that a decision answered, as far as it is known. */
export function question(hop: Decision, header: string): string {
  return link("explain", "", asQuery({
    role: hop.role, host: hop.authority, path: hop.path, untrusted: hop.keyFrom === "untrusted", headers: hop.key ? [[header, hop.key]] : [],
    ...(hop.role === "inbound" && hop.service ? { service: hop.service } : {}),
  }));
}

export function Hops({ hops, header }: { hops: Decision[]; header: string }) {
  const began = Math.min(...hops.map(({ at }) => Date.parse(at)));
  const deep = depths(hops);
  const whole = Math.max(1, ...hops.map(({ at, durationMs }) => Date.parse(at) - began + durationMs));
  return (
    <ol class="hops">
      {hops.map((hop, index) => {
        const gone = isGone(hop, hops);
        const start = ((Date.parse(hop.at) - began) / whole) * 100;
        return (
          <li key={index} class={gone ? "gone" : ""} style={{ "--deep": Math.min(deep[index]!, 8) }}>
            <div class="hop-head">
              <b>{who(hop)}</b><span class="tag">{hop.role}</span><span class="grow" />
              <Code status={hop.status} /><span class="mono">{duration(hop.durationMs / 1000)}</span>
            </div>
            <div class="hop-bar" aria-hidden="true"><i style={{ marginInlineStart: `${start}%`, width: `${Math.max(0.6, (hop.durationMs / whole) * 100)}%` }} /></div>
            <p>
              {hop.key ? <>key <code>{hop.key}</code> {cameBy(hop.keyFrom)}</> : <State is={gone ? "LOST" : "none"} word={gone ? `no key here: ${cameBy(hop.keyFrom) || "absent"}` : "no key"} />}
              {hop.environment && <>; served by <a href={link("overlays", hop.environment)}>{hop.environment}</a> <span class="muted">({[hop.via, hop.reason].filter(Boolean).join(", ")})</span></>}
            </p>
            <p class="muted small">
              {clock(hop.at)} · {hop.method} {hop.authority}{hop.path} · {hop.proxy}{hop.upstream ? ` → ${hop.upstream}` : ""}{hop.generation ? ` · generation ${hop.generation}` : ""} · <a href={question(hop, header)}>Explain</a>
            </p>
          </li>
        );
      })}
    </ol>
  );
}

export function Findings({ all }: { all: string[] }) {
  return all.length > 0 ? <ul class="findings">{all.map((finding) => <li key={finding}><Marked text={finding} /></li>)}</ul> : null;
}

export function Code({ status }: { status: number }) {
  const tone = status >= 500 || status === 0 ? "bad" : status >= 400 ? "warn" : "";
  return <span class={`code ${tone}`}>{status || "cut off"}</span>;
}

// The proxies: what each has in force, what changed lately, what cannot be reached, and what became of keys.

import { useEffect, useState } from "preact/hooks";
import { type Calls, type Dump, type Reload, ask } from "../api.ts";
import { Empty, Line, Note, State as Mark } from "../parts.tsx";
import { link } from "../route.ts";
import { clock, plural } from "../text.ts";
import type { World } from "../world.ts";

const RESULTS = ["kept", "restored", "stamped", "lost", "unclear", "contradicting"] as const;
/** As many proxies are shown at once. */
const PROXIES = 100;

export function State({ world, dump }: { world: World; dump: Dump | null }) {
  const [reloads, setReloads] = useState<Reload[] | null>(null);
  const generations = world.status?.instances.map(({ generation }) => generation).join();
  useEffect(() => {
    const control = new AbortController();
    ask<{ items: Reload[] }>("api/v1/reloads", { signal: control.signal }).then(({ items }) => setReloads(items), () => setReloads(null));
    return () => control.abort();
  }, [generations, world.status?.instances.map(({ problems }) => problems.length).join()]);
  return (
    <div class="stack">
      <div class="bar"><h1 tabIndex={-1}>State</h1>{world.status?.revision && <span class="muted">store at revision <code>{world.status.revision}</code></span>}</div>
      <Proxies world={world} />
      <Unavailable world={world} />
      <Keys world={world} />
      {reloads && <Reloads reloads={reloads} />}
      {dump && <Listeners dump={dump} />}
    </div>
  );
}

function Proxies({ world }: { world: World }) {
  const [all, setAll] = useState(false);
  const instances = [...(world.status?.instances ?? [])].sort((a, b) => b.status.localeCompare(a.status) * -1 || a.id.localeCompare(b.id));
  const problems = new Map<string, string[]>();
  for (const { id, problems: own } of instances) for (const problem of own) problems.set(problem, [...(problems.get(problem) ?? []), id]);
  return (
    <section aria-labelledby="proxies">
      <h2 id="proxies">Proxies</h2>
      <div class="scroll" tabIndex={0} role="group" aria-labelledby="proxies">
        <table class="plain">
          <thead><tr><th scope="col">Proxy</th><th scope="col">State</th><th scope="col">Roles</th><th scope="col" class="number">Generation</th><th scope="col">Revision</th><th scope="col">Version</th></tr></thead>
          <tbody>
            {instances.slice(0, all ? undefined : PROXIES).map((one) => (
              <tr key={one.id}>
                <th scope="row">{one.id}</th><td><Mark is={one.status} word={one.stale ? "STALE: it cannot read its store" : one.status} /></td>
                <td>{[...new Set(one.roles)].join(", ") || <span class="muted">hub</span>}</td><td class="number">{one.generation}</td><td><code>{one.revision ?? "–"}</code></td><td>{one.version}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {!all && instances.length > PROXIES && <p><button type="button" class="button small" onClick={() => setAll(true)}>Show all {instances.length}</button></p>}
      {[...problems].map(([problem, at]) => <Note key={problem} tone="bad"><code class="wrap">{problem}</code>{at.length < instances.length && <p class="muted">at {at.slice(0, 5).join(", ")}{at.length > 5 ? ` and ${at.length - 5} more` : ""}</p>}</Note>)}
    </section>
  );
}

function Unavailable({ world }: { world: World }) {
  const all = (world.status?.instances ?? []).flatMap(({ id, unavailable }) => unavailable.map((one) => ({ ...one, proxy: id })));
  const known = new Map(all.map((one) => [`${one.environment} ${one.service} ${one.why}`, one]));
  return (
    <section aria-labelledby="upstreams">
      <h2 id="upstreams">Upstreams</h2>
      {known.size === 0
        ? <p class="pad"><Mark is="OK" word="Every service of an overlay has an address, as far as the proxies have looked." /></p>
        : <div class="scroll" tabIndex={0} role="group" aria-labelledby="upstreams">
            <table class="plain">
              <thead><tr><th scope="col">Service</th><th scope="col">Environment</th><th scope="col">Why it is unavailable</th></tr></thead>
              <tbody>{[...known].map(([key, { environment, service, why }]) => <tr key={key}><th scope="row">{service}</th><td><a href={link("overlays", environment)}>{environment}</a></td><td><Mark is="UNAVAILABLE" word={why} /></td></tr>)}</tbody>
            </table>
          </div>}
    </section>
  );
}

type Pair = { service: string; peer: string; counts: Record<string, number>; languages: Set<string> };

function pairs(all: Calls[]): Pair[] {
  const found = new Map<string, Pair>();
  for (const { service, peer, result, language, count } of all) {
    const pair = found.get(`${service}\n${peer}`) ?? { service, peer, counts: {}, languages: new Set<string>() };
    pair.counts[result] = (pair.counts[result] ?? 0) + count;
    if (result === "lost" && language) pair.languages.add(language);
    found.set(`${service}\n${peer}`, pair);
  }
  const lost = ({ counts }: Pair) => (counts["lost"] ?? 0) + (counts["contradicting"] ?? 0);
  return [...found.values()].sort((a, b) => lost(b) - lost(a) || a.service.localeCompare(b.service) || a.peer.localeCompare(b.peer));
}

function Keys({ world }: { world: World }) {
  const all = pairs((world.status?.instances ?? []).flatMap(({ calls }) => calls));
  const losing = all.filter(({ counts }) => (counts["lost"] ?? 0) > 0);
  return (
    <section aria-labelledby="keys">
      <h2 id="keys">What became of keys</h2>
      {all.length === 0 && <Empty title="No calls were counted yet."><p>Calls are seen where services call through the outbound listener of their sidecar.</p><Line label="Sidecar" text="HTTP_PROXY=http://127.0.0.1:7483 ./your-service" /></Empty>}
      {losing.map(({ service, peer, counts, languages }) => (
        <Note key={`${service} ${peer}`} tone="bad">
          <code>{service || "?"}</code> loses the key towards <code>{peer}</code>: {plural(counts["lost"] ?? 0, "call")}. Forward <code>traceparent</code> from the request to the calls that it causes (a tracer does), and the key is restored; or forward the key's header itself.
          <Line label={languages.size > 0 ? `For ${[...languages].join(", ")}` : "More"} text="overlane doctor" />
        </Note>
      ))}
      {all.length > 0 && <div class="scroll" tabIndex={0} role="group" aria-labelledby="keys">
        <table class="plain">
          <thead><tr><th scope="col">Service</th><th scope="col">Calls</th>{RESULTS.map((result) => <th key={result} scope="col" class="number">{result}</th>)}</tr></thead>
          <tbody>{all.map(({ service, peer, counts }) => (
            <tr key={`${service} ${peer}`}><th scope="row">{service || "?"}</th><td>{peer}</td>
              {RESULTS.map((result) => <td key={result} class={`number${["lost", "contradicting"].includes(result) && counts[result] ? " bad" : ""}`}>{(counts[result] ?? 0).toLocaleString("en")}</td>)}
            </tr>
          ))}</tbody>
        </table>
      </div>}
    </section>
  );
}

function Reloads({ reloads }: { reloads: Reload[] }) {
  const shown = (change: string) => (change.startsWith("+") ? "added" : change.startsWith("-") ? "removed" : "");
  return (
    <section aria-labelledby="reloads">
      <h2 id="reloads">Reloads</h2>
      {reloads.length === 0 && <p class="pad muted">Nothing was reloaded yet.</p>}
      <ol class="reloads">
        {reloads.map(({ at, trigger, generation, changes, problems }) => (
          <li key={`${at} ${generation}`}>
            <span class="mono muted" title={at}>{clock(at).slice(0, 8)}</span>
            <span class="tag">{trigger}</span>
            <span>generation {generation}</span>
            <span class="changes">{changes.length > 0 ? changes.map((change) => <code key={change} class={`change ${shown(change)}`}>{change}</code>) : <span class="muted">nothing changed</span>}</span>
            {problems.length > 0 && <ul>{problems.map((problem) => <li key={problem}><Mark is="FAILED" word="" /><code class="wrap">{problem}</code></li>)}</ul>}
          </li>
        ))}
      </ol>
    </section>
  );
}

function Listeners({ dump }: { dump: Dump }) {
  return (
    <section aria-labelledby="listeners">
      <h2 id="listeners">Listeners of this proxy</h2>
      <div class="scroll" tabIndex={0} role="group" aria-labelledby="listeners">
        <table class="plain">
          <thead><tr><th scope="col">Address</th><th scope="col">Role</th><th scope="col">Baseline</th><th scope="col">Application</th><th scope="col">Trusts</th><th scope="col">TLS</th></tr></thead>
          <tbody>{dump.listeners.map((one) => <tr key={one.address}><th scope="row"><code>{one.address}</code></th><td>{one.role}</td><td>{one.baseline ?? "–"}</td><td><code>{one.application?.join(" ") ?? "–"}</code></td><td>{one.trust}</td><td>{one.tls ? "yes" : "no"}</td></tr>)}</tbody>
        </table>
      </div>
      <p class="pad muted">Keys are read from {dump.carriers.read.join(", ")}, and written to {dump.carriers.write.join(", ")}.</p>
      {dump.certificates && <ul class="pad">{dump.certificates.map(({ certificate, names, validUntil }) => <li key={certificate}><code>{certificate}</code> for {names.join(", ")}, valid until {validUntil}</li>)}</ul>}
    </section>
  );
}

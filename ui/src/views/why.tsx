// What became of one request: every hop's decision as it was taken, also where the key had already gone.

import { useEffect, useState } from "preact/hooks";
import { type Dump, Problem, type Why as Told, ask, told } from "../api.ts";
import { Copy, Empty, Field, Line, Marked, Note } from "../parts.tsx";
import { type Route, go, link } from "../route.ts";
import { plural } from "../text.ts";
import { type World, keyHeader } from "../world.ts";
import { Findings, Hops } from "./hops.tsx";
import { entrance } from "./overlays.tsx";

/** The trace id in what was pasted: a `traceparent`, with or without its name. */
function id(text: string): string {
  const [, trace] = /\b[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}\b/i.exec(text) ?? [];
  return trace?.toLowerCase() ?? text.trim().replace(/^x-request-id\s*:\s*/i, "");
}

export function Why({ world, route, dump }: { world: World; route: Route; dump: Dump | null }) {
  const [text, setText] = useState(route.id);
  const [answer, setAnswer] = useState<Told | null>(null);
  const [error, setError] = useState<unknown>(null);
  useEffect(() => {
    setText(route.id);
    setAnswer(null);
    setError(null);
    if (!route.id) return;
    const control = new AbortController();
    ask<Told>(`api/v1/why/${encodeURIComponent(route.id)}`, { signal: control.signal }).then(setAnswer, (error) => !control.signal.aborted && setError(error));
    return () => control.abort();
  }, [route.id]);
  const first = world.overlays[0];
  const header = first ? keyHeader(world, first) : "x-overlay-id";
  const unknown = error instanceof Problem && error.status === 404;
  const older = unknown && told(error).startsWith("there is no such page");
  return (
    <section aria-label="A request" class="narrow">
      <div class="bar"><h1 tabIndex={-1}>Why</h1></div>
      <form class="ask" onSubmit={(event) => (event.preventDefault(), go(link("why", id(text))))}>
        <Field label="Trace id, traceparent, or request id" value={text} set={setText} hint="4bf92f3577b34da6a3ce929d0e0e4736" required />
        <button type="submit" class="button primary">Ask</button>
      </form>
      <div aria-live="polite">
        {older ? <Note tone="bad">This proxy is older than the page: it keeps no decisions.</Note>
          : error !== null && <Note tone={unknown ? "warn" : "bad"}><Marked text={told(error)} />{unknown && " Each proxy keeps its last 10,000 decisions; ask soon after the request, and where the proxies that it passed report to."}</Note>}
        {answer && <>
          <div class="bar"><h2>{plural(answer.hops.length, "hop")}</h2><code class="cut">{answer.id}</code><span class="grow" /><Copy text={location.href} what="a link to this">Copy link</Copy></div>
          <Findings all={answer.findings} />
          <Hops hops={answer.hops} header={header} />
          <Line label="The same in a terminal" text={`overlane why ${answer.id}`} />
        </>}
      </div>
      {!route.id && (
        <Empty title="Why did it go to the baseline?">
          <p>Give the trace id or the request id of a request. Each hop's decision is shown as it was taken, also those where the key had already gone. A request with a trace of your own:</p>
          <Line label="curl" text={`curl ${first ? `-H '${header}: ${first.id}' ` : ""}-H 'traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01' ${entrance(dump)}`} />
          <p><a href={link("live")}>Or choose one of those that pass now.</a></p>
        </Empty>
      )}
    </section>
  );
}

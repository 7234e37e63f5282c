// One decision, step by step, by the code of the request path: from a pasted line to the blueprint lines behind it.

import { useEffect, useRef, useState } from "preact/hooks";
import { type Dump, type Explanation, type Question, ask, told } from "../api.ts";
import { nothing, read, shared } from "../curl.ts";
import { Choice, Copy, Empty, Field, Line, Marked, Note } from "../parts.tsx";
import { type Route, asQuery, asQuestion, go, link } from "../route.ts";
import { type World, keyHeader } from "../world.ts";
import { entrance } from "./overlays.tsx";

const ROLES: [string, string][] = [["gateway", "gateway"], ["outbound", "outbound of a sidecar"], ["inbound", "inbound of a sidecar"]];

/** Cookies that say a key, and let nobody in. */
function telling(dump: Dump | null): string[] {
  const carriers = dump?.carriers.read.filter((one) => one.startsWith("cookie:")).map((one) => one.slice("cookie:".length)) ?? [];
  return ["overlane", "__Host-overlane", ...carriers];
}

export function Explain({ world, route, dump }: { world: World; route: Route; dump: Dump | null }) {
  const given = asQuestion(route.query);
  const [text, setText] = useState("");
  const [notes, setNotes] = useState<string[]>([]);
  const [question, setQuestion] = useState<Question>(given ?? nothing());
  const [answer, setAnswer] = useState<Explanation | null>(null);
  const [error, setError] = useState("");
  const asked = useRef("");
  const result = useRef<HTMLElement>(null);

  const explain = async (question: Question) => {
    const { question: open, withheld } = shared(question, telling(dump));
    const to = link("explain", "", asQuery(open));
    asked.current = to;
    if (location.hash !== to) go(to, true);
    const kept = notes.filter((note) => !note.startsWith("The link"));
    setNotes(withheld.length > 0 ? [...kept, `The link to this page is without ${withheld.join(" and ")}: whoever gets it need not have them.`] : kept);
    try {
      setAnswer(await ask<Explanation>("api/v1/explain", { body: { ...question, headers: question.headers.filter(([name]) => name) } }));
      setError("");
    } catch (error) {
      setError(told(error));
      setAnswer(null);
    }
  };

  // A link that was followed is a question.
  const own = link("explain", "", route.query);
  useEffect(() => {
    if (!given || own === asked.current) return;
    setQuestion(given);
    void explain(given);
  }, [own]);

  const paste = (text: string) => {
    setText(text);
    const asked = read(text);
    setNotes(asked?.notes ?? []);
    if (!asked) return;
    setQuestion(asked.question);
    void explain(asked.question);
  };
  const first = world.overlays[0] ?? null;
  const example = `curl -H '${first ? keyHeader(world, first) : "x-overlay-id"}: ${first?.id ?? "alice"}' ${entrance(dump)}`;
  const set = (some: Partial<Question>) => setQuestion({ ...question, ...some });
  return (
    <div class="two">
      <section aria-label="The request">
        <div class="bar"><h1 tabIndex={-1}>Explain</h1></div>
        <label class="field">
          <span>Paste a curl line, headers, or a URL</span>
          <textarea class="mono" rows={5} value={text} spellcheck={false} placeholder={example} onInput={(event) => paste(event.currentTarget.value)} />
        </label>
        {text.trim() && !read(text) && <Note>That is no request. A curl line, a URL, or lines like <code>x-overlay-id: alice</code> are.</Note>}
        {notes.map((note) => <Note key={note} tone="info">{note}</Note>)}
        <form onSubmit={(event) => (event.preventDefault(), void explain(question).then(() => result.current?.focus()))}>
          <div class="fields">
            <Choice label="Listener" value={question.role} set={(role) => set({ role })} options={ROLES} />
            {question.role === "inbound" && <Field label="Service" value={question.service ?? ""} set={(service) => set({ service })} hint="payments-api" required />}
            {question.role !== "gateway" && <Field label="Environment" value={question.environment ?? ""} set={(environment) => set({ environment })} hint="of the sidecar" />}
            {world.baselines.length > 1 && <Choice label="Baseline" value={question.baseline ?? ""} set={(baseline) => set({ baseline })} options={[["", "the listener's"], ...world.baselines.map(({ id }): [string, string] => [id, id])]} />}
            <Field label={question.role === "outbound" ? "Called host" : "Host"} value={question.host} set={(host) => set({ host })} />
            <Field label="Path" value={question.path} set={(path) => set({ path })} />
          </div>
          <fieldset class="headers">
            <legend>Headers</legend>
            {question.headers.map(([name, value], index) => (
              <div key={index} class="header">
                <input class="mono" aria-label={`Name of header ${index + 1}`} value={name} spellcheck={false} onInput={(event) => set({ headers: question.headers.with(index, [event.currentTarget.value, value]) })} />
                <input class="mono" aria-label={`Value of header ${index + 1}`} value={value} spellcheck={false} onInput={(event) => set({ headers: question.headers.with(index, [name, event.currentTarget.value]) })} />
                <button type="button" class="icon-button" aria-label={`Remove header ${index + 1}`} onClick={() => set({ headers: question.headers.toSpliced(index, 1) })}>✕</button>
              </div>
            ))}
            <button type="button" class="button small" onClick={() => set({ headers: [...question.headers, ["", ""]] })}>Add a header</button>
          </fieldset>
          <label class="check"><input type="checkbox" checked={question.untrusted} onChange={(event) => set({ untrusted: event.currentTarget.checked })} /> The sender's overlay headers are not trusted</label>
          <p class="links"><button type="submit" class="button primary">Explain</button></p>
        </form>
      </section>
      <section ref={result} tabIndex={-1} aria-label="The decision" aria-live="polite">
        {error && <Note tone="bad">{error}</Note>}
        {answer ? <Answer answer={answer} question={question} /> : !error && (
          <Empty title="Why does a request go where it goes?">
            <p>Paste what you sent on the left. Every step of the decision is shown with the blueprint lines behind it, by the code that routes requests; nothing is sent anywhere.</p>
            <p><button type="button" class="button" onClick={() => paste(example)}>Try an example</button></p>
          </Empty>
        )}
      </section>
    </div>
  );
}

const OUTCOMES: Record<string, string> = {
  application: "The application behind this sidecar",
  "pass-through": "Passed through to its own authority, without overlay headers",
  "pass-through-with-key": "Passed through to its own authority, which is in keepFor",
};

function command(question: Question): string {
  const quoted = (text: string) => `'${text.replace(/'/g, "'\\''")}'`;
  const parts = ["overlane explain"];
  if (question.role !== "gateway") parts.push(`--role ${question.role}`);
  parts.push(`--host ${quoted(question.host)}`);
  if (question.path !== "/") parts.push(`--path ${quoted(question.path)}`);
  for (const [name, value] of question.headers) parts.push(`-H ${quoted(`${name}: ${value}`)}`);
  return parts.join(" ");
}

function Answer({ answer, question }: { answer: Explanation; question: Question }) {
  const { refusal } = answer;
  const to = answer.upstream.length > 0 ? answer.upstream.join(", ") : (OUTCOMES[answer.outcome] ?? "Pending: no address yet; requests are held, then answered 503");
  return (
    <>
      <div class="bar"><h2>The decision</h2><span class="muted">generation {answer.generation}</span><span class="grow" /><Copy text={location.href} what="a link to this">Copy link</Copy></div>
      <ol class="steps">
        {answer.steps.map((step, index) => (
          <li key={index}>
            <p><Marked text={step.text} /></p>
            {step.blueprint && <figure class="source"><figcaption>{step.blueprint[0]}</figcaption><pre tabIndex={0} aria-label={`Blueprint line: ${step.blueprint[1]}`} role="group"><code>{step.blueprint[1]}</code></pre></figure>}
          </li>
        ))}
      </ol>
      {refusal
        ? <div class="outcome bad"><p class="outcome-title"><span aria-hidden="true">✕</span> {refusal.status} {refusal.reason}</p><p><Marked text={refusal.message} /></p>{refusal.hint && <p><b>What to do:</b> <Marked text={refusal.hint} /></p>}</div>
        : <div class="outcome"><p class="outcome-title"><span aria-hidden="true">→</span> <code class="wrap">{to}</code></p>
            {answer.headers.length > 0 && <><h3>It gets</h3>{answer.headers.map(([name, value]) => <code key={name} class="wrap block">{name}: {value}</code>)}</>}
            {answer.receipt && <><h3>The response has</h3><code class="wrap block">{answer.receipt}</code></>}
          </div>}
      <Line label="The same in a terminal" text={command(question)} />
    </>
  );
}

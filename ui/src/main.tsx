// The page: where one is, what is known, and who looks.

import { render } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import "./style.css";
import { type Dump, ask, token } from "./api.ts";
import { Icon, Note, State as Mark } from "./parts.tsx";
import { type Route, VIEWS, type View, link, useRoute } from "./route.ts";
import { Explain } from "./views/explain.tsx";
import { Lineages } from "./views/lineage.tsx";
import { Live } from "./views/live.tsx";
import { Overlays } from "./views/overlays.tsx";
import { State } from "./views/state.tsx";
import { Why } from "./views/why.tsx";
import { Watch, type World } from "./world.ts";

const TITLES: Record<View, string> = { overlays: "Overlays", lineage: "Lineage", explain: "Explain", live: "Live", why: "Why", state: "State" };
const THEME = "overlane-theme";
const THEMES = ["auto", "light", "dark"] as const;
type Theme = (typeof THEMES)[number];

function useTheme(): [Theme, () => void] {
  const [theme, set] = useState<Theme>(() => THEMES.find((one) => one === localStorage.getItem(THEME)) ?? "auto");
  useEffect(() => {
    if (theme === "auto") delete document.documentElement.dataset["theme"];
    else document.documentElement.dataset["theme"] = theme;
    localStorage.setItem(THEME, theme);
  }, [theme]);
  return [theme, () => set(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]!)];
}

function useDark(): boolean {
  const list = useMemo(() => matchMedia("(prefers-color-scheme: dark)"), []);
  const [dark, set] = useState(list.matches);
  useEffect(() => {
    const changed = () => set(list.matches);
    list.addEventListener("change", changed);
    return () => list.removeEventListener("change", changed);
  }, []);
  return dark;
}

/** What one proxy says of its listeners; a hub has none. */
function useDump(ready: boolean): Dump | null {
  const [dump, set] = useState<Dump | null>(null);
  useEffect(() => {
    // Without its environments, which are many.
    if (ready) ask<Dump>("config_dump?id=").then(set, () => set(null));
  }, [ready]);
  return dump;
}

function App() {
  const route = useRoute();
  const [world, setWorld] = useState<World | null>(null);
  const watch = useMemo(() => new Watch(setWorld), []);
  const [theme, nextTheme] = useTheme();
  const dark = useDark();
  const dump = useDump(world?.known ?? false);
  const first = useRef(true);
  const now = world ?? watch.world;
  useEffect(() => watch.start(), []);
  useEffect(() => {
    document.title = `${route.id ? `${route.id} · ` : ""}${TITLES[route.view]} · Overlane`;
    // Who goes somewhere begins at its title; who comes here, at the top.
    if (!first.current) document.querySelector<HTMLElement>(route.id && route.view === "overlays" ? ".panel h2" : "main h1")?.focus({ preventScroll: route.view === "lineage" });
    first.current = false;
  }, [route.view, route.id]);
  const shown = theme === "auto" ? (dark ? "dark" : "light") : theme;
  return (
    <>
      <a class="skip" href="#main" onClick={(event) => (event.preventDefault(), document.querySelector<HTMLElement>("main")?.focus())}>Skip to the content</a>
      <header class="top">
        <a class="brand" href={link("overlays")}>Overlane</a>
        <nav aria-label="Views">
          {VIEWS.map((view) => <a key={view} href={link(view)} aria-current={route.view === view ? "page" : undefined}>{TITLES[view]}</a>)}
        </nav>
        <Standing world={now} />
        {token.get() && !now.locked && <button type="button" class="button small" onClick={() => (token.forget(), watch.soon())}>Forget token</button>}
        <button type="button" class="icon-button" onClick={nextTheme} aria-label={`Colours: ${theme}. Change`} title={`Colours: ${theme}`}><Icon name={theme === "auto" ? "half" : theme === "light" ? "sun" : "moon"} /></button>
      </header>
      <main id="main" tabIndex={-1}>
        {now.trouble && <Note tone="bad">{now.trouble} What is shown is what was last known.</Note>}
        {now.locked !== null ? <Locked why={now.locked} watch={watch} /> : <Viewed world={now} route={route} dump={dump} theme={shown} />}
      </main>
    </>
  );
}

function Viewed({ theme, ...common }: { world: World; route: Route; dump: Dump | null; theme: string }) {
  switch (common.route.view) {
    case "overlays": return <Overlays {...common} theme={theme} />;
    case "lineage": return <Lineages {...common} />;
    case "explain": return <Explain {...common} />;
    case "live": return <Live {...common} />;
    case "why": return <Why {...common} />;
    case "state": return <State world={common.world} dump={common.dump} />;
  }
}

function Standing({ world }: { world: World }) {
  const instances = world.status?.instances ?? [];
  const stale = instances.filter(({ status }) => status === "STALE").length;
  return (
    <a class="standing" href={link("state")}>
      {world.trouble ? <Mark is="FAILED" word="no answer" /> : instances.length === 0 ? <span class="muted">…</span> : stale > 0 ? <Mark is="STALE" word={`${stale} of ${instances.length} stale`} /> : <Mark is="SYNCED" word={instances.length > 1 ? `${instances.length} synced` : "synced"} />}
    </a>
  );
}

/** A hub shows what it knows to whom it knows. */
function Locked({ why, watch }: { why: string; watch: Watch }) {
  const [text, setText] = useState("");
  const refused = token.get() !== "";
  return (
    <form class="locked" onSubmit={(event) => (event.preventDefault(), token.set(text.trim()), setText(""), watch.soon())}>
      <h1 tabIndex={-1}>This hub asks for a token</h1>
      {refused && <Note tone="bad">The token was refused: {why}</Note>}
      <p>Whoever runs the hub has them in the file that <code>--hub-tokens</code> names. One that may read is enough. It is kept in this tab until that is closed, and sent to this hub only.</p>
      <label class="field"><span>Token</span><input type="password" class="mono" value={text} autocomplete="off" required onInput={(event) => setText(event.currentTarget.value)} /></label>
      <p><button type="submit" class="button primary">Show it</button></p>
    </form>
  );
}

render(<App />, document.getElementById("page")!);

// Small things that all views are made of.

import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { link } from "./route.ts";

const ICONS = {
  copy: "M5 5V3a1 1 0 0 1 1-1h6a1 1 0 0 1 1 1v7a1 1 0 0 1-1 1h-2M4 5h5a1 1 0 0 1 1 1v7a1 1 0 0 1-1 1H4a1 1 0 0 1-1-1V6a1 1 0 0 1 1-1z",
  done: "M3 8.5l3.2 3.2L13 5",
  close: "M4 4l8 8M12 4l-8 8",
  sun: "M8 5a3 3 0 1 1 0 6 3 3 0 0 1 0-6zM8 1v1.5M8 13.5V15M1 8h1.5M13.5 8H15M3 3l1 1M12 12l1 1M13 3l-1 1M4 12l-1 1",
  moon: "M13.5 9.5A5.8 5.8 0 0 1 6.5 2.5 5.8 5.8 0 1 0 13.5 9.5z",
  half: "M8 2a6 6 0 1 1 0 12A6 6 0 0 1 8 2zM8 2v12",
  search: "M7 2.5a4.5 4.5 0 1 1 0 9 4.5 4.5 0 0 1 0-9zM10.5 10.5L14 14",
  back: "M10 3L5 8l5 5",
  out: "M6 3H3v10h10v-3M9 3h4v4M13 3L7 9",
  info: "M8 2a6 6 0 1 1 0 12A6 6 0 0 1 8 2zM8 7.5v3.5M8 5v.2",
  pause: "M5.5 3v10M10.5 3v10",
  play: "M5 3l8 5-8 5z",
};

export function Icon({ name }: { name: keyof typeof ICONS }) {
  return (
    <svg class="icon" viewBox="0 0 16 16" aria-hidden="true">
      <path d={ICONS[name]} />
    </svg>
  );
}

// How a state looks: a shape and a word, and only then a colour.
const STATES: Record<string, [tone: string, mark: string]> = {
  READY: ["good", "●"], SYNCED: ["good", "●"], OK: ["good", "●"], ACTIVE: ["good", "●"],
  PENDING: ["wait", "◌"], STALE: ["warn", "▲"], FROZEN: ["warn", "▲"], WARNING: ["warn", "▲"], EXPIRING: ["warn", "▲"],
  REFUSED: ["bad", "✕"], EXPIRED: ["off", "○"], UNAVAILABLE: ["bad", "✕"], FAILED: ["bad", "✕"], LOST: ["bad", "✕"], INVALID: ["bad", "✕"],
};

export function State({ is, word }: { is: string; word?: string }) {
  // `PENDING(web,api)` says of what.
  const [tone, mark] = STATES[is.replace(/\(.*/, "").toUpperCase()] ?? ["off", "○"];
  return (
    <span class={`state ${tone}`}>
      <span aria-hidden="true">{mark}</span> {word ?? is.replace("(", ": ").replace(")", "").replaceAll(",", ", ")}
    </span>
  );
}

async function put(text: string): Promise<void> {
  // Pages of hubs in the clear have no clipboard of their own.
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "sr";
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** Copies a text, and says so. */
export function Copy({ text, what, children }: { text: string; what: string; children?: ComponentChildren }) {
  const [done, set] = useState("");
  const timer = useRef<number | undefined>(undefined);
  useEffect(() => () => window.clearTimeout(timer.current), []);
  const copy = async () => {
    await put(text).then(() => set("Copied"), () => set("Could not copy: select it by hand"));
    window.clearTimeout(timer.current);
    timer.current = window.setTimeout(() => set(""), 2000);
  };
  return (
    <button type="button" class={children ? "button small" : "icon-button"} title={`Copy ${what}`} aria-label={children ? undefined : `Copy ${what}`} onClick={() => void copy()}>
      <Icon name={done === "Copied" ? "done" : "copy"} />
      {children}
      <span class="sr" role="status">{done}</span>
    </button>
  );
}

/** A line that one can take along. */
export function Line({ label, text }: { label: string; text: string }) {
  return (
    <div class="line">
      <span class="line-label">{label}</span>
      <code tabIndex={0} aria-label={`${label}: ${text}`} role="group">{text}</code>
      <Copy text={text} what={`${label}: ${text}`} />
    </div>
  );
}

export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <p class="empty-title">{title}</p>
      {children}
    </div>
  );
}

export function Note({ tone = "warn", children }: { tone?: "warn" | "bad" | "info"; children: ComponentChildren }) {
  return (
    <div class={`note ${tone}`} role={tone === "bad" ? "alert" : undefined}>
      <span aria-hidden="true">{tone === "info" ? <Icon name="info" /> : "▲"}</span>
      <div>{children}</div>
    </div>
  );
}

export function Tile({ label, value, more }: { label: string; value: ComponentChildren; more?: ComponentChildren }) {
  return (
    <div class="tile">
      <dt>{label}</dt>
      <dd>
        <span class="tile-value">{value}</span>
        {more && <span class="tile-more">{more}</span>}
      </dd>
    </div>
  );
}

/** The name of an environment, in the tone that it has in a lineage. */
export function Named({ id, depth, baseline, to }: { id: string; depth: number; baseline: boolean; to?: string }) {
  const tone = baseline ? "base" : String(Math.min(depth, 4));
  return (
    <a class={`named tone-${tone}`} href={to ?? link("overlays", id)}>
      {id}
    </a>
  );
}

/** What `Enter` does in a field that is searched by, and what is shown in it. */
export function Search({ value, set, label, hint }: { value: string; set: (text: string) => void; label: string; hint?: string }) {
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => {
    const key = (event: KeyboardEvent) => {
      const typing = event.target instanceof HTMLElement && /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
      if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      field.current?.focus();
    };
    document.addEventListener("keydown", key);
    return () => document.removeEventListener("keydown", key);
  }, []);
  return (
    <label class="search">
      <Icon name="search" />
      <span class="sr">{label}</span>
      <input
        ref={field} type="search" value={value} placeholder={hint ?? label} autocomplete="off" spellcheck={false}
        onInput={(event) => set(event.currentTarget.value)}
        onKeyDown={(event) => event.key === "Escape" && (set(""), event.currentTarget.blur())}
      />
      <kbd aria-hidden="true">/</kbd>
    </label>
  );
}

/** A choice of few, of which one holds. */
export function Choice({ label, value, set, options }: { label: string; value: string; set: (value: string) => void; options: [value: string, text: string][] }) {
  return (
    <label class="field">
      <span>{label}</span>
      <select value={value} onChange={(event) => set(event.currentTarget.value)}>
        {options.map(([value, text]) => <option key={value} value={value}>{text}</option>)}
      </select>
    </label>
  );
}

export function Field({ label, value, set, hint, list, required = false }: { label: string; value: string; set: (value: string) => void; hint?: string; list?: string; required?: boolean }) {
  return (
    <label class="field">
      <span>{label}</span>
      <input class="mono" value={value} placeholder={hint ?? ""} list={list} required={required} spellcheck={false} autocomplete="off" onInput={(event) => set(event.currentTarget.value)} />
    </label>
  );
}

/** Whether a condition of CSS holds. */
export function useMedia(condition: string): boolean {
  const [holds, set] = useState(() => matchMedia(condition).matches);
  useEffect(() => {
    const list = matchMedia(condition);
    const changed = () => set(list.matches);
    changed();
    list.addEventListener("change", changed);
    return () => list.removeEventListener("change", changed);
  }, [condition]);
  return holds;
}

/** A text of the core's: what is in back quotes is code. */
export function Marked({ text }: { text: string }) {
  return <>{text.split("`").map((part, index) => (index % 2 === 1 ? <code key={index}>{part}</code> : part))}</>;
}

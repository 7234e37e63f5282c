// Where one is in the page: `#/VIEW/ARGUMENT?QUERY`. It is the whole of it, so that a link can be sent.

import { useEffect, useState } from "preact/hooks";
import type { Question } from "./api.ts";

export const VIEWS = ["overlays", "lineage", "explain", "live", "why", "state"] as const;
export type View = (typeof VIEWS)[number];

export interface Route {
  view: View;
  /** What of it is looked at; empty for all. */
  id: string;
  query: URLSearchParams;
}

export function parse(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [view = "", ...rest] = path.split("/");
  const known = VIEWS.find((one) => one === view);
  return { view: known ?? "overlays", id: known ? decoded(rest.join("/")) : "", query: new URLSearchParams(query) };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export function link(view: View, id = "", query: Record<string, string> | URLSearchParams = {}): string {
  const text = new URLSearchParams(query).toString();
  return `#/${view}${id ? `/${encodeURIComponent(id)}` : ""}${text ? `?${text}` : ""}`;
}

export function useRoute(): Route {
  const [hash, set] = useState(location.hash);
  useEffect(() => {
    const changed = () => set(location.hash);
    window.addEventListener("hashchange", changed);
    return () => window.removeEventListener("hashchange", changed);
  }, []);
  return parse(hash);
}

/** Goes there; `quietly` leaves no step in the history. */
export function go(to: string, quietly = false): void {
  if (!quietly) location.hash = to;
  else {
    history.replaceState(null, "", to);
    window.dispatchEvent(new HashChangeEvent("hashchange"));
  }
}

/** A question in a query, and back. */
export function asQuery(question: Question): URLSearchParams {
  const query = new URLSearchParams({ host: question.host, path: question.path });
  if (question.role !== "gateway") query.set("role", question.role);
  for (const name of ["service", "environment", "baseline"] as const) if (question[name]) query.set(name, question[name]);
  if (question.untrusted) query.set("untrusted", "1");
  for (const [name, value] of question.headers) query.append("h", `${name}: ${value}`);
  return query;
}

export function asQuestion(query: URLSearchParams): Question | null {
  if (!query.has("host") && !query.has("h")) return null;
  const question: Question = {
    role: query.get("role") ?? "gateway",
    host: query.get("host") ?? "localhost",
    path: query.get("path") ?? "/",
    headers: query.getAll("h").map((line) => [line.split(":", 1)[0]!.trim(), line.slice(line.indexOf(":") + 1).trim()]),
    untrusted: query.has("untrusted"),
  };
  for (const name of ["service", "environment", "baseline"] as const) {
    const value = query.get(name);
    if (value) question[name] = value;
  }
  return question;
}

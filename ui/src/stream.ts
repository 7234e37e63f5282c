// Server-sent events over fetch, which can show a token: the browser's own EventSource cannot.

import { Problem, request, told } from "./api.ts";

export interface Event {
  name: string;
  data: string;
}

/** Takes text as it comes, and gives the events that are complete (WHATWG HTML, section 9.2). */
export class Parser {
  private rest = "";
  private name = "";
  private data: string[] = [];

  push(text: string): Event[] {
    const events: Event[] = [];
    // An end of line may be cut in the middle of its two characters.
    const held = (this.rest + text).endsWith("\r") ? "\r" : "";
    const lines = (this.rest + text).slice(0, held ? -1 : undefined).split(/\r\n|\n|\r/);
    this.rest = lines.pop()! + held;
    for (const line of lines) {
      if (line === "") {
        if (this.data.length > 0) events.push({ name: this.name || "message", data: this.data.join("\n") });
        [this.name, this.data] = ["", []];
        continue;
      }
      const [, field, value] = /^([^:]*)(?:: ?(.*))?$/.exec(line) ?? [];
      if (field === "event") this.name = value ?? "";
      else if (field === "data") this.data.push(value ?? "");
    }
    return events;
  }
}

/** Between two attempts, in milliseconds. */
const AGAIN = 2000;

export type State = { open: true } | { open: false; why: string; again: boolean };

/** Follows a stream until `signal` says so, also over its end; what can never come is said once. */
export async function follow(path: string, signal: AbortSignal, heard: (events: Event[]) => void, state: (state: State) => void): Promise<void> {
  while (!signal.aborted) {
    let why = "The stream ended.";
    try {
      const body = (await request(path, { signal })).body;
      if (!body) return;
      state({ open: true });
      const [reader, parser, decoder] = [body.getReader(), new Parser(), new TextDecoder()];
      for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
        const events = parser.push(decoder.decode(piece.value, { stream: true }));
        if (events.length > 0) heard(events);
      }
    } catch (error) {
      if (signal.aborted) return;
      why = told(error);
      if (error instanceof Problem && error.status >= 400 && error.status < 500 && error.status !== 429) {
        state({ open: false, why, again: false });
        return;
      }
    }
    state({ open: false, why, again: true });
    await new Promise<void>((done) => {
      const timer = window.setTimeout(done, AGAIN);
      signal.addEventListener("abort", () => (window.clearTimeout(timer), done()), { once: true });
    });
  }
}

// What the API says (proxy/src/api/openapi.json), and how it is asked.

/** A service as an environment declares it. */
export interface DeclaredService {
  name: string;
  urls: string[];
  image: string | null;
  attached: unknown[];
}

/** A baseline or an overlay, as lists have it. */
export interface Environment {
  /** Told by the page: which list it is of. */
  kind: "baseline" | "overlay";
  id: string;
  baseline: string | null;
  parent: string | null;
  /** What it declares; null where its blueprint is refused. */
  services: DeclaredService[] | null;
  owner: string | null;
  labels: Record<string, string> | null;
  expiresAt: string | null;
  status: string;
  file: string | null;
  problems: string[];
}

export interface Calls {
  service: string;
  peer: string;
  result: string;
  language?: string;
  count: number;
}

/** A proxy, as it speaks of itself. */
export interface Instance {
  id: string;
  roles: string[];
  version: string;
  generation: number;
  revision: string | null;
  stale: boolean;
  problems: string[];
  unavailable: { environment: string; service: string; why: string }[];
  requests: Record<string, number>;
  calls: Calls[];
  status: "SYNCED" | "STALE";
}

export interface Status {
  revision: string | null;
  instances: Instance[];
}

export interface Lineage {
  lineage: { id: string; services: string[] }[];
  links?: { service: string; url: string }[];
}

export interface Health {
  services: { service: string; problem?: string }[];
}

export interface Question {
  role: string;
  service?: string;
  environment?: string;
  baseline?: string;
  host: string;
  path: string;
  headers: [string, string][];
  untrusted: boolean;
}

export interface Explanation {
  generation: number;
  steps: { text: string; blueprint: [string, string] | null }[];
  outcome: string;
  receipt: string | null;
  upstream: string[];
  headers: [string, string][];
  refusal: { status: number; reason: string; message: string; hint: string | null } | null;
}

/** One decision of one proxy. What is not known is left out, or null. */
export interface Decision {
  at: string;
  proxy: string;
  role: string;
  method: string;
  authority: string;
  path: string;
  key?: string | null;
  keyFrom?: string | null;
  service?: string | null;
  caller?: string | null;
  environment?: string | null;
  via?: string | null;
  reason?: string | null;
  status: number;
  durationMs: number;
  upstreamMs?: number | null;
  upstream?: string | null;
  trace?: string | null;
  requestId?: string | null;
  hop?: string | null;
  parent?: string | null;
  generation?: number;
}

export interface Why {
  id: string;
  hops: Decision[];
  findings: string[];
}

/** A listener's part of what one proxy shows of itself. */
export interface Listener {
  role: string;
  address: string;
  baseline: string | null;
  application: string[] | null;
  trust: string;
  tls: boolean;
}

export interface Dump {
  listeners: Listener[];
  environments: Record<string, { services?: { service: string; addresses: string[] | null }[] }>;
  carriers: { read: string[]; write: string[]; keepFor: string[] };
  certificates: { certificate: string; names: string[]; validUntil: string }[] | null;
  problems: string[];
}

export interface Reload {
  at: string;
  trigger: string;
  generation: number;
  changes: string[];
  problems: string[];
}

/** An answer that is none: what the server said of it (RFC 9457), or that there is no server. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

const TOKEN = "overlane-token";

/** The token that is shown to a hub. It is forgotten with the tab. */
export const token = {
  get: (): string => sessionStorage.getItem(TOKEN) ?? "",
  set: (value: string): void => sessionStorage.setItem(TOKEN, value),
  forget: (): void => sessionStorage.removeItem(TOKEN),
};

/** Asks; the page is at `ui/`, below what it asks. */
export async function request(path: string, options: { body?: unknown; signal?: AbortSignal } = {}): Promise<Response> {
  const headers: Record<string, string> = {};
  if (token.get()) headers["authorization"] = `Bearer ${token.get()}`;
  const init: RequestInit = { headers, credentials: "omit", cache: "no-store" };
  if (options.signal) init.signal = options.signal;
  if (options.body !== undefined) {
    headers["content-type"] = "application/json";
    init.method = "POST";
    init.body = JSON.stringify(options.body);
  }
  let response: Response;
  try {
    response = await fetch(new URL(`../${path}`, document.baseURI), init);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Problem(0, "The proxy does not answer. Is it still running?");
  }
  if (!response.ok) throw new Problem(response.status, await detail(response));
  return response;
}

async function detail(response: Response): Promise<string> {
  const text = await response.text().catch(() => "");
  try {
    const { detail } = JSON.parse(text) as { detail?: unknown };
    if (typeof detail === "string") return detail;
  } catch {
    // It is no problem document: what it says is shown as it is.
  }
  return text.trim().slice(0, 500) || `${response.status} ${response.statusText}`;
}

/** Asks for JSON. */
export async function ask<T>(path: string, options: { body?: unknown; signal?: AbortSignal } = {}): Promise<T> {
  return (await (await request(path, options)).json()) as T;
}

/** A path with a query, of which what is empty is left out. */
export function query(path: string, fields: Record<string, string | number | undefined>): string {
  const given = Object.entries(fields).filter(([, value]) => value !== undefined && value !== "");
  const text = new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
  return text ? `${path}?${text}` : path;
}

/** What an error says to people. */
export function told(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

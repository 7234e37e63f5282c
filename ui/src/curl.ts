// From what people paste (a curl line, the head of a request, header lines, a URL) to the question that it is.

import type { Question } from "./api.ts";

export interface Asked {
  question: Question;
  /** What was pasted and cannot be known here, or does not matter. */
  notes: string[];
}

type Word = { text: string; operator: boolean };

const ESCAPES: Record<string, string> = { a: "\x07", b: "\b", e: "\x1b", E: "\x1b", f: "\f", n: "\n", r: "\r", t: "\t", v: "\v" };

/** What is inside `$'…'` from `at` on, and where it ends. */
function ansi(line: string, from: number): [string, number] {
  let [text, at] = ["", from];
  while (at < line.length && line[at] !== "'") {
    if (line[at] !== "\\") {
      text += line[at++];
      continue;
    }
    const rest = line.slice(at + 1);
    const coded = /^(?:x([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{1,4})|U([0-9a-fA-F]{1,8})|([0-7]{1,3}))/.exec(rest);
    const [all, hex, short, long, octal] = coded ?? [];
    const code = octal ? parseInt(octal, 8) : parseInt(hex ?? short ?? long ?? "", 16);
    if (all && code <= 0x10ffff) {
      text += String.fromCodePoint(code);
      at += 1 + all.length;
    } else {
      text += ESCAPES[rest[0] ?? ""] ?? rest[0] ?? "";
      at += 2;
    }
  }
  return [text, at + 1];
}

/** What is inside `"…"` from `at` on, and where it ends. */
function double(line: string, from: number): [string, number] {
  let [text, at] = ["", from];
  while (at < line.length && line[at] !== '"') {
    if (line[at] === "\\" && '$`"\\\n'.includes(line[at + 1] ?? "x")) {
      text += line[at + 1] === "\n" ? "" : line[at + 1];
      at += 2;
    } else {
      text += line[at++];
    }
  }
  return [text, at + 1];
}

/** The words of a line, as a POSIX shell has them (and bash, as far as `$'…'` goes). What is unfinished ends with the line. */
export function words(line: string): Word[] {
  const found: Word[] = [];
  let [word, at]: [string | null, number] = [null, 0];
  const end = () => {
    if (word !== null) found.push({ text: word, operator: false });
    word = null;
  };
  while (at < line.length) {
    const [here, next] = [line[at]!, line[at + 1]];
    let inside = "";
    if (here === "\\") {
      // An escaped end of the line joins two lines.
      if (next !== "\n") word = (word ?? "") + (next ?? "");
      at += 2;
    } else if (here === "'") {
      const close = line.indexOf("'", at + 1);
      word = (word ?? "") + line.slice(at + 1, close < 0 ? undefined : close);
      at = close < 0 ? line.length : close + 1;
    } else if (here === '"') {
      [inside, at] = double(line, at + 1);
      word = (word ?? "") + inside;
    } else if (here === "$" && next === "'") {
      [inside, at] = ansi(line, at + 2);
      word = (word ?? "") + inside;
    } else if (here === "\n" || "|;&<>".includes(here)) {
      // `2>` is one operator.
      if ("<>".includes(here) && word !== null && /^\d$/.test(word)) word = null;
      end();
      found.push({ text: here, operator: true });
      at += 1;
    } else if (here === " " || here === "\t") {
      end();
      at += 1;
    } else if (here === "#" && word === null) {
      const close = line.indexOf("\n", at);
      at = close < 0 ? line.length : close;
    } else {
      word = (word ?? "") + here;
      at += 1;
    }
  }
  end();
  return found;
}

// Options of curl that have a value. Of those that are not here, the next word would be taken for a URL.
const VALUED = new Set(
  `abstract-unix-socket alt-svc aws-sigv4 cacert capath cert cert-type ciphers config connect-timeout connect-to continue-at cookie cookie-jar
   crlfile curves data data-ascii data-binary data-raw data-urlencode delegation dns-interface dns-servers doh-url dump-header ech egd-file engine
   etag-compare etag-save expect100-timeout form form-string happy-eyeballs-timeout-ms haproxy-clientip header hostpubmd5 interface json
   keepalive-time key key-type limit-rate local-port login-options max-filesize max-redirs max-time netrc-file noproxy oauth2-bearer output
   output-dir parallel-max pass pinnedpubkey preproxy proto proto-default proxy proxy-header proxy-user proxy1.0 quote random-file range rate
   referer request request-target resolve retry retry-delay retry-max-time socks4 socks4a socks5 socks5-hostname speed-limit speed-time stderr
   tls-max tls13-ciphers trace trace-ascii unix-socket upload-file url url-query user user-agent variable write-out`.split(/\s+/),
);
const SHORT: Record<string, string> = {
  A: "user-agent", b: "cookie", c: "cookie-jar", C: "continue-at", d: "data", D: "dump-header", e: "referer", E: "cert", F: "form", h: "help",
  H: "header", K: "config", m: "max-time", o: "output", P: "ftp-port", Q: "quote", r: "range", t: "telnet-option", T: "upload-file", u: "user",
  U: "proxy-user", w: "write-out", x: "proxy", X: "request", y: "speed-time", Y: "speed-limit", z: "time-cond",
};

/** The options and URLs of a curl line, in order; a URL has no name. */
function options(all: string[]): [string, string][] {
  const found: [string, string][] = [];
  let plain = false;
  for (let at = 0; at < all.length; at += 1) {
    const word = all[at]!;
    if (plain || !word.startsWith("-") || word === "-") {
      found.push(["", word]);
    } else if (word === "--") {
      plain = true;
    } else if (word.startsWith("--")) {
      const name = word.slice(2);
      found.push([name, VALUED.has(name) ? (all[++at] ?? "") : ""]);
    } else {
      // `-sSi`, `-XPOST`, `-H 'a: b'`
      for (let letter = 1; letter < word.length; letter += 1) {
        const name = SHORT[word[letter]!];
        if (!name) continue;
        found.push([name, word.slice(letter + 1) || (all[++at] ?? "")]);
        break;
      }
    }
  }
  return found;
}

/** A header line of curl, or of a request; null where it is none. */
function field(line: string): [string, string] | null {
  const [, name, value] = /^\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*[:=]\s*(.*?)\s*$/s.exec(line) ?? [];
  return name === undefined ? null : [name, value ?? ""];
}

function located(url: string): { host: string; path: string } | null {
  const [, authority, after] = /^(?:[a-z][a-z0-9+.-]*:\/\/)?(?:[^/?#@]*@)?([^/?#\s@]+)([/?][^#\s]*)?(?:#.*)?$/i.exec(url.trim()) ?? [];
  if (!authority) return null;
  const path = after ?? "/";
  return { host: authority, path: path.startsWith("/") ? path : `/${path}` };
}

export const nothing = (): Question => ({ role: "gateway", host: "localhost", path: "/", headers: [], untrusted: false });

/** `Host` and what a request's own line says is no header of the question. */
function put(question: Question, [name, value]: [string, string]): void {
  if (name.toLowerCase() === "host" || name === ":authority") question.host = value;
  else if (name === ":path") question.path = value;
  else if (!name.startsWith(":")) question.headers.push([name, value]);
}

function fromCurl(all: Word[]): Asked {
  const asked: Asked = { question: nothing(), notes: [] };
  const { question, notes } = asked;
  const start = all.findIndex(({ text }) => /^(.*\/)?curl(\.exe)?$/.test(text));
  const end = all.findIndex(({ operator }, at) => operator && at > start);
  const before = all.slice(0, start).map(({ text }) => text);
  const given = options(all.slice(start + 1, end < 0 ? undefined : end).map(({ text }) => text));
  let host = "";
  const located_at: string[] = [];
  for (const [name, value] of given) {
    switch (name) {
      case "": case "url": located_at.push(value); break;
      case "header": {
        if (value.startsWith("@")) notes.push(`The headers in the file ${value.slice(1)} are not known here: paste them.`);
        // `Name;` sends it empty, `Name:` not at all.
        else if (/^[^:=]+;\s*$/.test(value)) put(question, [value.replace(/;\s*$/, ""), ""]);
        else if (/^host\s*:/i.test(value)) host = value.replace(/^host\s*:\s*/i, "");
        else if (!/^[^:]+:\s*$/.test(value)) {
          const one = field(value);
          if (one) put(question, one);
          else notes.push(`“${value}” is no header: write it as Name: value.`);
        }
        break;
      }
      case "cookie":
        if (value.includes("=")) put(question, ["cookie", value]);
        else notes.push(`The cookies in the file ${value} are not known here: paste them as -b 'name=value'.`);
        break;
      case "user-agent": put(question, ["user-agent", value]); break;
      case "referer": put(question, ["referer", value.replace(/;auto$/, "")]); break;
      case "oauth2-bearer": put(question, ["authorization", `Bearer ${value}`]); break;
      case "proxy": if (value) question.role = "outbound"; break;
      case "request-target": question.path = value; break;
      case "config": notes.push(`What the file ${value} says is not known here.`); break;
    }
  }
  if (before.some((word) => /^(https?|all)_proxy=./i.test(word))) question.role = "outbound";
  const target = located_at.map(located).find((one) => one !== null);
  if (target) {
    question.host = target.host;
    if (question.path === "/") question.path = target.path;
  } else {
    notes.push("The line has no URL: the host is taken to be localhost.");
  }
  if (located_at.length > 1) notes.push(`The line has ${located_at.length} URLs: this is about the first.`);
  if (host) question.host = host;
  if (question.role === "outbound") notes.push("The line goes through a proxy: this is about a sidecar's outbound listener.");
  return asked;
}

function fromHead(text: string): Asked | null {
  const asked: Asked = { question: nothing(), notes: [] };
  const lines = text.replace(/^[><] ?/gm, "").split(/\r?\n/);
  const [, target] = /^\s*[A-Z]+ (\S+)(?: HTTP\/[\d.]+)?\s*$/.exec(lines[0] ?? "") ?? [];
  if (target?.startsWith("/")) asked.question.path = target;
  else if (target) Object.assign(asked.question, located(target) ?? {});
  let known = target !== undefined;
  for (const line of lines.slice(target === undefined ? 0 : 1)) {
    // What follows an empty line of a request is its body.
    if (!line.trim()) {
      if (known) break;
      continue;
    }
    const one = /^\s*(:(?:authority|path|method|scheme)):?\s+(.*)$/.exec(line);
    const found: [string, string] | null = one ? [one[1]!, one[2]!.trim()] : field(line);
    if (!found) return null;
    put(asked.question, found);
    known = true;
  }
  return known ? asked : null;
}

/** What a text asks; null where it is nothing that we know. */
export function read(text: string): Asked | null {
  // Windows' command line escapes with carets.
  const windows = /\^\r?\n|\^"/.test(text);
  const plain = (windows ? text.replace(/\^(\r?\n)/g, " ").replace(/\^(.)/g, "$1") : text).replace(/\r\n/g, "\n").trim();
  if (!plain) return null;
  // The prompt before it, where it was copied with that.
  const line = plain.replace(/^[$%#>]\s+/, "");
  const all = words(line);
  if (all.some(({ text, operator }) => !operator && /^(.*\/)?curl(\.exe)?$/.test(text))) return fromCurl(all);
  const url = !/\s/.test(plain) && (/^[a-z][a-z0-9+.-]*:\/\//i.test(plain) || /^(?![^/]*[=:]\D)[\w.-]+(:\d+)?([/?].*)?$/.test(plain));
  const target = url ? located(plain) : null;
  if (target) return { question: { ...nothing(), ...target }, notes: [] };
  return fromHead(plain);
}

const SECRETS = ["authorization", "proxy-authorization", "cookie", "x-api-key"];

/** The question without what nobody else should get; and the names of what was left out. A cookie that says the key stays. */
export function shared(question: Question, cookies: string[]): { question: Question; withheld: string[] } {
  const withheld: string[] = [];
  const headers = question.headers.flatMap(([name, value]): [string, string][] => {
    if (!SECRETS.includes(name.toLowerCase())) return [[name, value]];
    const own = ([cookie]: string[]) => cookie !== undefined && cookies.includes(cookie.trim());
    const kept = name.toLowerCase() === "cookie" ? value.split(";").filter((one) => own(one.split("="))) : [];
    if (kept.length === 0 || kept.length < value.split(";").length) withheld.push(name.toLowerCase());
    return kept.length > 0 ? [[name, kept.join(";").trim()]] : [];
  });
  return { question: { ...question, headers }, withheld };
}

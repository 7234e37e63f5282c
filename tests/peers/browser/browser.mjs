// A browser, and the services that it visits: each says who it is. Prints who answered each kind of request by each way of
// entering an overlay, and ends with 1 where that is somebody else than it should be.

import { execFileSync } from "node:child_process";
import fs from "node:fs";
import http from "node:http";
import https from "node:https";
import { chromium } from "playwright-core";
import { WebSocketServer } from "ws";

const told = JSON.parse(process.env.TOLD);
const tls = { key: fs.readFileSync(`${told.folder}/tls.key`), cert: fs.readFileSync(`${told.folder}/tls.pem`) };

// -- The services.

// What a page does by itself; `api` is the origin of the other service, `back` where logging in comes back to.
const page = (who) => `<!doctype html><title>${who}</title><p id="who">${who}</p><script src="/script.js"></script>
<img id="image" src="/image.svg"><form id="form" method="post" action="/form"><button>send</button></form>
<form id="elsewhere" method="post"><button>send to its own host</button></form>
<script>
  const text = async (promise) => { try { return await (await promise).text() } catch (error) { return String(error) } }
  window.kinds = async (api) => ({
    script: window.scripted,
    image: await new Promise((done) => { const image = document.getElementById("image");
      const say = () => done(["?", "base", "alice", "bob"][image.naturalWidth] ?? "?");
      image.complete ? say() : (image.onload = image.onerror = say); }),
    fetch: await text(fetch("/who")),
    preflight: await text(fetch(api + "/who", { method: "PUT", credentials: "include", headers: { "x-a": "1" } })),
    events: await new Promise((done) => { const events = new EventSource("/events");
      events.onmessage = (event) => { events.close(); done(event.data) }; events.onerror = () => { events.close(); done("error") } }),
    socket: await new Promise((done) => { const socket = new WebSocket(location.origin.replace("http", "ws") + "/socket");
      socket.onmessage = (event) => { done(event.data); socket.close() }; socket.onerror = () => done("error") }),
  });
</script>`;

const WIDTHS = { base: 1, alice: 2, bob: 3 };

function serve(service, who) {
  const server = http.createServer((request, response) => {
    const url = new URL(request.url, "http://x");
    const origin = request.headers.origin;
    if (origin) {
      response.setHeader("access-control-allow-origin", origin);
      response.setHeader("access-control-allow-credentials", "true");
      response.setHeader("access-control-allow-headers", "x-a");
      response.setHeader("access-control-allow-methods", "PUT");
    }
    const say = (type, body, status = 200) => response.writeHead(status, { "content-type": type }).end(body);
    const cookies = request.headers.cookie ?? "";
    if (/overlane/.test(cookies) || request.headers["x-overlay-hop"]) return say("text/plain", `${who} got a cookie of ours: ${cookies}`);
    switch (url.pathname) {
      case "/": return say("text/html", page(who));
      case "/who": return request.method === "OPTIONS" ? say("text/plain", "", 204) : say("text/plain", who);
      case "/script.js": return say("text/javascript", `window.scripted = ${JSON.stringify(who)}`);
      case "/image.svg": return say("image/svg+xml", `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTHS[who]}" height="1"/>`);
      case "/events": return say("text/event-stream", `data: ${who}\n\n`);
      case "/form": return say("text/html", `<p id="who">${request.method === "POST" ? who : request.method}</p>`);
      // As an application does that knows one address: its canonical one.
      case "/away": return response.writeHead(302, { location: `https://${told.shop}:${url.searchParams.get("port")}/` }).end();
      case "/login": {
        const back = encodeURIComponent(`https://${told.shop}:${url.searchParams.get("port")}/back`);
        response.setHeader("set-cookie", `state=s${who}; Domain=example.test; Path=/; Secure`);
        const mode = url.searchParams.get("mode") ?? "";
        return response.writeHead(302, { location: `https://${told.loginHost}:${told.login}/?redirect_uri=${back}&state=s${who}&response_mode=${mode}` }).end();
      }
      case "/back": return say("text/html", `<p id="who">${who}${cookies.includes(`state=s${who}`) ? "" : ", who was not asked"}</p>`);
      default: return say("text/plain", "not found", 404);
    }
  });
  new WebSocketServer({ server }).on("connection", (socket) => socket.send(who));
  return new Promise((done) => server.listen(told.ports[`${service} ${who}`], "127.0.0.1", () => done(server)));
}

// Whoever one logs in at sends back what it was given, in the query or in a form that posts itself.
function login() {
  const server = https.createServer(tls, (request, response) => {
    const query = new URL(request.url, "http://x").searchParams;
    const [back, state] = [query.get("redirect_uri"), query.get("state")];
    if (!back) return response.writeHead(404).end();
    if (query.get("response_mode") === "form_post") {
      return response.writeHead(200, { "content-type": "text/html" }).end(
        `<form method="post" action="${back}"><input name="state" value="${state}"></form><script>document.forms[0].submit()</script>`);
    }
    response.writeHead(302, { location: `${back}?code=c&state=${state}` }).end();
  });
  return new Promise((done) => server.listen(told.login, "127.0.0.1", () => done(server)));
}

// -- The browser.

const wrong = [];
let cells = 0;

function check(way, kind, expected, came) {
  cells += 1;
  console.log(`  ${way.padEnd(34)} ${kind.padEnd(28)} ${came}`);
  if (came !== expected) wrong.push(`${way}, ${kind}: ${came} instead of ${expected}`);
}

const who = (tab) => tab.locator("#who").textContent({ timeout: 5000 }).catch(async () => `no page of a service: ${(await tab.title())} ${tab.url()}`);

// All that a page does, once the tab is in it. `other` is where the other service is, `loggedIn` who is asked after logging in.
async function visit(way, tab, origin, other, expected, { preflight = expected, port, single = false }) {
  check(way, "page", expected, await who(tab));
  for (const [kind, came] of Object.entries(await tab.evaluate((other) => window.kinds(other), other))) {
    check(way, kind, kind === "preflight" ? preflight : expected, came);
  }
  await tab.click("#form button");
  check(way, "form", expected, await who(tab));
  if (!port) return;
  await tab.goto(`${origin}/`);
  await tab.evaluate((to) => { document.getElementById("elsewhere").action = to; }, `https://${told.shop}:${port}/form`);
  await tab.click("#elsewhere button");
  check(way, "form to its own host", expected, await who(tab));
  await tab.goto(`${origin}/away?port=${port}`);
  check(way, "redirect to its own host", expected, await who(tab));
  await tab.goto(`${origin}/login?port=${port}`);
  check(way, "logging in elsewhere", expected, await who(tab));
  await tab.goto(`${origin}/login?mode=form_post&port=${port}`);
  check(way, "logging in, back by a form", expected, await who(tab));
  if (!single) {
    check(way, "where it came back to", origin, new URL(tab.url()).origin);
  }
}

const share = (...more) => JSON.parse(execFileSync(told.binary, ["overlay", "share", "alice", "-o", "json", "--store", `${told.folder}/closed`, ...more]));

async function main() {
  const servers = [await login()];
  for (const service of ["web", "api"]) for (const environment of ["base", "alice", "bob"]) servers.push(await serve(service, environment));
  const browser = await chromium.launch({
    executablePath: told.chromium,
    args: ["--no-sandbox", "--host-resolver-rules=MAP *.test 127.0.0.1"],
  });
  const fresh = async () => (await browser.newContext()).newPage();
  const at = (service, environment, port) => `https://${service}--${environment}.${told.previews}:${port}`;
  const { open, closed, plain } = told;
  const shop = (port) => `https://${told.shop}:${port}`;

  let tab = await fresh();
  await tab.goto(`${shop(open)}/`);
  await visit("no overlay", tab, shop(open), `https://${told.api}:${open}`, "base", { port: open, single: true });

  tab = await fresh();
  await tab.goto(`${at("web", "alice", open)}/`);
  await visit("preview's host", tab, at("web", "alice", open), at("api", "alice", open), "alice", { port: open });
  await tab.goto(`${at("web", "alice", open)}/`);
  check("preview's host", "preflight to the baseline's", "alice", (await tab.evaluate((other) => window.kinds(other), `https://${told.api}:${open}`)).preflight);
  await tab.evaluate((to) => { const link = document.createElement("a"); link.href = to; link.id = "link"; link.textContent = "go"; document.body.append(link); }, `${shop(open)}/`);
  await tab.click("#link");
  check("preview's host", "link to the baseline's", "alice", await who(tab));
  await tab.goto(`${at("web", "alice", open)}/`);
  const hidden = await tab.evaluate((to) => fetch(to, { referrerPolicy: "no-referrer" }).then((answer) => answer.text()), `https://${told.api}:${open}/who`);
  check("preview's host", "fetch without a referrer", "alice", hidden);

  tab = await fresh();
  await tab.goto(`${shop(open)}/?overlay=alice&x=1`);
  check("parameter", "address is clean", `${shop(open)}/?x=1`, tab.url());
  // Another host has no cookie of this one, and is told nothing by where the page is.
  await visit("parameter", tab, shop(open), `https://${told.api}:${open}`, "alice", { preflight: "base", port: open, single: true });
  await tab.goto(`${shop(open)}/.overlane`);
  await tab.click("text=leave");
  check("parameter", "left by one click", "base", await who(tab));

  // Two overlays in two tabs of one browser.
  const context = await browser.newContext();
  const [one, two] = [await context.newPage(), await context.newPage()];
  await one.goto(`${at("web", "alice", open)}/`);
  await two.goto(`${at("web", "bob", open)}/`);
  await visit("two tabs, the first", one, at("web", "alice", open), at("api", "alice", open), "alice", { port: open });
  await visit("two tabs, the second", two, at("web", "bob", open), at("api", "bob", open), "bob", { port: open });

  // On a laptop: nothing installed, no TLS.
  tab = await fresh();
  const laptop = `http://web--alice.localhost:${plain}`;
  await tab.goto(`${laptop}/`);
  await visit("laptop, preview's host", tab, laptop, laptop, "alice", {});
  tab = await fresh();
  await tab.goto(`http://127.0.0.1:${plain}/?overlay=alice`);
  await visit("laptop, parameter", tab, `http://127.0.0.1:${plain}`, `http://127.0.0.1:${plain}`, "alice", {});

  // A shared link, where nobody may choose.
  tab = await fresh();
  check("stranger", "preview's host", "404", String((await tab.goto(`${at("web", "alice", closed)}/`)).status()));
  await tab.goto(`${shop(closed)}/?overlay=alice`);
  check("stranger", "parameter", "404", String((await tab.goto(`${shop(closed)}/?overlay=alice`)).status()));
  const shared = share("--ttl", "1h");
  const link = shared.links.find(({ service }) => service === "web").url;
  await until(async () => (await tab.goto(link)).status() === 200);
  check("shared link", "address is clean", `${at("web", "alice", closed)}/`, tab.url());
  await visit("shared link", tab, at("web", "alice", closed), at("api", "alice", closed), "alice", { port: closed });
  check("shared link", "another overlay", "404", String((await tab.goto(`${at("web", "bob", closed)}/`)).status()));

  const single = await fresh();
  await single.goto(link.replace(at("web", "alice", closed), shop(closed)));
  await visit("shared link, one host", single, shop(closed), `https://${told.api}:${closed}`, "alice", { preflight: "base", port: closed, single: true });

  execFileSync(told.binary, ["overlay", "unshare", "alice", shared.id, "--store", `${told.folder}/closed`]);
  await until(async () => (await tab.goto(`${at("web", "alice", closed)}/`)).status() === 404);
  check("link taken back", "preview's host", "404", String((await tab.goto(`${at("web", "alice", closed)}/`)).status()));
  await single.goto(`${shop(closed)}/`);
  check("link taken back", "one host", "404", String((await single.goto(`${shop(closed)}/`)).status()));
  await single.click("text=leave");
  check("link taken back", "one host, left", "base", await who(single));
  check("link taken back", "the link", "404", String((await (await fresh()).goto(link)).status()));

  await browser.close();
  servers.forEach((server) => server.close());
}

// What the store says is routed soon.
async function until(holds) {
  for (let turn = 0; turn < 100; turn += 1) {
    if (await holds()) return;
    await new Promise((done) => setTimeout(done, 50));
  }
  throw new Error("it did not come to hold");
}

await main().catch((error) => wrong.push(String(error?.stack ?? error)));
console.log(`${cells} cells, ${wrong.length} wrong`);
wrong.forEach((line) => console.log(`wrong: ${line}`));
process.exit(wrong.length ? 1 : 0);

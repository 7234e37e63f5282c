// A browser that looks at every view of the page as people do. Prints what it checked, and ends with 1 where something is wrong.

import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { chromium } from "playwright-core";

const told = JSON.parse(process.env.TOLD);
const axe = fs.readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

// What Chromium would do by itself at its start, on a machine that is to reach nothing.
const QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const PICTURE = { width: 1180, height: 660 };
const SIZES = { desktop: { width: 1280, height: 800 }, phone: { width: 390, height: 844 } };
const KEY = "alice-payments";
const RATE = /[1-9]\.\d\/s|\d\d\/s/;

const wrong = [];
let checks = 0;

function check(what, holds, came = "") {
  checks += 1;
  if (!holds) wrong.push(`${what}${came === "" ? "" : `: ${came}`}`);
}

// Where each view is, and what is there once it shows what it is for.
const explained = `#/explain?${new URLSearchParams({ host: "payments-api", path: "/", role: "outbound", h: `x-overlay-id: ${KEY}` })}`;
const VIEWS = {
  overlays: ["#/overlays", async (tab) => tab.locator("tbody tr", { hasText: KEY }).filter({ hasText: RATE }).waitFor()],
  overlay: [`#/overlays/${KEY}`, async (tab) => tab.locator(".panel tr", { hasText: "payments-api" }).filter({ hasText: RATE }).waitFor()],
  lineage: [`#/lineage/${KEY}`, async (tab) => {
    await tab.locator(".node.own", { hasText: "payments-api" }).waitFor();
    await tab.locator(".edge-label", { hasText: RATE }).nth(2).waitFor();
  }],
  explain: [explained, async (tab) => tab.locator(".outcome", { hasText: "http://127.0.0.1:" }).waitFor()],
  live: [`#/live?overlay=${KEY}`, async (tab) => tab.locator(".row-link").nth(3).waitFor()],
  hops: [`#/live?overlay=${KEY}`, async (tab) => {
    await tab.locator(".row-link").nth(3).click();
    await tab.locator(".hops li", { hasText: "restored by the trace" }).first().waitFor();
    await tab.locator(".hops li").nth(4).waitFor();
  }],
  why: ["#/why", async (tab) => tab.locator(".empty", { hasText: "traceparent" }).waitFor()],
  state: ["#/state", async (tab) => tab.locator("td", { hasText: "SYNCED" }).waitFor()],
};

// A tab whose errors are wrong, those of the content-security policy too.
async function opened(browser, options = {}) {
  const context = await browser.newContext({ viewport: SIZES.desktop, ...options });
  const tab = await context.newPage();
  tab.setDefaultTimeout(20_000);
  tab.on("pageerror", (error) => wrong.push(`the page threw ${error.stack}`));
  tab.on("console", (message) => message.type() === "error" && !/\b(401|404)\b/.test(message.text()) && wrong.push(`the page complains: ${message.text()}`));
  return tab;
}

async function accessible(tab, where) {
  await tab.evaluate(axe);
  const { violations } = await tab.evaluate(() => window.axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }));
  check(`${where}: axe`, violations.length === 0, violations.map(({ id, nodes }) => `${id} ${nodes.map(({ html }) => html.slice(0, 120)).join(" ")}`).join("; "));
}

async function views(browser) {
  for (const [size, viewport] of Object.entries(SIZES)) for (const colorScheme of ["light", "dark"]) {
    const tab = await opened(browser, { viewport, colorScheme });
    for (const [name, [hash, shown]] of Object.entries(VIEWS)) {
      const where = `${name}, ${size}, ${colorScheme}`;
      await tab.goto(told.page + hash);
      await shown(tab).catch((error) => wrong.push(`${where} does not show what it is for: ${error.message}`));
      const width = await tab.evaluate(() => document.documentElement.scrollWidth);
      check(`${where}: the page scrolls sideways`, width <= viewport.width, width);
      await accessible(tab, where);
    }
    await tab.context().close();
    console.log(`  every view, ${size}, ${colorScheme}`);
  }
}

async function keyboard(browser) {
  const tab = await opened(browser);
  const focused = () => tab.evaluate(() => document.activeElement?.textContent ?? "");
  await tab.goto(`${told.page}#/overlays`);
  await VIEWS.overlays[1](tab);
  await tab.keyboard.press("Tab");
  check("the first stop skips to the content", (await focused()) === "Skip to the content", await focused());
  await tab.keyboard.press("Enter");
  check("and leads there", (await tab.evaluate(() => document.activeElement?.id)) === "main");
  await tab.keyboard.press("/");
  check("a slash begins a search", (await tab.evaluate(() => document.activeElement?.type)) === "search");
  await tab.keyboard.type("nothing like that");
  await tab.locator(".empty", { hasText: "Nothing is found" }).waitFor();
  await tab.keyboard.press("Escape");
  await tab.locator("tbody tr", { hasText: KEY }).waitFor();
  await tab.locator("tbody [tabindex='0']").focus();
  await tab.keyboard.press("ArrowDown");
  check("an arrow leads to the next row", (await focused()) === KEY, await focused());
  await tab.keyboard.press("Enter");
  await tab.locator(".panel h2", { hasText: KEY }).waitFor();
  check("who opens an overlay is at its title", (await focused()) === KEY, await focused());
  await tab.keyboard.press("Escape");
  await tab.locator(".panel").waitFor({ state: "detached" });
  await tab.goto(`${told.page}#/lineage/${KEY}`);
  await VIEWS.lineage[1](tab);
  await tab.locator(".node[tabindex='0']").focus();
  const before = await focused();
  for (const key of ["ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft"]) await tab.keyboard.press(key);
  await tab.keyboard.press("ArrowRight");
  await tab.keyboard.press("ArrowDown");
  check("arrows lead from service to service", (await focused()) !== "" && before !== "", await focused());
  await tab.keyboard.press("Enter");
  await tab.locator(".card").waitFor();
  await tab.context().close();
  console.log("  by keyboard alone");
}

// The button for colours goes from the system's to light, to dark, and back.
async function colours(browser) {
  const tab = await opened(browser, { colorScheme: "light" });
  await tab.goto(`${told.page}#/state`);
  await VIEWS.state[1](tab);
  const seen = [];
  for (const theme of [null, "light", "dark", null]) {
    if (seen.length > 0) await tab.locator("button[aria-label^='Colours']").click();
    await tab.waitForFunction((theme) => document.documentElement.getAttribute("data-theme") === theme, theme);
    seen.push(await tab.evaluate(() => getComputedStyle(document.body).backgroundColor));
  }
  const [system, light, dark, again] = seen;
  check("the button changes the colours", system === light && light !== dark && again === system, seen.join(", "));
  await tab.context().close();
  console.log("  the colours that are chosen");
}

async function explaining(browser) {
  const tab = await opened(browser, { permissions: ["clipboard-read", "clipboard-write"] });
  await tab.goto(`${told.page}#/explain`);
  await tab.locator("textarea").fill(`curl -H 'x-overlay-id: ${KEY}' -H 'Authorization: Bearer secret' -x http://127.0.0.1:7483 http://payments-api/refunds`);
  await tab.locator(".steps li", { hasText: `is owned by ${KEY}` }).waitFor();
  await tab.locator(".source", { hasText: "name: payments-api" }).waitFor();
  const link = tab.url();
  check("the link has no secret", !link.includes("secret") && link.includes("payments-api"), link);
  await tab.locator(".outcome", { hasText: "via=overlay;reason=owned" }).waitFor();
  const other = await opened(browser);
  await other.goto(link);
  await other.locator(".outcome", { hasText: "via=overlay;reason=owned" }).waitFor();
  await other.locator("textarea").fill("x-overlay-id: NOT A KEY");
  await other.locator(".outcome.bad", { hasText: "400 invalid-key" }).waitFor();
  await other.locator(".outcome.bad", { hasText: "What to do" }).waitFor();
  await tab.goto(`${told.page}#/overlays/${KEY}`);
  await tab.locator("button[aria-label^='Copy curl']").click();
  await tab.locator(".line [role=status]", { hasText: "Copied" }).waitFor({ state: "attached" });
  const line = await tab.evaluate(() => navigator.clipboard.readText());
  check("the curl line leads to the gateway", line === `curl -i -H 'x-overlay-id: ${KEY}' ${told.gateway}/`, line);
  await Promise.all([tab.context().close(), other.context().close()]);
  console.log("  explaining, and copying");
}

// From the requests that pass to what became of one of them.
async function looking(browser) {
  const tab = await opened(browser);
  await tab.goto(`${told.page}#/live`);
  await tab.locator(".row-link").first().waitFor();
  await tab.getByLabel("Overlay", { exact: true }).fill(KEY);
  await tab.getByLabel("Service", { exact: true }).fill("ledger");
  await tab.getByLabel("Path begins with").fill("/");
  await tab.waitForFunction((key) => {
    const rows = [...document.querySelectorAll("tbody tr:not(.space)")].map((row) => row.textContent);
    return rows.length > 2 && rows.every((row) => row.includes("ledger") && row.includes(key));
  }, KEY);
  await tab.getByRole("button", { name: "Pause" }).click();
  await tab.getByRole("button", { name: /Go on \([1-9]/ }).waitFor();
  const before = await tab.locator("tbody").textContent();
  await tab.getByRole("button", { name: /Go on/ }).click();
  await tab.waitForFunction((before) => document.querySelector("tbody").textContent !== before, before);
  await tab.locator(".row-link").first().click();
  await tab.locator(".hops li").nth(4).waitFor();
  await tab.locator(".panel a", { hasText: "Why" }).click();
  await tab.locator("main h2", { hasText: "hops" }).waitFor();
  const hops = await tab.locator(".hops").textContent();
  for (const part of ["outside → web", "web → payments-api", "payments-api → ledger", "restored by the trace", "owned"]) check("the hops of a request", hops.includes(part), `${part} is not in ${hops}`);
  await accessible(tab, "what became of a request");
  await tab.locator(".hops a", { hasText: "Explain" }).last().click();
  await tab.locator(".steps li").nth(2).waitFor();
  await tab.goto(`${told.page}#/why/no-such-request`);
  await tab.locator(".note", { hasText: "nothing here knows" }).waitFor();
  await tab.goto(`${told.page}#/why`);
  await tab.getByLabel("Trace id, traceparent, or request id").fill("00-000000000000000000000000000000ab-00f067aa0ba902b7-01");
  await tab.keyboard.press("Enter");
  await tab.waitForURL(/#\/why\/000000000000000000000000000000ab$/);
  await tab.context().close();
  console.log("  requests as they pass, and why one went where it went");
}

async function many(browser) {
  const tab = await opened(browser);
  const began = performance.now();
  await tab.goto(`${told.many}#/overlays`);
  await tab.locator(".tile", { hasText: told.overlays.toLocaleString("en") }).waitFor();
  await tab.locator("tbody tr", { hasText: "pr-0" }).first().waitFor();
  const useful = performance.now() - began;
  const searched = performance.now();
  await tab.locator("input[type=search]").fill("pr-7777");
  await tab.locator("tbody tr", { hasText: "pr-7777" }).waitFor();
  await tab.locator("tbody tr:not(.space)", { hasText: "pr-0" }).waitFor({ state: "detached" });
  const found = performance.now() - searched;
  await tab.locator("input[type=search]").fill("");
  await tab.locator("tbody tr", { hasText: "pr-0" }).first().waitFor();
  check("what is written is shown as it is written", await tab.locator("tbody", { hasText: "<img src=x onerror" }).count() === 1);
  check("and does nothing", (await tab.evaluate(() => window.broken)) === undefined);
  const rows = await tab.locator("tbody tr").count();
  check("only what can be seen is in the page", rows < 100, rows);
  await tab.locator("tbody [tabindex='0']").focus();
  const ended = performance.now();
  await tab.keyboard.press("End");
  await tab.waitForFunction(() => document.activeElement?.textContent === "pr-9999");
  const end = performance.now() - ended;
  await accessible(tab, "ten thousand overlays");
  await tab.goto(`${told.many}#/lineage/pr-5001`);
  await tab.locator(".node.own", { hasText: "service-1" }).waitFor();
  check("the tree has only what can be seen", (await tab.locator(".list li").count()) < 100);
  await accessible(tab, "ten thousand overlays, lineage");
  await tab.context().close();
  const ms = (value) => `${Math.round(value)} ms`;
  console.log(`  ${told.overlays} overlays: useful after ${ms(useful)}, searched in ${ms(found)}, at the end in ${ms(end)}; ${rows} rows in the page`);
  // Of a debug build on a busy machine.
  check("useful within 20 s with ten thousand overlays", useful < 20_000, ms(useful));
}

async function locked(browser) {
  const tab = await opened(browser);
  await tab.goto(told.hub);
  await tab.locator("h1", { hasText: "asks for a token" }).waitFor();
  await accessible(tab, "asking for a token");
  await tab.locator("input[type=password]").fill("wrong");
  await tab.keyboard.press("Enter");
  await tab.locator(".note.bad", { hasText: "refused" }).waitFor();
  await tab.locator("input[type=password]").fill(told.token);
  await tab.keyboard.press("Enter");
  await tab.locator(".tile", { hasText: told.overlays.toLocaleString("en") }).waitFor();
  check("the token is in no address", !tab.url().includes(told.token));
  await tab.goto(`${told.hub}#/explain?host=localhost&path=/&h=x-overlay-id:%20pr-0`);
  await tab.locator(".steps li", { hasText: "pr-0" }).first().waitFor();
  await tab.locator("button", { hasText: "Forget token" }).click();
  await tab.locator("h1", { hasText: "asks for a token" }).waitFor();
  await tab.context().close();
  console.log("  a hub, with its token");
}

async function screenshots(browser) {
  const shoot = async (tab, name) => {
    const file = path.join(told.screenshots, `${name}.png`);
    await tab.screenshot({ path: file });
    check(`${name}.png is small`, fs.statSync(file).size < 150_000, fs.statSync(file).size);
  };
  fs.mkdirSync(told.screenshots, { recursive: true });
  for (const [name, view, options] of [
    ["overlays", "overlay", { viewport: { ...PICTURE, height: 800 } }],
    ["lineage", "lineage", { viewport: { ...PICTURE, height: 420 } }],
    ["explain", "explain", { viewport: PICTURE, colorScheme: "dark" }],
    ["live", "hops", { viewport: { ...PICTURE, height: 560 } }],
    ["phone", "lineage", { viewport: SIZES.phone }],
  ]) {
    const tab = await opened(browser, options);
    await tab.goto(told.page + VIEWS[view][0]);
    await VIEWS[view][1](tab);
    if (view === "overlay") await tab.waitForFunction(() => Number(document.querySelector("[data-points]")?.dataset.points) > 8, null, { timeout: 120_000 });
    await shoot(tab, name);
    await tab.context().close();
  }
  console.log(`  pictures in ${told.screenshots}`);
}

const browser = await chromium.launch({ executablePath: told.chromium, args: QUIET });
const steps = [views, keyboard, colours, explaining, looking, many, locked, ...(told.screenshots ? [screenshots] : [])];
for (const step of steps) await step(browser).catch((error) => wrong.push(`${step.name}: ${error.stack}`));
await browser.close();
console.log(`${checks} checks, ${wrong.length} wrong`);
wrong.forEach((line) => console.log(`wrong: ${line}`));
process.exit(wrong.length ? 1 : 0);

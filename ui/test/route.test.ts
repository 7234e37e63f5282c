import assert from "node:assert/strict";
import { test } from "node:test";
import { asQuery, asQuestion, link, parse } from "../src/route.ts";

test("a link leads where it was made", () => {
  const { view, id, query } = parse(link("live", "", { overlay: "alice", path: "/a b?c=d&e" }));
  assert.deepEqual([view, id, query.get("overlay"), query.get("path")], ["live", "", "alice", "/a b?c=d&e"]);
  assert.equal(parse(link("why", "a/b?c#d%20")).id, "a/b?c#d%20");
});

test("an unknown place is the first view, and a broken one is taken as it is", () => {
  assert.deepEqual([parse("#/nowhere/x").view, parse("#/nowhere/x").id, parse("").view], ["overlays", "", "overlays"]);
  assert.equal(parse("#/why/%E0%A4%A").id, "%E0%A4%A");
});

test("a question survives its link", () => {
  const question = {
    role: "inbound", service: "web", environment: "alice", host: "web:80", path: "/a?b=c", untrusted: true,
    headers: [["x-overlay-id", "alice"], ["baggage", "a=b, c=d:e"], ["x-empty", ""]] as [string, string][],
  };
  assert.deepEqual(asQuestion(parse(link("explain", "", asQuery(question))).query), question);
  assert.equal(asQuestion(new URLSearchParams()), null);
});

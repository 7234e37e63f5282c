import assert from "node:assert/strict";
import { test } from "node:test";
import type { Decision } from "../src/api.ts";
import { depths } from "../src/hops.ts";

const hop = (name: string, parent?: string): Decision => ({
  at: "", proxy: "", role: "inbound", method: "GET", authority: "", path: "/", status: 200, durationMs: 1, hop: name, parent: parent ?? null,
});

test("a hop is below the hop that called it", () => {
  assert.deepEqual(depths([hop("a"), hop("b", "a"), hop("c", "b"), hop("d", "a")]), [0, 1, 2, 1]);
});

test("who is called by nobody that is known is at the top", () => {
  assert.deepEqual(depths([hop("a", "elsewhere"), hop("b", "a")]), [0, 1]);
});

test("who says that he called himself is at the top", () => {
  assert.deepEqual(depths([hop("a", "a"), hop("b", "c"), hop("c", "b")]), [0, 0, 0]);
});

import assert from "node:assert/strict";
import { test } from "node:test";
import { Parser } from "../src/stream.ts";

test("events are the same however the bytes are cut", () => {
  const text = ": hello\n\nevent: decision\ndata: {\"a\":1}\n\ndata: one\r\ndata: two\r\n\r\nevent: x\n\ndata:\n\n";
  const expected = [{ name: "decision", data: '{"a":1}' }, { name: "message", data: "one\ntwo" }, { name: "message", data: "" }];
  for (let size = 1; size <= text.length; size += 1) {
    const parser = new Parser();
    const events = [];
    for (let at = 0; at < text.length; at += size) events.push(...parser.push(text.slice(at, at + size)));
    assert.deepEqual(events, expected, `pieces of ${size}`);
  }
});

test("what is not complete is not told", () => {
  const parser = new Parser();
  assert.deepEqual(parser.push("data: a\n"), []);
  assert.deepEqual(parser.push("\n"), [{ name: "message", data: "a" }]);
});

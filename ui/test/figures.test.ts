import assert from "node:assert/strict";
import { test } from "node:test";
import { type Bucket, type Counts, type Stats, between, figures, History, NOTHING, ofOverlay, percentile, sample, span, sum } from "../src/figures.ts";

const counts = (requests: number, ...buckets: Bucket[]): Counts => ({ ...NOTHING, requests, buckets });
const stats = (requests: number, more: Partial<Stats> = {}): Stats => ({
  proxies: 1,
  services: [{ ...counts(requests, [0.1, requests], [null, requests]), overlay: "a", service: "web", via: "overlay" }],
  edges: [],
  overhead: null,
  ...more,
});

test("a percentile lies evenly in its bucket", () => {
  assert.equal(percentile([[0.1, 50], [0.2, 100], [null, 100]], 0.5), 0.1);
  assert.ok(Math.abs(percentile([[0.1, 50], [0.2, 100], [null, 100]], 0.75)! - 0.15) < 1e-9);
  assert.equal(percentile([[0.1, 100], ["+Inf", 100]], 0.5), 0.05);
});

test("above the last bound, that bound is what is known", () => {
  assert.equal(percentile([[0.1, 0], [null, 10]], 0.95), 0.1);
});

test("without requests there is no percentile", () => {
  assert.equal(percentile([], 0.5), null);
  assert.equal(percentile([[0.1, 0], [null, 0]], 0.5), null);
  assert.equal(figures(NOTHING, 2).errors, null);
});

test("two counts are subtracted bucket by bucket", () => {
  const difference = between(counts(10, [0.1, 4], [null, 10]), counts(7, [0.1, 4], [null, 7]));
  assert.deepEqual(difference, counts(3, [0.1, 0], [null, 3]));
  assert.deepEqual(between(counts(3), undefined), counts(3));
});

test("a count that went down is a restart, and no difference", () => {
  assert.equal(between(counts(3, [null, 3]), counts(7, [null, 7])), null);
  assert.equal(between(counts(9, [0.1, 1], [null, 9]), counts(7, [0.1, 5], [null, 7])), null);
});

test("counts with other bounds are added by value", () => {
  assert.deepEqual(sum(counts(4, [0.1, 1], [0.2, 4], [null, 4]), counts(2, [0.2, 1], [null, 2])).buckets, [[0.1, 1], [0.2, 5], [null, 6]]);
});

test("what is between samples is what came in that time", () => {
  const one = span(sample(stats(25), 2000), sample(stats(5), 0))!;
  assert.equal(one.seconds, 2);
  assert.equal(figures(ofOverlay(one, "a"), one.seconds).rate, 10);
});

test("samples of other processes are not compared", () => {
  assert.equal(span(sample(stats(25, { proxies: 2 }), 2000), sample(stats(5), 0)), null);
  assert.equal(span(sample(stats(2), 2000), sample(stats(5), 0)), null);
  assert.equal(span(sample(stats(5), 2000), sample(stats(5), 2000)), null);
});

test("the recent past ends where it cannot be compared", () => {
  const history = new History();
  [100, 200, 4, 6, 8].forEach((requests, turn) => history.add(sample(stats(requests), turn * 2000)));
  assert.equal(history.recent(100)!.seconds, 4);
  assert.equal(history.recent(2)!.seconds, 2);
  assert.equal(history.spans().filter(({ span }) => span === null).length, 1);
});

test("the history is bounded by what it holds", () => {
  const history = new History(150, 3);
  for (let turn = 0; turn < 10; turn += 1) history.add(sample(stats(turn), turn));
  assert.equal(history.samples.length, 3);
});

test("an overlay's requests are those that entered, where any did", () => {
  const edge = { ...counts(5), overlay: "a", from: "", to: "web", environment: "a", via: "overlay" };
  const services = sample(stats(9), 0).services;
  assert.equal(ofOverlay({ services: [...services.values()], edges: [edge, { ...edge, from: "web", to: "api" }] }, "a").requests, 5);
  assert.equal(ofOverlay({ services: [...services.values()], edges: [] }, "a").requests, 9);
});

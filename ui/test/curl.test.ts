import assert from "node:assert/strict";
import { test } from "node:test";
import { read, shared, words } from "../src/curl.ts";

const split = (line: string) => words(line).map(({ text, operator }) => (operator ? `<${text}>` : text));
const question = (text: string) => {
  const asked = read(text);
  assert.ok(asked, `nothing was read from ${text}`);
  return asked.question;
};

test("words are those of a POSIX shell", () => {
  assert.deepEqual(split(`a 'b c' "d e"f\\ g ''`), ["a", "b c", "d ef g", ""]);
  assert.deepEqual(split(`"a\\"b\\$c\\d" 'it'\\''s'`), [`a"b$c\\d`, "it's"]);
  assert.deepEqual(split("a \\\n  b"), ["a", "b"]);
  assert.deepEqual(split(`"a\\\nb"`), ["ab"]);
  assert.deepEqual(split(`$'a\\'b\\n\\u0021\\x41\\101'`), ["a'b\n!AA"]);
  assert.deepEqual(split("a b | c; d > e 2>/dev/null # f"), ["a", "b", "<|>", "c", "<;>", "d", "<>>", "e", "<>>", "/dev/null"]);
  assert.deepEqual(split("a#b"), ["a#b"]);
});

test("what is unfinished ends with the text", () => {
  assert.deepEqual(split("a 'b"), ["a", "b"]);
  assert.deepEqual(split('a "b'), ["a", "b"]);
  assert.deepEqual(split("a $'b\\"), ["a", "b"]);
  assert.deepEqual(split("a \\"), ["a", ""]);
  assert.deepEqual(split("$'\\Uffffffff'"), ["Uffffffff"]);
});

test("a curl line gives host, path and headers", () => {
  const asked = question(`$ curl -sSi -H 'x-overlay-id: alice' --header "baggage: a=b" -XPOST -d '{"a": 1}' 'http://shop.example.com:8080/cart?a=b#c' | jq .`);
  assert.equal(asked.host, "shop.example.com:8080");
  assert.equal(asked.path, "/cart?a=b");
  assert.equal(asked.role, "gateway");
  assert.deepEqual(asked.headers, [["x-overlay-id", "alice"], ["baggage", "a=b"]]);
});

test("a Host header counts more than the URL, wherever it stands", () => {
  assert.equal(question("curl -H 'Host: shop.example.com' http://127.0.0.1:7480/").host, "shop.example.com");
  assert.equal(question("curl http://127.0.0.1:7480/ -H 'host:shop.example.com'").host, "shop.example.com");
});

test("options with values are no URLs", () => {
  const asked = question("curl -o out.json --max-time 5 -w '%{http_code}' -u me:secret --resolve a:80:127.0.0.1 example.com/x");
  assert.deepEqual([asked.host, asked.path], ["example.com", "/x"]);
  assert.deepEqual(asked.headers, []);
});

test("headers that curl sends empty, or not at all", () => {
  assert.deepEqual(question("curl -H 'X-A;' -H 'X-B:' -H 'X-C: c' a").headers, [["X-A", ""], ["X-C", "c"]]);
});

test("what is in files is said to be unknown", () => {
  const asked = read("curl -H @headers -b jar.txt a");
  assert.equal(asked?.notes.length, 2);
});

test("cookies, agents and bearers are headers", () => {
  assert.deepEqual(question("curl -b 'overlane=alice' -A me --oauth2-bearer t a").headers, [
    ["cookie", "overlane=alice"],
    ["user-agent", "me"],
    ["authorization", "Bearer t"],
  ]);
});

test("a line through a proxy is about an outbound listener", () => {
  assert.equal(question("curl -x http://127.0.0.1:7483 http://payments-api/").role, "outbound");
  assert.equal(question("http_proxy=http://127.0.0.1:7483 curl http://payments-api/").role, "outbound");
  assert.equal(question("http_proxy= curl http://payments-api/").role, "gateway");
});

test("a line that a browser copied, of either kind of shell", () => {
  const bash = `curl 'http://web--alice.localhost:7480/x' \\\n  -H 'accept: */*' \\\n  -H $'x-text: it\\'s' \\\n  --compressed`;
  assert.deepEqual(question(bash).headers, [["accept", "*/*"], ["x-text", "it's"]]);
  const cmd = `curl ^"http://shop.example.com/x?a=1^&b=2^" ^\r\n  -H ^"x-overlay-id: alice^" ^\r\n  --compressed`;
  const asked = question(cmd);
  assert.deepEqual([asked.host, asked.path, asked.headers], ["shop.example.com", "/x?a=1&b=2", [["x-overlay-id", "alice"]]]);
});

test("a URL, with and without a scheme", () => {
  const parts = (text: string) => [question(text).host, question(text).path];
  assert.deepEqual(parts("https://shop.example.com/a?b#c"), ["shop.example.com", "/a?b"]);
  assert.deepEqual(parts("payments-api"), ["payments-api", "/"]);
  assert.deepEqual(parts("localhost:7480/x"), ["localhost:7480", "/x"]);
  assert.deepEqual(parts("http://[::1]:7480"), ["[::1]:7480", "/"]);
  assert.deepEqual(parts("http://me:secret@shop.example.com/"), ["shop.example.com", "/"]);
});

test("header lines, alone or as the head of a request", () => {
  assert.deepEqual(question("x-overlay-id: alice\nbaggage: a=b").headers, [["x-overlay-id", "alice"], ["baggage", "a=b"]]);
  assert.deepEqual(question("x-overlay-id=alice").headers, [["x-overlay-id", "alice"]]);
  const head = question("GET /cart HTTP/1.1\r\nHost: shop\r\nX-Overlay-Id: alice\r\n\r\nbody: no");
  assert.deepEqual([head.host, head.path, head.headers], ["shop", "/cart", [["X-Overlay-Id", "alice"]]]);
  const verbose = question("> GET /cart HTTP/1.1\n> Host: shop\n> x-overlay-id: alice\n>");
  assert.deepEqual([verbose.host, verbose.headers], ["shop", [["x-overlay-id", "alice"]]]);
  const two = question(":authority: shop\n:path: /cart\nx-overlay-id: alice");
  assert.deepEqual([two.host, two.path], ["shop", "/cart"]);
});

test("what is no request is nothing", () => {
  for (const text of ["", "  ", "hello there", "{\"a\": 1}"]) assert.equal(read(text), null, text);
});

test("a link has no secrets, but the cookie that says the key", () => {
  const asked = question("curl -H 'Authorization: Bearer t' -b 'overlane=alice; session=s' -H 'x-overlay-id: bob' a");
  const { question: sent, withheld } = shared(asked, ["overlane"]);
  assert.deepEqual(sent.headers, [["cookie", "overlane=alice"], ["x-overlay-id", "bob"]]);
  assert.deepEqual(withheld, ["authorization", "cookie"]);
});

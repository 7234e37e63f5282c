// Whose a message is. Consumers of all environments read the same queue; the sidecar's admin listener knows the rules:
// `GET /api/v1/watch` streams them, `POST /api/v1/decide` answers for one message.
"use strict";
const { setTimeout: sleep } = require("node:timers/promises");

// The events of a text/event-stream, as they come.
async function* events(url) {
  const { body } = await fetch(url);
  let text = "";
  for await (const part of body.pipeThrough(new TextDecoderStream())) {
    text += part;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const field = (name) => text.slice(0, end).match(new RegExp(`^${name}: ?(.*)$`, "m"))?.[1];
      if (field("event")) yield { name: field("event"), told: JSON.parse(field("data") ?? "null") };
    }
  }
}

exports.Whose = class Whose {
  // Of a whole state that was told: whether a key's messages are ours. Null while the sidecar is away.
  #mine = null;

  constructor(admin) {
    this.admin = `http://${admin}/api/v1`;
    this.#follow();
  }

  async #follow() {
    for (;;) {
      const told = new Map();
      try {
        for await (const { name, told: rule } of events(`${this.admin}/watch`)) {
          if (name === "RULE") told.set(rule.key, rule.mine);
          if (name === "GONE") told.delete(rule.key);
          if (name === "SYNCED") this.#mine = told;
        }
      } catch {}
      // Who connects again is told everything again.
      this.#mine = null;
      await sleep(500);
    }
  }

  // One key that a rule names is decided here; all else (no key, several, one that is not valid) is asked.
  async isMine(headers) {
    const key = headers.baggage?.match(/(?:^|,)\s*overlay-id=([a-z0-9-]+)\s*(?:,|$)/)?.[1];
    return (key && this.#mine?.get(key)) ?? this.#ask(headers);
  }

  async #ask(headers) {
    const question = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ headers }) };
    const answer = await fetch(`${this.admin}/decide`, question);
    if (!answer.ok) throw new Error(`the sidecar does not say whose a message is: ${answer.status} ${await answer.text()}`);
    return (await answer.json()).mine;
  }
};

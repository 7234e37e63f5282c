// Thanks for each order that was paid. Every environment's mailer reads the same queue and takes what is its own.
"use strict";
const { context, propagation } = require("@opentelemetry/api");
const express = require("express");
const { AckPolicy, connect, DeliverPolicy } = require("nats");
const { find } = require("./catalog");
const { Whose } = require("./whose");

const { ENVIRONMENT, GREETING = "Thank you", NATS_URL, OVERLANE_ADMIN, PORT } = process.env;
const mails = [];

async function thank({ order, sku }) {
  const product = await find(sku);
  mails.push({ order, text: `${GREETING} for your ${product.name}.`, by: [`mailer@${ENVIRONMENT}`, product.by] });
}

async function consume(messages, whose) {
  for await (const message of messages) {
    const headers = Object.fromEntries([...(message.headers ?? [])].map(([name, values]) => [name, values.join(",")]));
    try {
      // In the context of who sent it, so that the calls that it causes carry its key.
      if (await whose.isMine(headers))
        await context.with(propagation.extract(context.active(), headers), () => thank(message.json()));
      message.ack();
    } catch (error) {
      console.error(error);
      message.nak(500);
    }
  }
}

async function main() {
  const queue = await connect({ servers: NATS_URL });
  const manager = await queue.jetstreamManager();
  await manager.streams.add({ name: "orders", subjects: ["orders.>"] });
  // One reader for each environment: each sees all messages.
  const reader = `mailer-${ENVIRONMENT}`;
  await manager.consumers.add("orders", {
    durable_name: reader, ack_policy: AckPolicy.Explicit, deliver_policy: DeliverPolicy.New });
  const consumer = await queue.jetstream().consumers.get("orders", reader);
  consume(await consumer.consume(), new Whose(OVERLANE_ADMIN));

  const app = express();
  app.get("/healthz", (request, response) => response.send("ok\n"));
  app.get("/mails", (request, response) => response.json(mails));
  app.listen(Number(PORT), "127.0.0.1");
}

main();

// What is in the basket. Asks the catalog by gRPC; grpc-js heeds http_proxy, and so goes through the sidecar.
"use strict";
const express = require("express");
const { find } = require("./catalog");

const ME = `cart@${process.env.ENVIRONMENT}`;
const BASKET = ["tea", "cup"];
const SHIPPING = Number(process.env.SHIPPING ?? 490);

const app = express();

app.get("/healthz", (request, response) => response.send("ok\n"));

app.get("/basket", async (request, response) => {
  const items = await Promise.all(BASKET.map(find));
  const total = items.reduce((sum, item) => sum + item.cents, SHIPPING);
  response.json({ items, shipping: SHIPPING, total, by: [ME, items[0].by] });
});

// A failed call is told as it was: also that an environment's instance is away.
app.use((error, request, response, next) => response.status(502).send(`${ME}: ${error.message}\n`));

app.listen(Number(process.env.PORT), "127.0.0.1");

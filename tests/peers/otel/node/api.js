// The middle of the shop: answers with its own name and with what the ledger says.
const express = require("express");
const { EnvHttpProxyAgent, setGlobalDispatcher } = require("undici");

// fetch heeds HTTP_PROXY only when told; it asks for a tunnel, also for requests in the clear.
setGlobalDispatcher(new EnvHttpProxyAgent());

const app = express();

app.get("/orders", async (request, response) => {
  const called = await fetch("http://ledger/entries");
  const next = called.ok ? await called.json() : null;
  response.json({ service: "api", environment: process.env.ENVIRONMENT, next });
});

app.listen(Number(process.env.PORT), "127.0.0.1");

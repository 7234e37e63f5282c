// Clients of Node: prints its version, and what `http://ledger/` answers. `client.mjs NAME`.

import http from "node:http";
import { createRequire } from "node:module";

const url = "http://ledger/";
const headers = { "x-overlay-id": "alice" };
const pinned = createRequire(import.meta.url)("./package.json").dependencies;

const clients = {
  http: () =>
    new Promise((resolve, reject) => {
      http.get(url, { headers }, async (response) => resolve((await response.toArray()).join(""))).on("error", reject);
    }),
  fetch: async () => (await fetch(url, { headers })).text(),
  undici: async () => {
    const { request } = await import("undici");
    return (await request(url, { headers })).body.text();
  },
  agent: async () => {
    const { EnvHttpProxyAgent, request, setGlobalDispatcher } = await import("undici");
    setGlobalDispatcher(new EnvHttpProxyAgent());
    const [ours, builtIn] = [await (await request(url, { headers })).body.text(), await clients.fetch()];
    if (ours !== builtIn) throw new Error(`fetch got ${builtIn}`);
    return ours;
  },
  axios: async () => (await (await import("axios")).default.get(url, { headers })).data,
  got: async () => (await import("got")).default(url, { headers, retry: { limit: 0 } }).text(),
  grpc: async () => {
    const { Client, Metadata, credentials } = await import("@grpc/grpc-js");
    const metadata = new Metadata();
    metadata.set("x-overlay-id", headers["x-overlay-id"]);
    const [channel, same] = [new Client("ledger-grpc:80", credentials.createInsecure()), (bytes) => bytes];
    return new Promise((resolve, reject) => {
      const done = (error, answer) => (error ? reject(error) : resolve(answer.toString()));
      channel.makeUnaryRequest("/peer.Ledger/Who", same, same, Buffer.alloc(0), metadata, { deadline: Date.now() + 20_000 }, done);
    });
  },
};

const name = process.argv[2];
const packages = { undici: "undici", agent: "undici", axios: "axios", got: "got", grpc: "@grpc/grpc-js" };
console.log(pinned[packages[name]] ?? process.versions.node);
console.log(await clients[name]());
process.exit(0);

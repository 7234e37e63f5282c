// @grpc/grpc-js and ws, as server and as client. Calls are generic: messages are bytes.
//
//     node peer.js serve NAME GRPC_PORT WEBSOCKET_PORT
//     node peer.js grpc TARGET AUTHORITY
//     node peer.js websockets HOST:PORT AUTHORITY
"use strict";
const assert = require("node:assert/strict");
const { setTimeout: sleep } = require("node:timers/promises");
const { once } = require("node:events");
const grpc = require("@grpc/grpc-js");
const { WebSocket, WebSocketServer } = require("ws");

// A key, and who serves it.
const KEYS = { alice: "alice", nobody: "base", bob: "base" };
const LARGE = { "grpc.max_receive_message_length": -1 };

const method = (name, requestStream, responseStream) => ({
  path: `/test.Echo/${name}`, requestStream, responseStream,
  requestSerialize: (bytes) => bytes, requestDeserialize: (bytes) => bytes,
  responseSerialize: (bytes) => bytes, responseDeserialize: (bytes) => bytes,
});
const SERVICE = {
  unary: method("Unary", false, false), out: method("Out", false, true),
  into: method("In", true, false), both: method("Both", true, true),
};
const metadata = (fields) => {
  const made = new grpc.Metadata();
  Object.entries(fields).forEach(([name, value]) => made.set(name, value));
  return made;
};

function echo(name) {
  let cancelled = 0;
  const greet = (call) =>
    call.sendMetadata(metadata({ who: name, key: String(call.metadata.get("x-overlay-id")[0] ?? "none") }));
  return {
    unary(call, answer) {
      greet(call);
      const request = call.request.toString();
      if (request === "sleep") return call.on("cancelled", () => (cancelled += 1));
      if (request === "fail")
        return answer({ code: grpc.status.DATA_LOSS, details: "as asked: ä", metadata: metadata({ detail: "kept" }) });
      const trailers = metadata({ length: String(call.request.length) });
      answer(null, request === "cancelled" ? Buffer.from(String(cancelled)) : call.request, trailers);
    },
    out(call) {
      greet(call);
      for (let number = 0; number < Number(call.request); number++) call.write(Buffer.from(String(number)));
      call.end();
    },
    into(call, answer) {
      greet(call);
      let length = 0;
      call.on("data", (message) => (length += message.length));
      call.on("end", () => answer(null, Buffer.from(String(length))));
    },
    both(call) {
      greet(call);
      call.on("data", (message) => call.write(message));
      call.on("end", () => call.end());
    },
  };
}

async function serve(name, grpcPort, websocketPort) {
  const server = new grpc.Server(LARGE);
  server.addService(SERVICE, echo(name));
  await new Promise((done, failed) =>
    server.bindAsync(`127.0.0.1:${grpcPort}`, grpc.ServerCredentials.createInsecure(), (error) => (error ? failed(error) : done())));
  const sockets = new WebSocketServer({ host: "127.0.0.1", port: Number(websocketPort) });
  sockets.on("connection", (socket, request) => {
    // It speaks at once.
    socket.send(`${name} ${request.headers["x-overlay-id"] ?? "none"}`);
    socket.on("message", (message, binary) =>
      !binary && message.toString() === "close" ? socket.close(4321, "as asked") : socket.send(message, { binary }));
  });
  await once(sockets, "listening");
  console.log("ready");
}

async function checkGrpc(target, authority) {
  const Client = grpc.makeGenericClientConstructor(SERVICE, "test.Echo");
  const client = new Client(target, grpc.credentials.createInsecure(), { ...LARGE, "grpc.default_authority": authority });
  const unary = (text, fields = {}, options = {}) => {
    const told = {};
    told.answer = new Promise((done, failed) => {
      told.call = client.unary(Buffer.from(text), metadata(fields), options, (error, answer) => (error ? failed(error) : done(answer)));
      told.call.on("metadata", (initial) => (told.initial = initial.getMap()));
      told.call.on("status", (status) => (told.trailing = status.metadata.getMap()));
    });
    return told;
  };
  const fails = async (told, code, details) => {
    const error = await told.answer.then(() => assert.fail("it is to fail"), (error) => error);
    assert.equal(error.code, code, `${error}`);
    assert.ok(error.details.includes(details), error.details);
    return error;
  };
  for (const [key, who] of Object.entries(KEYS)) {
    const fields = { "x-overlay-id": key };
    const told = unary("hello", fields);
    assert.equal(String(await told.answer), "hello");
    assert.deepEqual([told.initial.who, told.initial.key], [who, key]);
    assert.ok(told.initial["x-overlay-route"].includes(`env=${who}`), told.initial["x-overlay-route"]);
    // The status comes with or after the answer.
    while (!told.trailing) await sleep(1);
    assert.equal(told.trailing.length, "5");
    const large = Buffer.alloc(3_000_000, "x");
    assert.ok(large.equals(await unary(large, fields).answer));
    let next = 0;
    for await (const message of client.out(Buffer.from("500"), metadata(fields))) assert.equal(String(message), String(next++));
    assert.equal(next, 500);
    const sum = await new Promise((done, failed) => {
      const call = client.into(metadata(fields), (error, answer) => (error ? failed(error) : done(answer)));
      for (let number = 0; number < 300; number++) call.write(Buffer.from("ab"));
      call.end();
    });
    assert.equal(String(sum), "600");
    const both = client.both(metadata(fields));
    for (let number = 0; number < 50; number++) {
      // Each is answered before the next one is sent, after silence longer than deadlines, once.
      if (number === 1) await sleep(1000);
      both.write(Buffer.from(String(number)));
      assert.equal(String((await once(both, "data"))[0]), String(number));
    }
    both.end();
    await once(both, "end");
  }
  const failed = await fails(unary("fail"), grpc.status.DATA_LOSS, "as asked: ä");
  assert.equal(failed.metadata.getMap().detail, "kept");
  await fails(unary("hello", { "x-overlay-id": "no key!" }), grpc.status.INVALID_ARGUMENT, "overlane");
  await fails(unary("hello", { "x-overlay-id": "alice", "x-overlay-require": "other" }), grpc.status.FAILED_PRECONDITION, "overlane");
  const count = async () => Number(await unary("cancelled").answer);
  const until = async (more) => {
    while ((await count()) <= more) await sleep(50);
  };
  // The deadline, and a client that goes away.
  const before = await count();
  await fails(unary("sleep", {}, { deadline: Date.now() + 300 }), grpc.status.DEADLINE_EXCEEDED, "");
  await until(before);
  const left = unary("sleep");
  await sleep(300);
  left.call.cancel();
  await fails(left, grpc.status.CANCELLED, "");
  await until(before + 1);
  client.close();
}

// Its messages, one by one, from the first on: a server may speak with the handshake.
async function* messages(socket) {
  const kept = [];
  let wake = () => {};
  socket.on("message", (message, binary) => (kept.push(binary ? message : message.toString()), wake()));
  for (;;) {
    while (kept.length === 0) await new Promise((done) => (wake = done));
    yield kept.shift();
  }
}

async function checkWebsockets(address, authority) {
  const dial = (key) => {
    const socket = new WebSocket(`ws://${address}/`, { headers: { host: authority, "x-overlay-id": key } });
    socket.next = ((all) => async () => (await all.next()).value)(messages(socket));
    socket.route = new Promise((done) => socket.on("upgrade", (response) => done(response.headers["x-overlay-route"])));
    socket.on("error", (error) => { throw error; });
    return socket;
  };
  for (const [key, who] of Object.entries(KEYS)) {
    const socket = dial(key);
    assert.equal(await socket.next(), `${who} ${key}`);
    assert.ok((await socket.route).includes(`env=${who}`));
    for (const message of ["text", Buffer.from([0, 1]), "ä".repeat(500_000), Buffer.alloc(1_000_000, "x")]) {
      socket.send(message);
      assert.deepEqual(await socket.next(), message);
    }
    ["in ", "frag", "ments"].forEach((part, number) => socket.send(part, { fin: number === 2 }));
    assert.equal(await socket.next(), "in fragments");
    // Longer than deadlines.
    await sleep(1000);
    socket.ping();
    await once(socket, "pong");
    socket.send("close");
    const [code, reason] = await once(socket, "close");
    assert.deepEqual([code, reason.toString()], [4321, "as asked"]);
  }
  const greet = async (number) => {
    const key = Object.keys(KEYS)[number % 3];
    const socket = dial(key);
    assert.equal(await socket.next(), `${KEYS[key]} ${key}`);
    socket.close();
    await once(socket, "close");
  };
  for (let start = 0; start < 300; start += 50) await Promise.all(Array.from({ length: 50 }, (_, number) => greet(start + number)));
}

const [way, ...rest] = process.argv.slice(2);
({ serve, grpc: checkGrpc, websockets: checkWebsockets })[way](...rest).catch((error) => {
  console.error(error);
  process.exit(1);
});

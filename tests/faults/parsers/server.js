// The same with Node's own server: node server.js PORT NOTES
const fs = require("fs");
const [port, notes] = process.argv.slice(2);
const server = require("http").createServer((request, response) => {
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("error", () => {});
  request.on("end", () => {
    const seen = Buffer.from(`${request.method} ${request.url} ${Buffer.concat(pieces).length}`, "latin1");
    fs.appendFileSync(notes, Buffer.concat([seen, Buffer.from("\n")]));
    response.writeHead(200, { "Content-Length": seen.length });
    response.end(request.method === "HEAD" ? undefined : seen);
  });
});
server.keepAliveTimeout = 60000;
server.listen(Number(port), "127.0.0.1");

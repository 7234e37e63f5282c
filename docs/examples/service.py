"""A service for trying things: says who it is, and what the next one says.

    python3 service.py PORT NAME [NEXT]

It calls NEXT by its name, through HTTP_PROXY where that is set. It forwards the key, and the trace, as a tracer would.
"""

import http.server
import sys
import urllib.request

PORT, NAME, *NEXT = sys.argv[1:]


class Service(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        answer = NAME
        for name in NEXT:
            kept = {header: self.headers[header] for header in ("x-overlay-id", "traceparent") if header in self.headers}
            with urllib.request.urlopen(urllib.request.Request(f"http://{name}/", headers=kept), timeout=10) as called:
                answer += " → " + called.read().decode().strip()
        body = f"{answer}\n".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", int(PORT)), Service)
print(f"{NAME} listens on 127.0.0.1:{PORT}", flush=True)
server.serve_forever()

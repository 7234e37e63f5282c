"""A service for tests of `overlane overlay run`: it says what it was told, and calls another one as it was told."""
import http.server
import json
import os
import sys
import urllib.request


class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/exit":
            os._exit(7)
        if self.path == "/call":
            key = {"x-overlay-id": self.headers.get("x-overlay-id", "")}
            with urllib.request.urlopen(urllib.request.Request("http://ledger/", headers=key), timeout=10) as answer:
                body = answer.read()
        else:
            names = ("PORT", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "OVERLANE_OUTBOUND")
            told = {name: os.environ.get(name) for name in names}
            body = json.dumps({"pid": os.getpid(), "words": sys.argv[1:], **told}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), App).serve_forever()

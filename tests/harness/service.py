"""A service that answers every request with the same."""

import http.server
import threading


def answering(says=""):
    """The port of a service that says this to every GET, on connections that it keeps, as long as this process lives."""

    class Answer(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self):
            self.send_response(200)
            self.send_header("content-length", str(len(says)))
            self.end_headers()
            self.wfile.write(says.encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port

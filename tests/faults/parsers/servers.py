"""A server of somebody else's, which answers each request with what it took it for, and notes that.

    python servers.py KIND PORT NOTES

KIND is gunicorn, waitress, tornado, aiohttp, uvicorn-h11 or uvicorn-httptools.
"""

import sys


class Notes:
    """One line a request, written before it is answered."""

    def __init__(self, path):
        self.file = open(path, "ab", buffering=0)

    def take(self, method, target, body):
        target = target if isinstance(target, bytes) else target.encode("latin-1", "replace")
        seen = b"%s %s %d" % (method.encode(), target, len(body))
        self.file.write(seen + b"\n")
        return seen


def wsgi(notes):
    def application(environ, start):
        target = environ.get("RAW_URI") or environ["REQUEST_URI"]
        seen = notes.take(environ["REQUEST_METHOD"], target, environ["wsgi.input"].read())
        start("200 OK", [("Content-Length", str(len(seen)))])
        return [seen]
    return application


def asgi(notes):
    async def application(scope, receive, send):
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            body, more = body + event.get("body", b""), event.get("more_body", False)
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        seen = notes.take(scope["method"], scope["raw_path"] + query, body)
        await send({"type": "http.response.start", "status": 200,
                    "headers": [(b"content-length", str(len(seen)).encode())]})
        await send({"type": "http.response.body", "body": seen})
    return application


def gunicorn(port, notes):
    from gunicorn.app.base import BaseApplication

    class Server(BaseApplication):
        def load_config(self):
            for name, value in {"bind": f"127.0.0.1:{port}", "worker_class": "gthread", "threads": 8, "keepalive": 60,
                                "loglevel": "critical"}.items():
                self.cfg.set(name, value)

        def load(self):
            return wsgi(notes)

    Server().run()


def waitress(port, notes):
    import waitress
    waitress.serve(wsgi(notes), host="127.0.0.1", port=port, threads=8)


def tornado(port, notes):
    import asyncio
    from tornado import httpserver, web

    class Handler(web.RequestHandler):
        SUPPORTED_METHODS = (*web.RequestHandler.SUPPORTED_METHODS, "TRACE", "M-SEARCH", "PROPFIND", "get")

        async def prepare(self):
            self.finish(notes.take(self.request.method, self.request.uri, self.request.body))

    async def main():
        httpserver.HTTPServer(web.Application([(r".*", Handler)])).listen(port, "127.0.0.1")
        await asyncio.Event().wait()

    asyncio.run(main())


def aiohttp(port, notes):
    from aiohttp import web

    async def handle(request):
        seen = notes.take(request.method, request.raw_path, await request.read())
        return web.Response(body=seen)

    application = web.Application()
    application.router.add_route("*", "/{rest:.*}", handle)
    web.run_app(application, host="127.0.0.1", port=port, print=None, access_log=None)


def uvicorn(parser):
    def serve(port, notes):
        import uvicorn
        uvicorn.run(asgi(notes), host="127.0.0.1", port=port, http=parser, log_level="critical", timeout_keep_alive=60,
                    lifespan="off")
    return serve


KINDS = {"gunicorn": gunicorn, "waitress": waitress, "tornado": tornado, "aiohttp": aiohttp,
         "uvicorn-h11": uvicorn("h11"), "uvicorn-httptools": uvicorn("httptools")}

if __name__ == "__main__":
    kind, port, path = sys.argv[1:]
    # The servers read the arguments as their own.
    sys.argv = sys.argv[:1]
    KINDS[kind](int(port), Notes(path))

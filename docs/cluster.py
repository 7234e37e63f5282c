"""As much of a Kubernetes API server as `kubectl` needs to print what it prints, for the pages that show it. Nothing runs in it.

    python3 cluster.py [PORT]

It keeps ConfigMaps, Services, Deployments and Pods, and says of each Deployment that it is rolled out. `kubectl` finds it by ~/.kube/config, which is written
at the start. What somebody applied again is what they applied: nobody else changes anything. (What holds our own client of Kubernetes is tests/src/kubernetes.rs.)
"""

import http.server
import json
import pathlib
import re
import sys
import urllib.parse

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 6443
GROUPS = {"v1": {"configmaps": ("ConfigMap", "cm"), "services": ("Service", "svc"), "pods": ("Pod", "po")}, "apps/v1": {"deployments": ("Deployment", "deploy")}}
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
PLACE = re.compile(r"/(?:api|apis)/(?P<version>v1|apps/v1)/namespaces/(?P<namespace>[^/]+)/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?")
OBJECTS = {}


def discovery(path):
    """What it says of itself."""
    for version, resources in GROUPS.items():
        if path in (f"/api/{version}", f"/apis/{version}"):
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": [
                {"name": name, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": VERBS, "shortNames": [short]}
                for name, (kind, short) in resources.items()]}
    apps = {"groupVersion": "apps/v1", "version": "v1"}
    return {"/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [{"name": "apps", "versions": [apps], "preferredVersion": apps}]}}.get(path)


def written(place, new):
    """An object as it is kept: with what a cluster adds."""
    before = OBJECTS.get(place, {"metadata": {}})
    generation = before["metadata"].get("generation", 0) + (new.get("spec") != before.get("spec"))
    number = str(int(before["metadata"].get("resourceVersion", 0)) + 1)
    new["metadata"] |= {"namespace": place[1], "generation": generation, "resourceVersion": number, "uid": "-".join(place)}
    if place[2] == "deployments":
        pods = new["spec"].get("replicas", 1)
        new["status"] = {"observedGeneration": generation, **dict.fromkeys(("replicas", "readyReplicas", "updatedReplicas", "availableReplicas"), pods)}
    OBJECTS[place] = new
    return new


class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, value, kind="application/json"):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status, reason, message):
        self.answer(status, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": status})

    def act(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        sent = self.rfile.read(int(self.headers.get("content-length", 0)))
        found = PLACE.fullmatch(url.path)
        if url.path == "/openapi/v2":
            # A description of nothing: what is not described is not validated by `kubectl`.
            return self.answer(200, b"", "application/com.github.proto-openapi.spec.v2.v1.0+protobuf")
        if not found or found["resource"] not in GROUPS[found["version"]]:
            told = discovery(url.path)
            return self.answer(200, told) if told else self.refuse(404, "NotFound", "the server could not find the requested resource")
        if "protobuf" in self.headers.get("content-type", ""):
            return self.refuse(415, "UnsupportedMediaType", "only JSON is understood here")
        self.of_objects(found, query, json.loads(sent) if sent.strip() else {})

    do_GET = do_POST = do_PATCH = do_DELETE = act

    def of_objects(self, found, query, sent):
        name = found["name"] or sent.get("metadata", {}).get("name", "")
        place = (found["version"], found["namespace"], found["resource"], name)
        known = OBJECTS.get(place)
        if self.command == "POST":
            return self.refuse(409, "AlreadyExists", f'{found["resource"]} "{name}" already exists') if known else self.answer(201, written(place, sent))
        if not found["name"]:
            return self.listed(place[:3], query)
        if not known:
            return self.refuse(404, "NotFound", f'{found["resource"]} "{name}" not found')
        if self.command == "DELETE":
            del OBJECTS[place]
            return self.answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})
        if self.command == "PATCH":
            applied = sent["metadata"]["annotations"][APPLIED]
            new = json.loads(applied)
            new["metadata"].setdefault("annotations", {})[APPLIED] = applied
            return self.answer(200, written(place, new))
        self.answer(200, known)

    def listed(self, where, query):
        version, _, resource = where
        wanted = query.get("fieldSelector", "").removeprefix("metadata.name=")
        items = [each for place, each in OBJECTS.items() if place[:3] == where and wanted in ("", place[3])]
        if query.get("watch") in ("1", "true"):
            return self.silent()
        self.answer(200, {"kind": f"{GROUPS[version][resource][0]}List", "apiVersion": version, "metadata": {"resourceVersion": "1"}, "items": items})

    def silent(self):
        """A watch, of which nothing comes until the client goes away: what is listed is all that happens."""
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        self.connection.recv(1)

    def log_message(self, *_):
        pass


CONFIG = {"apiVersion": "v1", "kind": "Config", "current-context": "here", "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{PORT}"}}],
          "contexts": [{"name": "here", "context": {"cluster": "here", "user": "", "namespace": "default"}}]}
folder = pathlib.Path.home() / ".kube"
folder.mkdir(exist_ok=True)
(folder / "config").write_text(json.dumps(CONFIG))
server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Server)
print(f"a cluster listens on 127.0.0.1:{PORT}", flush=True)
server.serve_forever()

#!/usr/bin/env python3
"""The store in Kubernetes before the real API server, where the other tests have a stand-in for it (tests/src/kubernetes.rs).

    cargo build -p overlane
    python3 tests/peers/cluster.py target/debug/overlane --apiserver PATH [--gates GATES] [--model]

Wants a `kube-apiserver` of 1.24 or newer, `etcd` and `kubectl`; no node runs anything. The definitions and Roles of deploy/kubernetes are applied, and a person
who may write, a proxy that may read, and `kubectl` go through what docs/operating.md says of the store: what is written and seen by either, what is refused and
by whom, the status of objects, two who write the same, and an API server that is away and comes back with a compacted history. `--model` runs the model test of
several writers over it as well (tests/tests/rules/stores/model.rs).
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests/harness"))

from processes import clean, command_line, free_ports, program, running, until  # noqa: E402
from service import answering  # noqa: E402

PEOPLE = {"admin": "system:masters", "writer": "people", "reader": "proxies"}
BASELINE = """
apiVersion: overlane.dev/v1alpha1
kind: Baseline
metadata: {name: base, labels: {team: payments}}
spec:
  routing: {mode: baseline}
  services: [{name: web, url: "http://127.0.0.1:%d", expose: true}]
"""
OVERLAY = """
apiVersion: overlane.dev/v1alpha1
kind: Overlay
metadata: {name: %s, labels: {team: payments}}
spec:
  routing: {mode: overlay, baselineId: %s}
  services: [{name: web, url: "http://127.0.0.1:%d"}]
"""


class Cluster:
    """An etcd and an API server in a folder, and who may do what there."""

    def __init__(self, folder, apiserver, gates):
        self.folder, self.apiserver, self.gates = folder, apiserver, [f"--feature-gates={gates}"] if gates else []
        self.etcd, self.peer, self.port = free_ports(3)
        subprocess.run(["openssl", "genrsa", "-out", folder / "accounts.key", "2048"], check=True, capture_output=True)
        tokens = [f"{name}-token,{name},{name},{group}\n" for name, group in PEOPLE.items()]
        (folder / "tokens.csv").write_text("".join(tokens))

    def runs_etcd(self):
        at, peer = f"http://127.0.0.1:{self.etcd}", f"http://127.0.0.1:{self.peer}"
        return running("etcd", self.folder, "etcd", "--data-dir", self.folder / "etcd", "--listen-client-urls", at, "--advertise-client-urls", at,
                       "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
                       port=self.etcd)

    def runs(self):
        return running("kube-apiserver", self.folder, self.apiserver, f"--etcd-servers=http://127.0.0.1:{self.etcd}", "--bind-address=127.0.0.1",
                       f"--secure-port={self.port}", "--advertise-address=127.0.0.1", f"--cert-dir={self.folder}/certificates",
                       "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={self.folder}/accounts.key",
                       f"--service-account-signing-key-file={self.folder}/accounts.key", f"--token-auth-file={self.folder}/tokens.csv",
                       "--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/24", "--disable-admission-plugins=ServiceAccount",
                       "--etcd-compaction-interval=0", *self.gates, port=self.port)

    def kubeconfig(self, person):
        path = self.folder / f"{person}.kubeconfig"
        cluster = {"server": f"https://127.0.0.1:{self.port}", "certificate-authority": f"{self.folder}/certificates/apiserver.crt"}
        path.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "it", "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": person, "user": {"token": f"{person}-token"}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": person, "namespace": "staging"}}]}))
        return path

    def store(self, person):
        return f"kubernetes:staging?kubeconfig={self.kubeconfig(person)}"

    def kubectl(self, *words, says=None, fails=False):
        """What `kubectl` prints, as who may do everything."""
        return told(["kubectl", "--kubeconfig", self.kubeconfig("admin"), *words], says, fails)

    def is_ready(self, patience):
        ready = ["kubectl", "--kubeconfig", self.kubeconfig("admin"), "get", "--raw", "/readyz"]
        until("the API server", lambda: "ok" in subprocess.run(ready, capture_output=True, text=True, env=clean({})).stdout, patience)

    def compact(self):
        """Forgets all of etcd's history, as clusters do every five minutes."""
        ctl = ["etcdctl", "--endpoints", f"127.0.0.1:{self.etcd}"]
        environment = clean({"ETCDCTL_API": "3"})
        status = json.loads(subprocess.check_output([*ctl, "endpoint", "status", "-w", "json"], env=environment))
        subprocess.run([*ctl, "compact", "--physical", str(status[0]["Status"]["header"]["revision"])], check=True, capture_output=True, env=environment)


def told(command, says=None, fails=False):
    done = subprocess.run(list(map(str, command)), input=says, capture_output=True, text=True, timeout=120, env=clean({}))
    if (done.returncode != 0) != fails:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def wanted(what, holds):
    print(("ok    " if holds else "WRONG ") + what, flush=True)
    return bool(holds)


class Everything:
    """What is tried, one after the other; each says what is wanted and whether it is so."""

    def __init__(self, cluster, binary, gateway, admin):
        self.cluster, self.binary, self.gateway, self.admin = cluster, binary, gateway, admin
        self.old, self.new, self.newer = (answering(name) for name in ("base", "alice", "bob"))

    def overlane(self, *words, says=None, fails=False, person="writer"):
        return told([self.binary, *words, "--store", self.cluster.store(person)], says, fails)

    def asked(self, key=None):
        """Who answers a request with this key."""
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{self.gateway}/", headers={"x-overlay-id": key} if key else {})
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            return str(error.code)

    def file(self, text):
        path = self.cluster.folder / f"{time.monotonic_ns()}.yaml"
        path.write_text(text)
        return str(path)

    def accepted(self, kind, name):
        """The condition of an object: its status, reason and message."""
        conditions = json.loads(self.cluster.kubectl("get", kind, name, "-o", "json")).get("status", {}).get("conditions", [])
        return next(((one["status"], one["reason"], one["message"]) for one in conditions if one["type"] == "Accepted"), None)

    def written(self):
        self.overlane("apply", "--file", self.file(BASELINE % self.old))
        self.overlane("overlay", "create", "--file", self.file(OVERLAY % ("alice", "base", self.new)))
        yield wanted("a proxy that may read routes what a command wrote", until("routed", lambda: self.asked("alice") == "alice"))
        self.cluster.kubectl("apply", "-f", "-", says=OVERLAY % ("bob", "alice", self.newer))
        yield wanted("and what kubectl applied", until("routed", lambda: self.asked("bob") == "bob"))
        listed = self.overlane("overlay", "list", "-l", "team=payments")
        yield wanted("a command lists both", "alice" in listed and "bob" in listed)
        yield wanted("so does kubectl, by short names, with its columns",
                     all(word in self.cluster.kubectl("get", "bl,ov") for word in ("base", "alice", "bob", "PARENT", "ACCEPTED")))
        yield wanted("and describes their fields", "baselineId" in self.cluster.kubectl("explain", "overlay.spec.routing"))

    def status(self):
        until("a condition", lambda: self.accepted("ov", "bob"))
        yield wanted("an object says that it is in force", self.accepted("ov", "bob")[0] == "True")
        self.cluster.kubectl("apply", "-f", "-", says=OVERLAY % ("lost", "nobody", self.newer))
        until("a condition", lambda: self.accepted("ov", "lost"))
        yield wanted("one whose parent is missing is refused by name", self.accepted("ov", "lost")[0] == "False" and "nobody" in self.accepted("ov", "lost")[2])
        yield wanted("and all others go on", self.asked("bob") == "bob" and self.asked() == "base")
        before = json.loads(self.cluster.kubectl("get", "ov", "bob", "-o", "json"))["metadata"]
        yield wanted("saying so is no new generation", before["generation"] == 1)
        self.cluster.kubectl("delete", "ov", "lost")

    def refused(self):
        unknown = OVERLAY.replace("spec:", "spec:\n  sevices: []") % ("typo", "base", self.new)
        yield wanted("kubectl is told what the schema does not have",
                     "sevices" in self.cluster.kubectl("apply", "--validate=true", "-f", "-", says=unknown, fails=True))
        none = "apiVersion: overlane.dev/v1alpha1\nkind: Overlay\nmetadata: {name: none}\nspec: {services: [{name: web}]}\n"
        yield wanted("what has no parent is refused by the API server", "baselineId" in self.cluster.kubectl("apply", "-f", "-", says=none, fails=True)
                     or "routing" in self.cluster.kubectl("apply", "-f", "-", says=none, fails=True))
        definition = json.loads(self.cluster.kubectl("get", "crd", "overlays.overlane.dev", "-o", "json"))
        if "x-kubernetes-validations" in definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]:
            other = (OVERLAY % ("named", "base", self.new)).replace("mode: overlay", "mode: overlay, overlayId: otherwise")
            yield wanted("the definitions' rules (CEL) are evaluated", "overlayId must be metadata.name" in self.cluster.kubectl("apply", "-f", "-", says=other, fails=True))
        else:
            print("      this API server evaluates no rules of definitions; 1.24 does with --gates CustomResourceValidationExpressions=true")
        why = self.overlane("overlay", "delete", "alice", fails=True)
        yield wanted("a command does not delete what has children", "bob" in why)
        why = self.overlane("overlay", "delete", "bob", fails=True, person="reader")
        yield wanted("who may not write is told which Role it takes", "takes a Role" in why and "rbac.yaml" in why)

    def together(self):
        """What a command attached, `kubectl apply` leaves alone."""
        self.overlane("attach", "bob", "web", "--url", f"http://127.0.0.1:{self.new}")
        yield wanted("an attached address answers", until("attached", lambda: self.asked("bob") == "alice"))
        self.cluster.kubectl("apply", "-f", "-", says=(OVERLAY % ("bob", "alice", self.newer)).replace("team: payments", "team: ledger"))
        until("a label", lambda: "bob" in self.overlane("overlay", "list", "-l", "team=ledger"))
        yield wanted("also after `kubectl apply` changed something else", self.asked("bob") == "alice")
        self.cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", says=OVERLAY % ("bob", "alice", self.newer))
        until("a label", lambda: "bob" in self.overlane("overlay", "list", "-l", "team=payments"))
        yield wanted("and applied on the server's side", self.asked("bob") == "alice")
        self.overlane("detach", "bob", "web")
        yield wanted("until it is detached", until("detached", lambda: self.asked("bob") == "bob"))
        many = [subprocess.Popen([self.binary, "apply", "--store", self.cluster.store("writer"), "--file", self.file(OVERLAY % ("race", "base", port))],
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=clean({})) for port in (self.new, self.newer) * 4]
        ends = [one.wait(timeout=60) for one in many]
        one = json.loads(self.cluster.kubectl("get", "ov", "race", "-o", "json"))["spec"]["services"][0]["url"]
        yield wanted("of eight who write the same, all are told, and one of them is there", all(code in (0, 1) for code in ends) and 0 in ends
                     and one in [f"http://127.0.0.1:{port}" for port in (self.new, self.newer)])
        for one in many:
            one.stdout.close()

    def away(self, server, with_model):
        server.child.send_signal(signal.SIGKILL)
        server.child.wait()
        yield wanted("with the API server dead, requests go on", [self.asked("bob") for _ in range(50)] == ["bob"] * 50)
        until("STALE", lambda: "STALE" in told([self.binary, "status", "--admin", f"127.0.0.1:{self.admin}"]), 30)
        yield wanted("and the proxy says STALE", True)
        self.cluster.compact()
        with self.cluster.runs():
            self.cluster.is_ready(60)
            self.overlane("overlay", "create", "--file", self.file(OVERLAY % ("carol", "base", self.newer)))
            yield wanted("it follows again where the history is forgotten", until("routed", lambda: self.asked("carol") == "bob", 30))
            self.cluster.compact()
            self.cluster.kubectl("delete", "ov", "carol")
            yield wanted("and goes on", until("gone", lambda: self.asked("carol") == "base", 30))
            if with_model:
                yield wanted("the model test holds over it", model(self.cluster))


def model(cluster):
    """The test of several writers and followers, in an empty namespace."""
    cluster.kubectl("-n", "staging", "delete", "ov,bl", "--all")
    command = ["cargo", "test", "--locked", "-p", "overlane-tests", "--test", "rules", "--", "writers_of_a_cluster", "--nocapture"]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"OVERLANE_CLUSTER": str(cluster.kubeconfig("writer"))}).returncode == 0


def main():
    parser = command_line(__doc__)
    parser.add_argument("--apiserver", type=program, required=True)
    parser.add_argument("--gates", help="feature gates of the API server")
    parser.add_argument("--model", action="store_true")
    options = parser.parse_args()
    right = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        cluster = Cluster(folder, options.apiserver, options.gates)
        gateway, admin = free_ports(2)
        with cluster.runs_etcd(), cluster.runs() as server:
            kubectl = cluster.kubectl
            cluster.is_ready(120)
            print(json.loads(kubectl("get", "--raw", "/version"))["gitVersion"], flush=True)
            kubectl("apply", "-f", ROOT / "deploy/kubernetes/crds")
            kubectl("wait", "--for=condition=Established", "crd/overlays.overlane.dev", "crd/baselines.overlane.dev")
            wrong = [condition for crd in ("overlays", "baselines") for condition in
                     json.loads(kubectl("get", "crd", f"{crd}.overlane.dev", "-o", "json"))["status"]["conditions"] if condition["type"] == "NonStructuralSchema"]
            right.append(wanted("the definitions are structural", not wrong))
            kubectl("create", "namespace", "staging")
            kubectl("apply", "-n", "staging", "-f", ROOT / "deploy/kubernetes/rbac.yaml")
            for role, group in (("overlane-writer", "people"), ("overlane-reader", "proxies")):
                kubectl("-n", "staging", "create", "rolebinding", group, f"--role={role}", f"--group={group}")
            with running("proxy", folder, options.binary, "run", "--store", cluster.store("reader"), "--baseline", "base", "--gateway", f"127.0.0.1:{gateway}",
                         "--admin", f"127.0.0.1:{admin}", "--cache", folder / "cache", port=gateway):
                tried = Everything(cluster, options.binary, gateway, admin)
                for each in (tried.written(), tried.status(), tried.refused(), tried.together(), tried.away(server, options.model)):
                    right += each
    print(f"{len(right)} things tried, {right.count(False)} wrong")
    sys.exit(not all(right))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""A real browser through the gateway: every kind of request, by every way of entering an overlay.

    python3 check.py BINARY [--chromium PATH]

Debian's Chromium, driven by playwright-core, and services in Node that say who they are. Two gateways of one store, over TLS
with an authority of their own that the browser trusts: one whose clients may choose, and one that trusts nobody, where only
shared links let in. Needs chromium, node, npm, openssl and certutil (libnss3-tools).
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from harness.processes import free_ports, running
from peers import installed

SHOP, API, LOGIN, PREVIEWS = "shop.example.test", "api.example.test", "login.elsewhere.test", "preview.example.test"


def certificates(folder):
    """An authority, a certificate of it for all hosts, and a home whose browser trusts the authority."""
    def run(*command):
        installed.run(list(command), folder)

    names = ",".join(f"DNS:{name}" for name in [SHOP, API, LOGIN, PREVIEWS, f"*.{PREVIEWS}"])
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    run("openssl", "req", "-x509", *key, "-subj", "/CN=Local authority", "-keyout", "ca.key", "-out", "ca.pem",
        "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
    run("openssl", "req", *key, "-subj", "/CN=example.test", "-keyout", "tls.key", "-out", "tls.csr")
    (folder / "extensions").write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth\n")
    run("openssl", "x509", "-req", "-in", "tls.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
        "-extfile", "extensions", "-out", "tls.pem")
    trusted = folder / "home/.pki/nssdb"
    trusted.mkdir(parents=True)
    run("certutil", "-d", f"sql:{trusted}", "-N", "--empty-password")
    run("certutil", "-d", f"sql:{trusted}", "-A", "-t", "C,,", "-n", "local", "-i", "ca.pem")


def store(folder, ports, gateway):
    url = "http://127.0.0.1:{}".format
    folder.mkdir()
    (folder / "base.yaml").write_text(f"""name: base
routing: {{mode: baseline, previewUrl: 'https://{PREVIEWS}:{gateway}'}}
services:
- {{name: web, hosts: [{SHOP}], url: '{url(ports['web base'])}'}}
- {{name: api, hosts: [{API}], url: '{url(ports['api base'])}'}}
""")
    for overlay in ["alice", "bob"]:
        (folder / f"{overlay}.yaml").write_text(f"""name: {overlay}
routing: {{mode: overlay, baselineId: base}}
services:
- {{name: web, url: '{url(ports[f'web {overlay}'])}'}}
- {{name: api, url: '{url(ports[f'api {overlay}'])}'}}
""")


def laptop(folder, ports):
    """A store as one has it on a laptop: nothing says where previews are."""
    url = "http://127.0.0.1:{}".format
    folder.mkdir()
    (folder / "base.yaml").write_text(
        f"name: base\nrouting: {{mode: baseline}}\nservices:\n- {{name: web, expose: true, url: '{url(ports['web base'])}'}}\n"
        f"- {{name: api, expose: true, path: /api, url: '{url(ports['api base'])}'}}\n")
    (folder / "alice.yaml").write_text(
        f"name: alice\nrouting: {{mode: overlay, baselineId: base}}\nservices: [{{name: web, url: '{url(ports['web alice'])}'}}]\n")


def gateway(binary, folder, store, port, admin, trust, *tls):
    command = [binary, "run", "--store", store, "--gateway", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}",
               "--trust", trust, "--workers", "1", *tls]
    return running(f"gateway-{port}", folder, *command, port=admin)


def main():
    options = installed.of_browser(__doc__).parse_args()
    installed.expect("chromium nodejs npm openssl libnss3-tools", options.chromium, "node", "npm", "openssl", "certutil")
    program = installed.node(installed.cache("browser"), HERE / "browser.mjs")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        folder = pathlib.Path(folder)
        names = [f"{service} {environment}" for service in ["web", "api"] for environment in ["base", "alice", "bob"]]
        *own, login, open_port, open_admin, closed, closed_admin, plain, plain_admin = free_ports(len(names) + 7)
        ports = dict(zip(names, own))
        certificates(folder)
        # Each gateway is where its baseline says.
        store(folder / "open", ports, open_port)
        store(folder / "closed", ports, closed)
        tls = ["--tls-cert", folder / "tls.pem", "--tls-key", folder / "tls.key"]
        stack.enter_context(gateway(options.binary, folder, folder / "open", open_port, open_admin, "any", *tls))
        stack.enter_context(gateway(options.binary, folder, folder / "closed", closed, closed_admin, "none", *tls))
        laptop(folder / "laptop", ports)
        stack.enter_context(gateway(options.binary, folder, folder / "laptop", plain, plain_admin, "any"))
        told = {"folder": str(folder), "binary": str(options.binary), "chromium": options.chromium, "ports": ports, "login": login,
                "open": open_port, "closed": closed, "plain": plain, "shop": SHOP, "api": API, "loginHost": LOGIN,
                "previews": PREVIEWS}
        done = subprocess.run(["node", program], env={**os.environ, "HOME": str(folder / "home"), "TOLD": json.dumps(told)},
                              stdin=subprocess.DEVNULL, timeout=300)
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()

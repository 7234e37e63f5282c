#!/usr/bin/env python3
"""The shop, by its receipts and by what its services say of themselves.

    cargo build -p overlane
    python3 examples/shop/check.py target/debug/overlane

For each key: who answers for every service, over HTTP, gRPC and the queue, what the receipts say, that a requirement holds, and
that no key was lost. Then an overlay that comes while the shop runs (`overlane overlay run`), and one that goes.
"""

import argparse
import http.client
import json
import pathlib
import re
import signal
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import shop
from harness.processes import Failed

MINUTES = 10
BASELINE = {service: "shop" for service in ("web", "cart", "catalog", "payments", "mailer")}
# Who is to answer for each key, and what its receipts are to say of the services that the baseline does not answer for.
OWNERS = {
    "": (BASELINE, {}),
    "free-shipping": (BASELINE | {"cart": "free-shipping"}, {"cart": "overlay;reason=owned"}),
    "new-prices": (BASELINE | {"catalog": "new-prices"}, {"catalog": "overlay;reason=owned"}),
    "new-prices-mail": (BASELINE | {"catalog": "new-prices", "mailer": "new-prices-mail"}, {"catalog": "ancestor;reason=inherited"}),
    "free-shipping, new-prices": (BASELINE | {"cart": "free-shipping", "catalog": "new-prices"},
                                  {"cart": "overlay;reason=owned", "catalog": "overlay;reason=owned"}),
    "nobody-knows": (BASELINE, {}),
}
TOTALS = {"free-shipping": "16.50", "new-prices": "19.75", "new-prices-mail": "19.75", "free-shipping, new-prices": "14.85"}


def ask(running, path, key="", method="GET", **headers):
    """The status of an answer, its receipts, and its body."""
    connection = http.client.HTTPConnection("127.0.0.1", running.gateway.number, timeout=30)
    asked = {"x-overlay-id": key} if key else {}
    connection.request(method, path, headers=asked | {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    body = response.read().decode(errors="replace")
    connection.close()
    return response.status, response.headers.get("x-overlay-route", ""), body


def expect(running, what, wanted, seen):
    if wanted != seen:
        raise Failed(f"{what}: {wanted} was to be seen, and {seen} was\n{running.tails('web')}\n{running.tails('cart')}")


def check_basket(running, key):
    owners, changed = OWNERS[key]
    status, route, body = ask(running, "/", key)
    asked = f"/ with the key `{key}`"
    expect(running, f"the status of {asked}", 200, status)
    expect(running, f"who answered {asked}", " → ".join(f"{service}@{owners[service]}" for service in ("web", "cart", "catalog")),
           body.splitlines()[-1])
    expect(running, f"the total of {asked}", TOTALS.get(key, "21.40"), re.search(r"total +(\S+)", body)[1])
    expect(running, f"whether {asked} has receipts", bool(key), bool(route))
    # Of gRPC also: its receipts come back through a client that knows nothing of them.
    if key:
        told = {(item.split(";")[0], *item.split(";")[1:4]) for item in route.split(", ")}
        baseline = "unknown" if key == "nobody-knows" else "not-owned"
        wanted = {(service, f"env={owners[service]}", *f"via={changed.get(service, f'baseline;reason={baseline}')}".split(";"))
                  for service in ("web", "cart", "catalog")}
        expect(running, f"the receipts of {asked}", sorted(wanted), sorted(told))


def mails(running, key):
    return json.loads(ask(running, "/mails", key)[2])


def check_order(running, key):
    """An order's mail is sent once, by the mailer of the key that the order had, with that key's catalog."""
    owners, _ = OWNERS[key]
    status, _, body = ask(running, "/checkout", key, "POST")
    expect(running, f"the status of an order with the key `{key}`", 200, status)
    order = json.loads(body)["order"]
    # Asked without a key where that leads to it: a call of a message without a key must not look as if a request's were lost.
    where = "" if owners["mailer"] == "shop" else key
    until = time.monotonic() + 20
    while order not in [mail["order"] for mail in mails(running, where)]:
        if time.monotonic() > until:
            raise Failed(f"no mail was sent for an order with the key `{key}`\n{running.tails('mailer')}")
        time.sleep(0.05)
    sent = [mail["by"] for mail in mails(running, where) if mail["order"] == order]
    expect(running, f"the mails of an order with the key `{key}`", [[f"mailer@{owners['mailer']}", f"catalog@{owners['catalog']}"]], sent)
    return order


def check_mails(running, orders):
    for key in ("", "new-prices-mail"):
        mine = sorted(order for each, order in orders if OWNERS[each][0]["mailer"] == OWNERS[key][0]["mailer"])
        expect(running, f"the mails of the mailer behind `{key}`", mine, sorted(mail["order"] for mail in mails(running, key)))


def check_requirements(running):
    for key in ("free-shipping", "new-prices"):
        expect(running, f"the status of what `{key}` requires", 200, ask(running, "/", key, x_overlay_require="*")[0])
    # Its mailer is behind the queue: no request reaches it, and nobody is to believe so.
    expect(running, "the status of what is not reached", 412, ask(running, "/", "new-prices-mail", x_overlay_require="mailer")[0])


def check_commands(running):
    for key in ("free-shipping", "new-prices"):
        code, text = running.overlane("trace", f"http://{running.gateway.address}/", "--key", key)
        drawn = {tuple(line.strip(" └├─│").split()[:2]) for line in text.splitlines()[1:]}
        if code or not {(service, OWNERS[key][0][service]) for service in ("web", "cart", "catalog")} <= drawn:
            raise Failed(f"`overlane trace` of `{key}` ended with {code}:\n{text}")
    code, text = running.overlane("doctor", *(word for each in running.instances for word in ("--admin", each.admin.address)))
    if code or "Nothing is lost." not in text:
        raise Failed(f"`overlane doctor` ended with {code}:\n{text}")
    return text


def reload_everywhere(running):
    for admin in [running.admin, *(each.admin for each in running.instances)]:
        connection = http.client.HTTPConnection("127.0.0.1", admin.number, timeout=10)
        connection.request("POST", "/api/v1/reload", headers={"content-type": "application/json"})
        expect(running, f"the status of a reload at {admin.address}", 200, connection.getresponse().status)


def check_local(running):
    """A changed cart as a process of this machine, as its developer starts it: in the shop while it lives."""
    blueprint = running.folder / "express.yaml"
    blueprint.write_text("name: express\nrouting: {mode: overlay, baselineId: free-shipping}\nservices: [{name: web}]\n")
    web = next(each for each in running.instances if each.name == "web@shop")
    # `overlane` sets where to listen, and the way to the other services.
    variables = running.variables(web) | {"ENVIRONMENT": "express"}
    for given in ("PORT", "HTTP_PROXY", "http_proxy"):
        del variables[given]
    command = [running.binary, "overlay", "run", "--store", running.store, "--file", blueprint, "--", *running.command("web")]
    started = running.start("web@express", command, variables)
    until = time.monotonic() + 60
    # Until it is there, its requests are held, and then refused; before that the baseline answers.
    while "web@express" not in (answer := ask(running, "/", "express"))[2]:
        if time.monotonic() > until or started.child.poll() is not None:
            raise Failed(f"`overlane overlay run` does not serve: {answer}\n{started.tail()}")
        time.sleep(0.1)
    expect(running, "who answers the key `express`", "web@express → cart@free-shipping → catalog@shop", answer[2].splitlines()[-1])
    started.child.send_signal(signal.SIGINT)
    expect(running, "how `overlane overlay run` ends", 0, started.child.wait(timeout=30))
    running.processes.remove(started)
    reload_everywhere(running)
    expect(running, "who answers when it is gone", "web@shop → cart@shop → catalog@shop", ask(running, "/", "express")[2].splitlines()[-1])


def check_gone(running):
    """The messages of an overlay that was deleted are the baseline's again, as its requests are."""
    code, text = running.overlane("overlay", "delete", "new-prices-mail", "--store", running.store)
    expect(running, f"how `overlane overlay delete` ends ({text})", 0, code)
    reload_everywhere(running)
    order = json.loads(ask(running, "/checkout", "new-prices-mail", "POST")[2])["order"]
    until = time.monotonic() + 20
    while order not in [mail["order"] for mail in mails(running, "")]:
        if time.monotonic() > until:
            raise Failed(f"no mail was sent for an order of an overlay that is gone\n{running.tails('mailer')}")
        time.sleep(0.05)


def check(running):
    for key in OWNERS:
        check_basket(running, key)
    orders = [(key, check_order(running, key)) for key in OWNERS for _ in range(3)]
    check_mails(running, orders)
    check_requirements(running)
    told = check_commands(running)
    check_local(running)
    check_gone(running)
    print(f"{len(OWNERS)} keys over HTTP and gRPC, {len(orders)} orders through the queue: as they should be", told, sep="\n")


def give_up(number, _):
    for other in (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)
    raise Failed(f"after {MINUTES} minutes it is not done" if number == signal.SIGALRM else f"ended by signal {number}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    binary = shop.binary(parser.parse_args().binary)
    packages = shop.Packages()
    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, give_up)
    signal.alarm(60 * MINUTES)
    with tempfile.TemporaryDirectory(prefix="overlane-shop-") as folder:
        try:
            with shop.Shop(binary, pathlib.Path(folder), packages, fixed=False) as running:
                check(running)
        except Failed as failed:
            sys.exit(str(failed))


if __name__ == "__main__":
    main()

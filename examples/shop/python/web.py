"""The shop's entrance. It knows nothing of Overlane: its tracer forwards what came with a request."""

import os

import flask
import requests

app = flask.Flask(__name__)
ME = f"web@{os.environ['ENVIRONMENT']}"


@app.get("/healthz")
def healthy():
    return "ok\n"


@app.get("/")
def basket():
    cart = requests.get("http://cart/basket", timeout=20)
    cart.raise_for_status()
    basket = cart.json()
    lines = [f"{item['name']:<10}{item['cents'] / 100:>8.2f}" for item in basket["items"]]
    total = ["shipping".ljust(10) + f"{basket['shipping'] / 100:>8.2f}", "total".ljust(10) + f"{basket['total'] / 100:>8.2f}"]
    return "\n".join([*lines, *total, "", " → ".join([ME, *basket["by"]]), ""]), {"content-type": "text/plain; charset=utf-8"}


@app.post("/checkout")
def checkout():
    cart = requests.get("http://cart/basket", timeout=20)
    cart.raise_for_status()
    paid = requests.post("http://payments/payments", json={"cents": cart.json()["total"]}, timeout=20)
    paid.raise_for_status()
    return paid.json() | {"by": [ME, *cart.json()["by"], *paid.json()["by"]]}


@app.errorhandler(requests.RequestException)
def failed(error):
    told = error.response.text if error.response is not None else str(error)
    return f"{ME}: {told}", 502


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=int(os.environ["PORT"]))

"""The entrance of a shop: answers with its own name and with what the api says."""

import os

import flask
import httpx
import requests

app = flask.Flask(__name__)


def answer(called):
    me = {"service": "web", "environment": os.environ["ENVIRONMENT"]}
    return me | {"next": called.json() if called.status_code == 200 else None}


@app.get("/requests")
def by_requests():
    return answer(requests.get("http://api/orders", timeout=20))


@app.get("/httpx")
def by_httpx():
    return answer(httpx.get("http://api/orders", timeout=20))


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=int(os.environ["PORT"]))

"""Takes money, and tells the queue of it. What the tracer would put on a request goes on the message: the key is in it."""

import contextlib
import json
import os
import uuid

import fastapi
import nats
import pydantic
import uvicorn
from opentelemetry import propagate

ME = f"payments@{os.environ['ENVIRONMENT']}"


class Payment(pydantic.BaseModel):
    cents: int


@contextlib.asynccontextmanager
async def connected(app):
    queue = await nats.connect(os.environ["NATS_URL"])
    app.state.stream = queue.jetstream()
    await app.state.stream.add_stream(name="orders", subjects=["orders.>"])
    yield
    await queue.close()


app = fastapi.FastAPI(lifespan=connected)


@app.get("/healthz")
async def healthy():
    return "ok"


@app.post("/payments")
async def pay(payment: Payment):
    order = uuid.uuid4().hex[:8]
    headers = {}
    propagate.inject(headers)
    message = json.dumps({"order": order, "cents": payment.cents, "sku": "tea"}).encode()
    await app.state.stream.publish("orders.paid", message, headers=headers)
    return {"order": order, "cents": payment.cents, "by": [ME]}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]))

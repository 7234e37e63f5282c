"""The last service of the shop: calls nobody."""

import os

import fastapi
import uvicorn

app = fastapi.FastAPI()


@app.get("/entries")
async def entries():
    return {"service": "ledger", "environment": os.environ["ENVIRONMENT"], "next": None}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]))

"""Three steps as a Restate workflow: the server and the Python SDK under hypercorn; run in its own environment."""

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import hypercorn.asyncio  # type: ignore[import-not-found]
import hypercorn.config  # type: ignore[import-not-found]
import restate  # type: ignore[import-not-found]
import uvloop

START_TIMEOUT_S = 60.0
three = restate.Workflow("Three")


async def source(number: int) -> list[dict[str, float]]:
    """Three rows made of the number."""
    return [{"device": float(at), "value": float(number + at)} for at in range(3)]


async def transform(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """The same rows in another unit."""
    return [{**row, "value": row["value"] * 1.8 + 32} for row in rows]


async def sink(rows: list[dict[str, float]]) -> dict[str, int]:
    """How many rows there were."""
    return {"stored": len(rows)}


@three.main()  # type: ignore[untyped-decorator, unused-ignore]
async def run(ctx: Any, given: dict[str, int]) -> dict[str, int]:
    """Each step is journalled before the next begins."""
    rows = await ctx.run_typed("source", source, number=given["number"])
    converted = await ctx.run_typed("transform", transform, rows=rows)
    stored: dict[str, int] = await ctx.run_typed("sink", sink, rows=converted)
    return stored


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def start_server(program: str, ports: dict[str, int]) -> asyncio.subprocess.Process:
    """The server with its data in this folder, every port on the loopback interface."""
    environment = {
        **os.environ,
        "RESTATE_BASE_DIR": str(Path.cwd() / "restate-data"),
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_BIND_ADDRESS": f"127.0.0.1:{ports['node']}",
        "RESTATE_ADVERTISED_ADDRESS": f"http://127.0.0.1:{ports['node']}",
        "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ports['ingress']}",
        "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{ports['admin']}",
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_LOG_FILTER": "warn",
        "DO_NOT_TRACK": "1",
    }
    return await asyncio.create_subprocess_exec(program, "--no-logo", env=environment)


def ask(url: str, body: dict[str, Any] | None = None) -> int:
    """Status of a GET or a POST; 0 while nobody answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})  # noqa: S310 - loopback
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - as above
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


async def until(url: str, body: dict[str, Any] | None, what: str) -> None:
    """Return when the answer is good."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not 200 <= (status := await asyncio.to_thread(ask, url, body)) < 300:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: {status}")
        await asyncio.sleep(0.1)


async def serve(spec: dict[str, Any]) -> None:
    """Handlers, server, registration; then the bench sends the load to the ingress."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    ports = {name: free_port() for name in ("node", "ingress", "admin", "handlers")}
    config = hypercorn.config.Config()
    config.bind = [f"127.0.0.1:{ports['handlers']}"]
    config.accesslog = None
    serving = asyncio.create_task(
        hypercorn.asyncio.serve(restate.app(services=[three]), config, shutdown_trigger=stop.wait)
    )
    server = await start_server(spec["server"], ports)
    try:
        await until(f"http://127.0.0.1:{ports['admin']}/health", None, "the server did not start")
        handlers = {"uri": f"http://127.0.0.1:{ports['handlers']}", "force": True}
        await until(f"http://127.0.0.1:{ports['admin']}/deployments", handlers, "the handlers were not registered")
        await until(f"http://127.0.0.1:{ports['ingress']}/Three/first/run", {"number": 1}, "nothing was run")
        print(json.dumps({"event": "ready", "port": ports["ingress"], "path": "/Three/{id}/run"}), flush=True)
        await serving
    finally:
        server.terminate()
        await server.wait()
        shutil.rmtree("restate-data", ignore_errors=True)


if __name__ == "__main__":
    uvloop.run(serve(json.loads(Path(sys.argv[-1]).read_text())))

"""Processes of the product with a bug in them, started for one run and ended with it."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from app.bench.child import Child, SideFailed, start
from app.bench.engine import HOST, free_port
from app.bench.load import Pool, get

READY_S: Final = 240.0
_POLL_S: Final = 0.05


class Product:
    """One `headrace worker` process that may be killed and started again; a context manager."""

    def __init__(self, mutant: str, roles: str, folder: Path, settings: Mapping[str, Any]) -> None:
        self.port = free_port()
        self._mutant, self._roles, self._folder = mutant, roles, folder
        self._settings = settings
        self._health = free_port()
        self._disk = 0
        self._child: Child | None = None
        self._guard: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._folder.mkdir(exist_ok=True)
        await self.begin()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._unguard()
        if self._child is not None:
            self.signal(signal.SIGKILL)
            await self._child.stop()
            await asyncio.to_thread(self._keep_words)

    @property
    def pid(self) -> int:
        assert self._child is not None, "it was started"
        return self._child.process.pid

    async def begin(self) -> None:
        """Start it, wait until it is ready, and keep it alive from then on. Raises `SideFailed`."""
        await self._spawn()
        self._guard = asyncio.create_task(self._keep_alive(), name="guard")

    async def _spawn(self) -> None:
        settings = {
            "http.port": self.port,
            "health.port": self._health,
            "metrics.port": 0,
            "tables.directory": str(self._folder / f"tables-{self._disk}"),
            "http.executions.directory": str(self._folder / "executions"),
            "tasks.allow_private_addresses": True,
            "cluster.node_id": self._folder.name,
            "log.level": "WARNING",
            **self._settings,
        }
        flags = [word for name, value in settings.items() for word in ("--set", f"{name}={_text(value)}")]
        argv = [sys.executable, "-m", "app.chaos.mutants", self._mutant, "--", "worker", "--roles", self._roles, *flags]
        self._child = await start(argv, self._folder)
        await self._until_ready()

    async def _keep_alive(self) -> None:
        """One that ends by itself, as one that was fenced does, is started again: a supervisor would do so."""
        while True:
            assert self._child is not None, "it was started"
            await self._child.process.wait()
            await asyncio.to_thread(self._keep_words)
            with contextlib.suppress(SideFailed):  # it has ended again, which is the next turn's business
                await self._spawn()

    async def _unguard(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.cancel()
            await asyncio.gather(guard, return_exceptions=True)

    async def kill(self) -> dict[str, Any]:
        """SIGKILL; what was seen of its end."""
        assert self._child is not None, "it was started"
        await self._unguard()
        self.signal(signal.SIGKILL)
        ended = await self._child.process.wait()
        await asyncio.to_thread(self._keep_words)
        return {"pid": self.pid, "ended": ended}

    async def begin_again(self, *, same_disk: bool) -> None:
        """Start it again, with its tables or with none."""
        self._disk += not same_disk
        await self.begin()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def _keep_words(self) -> None:
        assert self._child is not None, "it was started"
        with (self._folder / "log.txt").open("a") as file:
            file.writelines(f"{line}\n" for line in self._child.heard)

    async def _until_ready(self) -> None:
        assert self._child is not None, "it was started"
        deadline = time.monotonic() + READY_S
        while True:
            self._child.check()
            with contextlib.suppress(OSError):
                async with Pool(HOST, self._health, 1) as pool:
                    if (await pool.request(get(HOST, "/health/ready"))).status == 200:
                        return
            if time.monotonic() > deadline:
                raise SideFailed(f"not ready in {READY_S:g} s: {' | '.join(list(self._child.heard)[-6:])}")
            await asyncio.sleep(_POLL_S)


async def produce(mutant: str, seconds: float, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`headrace produce` for so long; its last words."""
    flags = [word for name, value in settings.items() for word in ("--set", f"{name}={_text(value)}")]
    argv = ["-m", "app.chaos.mutants", mutant, "--", "produce", "--seconds", f"{seconds:g}", "--json", *flags]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *argv, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(READY_S + seconds):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        words: dict[str, Any] = json.loads(out)
    except ValueError as error:
        raise SideFailed(f"no last words of the producer: {err.decode(errors='replace')[-500:]}") from error
    return words


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

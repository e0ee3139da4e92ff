"""Laws of `headrace schedules` and `headrace backfill` against their routes on a real socket."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from app.http.server import HttpServer, bind
from tests.helpers.cli import refused, said
from tests.helpers.time_api import Api


class Served(Api):
    """The routes on a socket, served from a thread."""

    def __init__(self) -> None:
        super().__init__()
        self._listening = bind("127.0.0.1", 0, "the API", "http.port")
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()

    async def _serve(self) -> None:
        server = HttpServer(self.app, self._listening)
        await server.start()
        await self._stop.wait()
        await server.stop(1.0)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture
def api() -> Iterator[Served]:
    served = Served()
    yield served
    served.close()


Capsys = pytest.CaptureFixture[str]
PUT = ("schedules", "put", "nightly", "--workflow", "press-overheat", "--cron", "0 3 * * *")


def test_a_schedule_from_put_to_delete(api: Served, capsys: Capsys) -> None:
    url = ("--url", api.url)
    assert said(capsys, *PUT, "--timezone", "Europe/Berlin", *url).out.startswith("nightly is put; next at 2025-11-21")
    listed = said(capsys, "schedules", "list", *url).out
    assert "0 3 * * * (Europe/Berlin)" in listed
    assert said(capsys, "schedules", "pause", "nightly", *url).out == "nightly is paused\n"
    assert "paused" in said(capsys, "schedules", "list", *url).out
    assert said(capsys, "schedules", "resume", "nightly", *url).out.startswith("nightly is resumed; next at")
    assert said(capsys, "schedules", "run", "nightly", *url).out.startswith("nightly runs")
    shown = said(capsys, "schedules", "show", "nightly", *url).out
    assert api.world.starts[0].execution_id in shown
    assert said(capsys, "schedules", "show", "nightly", "--json", *url).json["started"] == 1
    assert said(capsys, "schedules", "delete", "nightly", *url).out == "nightly is deleted\n"
    assert said(capsys, "schedules", "list", *url).out == "No schedule matches.\n"
    assert said(capsys, "schedules", "list", "--json", *url).json == {"items": [], "more": False}


def test_a_backfill_from_start_to_cancel(api: Served, capsys: Capsys) -> None:
    url = ("--url", api.url)
    span = ("--from", "2025-11-01T00:00Z", "--to", "2025-11-02T00:00Z")
    order = ("backfill", "start", "--workflow", "press-overheat", "--every", "1h", "--name", "b", *span)
    assert said(capsys, *order, "--concurrency", "2", *url).out.startswith("b is started, 25 executions")
    assert "every 3600 s" in said(capsys, "backfill", "list", *url).out
    assert said(capsys, "backfill", "show", "b", "--json", *url).json["running_count"] == 2
    assert "2025-11-01 00:00:00.000Z" in said(capsys, "backfill", "show", "b", *url).out
    assert said(capsys, "backfill", "cancel", "b", "--keep-running", *url).out == "b is cancelled\n"
    assert said(capsys, "backfill", "list", "--status", "running", *url).out == "No backfill matches.\n"
    assert refused(capsys, *order, *url) == "There is a backfill b already; a name is used once."


def test_nonsense_is_one_sentence(api: Served, capsys: Capsys) -> None:
    url = ("--url", api.url)
    assert "hour" in refused(capsys, *PUT[:-1], "0 25 * * *", *url)
    assert "either cron or every" in refused(capsys, *PUT[:-2], *url)
    assert "--every" in refused(capsys, *PUT[:-2], "--every", "soon", *url)
    assert "--input" in refused(capsys, *PUT, "--input", "[1]", *url)
    assert "--input" in refused(capsys, *PUT, "--input", "{", *url)
    assert refused(capsys, "schedules", "pause", "none", *url) == "There is no schedule none."
    assert "--kind" in refused(capsys, "dlq", "workflows", "list", "--kind", "party")
    assert "Say which" in refused(capsys, "dlq", "workflows", "redrive", "--yes")
    assert "PARTITION:OFFSET" in refused(capsys, "dlq", "workflows", "redrive", "x", "--yes")

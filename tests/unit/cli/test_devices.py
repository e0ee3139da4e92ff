"""Laws of `headrace devices` against the real API on a real socket."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from app.cli.devices import duration_ms
from app.errors import UserError
from app.http.gateway import api_app
from app.http.health import HealthRegistry
from app.http.read_model import ReadModel
from app.http.reads import Reads
from app.http.server import HttpServer, bind
from app.http.view import LocalView
from app.metrics import REGISTRY
from config.http import HttpSettings, ReadModelSettings
from tests.helpers.cli import refused, said
from tests.helpers.reads import metadata, sample
from tests.helpers.streams import Outbox

NOW_MS = 1_763_689_000_000


class Served:
    """The API with a read model and an outbox in reach."""

    def __init__(self) -> None:
        self.model = ReadModel(ReadModelSettings())
        self.outbox = Outbox()
        http = HttpSettings()
        reads = Reads(self.model, http, lambda: NOW_MS, lambda: True, self.outbox)
        view = LocalView(HealthRegistry(frozenset(), "1"), REGISTRY, dict)
        self._app = api_app(reads, view, http)
        self._listening = bind("127.0.0.1", 0, "the API", "http.port")
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()

    async def _serve(self) -> None:
        server = HttpServer(self._app, self._listening)
        await server.start()
        await self._stop.wait()
        await server.stop(1.0)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    @property
    def orders(self) -> list[dict[str, Any]]:
        return [json.loads(record.value or b"") for record in self.outbox.records]


@pytest.fixture
def api() -> Iterator[Served]:
    served = Served()
    for number in range(3):
        served.model.take(*metadata(f"press-000{number}", line="[bold]line-1"))
    served.model.take(*metadata("pump-0001", "pump", "south"))
    served.model.take(*sample("press-0000", 7, at=NOW_MS))
    yield served
    served.close()


def test_devices_are_listed_as_a_table_and_for_programs(capsys, api: Served) -> None:
    table = said(capsys, "devices", "list", "--url", api.url)
    assert table.code == 0
    rows = [line.split() for line in table.out.splitlines() if line.strip().startswith("p")]
    assert [row[0] for row in rows] == ["press-0000", "press-0001", "press-0002", "pump-0001"]
    assert "[bold]line-1" in table.out, "what a device says is no markup"
    assert "\x1b" not in table.out
    pumps = said(capsys, "devices", "list", "--type", "pump", "--url", api.url, "--json").json
    assert [each["device_id"] for each in pumps["items"]] == ["pump-0001"]
    some = said(capsys, "devices", "list", "--limit", "2", "--url", api.url, "--json").json
    assert (len(some["items"]), some["more"]) == (2, True)


def test_a_device_is_shown_with_its_last_readings(capsys, api: Served) -> None:
    shown = said(capsys, "devices", "show", "press-0000", "--url", api.url)
    assert shown.code == 0
    assert "77.000" in shown.out
    assert said(capsys, "devices", "show", "press-0000", "--url", api.url, "--json").json["device_id"] == "press-0000"
    assert refused(capsys, "devices", "show", "nobody", "--url", api.url) == "No device nobody is known."


def test_orders_go_to_a_device_or_a_group(capsys, api: Served) -> None:
    at = ("--url", api.url)
    for arguments in (
        (
            "fault",
            "press-0001",
            "--kind",
            "out-of-range",
            "--metric",
            "temperature",
            "--magnitude",
            "0.5",
            "--duration",
            "30s",
        ),
        ("fault", "--all", "--clear", "--kind", "drift"),
        ("start", "--line", "line-1"),
        ("stop", "--site", "south"),
        ("interval", "250ms", "--type", "pump"),
    ):
        assert said(capsys, "devices", *arguments, *at).code == 0
    fields = ("command", "scope", "target", "kind", "metric", "magnitude", "duration_ms", "interval_ms")
    assert [{name: each[name] for name in fields if name in each} for each in api.orders] == [
        {
            "command": "inject_fault",
            "scope": "device",
            "target": "press-0001",
            "kind": "out_of_range",
            "metric": "temperature",
            "magnitude": 0.5,
            "duration_ms": 30_000,
        },
        {"command": "clear_fault", "scope": "all", "kind": "drift"},
        {"command": "start", "scope": "line", "target": "line-1"},
        {"command": "stop", "scope": "site", "target": "south"},
        {"command": "set_interval", "scope": "type", "target": "pump", "interval_ms": 250},
    ]
    answer = said(capsys, "devices", "stop", "--all", *at, "--json").json
    assert answer["command_id"] == api.orders[-1]["command_id"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("stop",), "Name one device or one group"),
        (("stop", "press-0001", "--all"), "Name one device or one group"),
        (("fault", "press-0001"), "--kind says which fault"),
        (("fault", "press-0001", "--kind", "gremlin"), "there is no such fault"),
        (("fault", "press-0001", "--clear", "--magnitude", "1"), "--clear takes no"),
        (("fault", "press-0001", "--kind", "spike", "--duration", "soon"), "not a length of time"),
        (("interval", "often", "press-0001"), "not a length of time"),
        (("list", "--url", "localhost:8080"), "write it whole"),
    ],
)
def test_what_cannot_be_meant_is_refused_without_a_system(capsys, arguments, told) -> None:
    assert told in refused(capsys, "devices", *arguments)


def test_what_the_system_refuses_is_its_own_sentence(capsys, api: Served) -> None:
    told = refused(capsys, "devices", "interval", "1ms", "pump-0001", "--url", api.url)
    assert told == "The command cannot be obeyed: interval_ms is from 10 to 86400000."
    assert refused(capsys, "devices", "stop", "press 1?", "--url", api.url) == "No device press 1? is known."
    assert api.orders == []


def test_a_system_that_is_not_there_is_one_sentence(capsys) -> None:
    told = refused(capsys, "devices", "list", "--url", "http://127.0.0.1:1", code=4)
    assert told.startswith("No Headrace answers at http://127.0.0.1:1 (connection refused)")


def test_lengths_of_time_are_read_as_written() -> None:
    written = ("500ms", "30s", "5m", "1h", "0s")
    assert [duration_ms(each, "") for each in written] == [500, 30_000, 300_000, 3_600_000, 0]
    for wrong in ("", "5", "s", "-1s", "1.5s", "1d"):
        with pytest.raises(UserError):
            duration_ms(wrong, "TIME")

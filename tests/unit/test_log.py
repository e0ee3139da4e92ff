"""Laws of the log: the fields of a line, redaction, sampling, and where lines go."""

import ast
import asyncio
import io
import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import NotLeaderForPartitionError, UnknownError

from app.actions import ACTIONS, ALWAYS_KEPT
from app.errors import EnvironmentError_
from app.log import Repeats, Sampling, bound, configure
from config.log import LogSettings

ROOT = Path(__file__).parents[2]
log = logging.getLogger("tests.log")


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    for handler in [one for one in root.handlers if one not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def installed(**settings: Any) -> io.StringIO:
    stream = io.StringIO()
    configure(LogSettings(**settings), stream=stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_the_fields_of_the_specification() -> None:
    stream = installed(service="s", environment="e", pod="p", namespace="n")
    with bound(workflow_id="w", execution_id="x", device_id="d", trace_id="t", span_id="i"):
        log.warning("said %s", "so", extra={"action": "config reloaded", "n": 1})
    (line,) = lines(stream)
    stamp = line.pop("timestamp")
    assert (len(stamp), stamp[10], stamp[-1]) == (24, "T", "Z")
    assert line.pop("version")
    assert line == {
        "level": "WARNING", "logger": "tests.log", "message": "said so", "action": "config reloaded",
        "service": "s", "environment": "e", "pod": "p", "namespace": "n", "workflow_id": "w", "execution_id": "x",
        "device_id": "d", "trace_id": "t", "span_id": "i", "n": 1,
    }  # fmt: skip


def test_no_secret_passes_in_messages_arguments_fields_or_exceptions() -> None:
    for form in ("json", "console"):
        stream = installed(format=form)
        log.info("password=hunter2")
        log.info("url %s", "postgresql://u:hunter2@h/d")
        log.info("map %s", {"token": "hunter2"})
        log.info(
            "fields",
            extra={"headers": {"Authorization": "hunter2"}, "apiKey": "hunter2", "e": ValueError("token=hunter2")},
        )
        log.info({"message": "map", "secret": "hunter2"})
        try:
            raise ValueError("secret='hunter2'")
        except ValueError:
            log.exception("failed", stack_info=True)
        text = stream.getvalue()
        assert "hunter2" not in text
        assert text.count("[REDACTED]") >= 8
        assert "ValueError" in text


def test_context_ends_with_its_block_and_belongs_to_its_task() -> None:
    stream = installed()

    async def work(name: str) -> None:
        with bound(device_id=name):
            await asyncio.sleep(0)
            log.info(name)
        log.info("after")

    async def both() -> None:
        await asyncio.gather(work("a"), work("b"))

    asyncio.run(both())
    told = [(line["message"], line.get("device_id")) for line in lines(stream) if line["logger"] == "tests.log"]
    assert sorted(told, key=str) == [("a", "a"), ("after", None), ("after", None), ("b", "b")]


def test_sampling_never_takes_warnings_nor_what_is_said_once() -> None:
    stream = installed(sample_rate=0, level="DEBUG")
    log.debug("gone")
    log.info("gone")
    log.info("kept", extra={"action": next(iter(ALWAYS_KEPT))})
    for level in (logging.WARNING, logging.ERROR, logging.CRITICAL):
        log.log(level, "kept")
    assert [line["message"] for line in lines(stream)] == ["kept"] * 4


def test_sampling_keeps_its_share() -> None:
    sampling = Sampling(0.1, random.Random(1))
    record = logging.LogRecord("x", logging.INFO, "", 0, "", (), None)
    assert 800 < sum(sampling.filter(record) for _ in range(10_000)) < 1200


def test_a_repeated_set_up_replaces_the_one_before() -> None:
    first = installed()
    second = installed(level="WARNING", levels={"tests.log": "ERROR"})
    log.warning("quiet")
    log.error("loud")
    assert first.getvalue() == ""
    assert [line["message"] for line in lines(second)] == ["loud"]
    third = installed(levels={})
    log.info("again")
    assert [line["message"] for line in lines(third)] == ["again"]


def test_a_terminal_gets_lines_for_people_and_never_obeys_a_device() -> None:
    stream = Terminal()
    configure(LogSettings(color="never"), stream=stream)
    log.info("from \x1b[31m%s", "press-1", extra={"device_id": "a\x07"})
    assert "\x1b" not in stream.getvalue()
    assert "\x07" not in stream.getvalue()
    assert "INFO" in stream.getvalue()
    configure(LogSettings(), stream=stream)
    log.info("colour")
    assert "\x1b[32mINFO" in stream.getvalue()


def test_a_wrong_log_call_stops_nothing_and_is_still_written() -> None:
    stream = installed()
    (handler,) = [one for one in logging.getLogger().handlers if one.get_name() == "headrace"]
    handler.handle(logging.LogRecord("x", logging.INFO, "", 0, "%d of %s", ("x",), None))
    log.info("odd %s", "\ud800", extra={"huge": 1 << 80, "level": "mine", "timestamp": "mine"})
    wrong, odd = lines(stream)
    assert "%d of %s" in wrong["message"]
    assert (odd["huge"], odd["level"], odd["level_"]) == (1 << 80, "INFO", "mine")


def test_a_file_is_one_for_each_role_rotates_daily_and_keeps_its_days(tmp_path: Path) -> None:
    configure(LogSettings(file=str(tmp_path / "logs/h.log"), keep_days=30), role="worker")
    log.info("said")
    file = tmp_path / "logs/h-worker.log"
    assert json.loads(file.read_text())["message"] == "said"
    (handler,) = [one for one in logging.getLogger().handlers if one.get_name() == "headrace"]
    assert (handler.when, handler.utc, handler.backupCount) == ("MIDNIGHT", True, 30)  # type: ignore[attr-defined]


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with pytest.raises(EnvironmentError_, match=r"The log file .* cannot be written"):
        configure(LogSettings(file=str(tmp_path / "plain/h.log")))


def logged_actions() -> dict[str, str]:
    """Every action in an `extra=` of the program, with its place."""
    found: dict[str, str] = {}
    for room in ("app", "agents", "tables", "config"):
        for file in sorted((ROOT / room).rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            extras = [node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "extra"]
            for pair in (pair for extra in extras for pair in pairs(extra)):
                found.setdefault(pair[0], f"{file.relative_to(ROOT)}:{pair[1]}")
    return found


def pairs(extra: ast.expr) -> Iterator[tuple[str, int]]:
    for node in ast.walk(extra):
        for key, value in zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ():
            if isinstance(key, ast.Constant) and key.value == "action" and isinstance(value, ast.Constant):
                yield str(value.value), value.lineno


def test_the_list_of_actions_is_closed_and_has_no_dead_names() -> None:
    logged = logged_actions()
    assert {name: place for name, place in logged.items() if name not in ACTIONS} == {}
    assert set(ACTIONS) - set(logged) == set()
    assert set(ACTIONS) >= ALWAYS_KEPT


def test_kafkas_client_says_the_same_once_a_minute_and_how_often_it_was_left_out():
    def record(name: str, at_s: float, node: int) -> logging.LogRecord:
        made = logging.LogRecord(name, logging.ERROR, "", 0, "Unable connect to node with id %s", (node,), None)
        made.created = at_s
        return made

    repeats = Repeats()
    told = [repeats.filter(record("aiokafka.client", 1000.0 + at, at)) for at in range(60)]
    assert told == [True] + 59 * [False]
    later = record("aiokafka.client", 1060.0, 1)
    assert repeats.filter(later)
    assert later.__dict__["repeated"] == 59
    assert repeats.filter(record("aiokafka.client", 900.0, 1)), "a clock that was put back silences nobody"
    assert all(repeats.filter(record("app.node", 1000.0, 1)) for _ in range(3)), "what we say ourselves is kept"


def test_what_kafkas_client_tries_again_by_itself_is_no_error() -> None:
    stream = installed()
    client = logging.getLogger("aiokafka.consumer.fetcher")
    client.error("Failed fetch offsets from %s: %s", 1, NotLeaderForPartitionError())
    client.error("Unexpected: %s", UnknownError())
    assert [line["level"] for line in lines(stream)] == ["INFO", "ERROR"]

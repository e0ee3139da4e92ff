"""Laws of the hot reload, with real files and the real watcher."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import watchfiles

from app.adapters.reload import Reloader
from app.errors import ConfigError
from app.metrics import CONFIG_INFO, CONFIG_RELOADS
from config import tree
from config.live import LiveSettings, diff, hot_keys
from config.load import fingerprint, load
from config.settings import Settings

# Shorter than the backstop's interval: the file system itself must tell of the change.
DEADLINE_S = 4


class Told(logging.Handler):
    """Wakes who waits for a condition whenever the reload has logged something."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self._loop.call_soon_threadsafe(self._event.set)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await self._event.wait()
                self._event.clear()


@asynccontextmanager
async def watching(live: LiveSettings) -> AsyncIterator[Callable[[Callable[[], object]], Awaitable[None]]]:
    reloader = Reloader(live)
    told = Told()
    logger = logging.getLogger("app.adapters.reload")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(told)
    task = asyncio.create_task(reloader.run())
    try:
        await asyncio.wait_for(reloader.watching.wait(), DEADLINE_S)
        yield told.until
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        logger.removeHandler(told)
        logger.setLevel(level)


def count(outcome: str) -> float:
    return CONFIG_RELOADS.labels(outcome)._value.get()


def records(caplog: pytest.LogCaptureFixture, action: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if getattr(record, "action", None) == action]


def written(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


async def test_a_changed_file_is_in_force_with_one_log_line_that_holds_the_diff(tmp_path, caplog) -> None:
    file = written(tmp_path / "h.yaml", "producer: {batch_size: 10}\n")
    live = LiveSettings(load(file, environ={}))
    before = count("applied")
    with caplog.at_level(logging.INFO):
        async with watching(live) as until:
            written(file, "producer: {batch_size: 20, worker_count: 7}\n")
            await until(lambda: live.current.producer.batch_size == 20)
    assert count("applied") == before + 1
    (line,) = records(caplog, "config reloaded")
    assert line.__dict__["changed"] == {"producer.batch_size": {"old": 10, "new": 20}}
    assert line.__dict__["restart_required"] == {"producer.worker_count": {"old": 8, "new": 7}}
    assert "needs a restart: producer.worker_count" in line.getMessage()
    assert live.current.producer.worker_count == 8
    assert [change.key for change in live.pending] == ["producer.worker_count"]
    labels = [sample.labels["hash"] for family in CONFIG_INFO.collect() for sample in family.samples]
    assert labels == [fingerprint(live.current)]


async def test_an_invalid_file_changes_nothing_and_says_every_reason(tmp_path, caplog) -> None:
    file = written(tmp_path / "h.yaml", "producer: {batch_size: 10}\n")
    live = LiveSettings(load(file, environ={}))
    before = live.current, count("rejected")
    async with watching(live) as until:
        written(file, "producer:\n  batch_size: 20\n  flush_interval_ms: 5 s\n  x: 1\n")
        await until(lambda: count("rejected") == before[1] + 1)
        assert live.current is before[0]
        (line,) = records(caplog, "config rejected")
        assert len(line.__dict__["problems"]) == 2
        written(file, "producer: {batch_size: 30}\n")
        await until(lambda: live.current.producer.batch_size == 30)


async def test_the_swap_of_a_config_map_is_seen_again_and_again(tmp_path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()

    def swap(version: int) -> None:
        folder = mount / f"..{version}"
        folder.mkdir()
        written(folder / "h.yaml", f"producer: {{batch_size: {version}}}\n")
        (mount / "..next").symlink_to(folder.name)
        (mount / "..next").rename(mount / "..data")
        old = mount / f"..{version - 1}"
        if old.exists():
            (old / "h.yaml").unlink()
            old.rmdir()

    swap(1)
    (mount / "h.yaml").symlink_to("..data/h.yaml")
    live = LiveSettings(load(mount / "h.yaml", environ={}))
    async with watching(live) as until:
        for version in (2, 3, 4):
            swap(version)
            await until(partial(lambda wanted: live.current.producer.batch_size == wanted, version))


async def test_a_file_replaced_by_rename_is_seen(tmp_path) -> None:
    file = written(tmp_path / "h.yaml", "")
    live = LiveSettings(load(file, environ={}))
    async with watching(live) as until:
        written(tmp_path / "h.tmp", "log: {level: DEBUG}\n").replace(file)
        await until(lambda: live.current.log.level == "DEBUG")


async def test_without_a_file_there_is_nothing_to_watch() -> None:
    await asyncio.wait_for(Reloader(LiveSettings(load(environ={}))).run(), DEADLINE_S)


async def test_polling_takes_over_where_the_file_system_tells_of_nothing(tmp_path, monkeypatch, caplog) -> None:
    file = written(tmp_path / "h.yaml", "")
    live = LiveSettings(load(file, environ={}))
    real = watchfiles.awatch

    def limited(*folders: Path, **options: Any) -> AsyncGenerator[object, None]:
        if not options["force_polling"]:
            raise OSError(28, "OS file watch limit reached")
        return real(*folders, **options)

    monkeypatch.setattr(watchfiles, "awatch", limited)
    async with watching(live) as until:
        written(file, "log: {level: DEBUG}\n")
        await until(lambda: live.current.log.level == "DEBUG")
    assert len(records(caplog, "config watch failed")) == 1


async def test_a_combination_of_old_and_new_keys_that_does_not_fit_changes_nothing(tmp_path) -> None:
    file = written(tmp_path / "h.yaml", "")
    live = LiveSettings(load(file, environ={}))
    hot = {leaf.dotted for leaf in tree.leaves(Settings) if leaf.is_hot}
    assert set(hot_keys()) == hot
    assert {"producer.batch_size", "log.level", "device.sample_interval_ms", "signals.rules"} <= hot
    written(file, "signals: {rules: [{id: a, kind: quality}, {id: a, kind: quality}]}\n")
    assert await Reloader(live).reload() == "rejected"
    assert live.current == Settings()


def test_a_diff_names_the_items_of_a_list_that_differ(tmp_path) -> None:
    text = "signals: {{rules: [{{id: a, kind: quality}}, {{id: b, kind: silence, duration_ms: {}}}]}}\n"
    before = load(written(tmp_path / "h.yaml", text.format(1000)), environ={}).settings
    after = load(written(tmp_path / "h.yaml", text.format(2000)), environ={}).settings
    (change,) = diff(before, after)
    assert (change.key, change.old["duration_ms"], change.new["duration_ms"]) == ("signals.rules[b]", 1000, 2000)


def test_a_changed_secret_is_told_without_being_shown(tmp_path) -> None:
    text = "kafka: {{sasl_password: {}}}\n"
    before = load(written(tmp_path / "h.yaml", text.format("one-secret")), environ={}).settings
    after = load(written(tmp_path / "h.yaml", text.format("two-secret")), environ={}).settings
    (change,) = diff(before, after)
    assert (change.key, change.old, change.new, change.is_hot) == (
        "kafka.sasl_password",
        "[REDACTED]",
        "[REDACTED]",
        False,
    )


async def test_unchanged_content_is_no_reload(tmp_path) -> None:
    file = written(tmp_path / "h.yaml", "log: {level: INFO}\n")
    reloader = Reloader(LiveSettings(load(file, environ={})))
    os.utime(file)
    assert await reloader.check() == "unchanged"
    assert await reloader.reload() == "unchanged"


async def test_a_key_that_waits_for_a_restart_is_named_again_and_stays_old(tmp_path) -> None:
    file = written(tmp_path / "h.yaml", "")
    live = LiveSettings(load(file, environ={}))
    reloader = Reloader(live)
    written(file, "tables: {max_open_files: 99}\n")
    assert await reloader.check() == "restart_required"
    written(file, "tables: {max_open_files: 99}\nlog: {level: DEBUG}\n")
    assert await reloader.check() == "applied"
    assert live.current.tables.max_open_files == 128
    assert [change.key for change in live.pending] == ["tables.max_open_files"]
    written(file, "log: {level: DEBUG}\n")
    assert await reloader.check() == "unchanged"
    assert live.pending == ()


def test_a_check_that_refuses_leaves_everything_as_it_was(tmp_path) -> None:
    file = written(tmp_path / "h.yaml", "")
    live = LiveSettings(load(file, environ={}))
    told: list[str] = []

    def refuse(settings: Settings) -> None:
        if settings.log.level == "DEBUG":
            raise ValueError("signals.rules[0].when: does not compile")

    live.subscribe(lambda _old, new: told.append(new.log.level), check=refuse)
    written(file, "log: {level: DEBUG}\n")
    with pytest.raises(ConfigError, match="does not compile"):
        live.apply(load(file, environ={}))
    assert (live.current.log.level, told) == ("INFO", [])


def test_a_subscriber_that_fails_takes_the_others_back(tmp_path) -> None:
    file = written(tmp_path / "h.yaml", "")
    live = LiveSettings(load(file, environ={}))
    told: list[str] = []

    def fail(_old: Settings, new: Settings) -> None:
        if new.log.level == "DEBUG":
            raise RuntimeError("no")

    live.subscribe(lambda _old, new: told.append(new.log.level))
    live.subscribe(fail)
    written(file, "log: {level: DEBUG}\n")
    with pytest.raises(RuntimeError):
        live.apply(load(file, environ={}))
    assert (live.current.log.level, told) == ("INFO", ["DEBUG", "INFO"])


def test_a_subscription_can_end(tmp_path) -> None:
    live = LiveSettings(load(environ={}))
    told: list[object] = []
    live.subscribe(lambda old, new: told.append((old, new)))()
    live.apply(load(written(tmp_path / "h.yaml", "log: {level: DEBUG}\n"), environ={}))
    assert (live.current.log.level, told) == ("DEBUG", [])


def test_equal_settings_have_no_diff() -> None:
    assert diff(Settings(), Settings()) == ()

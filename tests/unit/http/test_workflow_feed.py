"""Laws of the process that feeds the index of executions, without a broker."""

import subprocess
import sys
from pathlib import Path

from aiokafka import TopicPartition

from app.adapters.execution_feed import TOPICS, ExecutionFeed, Out, configuration
from app.adapters.execution_store import ExecutionStore
from config.http import ExecutionsSettings
from config.kafka import KafkaSettings
from config.log import LogSettings
from tests.helpers.executions import whole

NOBODY = "127.0.0.1:1"


def test_a_feed_that_cannot_forget_any_more_ends_rather_than_grow(tmp_path: Path) -> None:
    store = ExecutionStore(tmp_path)
    store.apply([], whole("old", at=1), [])
    store._db.execute("DROP TABLE runs")
    store.close()
    settings = ExecutionsSettings(directory=str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-m", "app.adapters.execution_feed"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(configuration(KafkaSettings(), NOBODY, settings, LogSettings(), TOPICS))
        process.stdin.flush()
        try:
            assert process.wait(60) != 0  # its stdin stays open
            assert b"no such table" in process.stderr.read()
        finally:
            process.kill()


def test_a_feed_has_caught_up_when_it_has_read_what_was_there_though_more_always_comes(tmp_path: Path) -> None:
    settings = ExecutionsSettings(directory=str(tmp_path))
    feed = ExecutionFeed(KafkaSettings(), NOBODY, settings, (TOPICS[0], TOPICS[1]), Out())
    one, other = (TopicPartition(topic, 0) for topic in TOPICS)
    feed._goal, feed._ends, feed._connected = {one: 10, other: 5}, {one: 900, other: 900}, True
    for positions, caught_up in (({one: 9, other: 800}, False), ({one: 10, other: 5}, True)):
        feed._positions = positions
        assert feed._state()["caught_up"] is caught_up
    feed._connected = False
    assert feed._state()["caught_up"] is False
    feed._store.close()

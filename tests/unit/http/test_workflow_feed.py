"""Laws of the process that feeds the index of executions, without a broker."""

import subprocess
import sys
from pathlib import Path

from app.adapters.execution_feed import TOPICS, configuration
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

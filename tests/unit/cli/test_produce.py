"""Laws of the words of `headrace produce`: what does not go together is refused before anything is connected."""

from pathlib import Path

import pytest

from app.cli.produce_run import rate_line
from app.domain.ledger import Ledger
from tests.helpers.cli import refused


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("one.csv",), "one.csv: put --replay before the files to replay them."),
        (("--speed", "2"), "--speed: only with --replay FILE."),
        (("--mapping", "nab", "--times", "keep"), "--mapping, --times: only with --replay FILE."),
        (("--replay", "a.csv", "--devices", "1"), "--devices: not with --replay FILE."),
        (("--replay", "a.csv", "--mapping", "skab-valve"), "a.csv: cannot be read: No such file or directory"),
    ],
)
def test_options_that_do_not_go_together_are_refused(capsys, arguments, told) -> None:
    assert refused(capsys, "produce", *arguments) == told


def test_a_replay_without_a_mapping_is_told_which_there_are(capsys) -> None:
    told = refused(capsys, "produce", "--replay", "a.csv")
    assert "--mapping" in told
    assert "skab-valve" in told


def test_a_setting_out_of_bounds_is_named(capsys, tmp_path: Path) -> None:
    assert "device.sample_interval_ms" in refused(capsys, "produce", "--interval-ms", "1")
    assert "replay.times" in refused(capsys, "produce", "--replay", str(tmp_path), "--times", "later")


def test_without_any_known_broker_nothing_is_started(capsys) -> None:
    assert refused(capsys, "produce", "--set", "embedded.port=0").startswith("No Kafka is named")


def test_the_rate_line_tells_what_happened_since_the_last() -> None:
    before = Ledger(generated=1_000, acknowledged=900)
    now = Ledger(generated=3_000, acknowledged=2_900)
    line = rate_line(before, now, 2.0, 100, 0.012)
    assert line == "1,000 msgs/s sent · p95 12 ms · 2,900 of 3,000 acknowledged · 100 waiting"
    now = now.with_dropped("catch_up", 5).with_dead_lettered(2)
    assert rate_line(now, now, 1.0, 0, None).endswith("0 waiting · 2 dead letters · 5 dropped")
    assert rate_line(now, now, 0.0, 0, None).startswith("0 msgs/s sent · p95 – ·")

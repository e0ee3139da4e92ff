"""Laws of what `headrace up` shows."""

import io
from typing import Any

import pytest

from app.supervisor_run import typed
from app.supervisor_screen import AboveLive, Screen, Totals, block, ledger_line, quantile, rate_line, rates


class Terminal(io.StringIO):
    def isatty(self):
        return True


def _totals(at_s, sent, **more):
    fields: dict[str, Any] = {"send_buckets": {}, "rollups": 0, "signals": 0, "dead_letters": 0, "lag": 0} | more
    return Totals(at_s=at_s, sent=sent, **fields)


def test_rates_are_differences_over_the_time_between():
    found = rates(_totals(10, 100, rollups=5), _totals(12, 300, rollups=9, dead_letters=2, lag=7))
    assert (found.sent, found.rollups, found.dead_letters, found.lag) == (100, 2, 2, 7)


def test_a_restarted_process_shows_no_negative_rate():
    assert rates(_totals(0, 1000), _totals(1, 10)).sent == 0


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ({}, 0.95, None),
        ({0.01: 0, float("inf"): 0}, 0.95, None),
        ({0.01: 0, 0.1: 100, float("inf"): 100}, 0.5, 0.055),
        ({0.01: 100, 0.1: 100, float("inf"): 100}, 0.95, 0.0095),
        ({0.01: 0, 0.1: 0, float("inf"): 5}, 0.95, 0.1),
    ],
)
def test_a_quantile_is_linear_within_its_bucket(buckets, share, expected):
    assert quantile(buckets, share) == (expected if expected is None else pytest.approx(expected))


def test_p95_counts_only_what_was_sent_in_between():
    old = {0.01: 1000.0, 1.0: 1000.0, float("inf"): 1000.0}
    new = {0.01: 1000.0, 1.0: 1100.0, float("inf"): 1100.0}
    found = rates(_totals(0, 0, send_buckets=old), _totals(1, 0, send_buckets=new))
    assert found.p95_ms == pytest.approx(950.5)


def test_the_rate_line_names_what_is_down():
    assert rate_line(rates(_totals(0, 0), _totals(1, 5)), ["worker"]).startswith("down: worker")


def test_the_rate_line_tells_of_executions():
    before, now = _totals(10, 0, executions=4), _totals(12, 0, executions=7, running=1200, failed=2)
    assert "1.5 executions/s · 1,200 running · 2 failed" in rate_line(rates(before, now))


def test_a_ledger_with_records_in_flight_does_not_balance_at_the_end():
    ledger = {"generated": 10, "outcomes": {"acknowledged": 7}, "in_flight": 3, "balanced": True}
    assert ledger_line(ledger).startswith("Ledger NOT balanced")
    assert ledger_line(ledger | {"outcomes": {"acknowledged": 10}, "in_flight": 0}).startswith("Ledger balanced")


def test_lines_stand_above_the_live_line():
    stream = Terminal()
    screen = Screen(stream)
    screen.status("rates")
    print("a log line", file=AboveLive(screen))
    assert stream.getvalue().endswith("\r\x1b[2Ka log line\nrates")


def test_a_stream_that_is_no_terminal_gets_plain_lines():
    stream = io.StringIO()
    Screen(stream).status("rates")
    assert stream.getvalue() == "rates\n"


def test_progress_is_wiped_and_rates_are_left(monkeypatch):
    stream = Terminal()
    screen = Screen(stream)
    screen.progress("Starting Kafka …")
    screen.close()
    assert stream.getvalue().endswith("\r\x1b[2K")
    screen.status("rates")
    screen.close()
    assert stream.getvalue().endswith("rates\n")


def test_without_a_terminal_progress_is_not_shown():
    stream = io.StringIO()
    Screen(stream).progress("Starting Kafka …")
    assert stream.getvalue() == ""


def test_the_live_line_never_wraps(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    Screen(stream).status("a line that is longer than the terminal is wide")
    assert stream.getvalue() == "\r\x1b[2Ka line that is lon…"


def test_the_block_names_what_is_not_ready():
    facts: dict[str, Any] = {"api": "a", "health": "h", "metrics": "m", "bootstrap": "b", "embedded": True, "data": "d"}
    assert "Headrace is up." in block(**facts)
    assert "not ready yet: worker." in block(**facts, late=["worker"])


def test_the_block_names_the_execution_that_waits_to_be_put_right():
    facts: dict[str, Any] = {"api": "a", "health": "h", "metrics": "m", "bootstrap": "b", "embedded": True, "data": "d"}
    text = block(**facts, failing="demo-needs-retry-x")
    assert "headrace executions retry demo-needs-retry-x" in text
    assert "headrace executions list" in text
    assert "executions" not in block(**facts)


def test_what_the_block_proposes_can_be_typed_as_it_stands():
    facts: dict[str, Any] = {"health": "h", "metrics": "m", "bootstrap": "b", "embedded": True, "data": "d"}
    said: dict[str, Any] = {"failing": "x", "program": ".venv/bin/headrace"}
    assert "    .venv/bin/headrace executions retry x\n" in block(api="http://127.0.0.1:8080", **said, **facts)
    elsewhere = block(api="http://127.0.0.1:9000", **said, **facts)
    assert "    .venv/bin/headrace executions list --url http://127.0.0.1:9000\n" in elsewhere


def test_this_program_is_called_by_name_only_where_the_shell_finds_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    called = tmp_path / ".venv" / "bin" / "headrace"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert typed(str(called)) == ".venv/bin/headrace"
    assert typed("/elsewhere/app/__main__.py") == "headrace"
    called.parent.mkdir(parents=True)
    called.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(called.parent))
    assert typed(str(called)) == "headrace"

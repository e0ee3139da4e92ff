"""What `headrace up` shows: one block of addresses, then a line of rates that stays alive."""

import io
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from app.supervisor_view import Merged

TELEMETRY_TOPIC = "device.telemetry"
DEFAULT_API = "http://127.0.0.1:8080"  # where the command line asks when nothing is said
UNHAPPY_ENDS = ("failed", "timed_out")
_CLEAR_LINE = "\r\x1b[2K"


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all processes at one moment; `send_buckets` are cumulated counts by upper bound in seconds."""

    at_s: float
    sent: float
    send_buckets: Mapping[float, float]
    rollups: float
    signals: float
    dead_letters: float
    lag: float
    executions: float = 0.0
    running: float = 0.0
    failed: float = 0.0

    @classmethod
    def of(cls, merged: Merged, at_s: float) -> "Totals":
        return cls(
            at_s=at_s,
            sent=merged.total("kafka_messages_sent", topic=TELEMETRY_TOPIC),
            send_buckets=merged.buckets("kafka_send_duration_seconds"),
            rollups=merged.total("rollups_emitted"),
            signals=merged.total("signals_generated"),
            dead_letters=merged.total("telemetry_dead_letters"),
            lag=merged.total("stream_lag_records"),
            executions=merged.total("workflow_executions"),
            running=merged.total("workflow_executions_active"),
            failed=sum(merged.total("workflow_executions", status=status) for status in UNHAPPY_ENDS),
        )


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened between two moments, a second; `p95_ms` is None when nothing was sent."""

    sent: float
    p95_ms: float | None
    rollups: float
    signals: float
    dead_letters: float
    lag: float
    executions: float = 0.0
    running: float = 0.0
    failed: float = 0.0


def rates(before: Totals, now: Totals) -> Rates:
    """A process that was restarted counts from zero again: what seems negative is shown as nothing."""
    seconds = max(now.at_s - before.at_s, 1e-9)
    counts = {bound: count - before.send_buckets.get(bound, 0.0) for bound, count in now.send_buckets.items()}
    p95_s = quantile(counts, 0.95)
    return Rates(
        sent=max(0.0, now.sent - before.sent) / seconds,
        p95_ms=None if p95_s is None else p95_s * 1000,
        rollups=max(0.0, now.rollups - before.rollups) / seconds,
        signals=max(0.0, now.signals - before.signals) / seconds,
        dead_letters=now.dead_letters,
        lag=now.lag,
        executions=max(0.0, now.executions - before.executions) / seconds,
        running=now.running,
        failed=now.failed,
    )


def quantile(cumulated: Mapping[float, float], share: float) -> float | None:
    """The quantile of a histogram, linear within its bucket as Prometheus' histogram_quantile has it."""
    bounds = sorted(cumulated)
    total = cumulated[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    wanted, lower, below = share * total, 0.0, 0.0
    for bound in bounds:
        if cumulated[bound] >= wanted:
            if bound == float("inf"):
                return lower
            inside = cumulated[bound] - below
            return lower + (bound - lower) * ((wanted - below) / inside if inside > 0 else 1.0)
        lower, below = bound, cumulated[bound]
    return lower


def rate_line(found: Rates, down: Sequence[str] = ()) -> str:
    p95 = "–" if found.p95_ms is None else f"{found.p95_ms:.0f} ms"
    line = (
        f"{found.sent:,.0f} msgs/s · p95 {p95} · {found.rollups:,.0f} rollups/s · {found.signals:,.1f} signals/s"
        f" · {found.executions:,.1f} executions/s · {found.running:,.0f} running · {found.failed:,.0f} failed"
        f" · lag {found.lag:,.0f} · {found.dead_letters:,.0f} dead letters"
    )
    # In front, where a narrow terminal does not cut it off.
    return f"down: {', '.join(down)} · {line}" if down else line


def ledger_line(ledger: Mapping[str, Any]) -> str:
    """The last word: what was generated, and what became of all of it."""
    parts = [f"{ledger['generated']:,} generated"]
    if ledger.get("recovered"):
        parts.append(f"{ledger['recovered']:,} recovered from the spool")
    parts += [f"{count:,} {outcome.replace('_', ' ')}" for outcome, count in ledger["outcomes"].items()]
    parts.append(f"{ledger['in_flight']:,} in flight")
    if ledger.get("unknown_after_crash"):
        parts.append(f"{ledger['unknown_after_crash']:,} unknown after a crash")
    verdict = "balanced" if ledger["balanced"] and not ledger["in_flight"] else "NOT balanced"
    if not ledger.get("complete", True):
        verdict = f"{verdict} as last seen, INCOMPLETE since a process was killed"
    return f"Ledger {verdict}: {', '.join(parts)}"


def block(
    *,
    api: str,
    health: str,
    metrics: str,
    bootstrap: str,
    embedded: bool,
    data: str,
    late: Sequence[str] = (),
    failing: str | None = None,
    program: str = "headrace",
) -> str:
    """The one block a newcomer reads.

    `late` are the roles that are not ready yet, `failing` a failed execution, `program` what to type for this program.
    """
    return "\n".join(
        (
            "",
            f"  Headrace is starting; not ready yet: {', '.join(late)}." if late else "  Headrace is up.",
            "",
            f"    API and docs   {api}/docs",
            f"    Health         {health}/health",
            f"    Metrics        {metrics}/metrics",
            f"    Kafka          {bootstrap}{' (embedded)' if embedded else ''}",
            f"    Data           {data}",
            "",
            "  Try next, in another terminal:",
            "",
            *(f"    {line}" for line in _try_next(api, failing, program)),
            "",
            "  Ctrl-C stops everything in order.",
            "",
        )
    )


def _try_next(api: str, failing: str | None, program: str) -> tuple[str, ...]:
    """Commands, each of which shows something."""
    fault = f"""curl -s -X POST {api}/api/v1/devices/press-0001/commands -H 'content-type: application/json' \\
         -d '{{"command": "inject_fault", "kind": "spike"}}'"""
    if failing is None:
        return (f"curl -s '{api}/api/v1/devices?limit=3'", f"curl -s '{api}/api/v1/rollups?limit=3'", fault)
    elsewhere = "" if api == DEFAULT_API else f" --url {api}"
    return (
        "# reports of live signals, and one that has failed on purpose; then put that right",
        f"{program} executions list{elsewhere}",
        f"{program} executions retry {failing}{elsewhere}",
        fault,
    )


class Screen:
    """A stream with one live line at its end on a terminal, and plain lines elsewhere."""

    def __init__(self, stream: TextIO = sys.stdout) -> None:
        self._stream = stream
        self._live = ""
        self._is_passing = False
        self.is_terminal = stream.isatty()

    def line(self, text: str) -> None:
        """Print above the live line."""
        self._stream.write(f"{_CLEAR_LINE if self._live else ''}{text}\n{self._fitting()}")
        self._stream.flush()

    def status(self, text: str) -> None:
        """Replace the live line; without a terminal, print one more."""
        if self.is_terminal:
            self._show(text, is_passing=False)
        else:
            self.line(text)

    def progress(self, text: str) -> None:
        """Say on the live line what is being waited for; without a terminal, nothing: the log tells."""
        if self.is_terminal:
            self._show(text, is_passing=True)

    def close(self) -> None:
        """Go on below the last live line; one that only told of progress is wiped."""
        if self._live:
            self._stream.write(_CLEAR_LINE if self._is_passing else "\n")
            self._stream.flush()
        self._live = ""

    def relay(self, role: str, text: str) -> None:
        """A line of a child's output."""
        self.line(f"{role}: {text}")

    def _show(self, text: str, *, is_passing: bool) -> None:
        self._live, self._is_passing = text, is_passing
        self._stream.write(f"{_CLEAR_LINE}{self._fitting()}")
        self._stream.flush()

    def _fitting(self) -> str:
        """The live line within one row: a wrapped one could not be wiped."""
        room = shutil.get_terminal_size().columns - 1
        return self._live if len(self._live) <= room else f"{self._live[: room - 1]}…"


class AboveLive(io.TextIOBase):
    """A text stream for the log that writes whole lines above the live line of a screen."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._partial = ""

    def write(self, text: str) -> int:
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            self._screen.line(line)
        return len(text)

    def isatty(self) -> bool:
        return self._screen.is_terminal

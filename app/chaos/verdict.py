"""The word of the checkers on a run: histories on the log, effects in the ledger, what was acknowledged."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import orjson

from app.adapters.clock import SystemClock
from app.adapters.topic_reader import TopicReader
from app.chaos.final_read import Ends
from app.chaos.workflows import EFFECT
from app.domain.workflow.legal import violations
from app.executions_check import Effects, Terms, check_executions, registered, until_committed
from config.kafka import KafkaSettings

SHOWN: Final = 20
COMMIT_WAIT_S: Final = 60.0
_BATCH: Final = 5_000


@dataclass(slots=True)
class Verdict:
    """Figures, and every broken promise."""

    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


async def judged(folder: Path, bootstrap: str, accepted: frozenset[str]) -> Verdict:
    """Hold the run against the promises; reads the brokers directly."""
    kafka = KafkaSettings(bootstrap_servers=bootstrap)
    reader = TopicReader(kafka)
    definitions = await registered(reader)
    ledger = folder / "ledger.jsonl"

    async def settled(noted: Any) -> None:
        await until_committed(kafka, SystemClock(), noted, COMMIT_WAIT_S)

    terms = Terms(
        violations,
        lambda workflow, version: definitions.get((workflow, version)),
        must_have_ended=True,
        effects=Effects(EFFECT, lambda: _accepted_keys(ledger)),
    )
    checked = await check_executions(reader, terms, settled=settled)
    ends = Ends(reader)
    await ends.read_on()
    verdict = Verdict()
    lost = accepted - ends.seen
    kinds: dict[str, int] = {}
    for row in _rows(ledger):
        kinds[row["kind"]] = kinds.get(row["kind"], 0) + 1
    verdict.figures = {
        "executions": checked.executions,
        "events": checked.events,
        "effects": checked.effects,
        "ledger": kinds,
        "repeated_starts": checked.repeated_starts,
        "repeated_events": checked.repeats,
        "forks": checked.forks,
        "statuses": dict(checked.statuses),
        "faults_found": dict(checked.counts),
    }
    verdict.problems += [f"acknowledged and not ended: {execution}" for execution in islice(sorted(lost), SHOWN)]
    verdict.problems += [f"{one.kind}: {one.execution_id}: {one.detail}" for one in checked.faults[:SHOWN]]
    if unhappy := {status: count for status, count in checked.statuses.items() if status != "succeeded"}:
        verdict.problems.append(f"ended otherwise: {unhappy}")
    if checked.effects != checked.executions:
        verdict.problems.append(f"{checked.executions:,} executions, {checked.effects:,} effects")
    return verdict


async def _accepted_keys(ledger: Path) -> AsyncIterator[Sequence[str]]:
    rows = (row["key"] for row in _rows(ledger) if row["kind"] == "accepted")
    while batch := list(islice(rows, _BATCH)):
        yield batch


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as lines:
        return [orjson.loads(line) for line in lines if line.endswith(b"\n")]

"""Judges a run of the fault suite by its folder and the healed cluster: one entry a law, never a silent pass.

    python -m app.chaos.checker FOLDER [--json]

The folder is written by the driver, the nemesis, the ledger and the witness; every file is JSON, `.jsonl` one object
a line, times `…_ns` are `time.time_ns()` of the rig, whose clock is never faked. A line that is cut at the end of a
file (its writer was killed) is passed over, anywhere else it is a fault of the run.

run.json       what was planned and where the product is:
    {"seed": 1, "bootstrap": "127.0.0.1:9092", "client_id": "headrace", "started_ns", "healed_ns", "ended_ns",
     "planned_starts": 3000, "planned_faults": [{"number": 0, "kind": "kill worker"}, …],
     "effects": {"<workflow>": ["<step>", …]}, "end_within_s": 30, "ok_share": 0.95, "settle_s": 2,
     "telemetry": true, "settings": {"rollup.grace_ms": 1000, …}}
    The product has no fault any more from `healed_ns` on; nothing is started after `ended_ns`. `effects`: steps whose
    effect is one POST to the ledger. `settle_s` is added to the end of each fault before its window is over.
    `telemetry` says that a transform ran; `settings` are those it ran with where they differ from the defaults.
ops.jsonl      the driver, open loop (`app.chaos.oplog`); two lines a request, the first before anything is sent:
    {"op": 17, "what": "start", "phase": "intent", "at_ns": …, "key": "s-17"}
    {"op": 17, "what": "start", "phase": "ok" | "fail" | "info", "at_ns": …, "execution": "…", "detail": "503"}
    `key` is the request's Idempotency-Key and goes into the input: `input.op == key`. ok = acknowledged (2xx, with
    `execution`); fail = surely not taken (4xx); info = nobody knows (no answer, 5xx), as is an intent without an
    outcome. Two requests under one `key` are two ops.
ledger.jsonl   `app.chaos.ledger`: {"kind": "accepted" | "repeat" | "zombie", "execution", "step", "attempt", "token",
     "hash", "key", "wall_ns", "mono_ns"}; `key` is the Idempotency-Key, `token` grows with each attempt of a step.
faults.jsonl   the nemesis, a line each fault that was put in, by the `number` of its plan:
    {"number": 0, "fault": "kill worker", "at_ns": …, "until_ns": …, "proof": {"pid": 17, "waited": -9}}
    `proof` is what was seen of its having happened, null or empty when nothing was; `until_ns` when it was taken back.
witness.jsonl  `app.chaos.checker_witness`, a reader of topics during the run:
    {"topic", "partition", "offset", "hash", "at_ns", "ended": ["<execution>", …]}
acks.jsonl     the driver of telemetry, a line each acknowledged (ok), refused (fail) or unknown (info) range of seqs
    of one device and session: {"device", "session", "first", "last", "outcome", "at_ns"}
books.jsonl    the last word of each producer: {"producer", "generated", "acknowledged", "spooled", "dead_lettered",
     "dropped": {"<reason>": n}, "in_flight"}
Files other than run.json may be missing where the run has no such part; a law without its file says "not asked".
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.adapters.clock import SystemClock
from app.adapters.topic_reader import TopicReader
from app.adapters.topics_admin import committed_offsets
from app.chaos import checker_laws as laws
from app.chaos.checker_cluster import find_executions, readers_of, refused_commands
from app.chaos.checker_folder import Folder, read_folder
from app.chaos.checker_laws import Law, not_asked
from app.chaos.checker_telemetry import books, read_telemetry, telemetry
from app.domain.workflow.legal import violations
from app.errors import HeadraceError, UserError
from app.executions_check import GROUP_SUFFIX, Terms, check_executions, registered, until_committed
from app.roles.worker import terms_of
from app.rollup_check import Terms as RollupTerms
from app.rollup_check import check_rollups, kind_of
from config.kafka import KafkaSettings
from config.load import load
from config.settings import Settings
from config.topics import WORKFLOW_COMMANDS, WORKFLOW_DEADLETTER

# As long as executions may take to end after the heal.
COMMIT_WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Report:
    """Every law of a run."""

    seed: int
    laws: tuple[Law, ...]
    seconds: float

    @property
    def broken(self) -> tuple[Law, ...]:
        """Those that do not hold."""
        return tuple(each for each in self.laws if not each.holds)

    @property
    def holds(self) -> bool:
        """Whether every law does that was asked, and one was."""
        return not self.broken and any(each.asked for each in self.laws)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "seed": self.seed,
            "holds": self.holds,
            "seconds": round(self.seconds, 1),
            "laws": {
                each.name: {
                    "asked": each.asked,
                    "holds": each.holds,
                    "looked": each.looked,
                    "broken": each.broken,
                    "says": list(each.says),
                    **each.facts,
                }
                for each in self.laws
            },
        }


async def judge(path: Path, wait_s: float = COMMIT_WAIT_S) -> Report:
    """Every law on the run in the folder `path`; its cluster must be there and healed."""
    began = time.monotonic()
    folder = read_folder(path)
    settings = settings_of(folder)
    reader = TopicReader(settings.kafka)
    found = [
        *(
            await _executions(folder, settings.kafka, reader, wait_s)
            if folder.requests is not None
            else _no_executions()
        ),
        *(await _telemetry(folder, settings, reader, wait_s)),
        laws.not_vacuous(folder),
    ]
    return Report(folder.plan.seed, tuple(found), time.monotonic() - began)


def settings_of(folder: Folder) -> Settings:
    """The settings that the product ran with, as far as the checks need them."""
    plan = folder.plan
    values: Mapping[str, Any] = {"kafka.bootstrap_servers": plan.bootstrap, "kafka.client_id": plan.client_id}
    flags = [f"{name}={value}" for name, value in plan.settings.items()]
    return load(environ={}, flags=flags, values=values).settings


def _no_executions() -> list[Law]:
    names = ("histories", "acknowledged", "unseen", "effects", "readers", "state", "timers", "conservation", "liveness")
    return [not_asked(name) for name in names]


async def _executions(folder: Folder, kafka: KafkaSettings, reader: TopicReader, wait_s: float) -> list[Law]:
    """The laws of executions, from two readings: the engine's own check, and the one that is compared with others."""
    histories = await _histories(kafka, reader, wait_s)
    group = f"{kafka.client_id}-{GROUP_SUFFIX}"
    committed = (await committed_offsets(kafka.bootstrap_servers, group, kafka)).get(WORKFLOW_COMMANDS.name, {})
    found = await find_executions(reader, folder.witness, committed)
    refused = await refused_commands(reader, WORKFLOW_DEADLETTER.name)
    requests, plan = folder.requests or (), folder.plan
    return [
        histories,
        laws.acknowledged(requests, found.known),
        laws.unseen(requests, found.known),
        not_asked("effects") if folder.effects is None else laws.effects(folder.effects, plan, found.known),
        readers_of(found, folder.witness),
        found.state(),
        laws.timers(found.known, SystemClock().now_ms(), plan.end_within_s),
        laws.conservation(found.known, refused, requests),
        laws.liveness(folder, found.known),
    ]


async def _histories(kafka: KafkaSettings, reader: TopicReader, wait_s: float) -> Law:
    """`app.executions_check`: contiguous sequences, legal histories, one end, the fold; by one that can say why."""
    definitions = await registered(reader)

    async def settled(noted: Mapping[int, int]) -> None:
        await until_committed(kafka, SystemClock(), noted, wait_s)

    terms = Terms(violations, lambda workflow, version: definitions.get((workflow, version)), must_have_ended=True)
    try:
        checked = await check_executions(reader, terms, settled=settled)
    except (HeadraceError, AssertionError) as error:
        return Law("histories", 0, 1, (str(error),))
    says = [f"{fault.kind}: {fault.execution_id}: {fault.detail}" for fault in checked.faults]
    return Law(
        "histories",
        checked.executions,
        sum(checked.counts.values()),
        tuple(says[: laws.SHOWN]),
        {
            "events": checked.events,
            "repeats": checked.repeats,
            "forks": checked.forks,
            "repeated_starts": checked.repeated_starts,
            "refused": checked.refused,
            "kinds": dict(checked.counts),
        },
    )


async def _telemetry(folder: Folder, settings: Settings, reader: TopicReader, wait_s: float) -> list[Law]:
    if folder.acks is None and folder.books is None and not folder.plan.telemetry:
        return [not_asked(name) for name in ("telemetry", "books", "rollups")]
    found = await read_telemetry(reader)
    plan = folder.plan
    return [
        telemetry(found, folder.acks, folder.books),
        not_asked("books") if folder.books is None else books(found, folder.books),
        await _rollups(settings, reader, wait_s, in_order=plan.in_order) if plan.telemetry else not_asked("rollups"),
    ]


async def _rollups(settings: Settings, reader: TopicReader, wait_s: float, *, in_order: bool) -> Law:
    """`app.rollup_check`: what the transform emitted is what is recomputed from the telemetry.

    What it calls late is left out of that on its word; where nothing can be, nothing may be called so.
    """
    transform = terms_of(settings)
    group = f"{settings.kafka.client_id}-transform"
    terms = RollupTerms(transform.spec, transform.limits, group, wait_s)
    try:
        checked = await check_rollups(reader, settings.kafka, terms, clock=SystemClock())
    except HeadraceError as error:
        return Law("rollups", 0, 1, (str(error),))
    says = [f"{kind_of(each)}: {'/'.join(map(str, each.key))}: {each.detail}" for each in checked.differences]
    refused = checked.late + checked.dead if in_order else 0
    if refused:
        says.insert(0, f"{checked.late:,} readings were called late and {checked.dead:,} unreadable; none is")
    facts = {"records": checked.records, "late": checked.late, "dead": checked.dead, "open": checked.open_windows}
    return Law("rollups", checked.windows, sum(checked.counts.values()) + refused, tuple(says[: laws.SHOWN]), facts)


def show(report: Report) -> None:
    """Print it as a table, and what breaks which law."""
    for each in report.laws:
        word = "not asked" if not each.asked else "holds" if each.holds else "BROKEN"
        facts = ", ".join(f"{name} {value}" for name, value in each.facts.items())
        print(f"{each.name:14} {word:10} {each.looked:>10,}  {facts}")
        for text in each.says if not each.holds else ():
            print(f"    {text}")
        if each.asked and not each.looked and not each.broken:
            print("    there was nothing to look at, which proves nothing")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the options, judge, print; 1 when a law is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--wait-s", type=float, default=COMMIT_WAIT_S, help="for what is not committed yet")
    options = parser.parse_args(arguments)
    try:
        report = asyncio.run(judge(options.folder, options.wait_s))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        show(report)
    return 0 if report.holds else 1


if __name__ == "__main__":
    sys.exit(main())

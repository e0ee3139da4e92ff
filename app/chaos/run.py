"""One run of the fault suite: start, load, faults, heal, final read, check.

    python -m app.chaos --seconds 60 --seed 1 --faults kill,stop-worker --report report.json

A run whose faults did not all happen, or in which too little was acknowledged, proves nothing and fails.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from app.adapters.topic_reader import TopicReader
from app.chaos.catalog import chosen_kinds
from app.chaos.driver import Driver
from app.chaos.final_read import Ends
from app.chaos.nemesis import Done, Nemesis, Say
from app.chaos.oplog import OpLog
from app.chaos.rig import Rig, Shape
from app.chaos.scene import Entry, Scene
from app.chaos.schedule import Planned, schedule
from app.chaos.verdict import Verdict, judged
from app.chaos.workflows import EFFECT, POISON, WORKFLOW, definitions
from app.errors import HeadraceError
from config.kafka import KafkaSettings

END_WITHIN_S: Final = 60.0
OK_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of a run."""

    seconds: float = 60.0
    seed: int = 1
    every_s: float = 5.0
    rate: float = 50.0
    batch: int = 5
    faults: tuple[str, ...] = ()
    shape: Shape = field(default_factory=Shape)


@dataclass(slots=True)
class Report:
    """What was done and what was found."""

    plan: Plan
    load: dict[str, int] = field(default_factory=dict)
    faults: Done = field(default_factory=Done)
    planned: Sequence[Planned] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=Verdict)

    @property
    def problems(self) -> list[str]:
        """Every reason for which this is no proof; empty when it is one."""
        found = list(self.verdict.problems)
        found += [f"fault {one.number} ({one.kind}) did not happen" for one in self.faults.missing]
        if not self.planned:
            found.append("no fault was planned")
        if self.load["accepted"] < OK_SHARE * self.load["planned"]:
            found.append(f"too little was acknowledged to prove anything: {self.load}")
        return found

    def as_dict(self) -> dict[str, Any]:
        shape = self.plan.shape
        return {
            "seed": self.plan.seed,
            "nodes": shape.nodes,
            "brokers": shape.brokers,
            "load": self.load,
            "faults": dict(sorted(self.faults.happened.items())),
            "faults_total": self.faults.happened.total(),
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            **self.verdict.figures,
            "problems": self.problems,
        }


async def prove(plan: Plan, folder: Path, say: Say) -> Report:
    """1 start, 2 load, 3 faults, 4 heal, 5 final read, 6 check."""
    entries = {entry.kind.name: entry for entry in chosen_kinds(plan.faults, plan.shape)}
    planned = schedule(plan.seed, plan.seconds, [entry.kind for entry in entries.values()], plan.every_s)
    report = Report(plan, planned=planned)
    began = time.monotonic()
    shape = replace(plan.shape, needs=frozenset(entry.needs for entry in entries.values() if entry.needs))
    async with Rig(folder, shape, plan.seed) as rig:  # 1
        report.seconds["start"] = time.monotonic() - began
        say(f"up after {report.seconds['start']:.1f} s: {plan.shape.nodes} nodes, {plan.shape.brokers} brokers")
        started_ns = time.time_ns()
        async with OpLog(folder / "ops.jsonl", "start") as log:
            driver = Driver(rig.api_ports, log, WORKFLOW, plan.rate, plan.batch, plan.seed)
            for each in definitions(rig.effects_url):
                await driver.register(each)
            async with _loaded(driver):  # 2
                await _faults(Scene(rig, driver), entries, report, folder, say)  # 3
                await rig.until_ready()  # 4
                healed_ns = time.time_ns()
        report.load = driver.tally.as_dict()
        say(f"healed; load: {report.load}; faults: {dict(report.faults.happened)}")
        ended_ns = time.time_ns()
        reader = TopicReader(KafkaSettings(bootstrap_servers=rig.bootstrap))
        report.seconds["to the last end"] = await Ends(reader).until(driver.tally.accepted, END_WITHIN_S)  # 5
        _write_run(folder, rig, report, (started_ns, healed_ns, ended_ns))
        checking = time.monotonic()
        report.verdict = await judged(folder, rig.bootstrap, frozenset(driver.tally.accepted))  # 6
        report.seconds["check"] = time.monotonic() - checking
    report.seconds["all"] = time.monotonic() - began
    return report


@asynccontextmanager
async def _loaded(driver: Driver) -> AsyncIterator[None]:
    """The load goes on until the block ends; a driver that breaks ends the block."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(driver.run(stop))
        try:
            yield
        finally:
            stop.set()


async def _faults(scene: Scene, entries: dict[str, Entry], report: Report, folder: Path, say: Say) -> None:
    nemesis = Nemesis(scene, entries, folder / "faults.jsonl", say)
    report.faults = nemesis.done
    began = time.monotonic()
    await nemesis.run(report.planned)
    await asyncio.sleep(max(0.0, began + report.plan.seconds - time.monotonic()))
    report.seconds["faults"] = time.monotonic() - began


def _write_run(folder: Path, rig: Rig, report: Report, times_ns: tuple[int, int, int]) -> None:
    """run.json, by which the checker knows what was planned."""
    started_ns, healed_ns, ended_ns = times_ns
    document = {
        "seed": report.plan.seed,
        "bootstrap": rig.bootstrap,
        "client_id": "headrace",
        "started_ns": started_ns,
        "healed_ns": healed_ns,
        "ended_ns": ended_ns,
        "planned_starts": report.load["planned"],
        "planned_faults": [one.as_dict() for one in report.planned],
        "effects": {WORKFLOW: [EFFECT], POISON: [EFFECT]},
        "end_within_s": END_WITHIN_S,
        "ok_share": OK_SHARE,
        "settle_s": 5,
        "telemetry": False,
        "settings": dict(rig.shape.settings),
    }
    (folder / "run.json").write_text(json.dumps(document, indent=2))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the options, prove, print JSON; 1 when a promise was not kept or nothing was proved."""
    import uvloop  # noqa: PLC0415 - only the program chooses the loop

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every-s", type=float, default=5.0, help="seconds between faults, in the mean")
    parser.add_argument("--rate", type=float, default=50.0, help="starts a second")
    parser.add_argument("--batch", type=int, default=5, help="starts a request")
    parser.add_argument("--faults", default="", help="kinds or beginnings of kinds, with commas; all when empty")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--brokers", type=int, choices=(1, 3), default=3)
    parser.add_argument("--folder", type=Path, help="keep everything here; a temporary folder otherwise")
    parser.add_argument("--report", type=Path, help="write the report here too")
    options = parser.parse_args(arguments)
    plan = Plan(
        options.seconds,
        options.seed,
        options.every_s,
        options.rate,
        options.batch,
        tuple(name for name in options.faults.split(",") if name),
        Shape(nodes=options.nodes, brokers=options.brokers),
    )

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    return _run(plan, options.folder, options.report, say, uvloop.run)


def _run(plan: Plan, folder: Path | None, path: Path | None, say: Say, run: Any) -> int:
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-chaos-")))
        folder.mkdir(parents=True, exist_ok=True)
        try:
            report: Report = run(prove(plan, folder, say))
        except HeadraceError as error:
            say(str(error))
            return error.exit_code if isinstance(getattr(error, "exit_code", None), int) else 1
    text = json.dumps(report.as_dict(), indent=2)
    print(text)
    if path is not None:
        path.write_text(text + "\n")
    return 1 if report.problems else 0

"""One run of the fault suite: start, load, faults, heal, final read, check.

    python -m app.chaos --seconds 60 --seed 1 --faults kill,stop-worker --report report.json

A run whose faults did not all happen, or in which too little was acknowledged, proves nothing and fails.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from app.adapters.topic_reader import TopicReader
from app.chaos.catalog import chosen_kinds
from app.chaos.checker import Report as Judgement
from app.chaos.checker import judge
from app.chaos.driver import Driver
from app.chaos.final_read import Ends
from app.chaos.nemesis import Done, Nemesis, Say
from app.chaos.oplog import OpLog
from app.chaos.readings import Readings, Sent
from app.chaos.rig import Rig, Shape
from app.chaos.scene import Entry, Scene
from app.chaos.schedule import Planned, schedule
from app.chaos.workflows import EFFECT, LIGHT, POISON, WORKFLOW, definitions
from app.errors import HeadraceError
from config.kafka import KafkaSettings

END_WITHIN_S: Final = 120.0
# So long after a fault requests may still be refused: a process is being started.
SETTLE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of a run."""

    seconds: float = 60.0
    seed: int = 1
    every_s: float = 5.0
    rate: float = 50.0
    batch: int = 5
    light: float = 0.0
    faults: tuple[str, ...] = ()
    devices: int = 0
    metrics: int = 5
    interval_s: float = 1.0
    ok_share: float = 0.5
    shape: Shape = field(default_factory=Shape)


@dataclass(slots=True)
class Report:
    """What was done and what was found."""

    plan: Plan
    load: dict[str, int] = field(default_factory=dict)
    faults: Done = field(default_factory=Done)
    planned: Sequence[Planned] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    readings: Sent = field(default_factory=Sent)
    statuses: Counter[str] = field(default_factory=Counter)
    judgement: Judgement | None = None
    found_dead: Sequence[str] = ()
    not_healed: Sequence[str] = ()

    @property
    def problems(self) -> list[str]:
        """Every reason for which this is no proof; empty when it is one."""
        found = [f"fault {one.number} ({one.kind}) did not happen" for one in self.faults.missing]
        if not self.planned:
            found.append("no fault was planned")
        found += [f"fault {one.number} ({one.kind}): {text}" for one, text in self.faults.wrong]
        found += [f"{name} had ended by itself before the heal" for name in self.found_dead]
        found += [f"the link {name} is not as it was" for name in self.not_healed]
        if self.judgement is None:
            return [*found, "nothing was judged"]
        if unhappy := {status: count for status, count in self.statuses.items() if status != "succeeded"}:
            found.append(f"ended otherwise: {unhappy}")
        found += [f"{law.name}: {text}" for law in self.judgement.broken for text in law.says or ("does not hold",)]
        return found

    def as_dict(self) -> dict[str, Any]:
        shape = self.plan.shape
        return {
            "seed": self.plan.seed,
            "nodes": shape.nodes,
            "brokers": shape.brokers,
            "load": self.load,
            "readings": self.readings.as_dict(),
            "faults": dict(sorted(self.faults.happened.items())),
            "faults_total": self.faults.happened.total(),
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "statuses": dict(self.statuses),
            "laws": {} if self.judgement is None else self.judgement.as_dict()["laws"],
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
            shares = {WORKFLOW: 1.0 - plan.light, LIGHT: plan.light}
            driver = Driver(rig.api_ports, log, shares, plan.rate, plan.batch, plan.seed)
            for each in definitions(rig.effects_url):
                await driver.register(each)
            readings = Readings(rig.bootstrap_of(0), folder, plan.devices, plan.metrics, plan.interval_s)
            report.readings = readings.sent
            await rig.start_witness()
            async with _loaded(driver, readings if plan.devices else None):  # 2
                await _faults(Scene(rig, driver), entries, report, folder, say)  # 3
                report.not_healed = [name for name, link in rig.links.items() if not link.is_clear]
                await rig.until_ready()  # 4
                report.found_dead = rig.found_dead
                healed_ns = time.time_ns()
        report.load = driver.tally.as_dict()
        say(f"healed; load: {report.load}; readings: {report.readings.as_dict()}")
        ended_ns = time.time_ns()
        ends = Ends(TopicReader(KafkaSettings(bootstrap_servers=rig.bootstrap)))
        report.seconds["to the last end"] = await ends.until(driver.tally.accepted, END_WITHIN_S)  # 5
        report.statuses = ends.statuses
        await rig.stop_witness()
        _write_run(folder, rig, report, (started_ns, healed_ns, ended_ns))
        checking = time.monotonic()
        report.judgement = await judge(folder)  # 6
        report.seconds["check"] = time.monotonic() - checking
    report.seconds["all"] = time.monotonic() - began
    return report


@asynccontextmanager
async def _loaded(driver: Driver, readings: Readings | None) -> AsyncIterator[None]:
    """The load goes on until the block ends; a driver that breaks ends the block."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(driver.run(stop))
        if readings is not None:
            group.create_task(readings.run(stop))
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
        "ok_share": report.plan.ok_share,
        "acknowledged_share": report.plan.ok_share,
        "settle_s": SETTLE_S,
        "telemetry": report.plan.devices > 0,
        "in_order": True,
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
    parser.add_argument("--light", type=float, default=0.0, help="share of the starts that have no effect outside")
    parser.add_argument("--faults", default="", help="kinds or beginnings of kinds, with commas; all when empty")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--brokers", type=int, choices=(1, 3), default=3)
    parser.add_argument("--devices", type=int, default=20, help="devices that send readings; 0 for none")
    parser.add_argument("--metrics", type=int, default=5, help="readings of a sample")
    parser.add_argument("--interval-s", type=float, default=1.0, help="seconds between two samples of a device")
    parser.add_argument("--folder", type=Path, help="keep everything here; a temporary folder otherwise")
    parser.add_argument("--report", type=Path, help="write the report here too")
    options = parser.parse_args(arguments)
    plan = Plan(
        options.seconds,
        options.seed,
        options.every_s,
        options.rate,
        options.batch,
        options.light,
        tuple(name for name in options.faults.split(",") if name),
        options.devices,
        options.metrics,
        options.interval_s,
        shape=Shape(nodes=options.nodes, brokers=options.brokers),
    )

    # What the driver's own clients meet is what the run is for.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

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

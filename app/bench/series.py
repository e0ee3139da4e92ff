"""A series of runs of several sides that take turns, made into one result."""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from app.bench.child import SideFailed
from app.bench.environments import Command, PeerMissing, Say
from app.bench.result import Result, Run
from app.bench.side import OURS, Effort, Side, chosen
from app.bench.statistics import interleaved, median

Measure = Callable[[Side, Command, int], Awaitable[Run]]
"""Measures one run of one side; raises `SideFailed` when it did not do the work."""


async def series(
    name: str,
    unit: str,
    sides: Sequence[Side],
    effort: Effort,
    settings: Mapping[str, Any],
    measure: Measure,
    say: Say,
) -> Result:
    """Find every side, measure them in turns, and take each one's median.

    A side that cannot be installed, or fails a run, is reported in `missing` with the reason and the
    others go on; so a failure of ours leaves `ours` None and is seen, never averaged away.
    """
    missing: dict[str, str] = {}
    commands: dict[str, Command] = {}
    by_name = {side.name: side for side in chosen(sides, effort.peers)}
    for side in by_name.values():
        try:
            commands[side.name] = side.command(partial(_say_of, say, side.name))
        except PeerMissing as absent:
            missing[side.name] = str(absent)
    runs: list[Run] = []
    load_before = os.getloadavg()[0]
    for number, side_name in interleaved(tuple(commands), effort.runs):
        if side_name in missing:
            continue
        try:
            run = await measure(by_name[side_name], commands[side_name], number)
        except SideFailed as failure:
            missing[side_name] = str(failure)
            continue
        runs.append(run)
        say(f"run {number + 1}/{effort.runs} {side_name}: {_short(run)} {unit}")
    return _result(name, unit, by_name, commands, runs, missing, {**settings, "load_average_before": load_before})


def _say_of(say: Say, side: str, text: str) -> None:
    say(f"{side}: {text}")


def _short(run: Run) -> str:
    return f"{run.value:,.0f}" if isinstance(run.value, float) else str(run.value)


def _result(
    name: str,
    unit: str,
    sides: Mapping[str, Side],
    commands: Mapping[str, Command],
    runs: Sequence[Run],
    missing: Mapping[str, str],
    settings: Mapping[str, Any],
) -> Result:
    medians = {
        side: median(values)
        for side in sides
        if side not in missing and (values := [r.value for r in runs if r.side == side and isinstance(r.value, float)])
    }
    ours = medians.pop(OURS, None)
    return Result(
        name=name,
        unit=unit,
        ours=ours,
        peers=medians,
        settings={
            **settings,
            "durability": {side: one.durability for side, one in sides.items()},
            "versions": {side: command.versions for side, command in commands.items()},
        },
        runs=tuple(runs),
        missing=dict(missing),
        targets={side: one.target for side, one in sides.items() if one.target is not None},
    )


def machine() -> dict[str, Any]:
    """What every result says of where it was measured."""
    return {"cpus": os.cpu_count(), "order": "interleaved ABBA", "figure": "median of the runs"}

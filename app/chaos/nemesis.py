"""Puts in the faults of a schedule, each at its time, and writes down what was seen of each."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from app.chaos.scene import Entry, NoVictim, Scene, Struck
from app.chaos.schedule import Planned

# What was just killed is being started again; a fault waits for it this long.
VICTIM_WAIT_S: Final = 15.0
_RETRY_S: Final = 0.1
Say = Callable[[str], None]


@dataclass(slots=True)
class Done:
    """What became of the schedule; `wrong` is what the product did of itself that it should not."""

    happened: Counter[str] = field(default_factory=Counter)
    missing: list[Planned] = field(default_factory=list)
    wrong: list[tuple[Planned, str]] = field(default_factory=list)


class Nemesis:
    """One run of a schedule; the rows of `path` are those of faults.jsonl."""

    def __init__(self, scene: Scene, entries: Mapping[str, Entry], path: Path, say: Say) -> None:
        self.done = Done()
        self._scene, self._entries, self._say = scene, entries, say
        self._path = path

    async def run(self, planned: Sequence[Planned]) -> None:
        """Return when the last fault has been taken back. Faults whose times overlap are there together."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        async with asyncio.TaskGroup() as group:
            for one in planned:
                await asyncio.sleep(max(0.0, began_s + one.at_s - loop.time()))
                group.create_task(self._strike(one), name=one.kind)

    async def _strike(self, planned: Planned) -> None:
        at_ns = time.time_ns()
        struck = await self._inject(planned)
        row = {
            "number": planned.number,
            "fault": planned.kind,
            "victim": struck.victim,
            "at_ns": at_ns,
            "until_ns": time.time_ns(),
            "proof": dict(struck.proof),
        }
        with self._path.open("ab") as file:
            file.write(orjson.dumps(row) + b"\n")
        if struck.proof:
            self.done.happened[planned.kind] += 1
        else:
            self.done.missing.append(planned)
        self.done.wrong += [(planned, text) for text in _wrong(struck.proof)]
        self._say(f"{planned.at_s:7.1f} s  {planned.kind} of {struck.victim or 'nobody'}: {_short(struck.proof)}")

    async def _inject(self, planned: Planned) -> Struck:
        for _ in range(
            round(VICTIM_WAIT_S / _RETRY_S)
        ):  # the time in which it waits for its turn is no wait for a victim
            with contextlib.suppress(NoVictim):
                return await self._entries[planned.kind].inject(self._scene, planned)
            await asyncio.sleep(_RETRY_S)
        return Struck("", {})


def _wrong(proof: Mapping[str, Any]) -> Iterator[str]:
    if proof.get("orderly") is False:
        yield "the node did not stop in order"
    if orphans := proof.get("orphans"):
        yield f"processes outlived their supervisor: {orphans}"


def _short(proof: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in proof.items()) or "it did not happen"

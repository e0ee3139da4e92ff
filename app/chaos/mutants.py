"""Proves the checker: the product with one seeded bug at a time, and the law that convicts it.

python -m app.chaos.mutants --all [--only NAME] [--bootstrap …]     every control and mutant, and the table
python -m app.chaos.mutants NAME -- worker --roles coordinator …    the product with that bug
python -m app.chaos.mutants --list
"""

import argparse
import json
import runpy
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from app.chaos.mutants_case import CONTROLS, MUTANTS, Case
from app.chaos.mutants_patches import PATCHES
from app.errors import HeadraceError

KAFKA_SETTINGS: Final = {"group.min.session.timeout.ms": "500", "group.initial.rebalance.delay.ms": "0"}
DID_NOT_RUN: Final = "did not run"


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of one case: the laws that were broken, what they said first, and whether that is as it must be."""

    case: Case
    broken: tuple[str, ...]
    says: str
    seconds: float

    @property
    def is_right(self) -> bool:
        """A control passes; a mutant is convicted by a law that is meant to."""
        return not self.broken if not self.case.laws else bool(self.case.laws & set(self.broken))


def product(name: str, arguments: Sequence[str]) -> None:
    """Put the bug in, then be `headrace`; does not return."""
    PATCHES[name]()
    sys.argv = ["headrace", *arguments]
    runpy.run_module("app", run_name="__main__")  # loaded with the bug in place


async def try_all(cases: Sequence[Case], folder: Path, say: Callable[[str], None]) -> list[Tried]:
    """Every case on one broker, one after the other."""
    from app.adapters.embedded import EmbeddedKafka  # noqa: PLC0415 - the product with a bug needs no broker
    from app.bench.child import SideFailed  # noqa: PLC0415 - as below
    from app.chaos.mutants_runs import run_case  # noqa: PLC0415 - as above
    from config.embedded import EmbeddedSettings  # noqa: PLC0415 - as above

    found = []
    settings = EmbeddedSettings(port=0, heap_mib=384, data_dir=str(folder / "kafka"))
    async with EmbeddedKafka(settings, overrides=KAFKA_SETTINGS) as kafka:
        for number, case in enumerate(cases):
            began = time.monotonic()
            try:
                report = await run_case(case, kafka, folder / f"{number}-{case.name}")
            except (SideFailed, HeadraceError) as error:  # no verdict, and the next is tried all the same
                one = Tried(case, (DID_NOT_RUN,), str(error), time.monotonic() - began)
            else:
                wanted = sorted(report.broken, key=lambda each: each.name not in case.laws)
                says = next((text for each in wanted for text in each.says), "")
                one = Tried(case, tuple(each.name for each in wanted), says, time.monotonic() - began)
            found.append(one)
            say(row_of(one))
    return found


def row_of(one: Tried) -> str:
    """One line of the table."""
    case = one.case
    word = ("passes" if not case.laws else "caught") if one.is_right else ("CONVICTED" if not case.laws else "MISSED")
    laws = ", ".join(one.broken) or "-"
    return f"{case.name:30} {case.fault:30} {word:10} {laws:40} {one.seconds:5.1f} s  {one.says[:110]}"


def _as_dict(one: Tried) -> dict[str, Any]:
    return {
        "mutant": one.case.name,
        "run": one.case.run,
        "fault": one.case.fault,
        "right": one.is_right,
        "broken": list(one.broken),
        "says": one.says,
        "seconds": round(one.seconds, 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the options; 1 when a mutant lives or a control is convicted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--" in given and given[0] in PATCHES:
        product(given[0], given[given.index("--") + 1 :])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every control and mutant")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="only these, and no control")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--folder", type=Path, help="keep the folders of the runs here")
    parser.add_argument("--report", type=Path, help="write the table here as JSON")
    options = parser.parse_args(given)
    cases = [case for case in (*CONTROLS, *MUTANTS) if not options.only or case.name in options.only]
    if options.list or not (options.all or options.only):
        for case in MUTANTS:
            print(f"{case.name:30} {case.fault:30} {PATCHES[case.name].__doc__}")
        return 0
    return _tried(cases, options.folder, options.report)


def _tried(cases: Sequence[Case], kept: Path | None, report: Path | None) -> int:
    import uvloop  # noqa: PLC0415 - only the program chooses the loop

    folder = kept or Path(tempfile.mkdtemp(prefix="headrace-mutants-"))
    try:
        tried = uvloop.run(try_all(cases, folder, lambda text: print(text, flush=True)))
    finally:
        if kept is None:
            shutil.rmtree(folder, ignore_errors=True)
    wrong = [one.case.name for one in tried if not one.is_right]
    caught = sum(one.is_right for one in tried if one.case.laws)
    print(
        f"{caught} of {sum(bool(one.case.laws) for one in tried)} mutants caught; wrong: {', '.join(wrong) or 'none'}."
    )
    if report is not None:
        report.write_text(json.dumps([_as_dict(one) for one in tried], indent=2) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

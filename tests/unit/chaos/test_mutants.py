"""Laws of the seeded mutants: each finds what it replaces, each has a run and a control, none is in the product."""

import subprocess
import sys

from app.chaos.mutants_case import CONTROLS, MUTANTS
from app.chaos.mutants_patches import PATCHES

APPLY = """
from app.chaos.mutants_patches import PATCHES
for patch in PATCHES.values():
    patch()
from app.cli import main
print(len(PATCHES))
"""


def test_every_mutant_finds_in_the_product_what_it_replaces() -> None:
    done = subprocess.run([sys.executable, "-c", APPLY], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, str(len(PATCHES))), done.stderr


def test_there_are_a_dozen_mutants_each_with_a_bug_that_is_told_and_laws_that_must_convict_it() -> None:
    assert len(MUTANTS) >= 12
    assert {case.name for case in MUTANTS} == PATCHES.keys() - {"nothing"}
    assert all(case.laws for case in MUTANTS)
    assert all((PATCHES[case.name].__doc__ or "").endswith(".") for case in MUTANTS)


def test_every_fault_is_also_survived_by_the_product_without_a_bug() -> None:
    survived = {(case.run, case.fault) for case in CONTROLS}
    assert all(case.name == "nothing" and not case.laws for case in CONTROLS)
    assert {(case.run, case.fault) for case in MUTANTS} == survived

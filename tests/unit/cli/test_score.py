"""Laws of `headrace score` where no broker is needed: files by their labels, the fleet by its faults."""

from pathlib import Path

import pytest

from tests.helpers.cli import DATA, refused, said

MAPPING = """
time: {column: at, format: epoch_s}
device: {id: "rec-{file}"}
metrics: [{metric: temperature, column: temp, unit: CEL}]
labels: {columns: {anomaly: bad, other: other}}
"""
RULES = """
signals:
  rules:
    - {id: hot, kind: threshold, above: 90}
"""


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Hot from 50 to 59, labelled from 48 on; something else is labelled at 80; one row is broken."""
    rows = [f"{1_577_836_800 + n},{95 if 50 <= n < 60 else 20},{int(48 <= n < 60)},{int(n == 80)}" for n in range(100)]
    rows[10] = "soon,1,0,0"
    (tmp_path / "one.csv").write_text("\n".join(["at,temp,bad,other", *rows]))
    (tmp_path / "m.yaml").write_text(MAPPING)
    (tmp_path / "r.yaml").write_text(RULES)
    return tmp_path


def score(capsys, folder: Path, *more: str):
    files = (str(folder / "one.csv"), "--mapping", str(folder / "m.yaml"), "--rules", str(folder / "r.yaml"))
    return said(capsys, "score", "files", *files, *more)


def test_files_are_scored_by_their_labels(capsys, recorded: Path) -> None:
    (result,) = score(capsys, recorded, "--json").json.values()
    assert (result["samples"], result["bad_rows"], result["signals"]) == (99, 1, 1)
    total = result["total"]
    assert (total["intervals"], total["detected"], total["false_positives"]) == (2, 1, 0)
    assert total["delay_ms"] == {"p50": 2_000.0, "p95": 2_000.0, "mean": 2_000.0}
    (result,) = score(capsys, recorded, "--ignore-label", "other", "--json").json.values()
    assert (result["total"]["recall"], result["total"]["precision"]) == (1.0, 1.0)


def test_the_table_says_the_same_and_what_was_left_out(capsys, recorded: Path) -> None:
    answer = score(capsys, recorded)
    assert answer.code == 0
    row = next(line.split() for line in answer.out.splitlines() if "one.csv" in line)
    assert row[1:] == ["1", "2", "0", "1.00", "0.50", "0.67", "2.0", "s", "2.0", "s"]
    assert "rule hot" in answer.out
    assert "1 rows could not be read" in answer.out


def test_the_fleet_is_scored_by_its_planned_faults(capsys) -> None:
    options = ("--devices", "3", "--hours", "0.2", "--set", "device.fault_interval_ms=300000")
    planned = said(capsys, "score", "fleet", *options, "--json").json
    assert planned["total"]["intervals"] > 0
    assert planned["total"]["detected"] > 0
    assert not planned["by_label"].keys() & {"late", "burst", "duplicate", "out_of_order", "clock_skew"}
    calm = said(capsys, "score", "fleet", *options, "--faults", "none", "--json").json
    assert (calm["total"]["intervals"], calm["total"]["recall"]) == (0, None)


def test_what_cannot_be_scored_is_refused(capsys, recorded: Path) -> None:
    assert "no such file" in refused(capsys, "score", "files", "x.csv", "--mapping", "nonsense")
    assert "cannot be read" in refused(capsys, "score", "files", "x.csv", "--mapping", "skab-valve")
    assert "it is all, scored or none" in refused(capsys, "score", "fleet", "--faults", "some")
    assert "--until never" in refused(capsys, "score", "topics", "--until", "never")


@pytest.mark.skipif(not DATA.exists(), reason="the recorded files are not here")
def test_the_figures_of_the_page_are_those_of_the_program(capsys) -> None:
    files = [str(DATA / "skab" / f"valve1_{n}.csv") for n in (0, 1)]
    found = said(
        capsys, "score", "files", *files, "--mapping", "skab-valve", "--rules", "skab", "--ignore-label", "changepoint",
        "--json",
    ).json  # fmt: skip
    assert [(each["total"]["detected"], each["total"]["false_positives"]) for each in found.values()] == [(1, 0)] * 2
    assert [each["total"]["delay_ms"]["p50"] for each in found.values()] == [7_000.0, 57_000.0]

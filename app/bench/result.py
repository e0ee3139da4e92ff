"""The outcome of one benchmark, as JSON or a table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from app.bench.statistics import ratios


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run of one side; `value` is in the benchmark's unit."""

    run: int
    side: str
    value: float | dict[str, float]
    figures: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"run": self.run, "side": self.side, "value": _rounded(self.value), **self.figures}


@dataclass(frozen=True, slots=True)
class Result:
    """What a benchmark found; `missing` says why a peer has no figure, `targets` what `ratios` should reach."""

    name: str
    unit: str
    ours: float | dict[str, float] | None
    peers: dict[str, float]
    settings: dict[str, Any]
    runs: tuple[Run, ...]
    missing: dict[str, str] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)

    @property
    def ratios(self) -> dict[str, float]:
        return {} if isinstance(self.ours, dict) else ratios(self.ours, self.peers)

    def as_dict(self) -> dict[str, Any]:
        """The shape of `--json`: exactly these keys, whichever benchmark it is."""
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": _rounded(self.ours),
            "peers": {peer: _rounded(value) for peer, value in self.peers.items()},
            "ratios": self.ratios,
            "settings": {**self.settings, "missing_peers": self.missing, "target_ratios": self.targets},
            "runs": [run.as_dict() for run in self.runs],
        }


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 1) if abs(value) >= 100 else round(value, 3)
    return value


def write_json(result: Result, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result.as_dict(), indent=2) + "\n", encoding="utf-8")


def show(result: Result, console: Console) -> None:
    """Print the medians and ratios, then the settings every side ran with."""
    console.print(_several(result) if isinstance(result.ours, dict) else _figures(result))
    console.print(_settings(result))
    for peer, reason in sorted(result.missing.items()):
        console.print(f"no figure for {peer}: {reason}", style="yellow", markup=False)


def _several(result: Result) -> Table:
    """A result of several figures: the medians, then each run with its circumstances."""
    table = Table(title=f"{result.name} ({result.unit})", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    assert isinstance(result.ours, dict)
    table.add_row("headrace", _listed(result.ours))
    for run in result.runs:
        value = run.value if isinstance(run.value, dict) else {"value": run.value}
        table.add_row(f"run {run.run + 1}", _listed({**value, **run.figures}))
    return table


def _listed(figures: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in figures.items()
    )


def _figures(result: Result) -> Table:
    table = Table(title=f"{result.name} ({result.unit})", title_justify="left")
    for heading in ("side", "median", "ours / peer", "target", "runs"):
        table.add_column(heading, justify="left" if heading == "side" else "right")
    mine = f"{result.ours:,.0f}" if isinstance(result.ours, float) else "no figure"
    table.add_row("headrace", mine, "", "", _spread(result, "headrace"))
    for peer, value in result.peers.items():
        ratio = result.ratios.get(peer)
        target = result.targets.get(peer)
        table.add_row(
            peer,
            f"{value:,.0f}",
            "" if ratio is None else f"{ratio:.2f} ×",
            "" if target is None else f"≥ {target:g} ×",
            _spread(result, peer),
        )
    return table


def _spread(result: Result, side: str) -> str:
    """Each run's figure, so that a reader sees how far the median may be trusted."""
    return "  ".join(f"{r.value:,.0f}" for r in result.runs if r.side == side and isinstance(r.value, float))


def _settings(result: Result) -> Table:
    table = Table(title="settings", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in result.settings.items():
        between = "\n" if key in ("durability", "versions") else ", "
        shown = between.join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(key, shown)
    return table

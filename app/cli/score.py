"""`headrace score`: precision, recall and detection delay of the signal rules."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.broker import Bootstrap, Since, ask_kafka, since_ms
from app.cli.options import AsJson, ConfigFile, SetFlags, load_settings, print_json
from app.cli.tables import show_table
from app.errors import UserError

if TYPE_CHECKING:
    from app.adapters.score_reader import Scored
    from app.domain.scoring import Figures, Score
    from app.domain.signals import CompiledRules
    from config.settings import Settings

app = typer.Typer()

Tolerance = Annotated[
    float,
    typer.Option("--tolerance-s", metavar="S", min=0, help="A signal this long after the end of a fault still counts."),
]
Ignore = Annotated[
    list[str] | None,
    typer.Option("--ignore-label", metavar="KIND", help="Truth of this kind does not count; repeatable."),
]
Rules = Annotated[
    str | None,
    typer.Option("--rules", metavar="NAME|PATH", help="A rule file instead of signals.rules of the settings."),
]


@app.command()
def topics(
    since: Since = None,
    until: Annotated[str | None, typer.Option("--until", metavar="WHEN", help="As --since; default: the end.")] = None,
    ignore: Ignore = None,
    tolerance_s: Tolerance = 0.0,
    bootstrap: Bootstrap = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Score device.signals against device.truth, by event time.

    Transport faults and clock skew leave the readings as they are and are no faults that a rule should find.
    """
    bounds = (since_ms(since), since_ms(until, "--until"))

    async def work(settings: "Settings") -> "Scored":
        from app.adapters.connection import security_options  # noqa: PLC0415 - `--help` needs no Kafka client
        from app.adapters.score_reader import UNSCORED_FAULTS, Range, score_topics  # noqa: PLC0415 - as above

        client = {"bootstrap_servers": settings.kafka.bootstrap_servers, **security_options(settings.kafka)}
        ignored = (*UNSCORED_FAULTS, *(ignore or ()))
        return await score_topics(
            client, tolerance_ms=round(tolerance_s * 1000), within=Range(*bounds), ignored_faults=ignored
        )

    found = ask_kafka(config, flags, bootstrap, work)
    if as_json:
        print_json({**_document(found.score), "signals": found.signals, "unreadable": found.unreadable})
        return
    _print({"": found.score})
    print(f"{found.signals:,} signals, {found.intervals:,} faults.")
    if found.unreadable:
        print(f"{found.unreadable:,} records could not be read and were left out.")


@app.command()
def files(
    recordings: Annotated[list[Path], typer.Argument(metavar="FILE", help="Recorded CSV files with labels.")],
    mapping: Annotated[str, typer.Option("--mapping", metavar="NAME|PATH", help="What the columns mean.")],
    rules: Rules = None,
    ignore: Ignore = None,
    tolerance_s: Tolerance = 0.0,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Run the rules over recorded files and score them by the files' labels, without Kafka."""
    from app.adapters.csv_replay import open_recording  # noqa: PLC0415 - as above
    from app.backtest import backtest  # noqa: PLC0415 - as above
    from config.mapping import load_mapping  # noqa: PLC0415 - as above

    meaning = load_mapping(mapping)
    compiled = _rules(rules, config, flags)
    results = {
        str(path): backtest(
            open_recording([path], meaning),
            compiled,
            tolerance_ms=round(tolerance_s * 1000),
            ignored_labels=tuple(ignore or ()),
        )
        for path in dict.fromkeys(recordings)
    }
    if as_json:
        print_json(
            {
                name: {
                    **_document(result.score),
                    "signals": result.signals,
                    "samples": result.samples,
                    "bad_rows": result.bad_rows,
                }
                for name, result in results.items()
            }
        )
        return
    _print({name: result.score for name, result in results.items()}, labels=False)
    bad = sum(result.bad_rows for result in results.values())
    if bad:
        print(f"{bad:,} rows could not be read and were left out.")


@app.command()
def fleet(
    devices: Annotated[int, typer.Option("--devices", metavar="N", min=1, help="Devices of the fleet.")] = 44,
    hours: Annotated[float, typer.Option("--hours", metavar="H", min=0.01, help="Hours that are simulated.")] = 3.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Another seed is another fleet.")] = 1,
    faults: Annotated[
        str, typer.Option("--faults", metavar="all|scored|none", help="scored: only faults that a rule should find.")
    ] = "all",
    rules: Rules = None,
    tolerance_s: Tolerance = 0.0,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Run the rules over the simulated fleet and score them by its planned faults, without Kafka."""
    from app.adapters.score_reader import UNSCORED_FAULTS  # noqa: PLC0415 - as above
    from app.backtest import backtest_fleet  # noqa: PLC0415 - as above

    if faults not in {"all", "scored", "none"}:
        raise UserError(f"--faults {faults}: it is all, scored or none.")
    device = load_settings(config, flags).settings.device
    scored = [each for each in device.fault_kinds if each not in UNSCORED_FAULTS]
    kinds = {"all": device.fault_kinds, "scored": scored, "none": []}[faults]
    interval_ms = device.fault_interval_ms if kinds else 0
    plan = {"count": devices, "seed": seed, "fault_kinds": kinds, "fault_interval_ms": interval_ms}
    result = backtest_fleet(
        device.model_copy(update=plan),
        _rules(rules, config, flags),
        length_ms=round(hours * 3_600_000),
        tolerance_ms=round(tolerance_s * 1000),
        ignored_faults=UNSCORED_FAULTS,
    )
    if as_json:
        print_json({**_document(result.score), "signals": result.signals, "samples": result.samples})
        return
    _print({"": result.score})
    print(f"{result.samples:,} samples, {result.signals:,} signals.")


def _rules(rules: str | None, config: Path | None, flags: list[str] | None) -> "CompiledRules":
    from app.rules import compile_section  # noqa: PLC0415 - as above
    from config.rule_file import load_rules  # noqa: PLC0415 - as above

    return compile_section(load_settings(config, flags).settings.signals if rules is None else load_rules(rules))


def _document(score: "Score") -> dict[str, Any]:
    def plain(figures: "Figures") -> dict[str, Any]:
        delay = None if figures.delay_ms is None else figures.delay_ms._asdict()
        return {**figures._asdict(), "delay_ms": delay}

    def each(groups: "Mapping[str, Figures]") -> dict[str, Any]:
        return {name: plain(figures) for name, figures in groups.items()}

    return {
        "total": plain(score.total),
        "by_rule": each(score.by_rule),
        "by_kind": each(score.by_kind),
        "by_label": each(score.by_label),
    }


def _print(scores: "Mapping[str, Score]", *, labels: bool = True) -> None:
    headings = ("", ">found", ">of", ">false", ">precision", ">recall", ">f1", ">delay p50", ">p95")
    show_table(headings, (row for name, score in scores.items() for row in _rows(name, score, labels=labels)))


def _rows(name: str, score: "Score", *, labels: bool) -> Iterator[tuple[str, ...]]:
    yield _row(name or "all", score.total, is_label=False)
    for rule, figures in score.by_rule.items():
        yield _row(f"  rule {rule}", figures, is_label=False)
    for label, figures in score.by_label.items() if labels else ():
        yield _row(f"  fault {label}", figures, is_label=True)


def _row(name: str, figures: "Figures", *, is_label: bool) -> tuple[str, ...]:
    p50, p95 = ("–", "–") if figures.delay_ms is None else (_length(ms) for ms in figures.delay_ms[:2])
    # False signals belong to no fault.
    false = "" if is_label else str(figures.false_positives)
    shares = (_share(figures.precision), _share(figures.recall), _share(figures.f1))
    return (name, str(figures.detected), str(figures.intervals), false, *shares, p50, p95)


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.2f}"


def _length(ms: float) -> str:
    """A length of time in the unit that a person would say."""
    for unit_ms, unit in ((86_400_000, "days"), (3_600_000, "h")):
        if ms >= 2 * unit_ms:
            return f"{ms / unit_ms:.1f} {unit}"
    return f"{ms / 1000:.0f} s" if ms >= 10_000 else f"{ms / 1000:.1f} s"

"""Scores rules without Kafka: on recorded files by their labels, on a simulated fleet by its planned faults."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

from agents.generate import fleet_of
from app.adapters.csv_replay import Recording
from app.domain.backtest import raised, run_rules
from app.domain.reading import Sample
from app.domain.replay import Recorded
from app.domain.scoring import Score, TruthInterval, score
from app.domain.signals import CompiledRules
from app.domain.window import RollupSpec
from config.device import DeviceSettings


class Backtest(NamedTuple):
    """A score with what it was made from; `bad_rows` of the files were left out."""

    score: Score
    samples: int
    bad_rows: int
    signals: int


def backtest(
    recording: Recording,
    rules: CompiledRules,
    *,
    tolerance_ms: int = 0,
    spec: RollupSpec = RollupSpec(),  # noqa: B008 - an immutable record
    ignored_labels: Collection[str] = (),
) -> Backtest:
    """What the rules say of a recording, scored by its labels; labels of a kind in `ignored_labels` do not count."""
    counted = _Counted(recording)
    signals = raised(run_rules(rules, spec, counted.samples()))
    truth = [
        TruthInterval(each.device_id, each.from_ms, each.to_ms, each.metric, each.kind)
        for each in recording.survey.intervals()
        if each.kind not in ignored_labels
    ]
    return Backtest(score(signals, truth, tolerance_ms), counted.rows, counted.bad_rows, len(signals))


class _Counted:
    """The samples of a recording as a replay makes them, dated as recorded."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.rows = 0
        self.bad_rows = 0

    def samples(self) -> Iterator[Sample]:
        seqs: dict[str, int] = {}
        for row in self._recording.rows():
            if not isinstance(row, Recorded):
                self.bad_rows += 1
                continue
            self.rows += 1
            seq = seqs[row.device_id] = seqs.get(row.device_id, 0) + 1
            yield Sample(row.device_id, 1, seq, row.at_ms, row.at_ms, False, row.readings)


# The fleet's simulated time begins here; any instant does.
FLEET_START_MS = 1_763_683_200_000
_STEP_MS = 100


def backtest_fleet(
    device: DeviceSettings,
    rules: CompiledRules,
    *,
    length_ms: int,
    tolerance_ms: int = 0,
    spec: RollupSpec = RollupSpec(),  # noqa: B008 - an immutable record
    ignored_faults: Collection[str] = (),
) -> Backtest:
    """What the rules say of a simulated fleet with the settings' plan of faults, scored by those faults."""
    fleet = fleet_of(device)
    counted = 0

    def samples() -> Iterator[Sample]:
        nonlocal counted
        fleet.start(FLEET_START_MS)
        for now_ms in range(FLEET_START_MS, FLEET_START_MS + length_ms, _STEP_MS):
            for due in fleet.due(now_ms):
                counted += 1
                yield due.sample
        for due in fleet.close(FLEET_START_MS + length_ms):
            counted += 1
            yield due.sample

    signals = raised(run_rules(rules, spec, samples()))
    # The later record of a fault tells its end.
    faults = {each.fault_id: each for each in fleet.take_truth() if each.kind not in ignored_faults}
    truth = [
        TruthInterval(each.device_id, each.from_ts, each.to_ts or FLEET_START_MS + length_ms, each.metric, each.kind)
        for each in faults.values()
    ]
    return Backtest(score(signals, truth, tolerance_ms), counted, 0, len(signals))

"""Cost of the transform stage's pure part, stage by stage: no Kafka, no RocksDB, CPU time of one core.

    python -m app.bench.micro_rollup [--devices 1000] [--metrics 3] [--rate-hz 10] [--batch 10000] …

Each stage is timed over the same batches; a figure is the best of the rounds.
"""

import argparse
import gc
import json
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, cast, get_args

from app.codec import decode_sample, encode_rollup, encode_sample
from app.domain.reading import Limits, Reading, Sample
from app.domain.rollup import DeviceState, Outcome, observe, settle
from app.domain.window import Emit, RollupSpec
from tables.telemetry import encode_changes

START_MS = 1_763_690_400_000
UNITS = ("CEL", "BAR", "RPM", "AMP")
Record = tuple[bytes, bytes]


def fleet_batches(devices: int, metrics: int, rate_hz: float, batch: int, batches: int) -> list[list[Record]]:
    """Batches of (key, value) as a partition would bring them: every device in turn, in order of time."""
    rng = random.Random(7)
    records: list[Record] = []
    interval_ms = 1_000 / rate_hz
    for tick in range(-(-batch * batches // devices)):
        for number in range(devices):
            device_id = f"press-{number:04}"
            ts = int(START_MS + tick * interval_ms + number * interval_ms / devices)
            readings = tuple(
                Reading(f"metric_{index}", round(rng.gauss(70, 5), 3), UNITS[index % 4], "GOOD", 0)
                for index in range(metrics)
            )
            sample = Sample(device_id, START_MS, tick + 1, ts, ts + 1, is_historical=False, metrics=readings)
            records.append((device_id.encode(), encode_sample(sample)))
    return [records[at : at + batch] for at in range(0, batch * batches, batch)]


def decode_all(batches: Sequence[Sequence[Record]], limits: Limits) -> list[list[Sample]]:
    """Decode and validate every batch."""
    now_ms = START_MS + 86_400_000
    return [[cast(Sample, decode_sample(value, key, limits, now_ms)) for key, value in batch] for batch in batches]


def decide_all(batches: Sequence[Sequence[Sample]], spec: RollupSpec, finish: Callable[[Outcome], None]) -> None:
    """Take every batch as the transform agent does, and give each outcome to `finish`."""
    states: dict[str, DeviceState] = {}
    for batch in batches:
        out = Outcome()
        touched: dict[str, DeviceState] = {}
        for offset, sample in enumerate(batch):
            device_id = sample.device_id
            state = touched.get(device_id)
            if state is None:
                state = states.get(device_id)
                if state is None:
                    state = states[device_id] = DeviceState(device_id, spec)
                touched[device_id] = state
            observe(state, sample, offset, spec, out)
        for state in touched.values():
            settle(state, spec, START_MS, out)
        finish(out)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time the stages and count what they make."""
    batches = fleet_batches(options.devices, options.metrics, options.rate_hz, options.batch, options.batches)
    spec = RollupSpec(grace_ms=options.grace_ms, emit=options.emit)
    limits = Limits()
    samples = decode_all(batches, limits)
    made = {"rollups": 0, "rollup_bytes": 0, "state_writes": 0, "state_bytes": 0}

    def outputs(out: Outcome) -> None:
        made["rollups"] += len(out.rollups)
        made["rollup_bytes"] += sum(len(encode_rollup(rollup)) for rollup in out.rollups)

    def states(out: Outcome) -> None:
        for state, windows in out.changed:
            for key, value in encode_changes(state, windows, spec):
                made["state_writes"] += 1
                made["state_bytes"] += len(key) + len(value)

    # A batch at a time, as in the service: to hold all samples at once would measure the garbage collector.
    decode_s = best(lambda: [len(decode_all([batch], limits)) for batch in batches], options.rounds)
    decide_s = best(lambda: decide_all(samples, spec, lambda _: None), options.rounds)
    outputs_s = best(lambda: decide_all(samples, spec, outputs), options.rounds) - decide_s
    states_s = best(lambda: decide_all(samples, spec, states), options.rounds) - decide_s
    count = options.batch * options.batches
    seconds = {"decode_validate": decode_s, "decide": decide_s, "encode_rollups": outputs_s, "encode_states": states_s}
    return {
        "settings": vars(options),
        "us_per_sample": {stage: round(spent / count * 1e6, 3) for stage, spent in seconds.items()},
        "decode_and_decide_per_s": round(count / (decode_s + decide_s)),
        "everything_per_s": round(count / sum(seconds.values())),
        "per_sample": {name: round(value / options.rounds / count, 3) for name, value in made.items()},
    }


def best(work: Callable[[], object], rounds: int) -> float:
    """The shortest of the rounds, with the collector as after the service's start."""
    spent = []
    for _ in range(rounds):
        gc.collect()
        gc.freeze()
        started = time.process_time()
        work()
        spent.append(time.process_time() - started)
        gc.unfreeze()
    return min(spent)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1_000)
    parser.add_argument("--metrics", type=int, default=3)
    parser.add_argument("--rate-hz", type=float, default=10.0)
    parser.add_argument("--batch", type=int, default=10_000)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--grace-ms", type=int, default=5_000)
    parser.add_argument("--emit", choices=get_args(Emit), default="on_close")
    print(json.dumps(measure(parser.parse_args(arguments)), indent=2))


if __name__ == "__main__":
    main()

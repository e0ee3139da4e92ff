"""The smallest run of each mutant: the product with the bug, a load, one fault that was seen to happen, the checker."""

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import psutil

from app.adapters.embedded import EmbeddedKafka
from app.adapters.producer import BatchProducer, ProducerLimits
from app.adapters.topic_reader import TopicReader
from app.adapters.topics_admin import delete_topics, describe_topics, ensure_topics
from app.bench.child import start
from app.bench.engine import HOST, free_port
from app.chaos.checker import Report, judge
from app.chaos.final_read import Ends
from app.chaos.mutants_case import Case
from app.chaos.mutants_load import EFFECT, PARTITIONS, WORKFLOW, Load, definition, register, zombie_reports
from app.chaos.mutants_product import Product, produce
from app.chaos.oplog import OpLog
from app.codec import encode_sample
from app.domain.reading import Reading, Sample
from app.ports import OutRecord
from config.kafka import KafkaSettings
from config.topics import ALL_TOPICS, DEVICE_TELEMETRY

RATE: Final = 30.0
LEAD_S: Final = 1.2  # without a fault, or nothing could be said of what goes well without one
ZOMBIE_S: Final = 1.5
AFTER_S: Final = 0.6
ANSWER_AFTER_MS: Final = 300
EFFECTS: Final = 10
# Nothing has ended for so long: what has not ended is stuck. A starved machine takes its time.
STUCK_S: Final = 30.0
# A control is given all the time that it needs: what it must show is that everything comes to its end.
PATIENCE_S: Final = 90.0
END_WITHIN_S: Final = 300.0
COMMIT_S: Final = 30.0
# Of a group member; only the run that outlasts it wants it short.
SESSION_MS: Final = 10_000
SHORT_SESSION_MS: Final = 4_000
ROLES: Final = "coordinator,api-gateway"
ROLLUPS: Final[Mapping[str, Any]] = {
    "rollup.grace_ms": 1_000,
    "rollup.idle_timeout_ms": 500,
    "rollup.idle_tick_ms": 100,
}
# Smaller than the samples of some types of devices, as they are without compression.
REFUSED_BYTES: Final = 560


@dataclass(slots=True)
class Stage:
    """What a run has to play with."""

    case: Case
    kafka: EmbeddedKafka
    folder: Path
    client_id: str = field(default_factory=lambda: f"m{uuid.uuid4().hex[:8]}")
    fault: dict[str, Any] | None = None
    times: dict[str, int] = field(default_factory=dict)
    report: Report | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Of every process of the product; groups of their own, so that no offset is left of an earlier run."""
        return {
            "kafka.bootstrap_servers": self.kafka.bootstrap,
            "kafka.client_id": self.client_id,
            "kafka.partitions": PARTITIONS,
            "kafka.session_timeout_ms": self.session_ms,
        }

    @property
    def session_ms(self) -> int:
        """After which a member that is not heard of has lost its partitions."""
        return SHORT_SESSION_MS if self.case.fault == "stop beside another" else SESSION_MS

    def patience_s(self, of_a_mutant_s: float) -> float:
        """How long to wait for what may never come."""
        return of_a_mutant_s if self.case.laws else PATIENCE_S

    def struck(self, at_ns: int, proof: Mapping[str, Any]) -> None:
        """The fault has happened."""
        self.fault = {"number": 0, "fault": self.case.fault, "at_ns": at_ns, "until_ns": time.time_ns(), "proof": proof}

    def write(self, name: str, *rows: Mapping[str, Any]) -> None:
        """Rows of a file of the folder."""
        with (self.folder / name).open("ab") as file:
            file.writelines(orjson.dumps(row) + b"\n" for row in rows)

    def finish(self, **more: Any) -> None:
        """run.json and faults.jsonl."""
        if self.fault is not None:
            self.write("faults.jsonl", self.fault)
        planned = [] if self.case.fault in {"none", "asked twice"} else [{"number": 0, "kind": self.case.fault}]
        document = {
            "seed": 1,
            "bootstrap": self.kafka.bootstrap,
            "client_id": self.client_id,
            "planned_faults": planned,
            "end_within_s": END_WITHIN_S,
            "settle_s": 1,
            # There is one process; while it starts again nobody takes anything.
            "acknowledged_share": 0.05,
            **self.times,
            **more,
        }
        (self.folder / "run.json").write_text(json.dumps(document))


async def run_case(case: Case, kafka: EmbeddedKafka, folder: Path) -> Report:
    """One run on an empty cluster; what the checker says of it."""
    await asyncio.to_thread(folder.mkdir, parents=True)
    await _fresh_topics(kafka.bootstrap)
    stage = Stage(case, kafka, folder)
    stage.times["started_ns"] = time.time_ns()
    await {"workflows": _workflows, "transform": _transform, "produce": _produce}[case.run](stage)
    assert stage.report is not None, "every run is judged while its product lives"
    return stage.report


async def _fresh_topics(bootstrap: str) -> None:
    names = [state.name for state in await describe_topics(bootstrap, [spec.name for spec in ALL_TOPICS])]
    if names:
        await delete_topics(bootstrap, names)
    while await describe_topics(bootstrap, [spec.name for spec in ALL_TOPICS]):  # noqa: ASYNC110 - the broker tells nobody
        await asyncio.sleep(0.05)
    await ensure_topics(bootstrap, ALL_TOPICS, KafkaSettings(partitions=PARTITIONS))


# ---- workflows ----


async def _workflows(stage: Stage) -> None:
    async with AsyncExitStack() as stack:
        effects_url = await stack.enter_async_context(_ledger(stage.folder, stage.case.fault))
        first = await stack.enter_async_context(_product(stage, "one", ROLES))
        second = None
        if stage.case.fault == "stop beside another":
            second = await stack.enter_async_context(_product(stage, "two", ROLES))
        await stack.enter_async_context(_witness(stage))
        asked = second or first
        await register(asked.port, definition(effects_url))
        async with OpLog(stage.folder / "ops.jsonl", "start") as log:
            load = Load(log, twice=stage.case.fault == "asked twice")
            await _loaded(stage, load, first, asked.port)
            await _healed(stage, load)
        stage.finish(
            planned_starts=len(load.keys),
            effects={WORKFLOW: [EFFECT]},
        )
        stage.report = await judge(stage.folder, stage.patience_s(COMMIT_S))


async def _loaded(stage: Stage, load: Load, product: Product, port: int) -> None:
    """The load, the fault in the midst of it, and a little more load."""
    stop = asyncio.Event()
    running = asyncio.create_task(load.run(port, RATE, stop))
    try:
        await asyncio.sleep(LEAD_S)
        await _until_some_effects(stage.folder / "ledger.jsonl")
        await _strike(stage, load, product, stop)
        await asyncio.sleep(AFTER_S)
    finally:
        stop.set()
        await running


async def _until_some_effects(ledger: Path) -> None:
    """A fault before the first effects meets none; what a mutant never makes is not awaited for long."""
    deadline = time.monotonic() + STUCK_S
    while time.monotonic() < deadline:
        if (await asyncio.to_thread(ledger.read_bytes)).count(b"\n") >= EFFECTS:
            return
        await asyncio.sleep(0.05)


async def _strike(stage: Stage, load: Load, product: Product, stop: asyncio.Event) -> None:
    fault = stage.case.fault
    at_ns = time.time_ns()
    if fault in {"kill, same disk", "kill, other disk"}:
        proof = await product.kill()
        await product.begin_again(same_disk=fault == "kill, same disk")
    elif fault == "kill while the broker pauses":
        proof = await _kill_while_the_broker_pauses(stage, product)
    elif fault == "stop beside another":
        proof = await _stop_beside_another(stage, product)
    elif fault == "asked again after a kill":
        proof = await _asked_again(load, product, stop)
    elif fault == "reports of a zombie":
        proof = {"reports": await zombie_reports(stage.kafka.bootstrap, load, ZOMBIE_S)}
    else:
        return
    stage.struck(at_ns, proof)


async def _kill_while_the_broker_pauses(stage: Stage, product: Product) -> dict[str, Any]:
    (broker,) = stage.kafka.pids.values()
    os.kill(broker, signal.SIGSTOP)
    try:
        await asyncio.sleep(0.6)
        proof = {"broker": broker, **await product.kill()}
    finally:
        os.kill(broker, signal.SIGCONT)
    await product.begin_again(same_disk=True)
    return proof


async def _stop_beside_another(stage: Stage, product: Product) -> dict[str, Any]:
    """Long enough for its session to end."""
    product.signal(signal.SIGSTOP)
    state = await _state(product.pid)
    await asyncio.sleep(1.3 * stage.session_ms / 1000)
    product.signal(signal.SIGCONT)
    return {"pid": product.pid, "state": state}


async def _state(pid: int) -> str:
    """What the kernel says of a process that is to be stopped."""
    for _ in range(100):
        found = psutil.Process(pid).status()
        if found == psutil.STATUS_STOPPED:
            return str(found)
        await asyncio.sleep(0.01)
    return ""


async def _asked_again(load: Load, product: Product, stop: asyncio.Event) -> dict[str, Any]:
    """Everything that has ended is asked for again of a process that remembers nothing."""
    proof = await product.kill()
    await product.begin_again(same_disk=True)
    stop.set()
    keys = list(load.keys)
    await asyncio.gather(*(load.ask(product.port, key) for key in keys))
    return {**proof, "asked again": len(keys)}


async def _healed(stage: Stage, load: Load) -> None:
    """Return when all that was begun has ended, or nothing more does."""
    stage.times["healed_ns"] = stage.times["ended_ns"] = time.time_ns()
    ends = Ends(TopicReader(KafkaSettings(bootstrap_servers=stage.kafka.bootstrap)))
    heard_s, ended = time.monotonic(), -1
    while not ends.have_all_ended(load.accepted) and time.monotonic() - heard_s < stage.patience_s(STUCK_S):
        await ends.read_on()
        if len(ends.seen) > ended:
            heard_s, ended = time.monotonic(), len(ends.seen)
        await asyncio.sleep(0.2)


def _product(stage: Stage, name: str, roles: str, **settings: Any) -> Product:
    return Product(stage.case.name, roles, stage.folder / name, {**stage.settings, **settings})


@asynccontextmanager
async def _ledger(folder: Path, fault: str) -> AsyncIterator[str]:
    """Its address. At a kill some effects are always made and not yet told of: that is what a kill is to show."""
    port = free_port()
    argv = [sys.executable, "-m", "app.chaos.ledger", "--port", str(port), "--file", str(folder / "ledger.jsonl")]
    if "kill" in fault:
        argv += ["--answer-after-ms", str(ANSWER_AFTER_MS)]
    child = await start(argv, folder)
    try:
        yield f"http://{HOST}:{port}/effect"
    finally:
        await child.stop()


@asynccontextmanager
async def _witness(stage: Stage) -> AsyncIterator[None]:
    argv = [sys.executable, "-m", "app.chaos.checker_witness", "--bootstrap", stage.kafka.bootstrap]
    argv += ["--topic", "workflow.events", "--file", str(stage.folder / "witness.jsonl")]
    child = await start(argv, stage.folder)
    try:
        yield
    finally:
        await child.stop()


# ---- telemetry ----


async def _transform(stage: Stage) -> None:
    """Two devices, an event a fifth of a second; some come twice, some far too late."""
    async with _product(stage, "one", "worker", **ROLLUPS):
        await _send_samples(stage)
        stage.times["healed_ns"] = stage.times["ended_ns"] = time.time_ns()
        stage.finish(telemetry=True, settings=dict(ROLLUPS))
        stage.report = await judge(stage.folder, stage.patience_s(COMMIT_S))


async def _send_samples(stage: Stage) -> None:
    begin_ms = time.time_ns() // 1_000_000 - 60_000
    limits = ProducerLimits(bootstrap_servers=stage.kafka.bootstrap, client_id="fleet")
    async with BatchProducer(limits) as producer:
        for device in ("pump-1", "pump-2"):
            samples = [_sample(device, seq, begin_ms + 200 * seq) for seq in range(1, 151)]
            late = [_sample(device, seq, begin_ms + 200 * (seq - 150)) for seq in range(151, 156)]
            for sent in (samples[:100], samples[90:100], samples[100:], late):
                await producer.publish(sent)
    for device in ("pump-1", "pump-2"):
        stage.write("acks.jsonl", {"device": device, "session": 1, "first": 1, "last": 155, "outcome": "ok"})


def _sample(device: str, seq: int, at_ms: int) -> OutRecord:
    reading = Reading("pressure", 5.0 + seq % 7, "BAR", "GOOD", 0)
    sample = Sample(device, 1, seq, at_ms, at_ms, False, (reading,))
    return OutRecord(DEVICE_TELEMETRY.name, device.encode(), encode_sample(sample), at_ms)


async def _produce(stage: Stage) -> None:
    """`headrace produce` to a topic that takes no large record."""
    at_ns = time.time_ns()
    small = {"max.message.bytes": str(REFUSED_BYTES)}
    spec = DEVICE_TELEMETRY
    bootstrap = stage.kafka.bootstrap
    await delete_topics(bootstrap, [spec.name])
    while await describe_topics(bootstrap, [spec.name]):  # noqa: ASYNC110 - the broker tells nobody
        await asyncio.sleep(0.05)
    refusing = type(spec)(spec.name, spec.key, spec.schema, extra=small)
    await ensure_topics(bootstrap, [refusing], KafkaSettings(partitions=PARTITIONS))
    settings = {
        **stage.settings,
        "device.count": 60,
        "device.sample_interval_ms": 500,
        "device.fault_interval_ms": 0,  # devices whose readings come out of order are none of the producer's fault
        "producer.compression": "none",
        "spool.enabled": False,  # or a starved machine sends nothing in the time of the run
        "log.level": "ERROR",
    }
    words = await produce(stage.case.name, 3.0, settings, stage.folder)
    outcomes = dict(words["outcomes"])
    book = {
        "producer": "produce",
        "generated": words["generated"],
        "acknowledged": outcomes.pop("acknowledged"),
        "dead_lettered": outcomes.pop("dead_lettered"),
        "spooled": outcomes.pop("spooled", 0),
        "dropped": {name: count for name, count in outcomes.items() if name.startswith("dropped_")},
        "in_flight": words["in_flight"],
    }
    stage.write("books.jsonl", book)
    there = sum((await TopicReader(KafkaSettings(bootstrap_servers=bootstrap)).ends(spec.name)).values())
    refused = book["generated"] - there
    stage.struck(at_ns, {"record_bytes": REFUSED_BYTES, "refused": refused} if refused > 0 else {})
    stage.times["healed_ns"] = stage.times["ended_ns"] = time.time_ns()
    stage.finish()
    stage.report = await judge(stage.folder, stage.patience_s(COMMIT_S))

"""The device fleet at work: samples at their instants, and the commands that steer it."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import quote

from agents.ledger import Books
from app import metrics
from app.codec import (
    cloudevents_headers,
    decode_command,
    encode_dead_letter_record,
    encode_metadata,
    encode_sample,
    encode_truth,
)
from app.domain.command import CommandRefused
from app.domain.deadletter import Origin, dead_letter
from app.domain.device import DeviceMetadata, Layout, lay_out
from app.domain.faults import Fault, FaultPlan
from app.domain.fleet import Due, Fleet, FleetRules
from app.ports import Clock, InRecord, OutRecord, Publisher
from config.device import DeviceSettings
from config.topics import DEVICE_DEADLETTER, DEVICE_METADATA, DEVICE_TRUTH

log = logging.getLogger(__name__)

# The broker rolls and deletes by the records' timestamps (segment.ms, retention.ms) and refuses times an
# hour ahead: samples from outside this span around now carry the time of sending, beside their own source time.
MAX_AGE_MS = 86_400_000
MAX_AHEAD_MS = 600_000

# The first samples are due this long after the start, so that setting up does not count as latency.
START_AFTER_MS = 200

WARMED_AT_ONCE = 50  # devices, about 5 ms of other work kept waiting

# A command is a few hundred bytes; of one that is not, this much is kept.
KEEP_COMMAND_BYTES = 65_536


def record_ms(source_ms: int, now_ms: int) -> int:
    """The Kafka timestamp of a sample: when it was measured, unless the broker could not keep that."""
    return source_ms if now_ms - MAX_AGE_MS <= source_ms <= now_ms + MAX_AHEAD_MS else now_ms


class Sender(Protocol):
    """What the fleet needs of a producer: to hand over one record without waiting."""

    async def partitions(self, topic: str) -> int:
        """Number of partitions; awaited once for each topic before its first record."""

    def send_nowait(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        timestamp_ms: int,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        intended_ms: float | None = None,
    ) -> bool:
        """Queue the record; False when there is no room. Latency counts from `intended_ms`."""


class GenerateLimits(NamedTuple):
    """What may change while the fleet runs; asked for at every tick."""

    tick_ms: int
    max_tick_samples: int
    when_full: Literal["delay", "drop"]
    max_catch_up_ms: int
    sample_interval_ms: int
    data_variation: float
    cloudevents_headers: bool = False
    drain_ms: int = 5_000


def limits_of(device: DeviceSettings, *, with_headers: bool = False) -> GenerateLimits:
    """The limits that settings mean."""
    return GenerateLimits(
        tick_ms=device.tick_ms,
        max_tick_samples=device.max_tick_samples,
        when_full=device.when_full,
        max_catch_up_ms=device.max_catch_up_ms,
        sample_interval_ms=device.sample_interval_ms,
        data_variation=device.data_variation,
        cloudevents_headers=with_headers,
    )


def fleet_of(device: DeviceSettings) -> Fleet:
    """The fleet that settings mean, not yet started."""
    layout = Layout(
        device_count=device.count,
        seed=device.seed,
        mix=tuple(device.mix.items()),
        sites=tuple(device.sites),
        lines_per_site=device.lines_per_site,
    )
    plan = None
    if device.fault_interval_ms:
        plan = FaultPlan(
            seed=device.seed,
            interval_ms=device.fault_interval_ms,
            kinds=tuple(device.fault_kinds),
            min_duration_ms=device.fault_min_duration_ms,
            max_duration_ms=device.fault_max_duration_ms,
            sample_interval_ms=device.sample_interval_ms,
        )
    rules = FleetRules(
        seed=device.seed,
        interval_ms=device.sample_interval_ms,
        variation=device.data_variation,
        plan=plan,
        max_held=device.max_held_samples,
    )
    return Fleet(lay_out(layout), rules)


class _Outbox:
    """Hands records to the producer and keeps what it has no room for.

    Truth and metadata are never given up for want of room; samples are as the policy says.
    """

    def __init__(self, sender: Sender, books: Books) -> None:
        self._sender = sender
        self._books = books
        self.samples: deque[Due] = deque()
        self.facts: deque[OutRecord] = deque()

    def send_facts(self, now_ms: int, truth: Sequence[Fault], metadata: Sequence[DeviceMetadata]) -> None:
        """Truth and metadata, behind those that still wait."""
        for fault in truth:
            key = fault.device_id.encode()
            self.facts.append(OutRecord(DEVICE_TRUTH.name, key, encode_truth(fault), now_ms))
        for each in metadata:
            key = each.device.device_id.encode()
            self.facts.append(OutRecord(DEVICE_METADATA.name, key, encode_metadata(each), now_ms))
        while self.facts:
            record = self.facts[0]
            if not self._sender.send_nowait(record.topic, record.key, record.value, record.timestamp_ms):
                return
            self.facts.popleft()

    def send_samples(self, limits: GenerateLimits, now_ms: int) -> None:
        """Hand over the waiting samples in order; stop at the first for which there is no room."""
        waiting, send, topic = self.samples, self._sender.send_nowait, self._books.topic
        sent = 0
        try:
            while waiting:
                intended_ms, device, sample = waiting[0]
                headers = cloudevents_headers(sample, source_of(device)) if limits.cloudevents_headers else ()
                key = sample.device_id.encode()
                value = encode_sample(sample)
                if not send(topic, key, value, record_ms(sample.source_timestamp, now_ms), None, headers, intended_ms):
                    self._refused(limits, now_ms)
                    return
                waiting.popleft()
                sent += 1
        finally:
            self._books.accepted(sent)
            self._books.waiting_records = len(waiting)

    def _refused(self, limits: GenerateLimits, now_ms: int) -> None:
        if limits.when_full == "drop":
            self.give_up("buffer_full")
            return
        oldest_ms = now_ms - limits.max_catch_up_ms
        expired = 0
        while self.samples and self.samples[0].intended_ms < oldest_ms:
            self.samples.popleft()
            expired += 1
        self._books.dropped("catch_up", expired)

    def give_up(self, reason: str) -> None:
        """Drop every waiting sample, counted."""
        self._books.dropped(reason, len(self.samples))
        self.samples.clear()
        self._books.waiting_records = 0


async def generate(
    fleet: Fleet,
    publisher: Sender,
    clock: Clock,
    ledger: Books,
    limits: Callable[[], GenerateLimits],
    stop: asyncio.Event,
    pause: Callable[[float], Awaitable[Any]] = asyncio.sleep,
) -> None:
    """Send each device's samples at their instants until `stop` is set, whatever the broker does.

    The loop is open: an instant does not move because an earlier record was slow. What cannot be
    sent at its instant is sent late with its own `source_timestamp`, up to `max_catch_up_ms`;
    beyond that it is dropped and counted.
    """
    outbox = _Outbox(publisher, ledger)
    for topic in (ledger.topic, DEVICE_TRUTH.name, DEVICE_METADATA.name):
        await publisher.partitions(topic)
    for number, _ in enumerate(fleet.warm(clock.now_ms())):
        if number % WARMED_AT_ONCE == 0:
            await pause(0)
    fleet.start(clock.now_ms() + START_AFTER_MS)
    # Who the devices are is told before their first samples: a strict transform refuses the samples of strangers.
    outbox.send_facts(clock.now_ms(), (), fleet.take_metadata())
    tuned = fleet.rules.interval_ms, fleet.rules.variation
    log.info("fleet started", extra={"action": "fleet_started", "devices": len(fleet.devices)})
    while not stop.is_set():
        now_limits = limits()
        if _tuning(now_limits) != tuned:
            tuned = _tuning(now_limits)
            fleet.retune(now_limits.sample_interval_ms, now_limits.data_variation, clock.now_ms())
        full = _tick(fleet, outbox, ledger, now_limits, clock.now_ms())
        await pause(0 if full else now_limits.tick_ms / 1000)
    await _finish(fleet, outbox, ledger, limits(), clock, pause)


def _tuning(limits: GenerateLimits) -> tuple[int, float]:
    return limits.sample_interval_ms, limits.data_variation


def _tick(fleet: Fleet, outbox: _Outbox, ledger: Books, limits: GenerateLimits, now_ms: int) -> bool:
    """Send what is due; whether more is due at once because the tick's limit was reached."""
    outbox.send_samples(limits, now_ms)
    if fleet.behind_ms(now_ms) > limits.max_catch_up_ms:
        skipped = fleet.skip_before(now_ms - limits.max_catch_up_ms)
        ledger.generated(skipped)
        ledger.dropped("catch_up", sum(skipped.values()))
    full = False
    if not outbox.samples:  # while the producer has no room the fleet itself falls behind, which costs no memory
        due = fleet.due(now_ms, limits.max_tick_samples)
        full = len(due) >= limits.max_tick_samples
        _take(due, outbox, ledger)
        outbox.send_samples(limits, now_ms)
        full = full and not outbox.samples
    outbox.send_facts(now_ms, fleet.take_truth(), fleet.take_metadata())
    return full


def _take(due: Sequence[Due], outbox: _Outbox, ledger: Books) -> None:
    if due:
        ledger.generated(Counter([each.device.device_type for each in due]))
        outbox.samples.extend(due)


async def _finish(
    fleet: Fleet,
    outbox: _Outbox,
    ledger: Books,
    limits: GenerateLimits,
    clock: Clock,
    pause: Callable[[float], Awaitable[Any]],
) -> None:
    """Send what was held back, the ends of faults and the devices' last words, for `drain_ms` at most."""
    now_ms = clock.now_ms()
    deadline_s = clock.monotonic_s() + limits.drain_ms / 1000
    patient = limits._replace(when_full="delay", max_catch_up_ms=max(limits.max_catch_up_ms, limits.drain_ms))
    if not outbox.samples:
        _take(fleet.due(now_ms, limits.max_tick_samples), outbox, ledger)  # due since the last tick
    _take(fleet.close(now_ms), outbox, ledger)
    outbox.send_samples(patient, now_ms)
    outbox.send_facts(now_ms, fleet.take_truth(), fleet.take_metadata())
    while (outbox.samples or outbox.facts) and clock.monotonic_s() < deadline_s:
        await pause(limits.tick_ms / 1000)
        outbox.send_samples(patient, clock.now_ms())
        outbox.send_facts(now_ms, (), ())
    outbox.give_up("stopped")
    log.info("fleet stopped", extra={"action": "fleet_stopped", "facts_unsent": len(outbox.facts)})


class Placed(Protocol):
    """What has a place in a plant."""

    @property
    def site(self) -> str: ...
    @property
    def line(self) -> str: ...


def source_of(placed: Placed) -> str:
    """The CloudEvents source of a device; places that are not known are left empty."""
    return f"urn:plant:{quote(placed.site)}:{quote(placed.line)}"


# ---- commands


async def commands(stream: AsyncIterable[Any], *, fleet: Fleet, clock: Clock, publisher: Publisher) -> None:
    """Obey the commands of `device.commands`: one record an event, or a list of them."""
    async for event in stream:
        records: Sequence[InRecord] = event if isinstance(event, list) else [event]
        letters = [letter for record in records if (letter := _obey(record, fleet, clock.now_ms())) is not None]
        if letters:
            await publisher.publish(letters)


def _obey(record: InRecord, fleet: Fleet, now_ms: int) -> OutRecord | None:
    """Give the fleet its order, or make the dead letter that says why not."""
    command = decode_command(record.value)
    if isinstance(command, CommandRefused):
        return _dead_letter(record, "malformed_command", command.detail, now_ms)
    concerned = fleet.apply(command, now_ms)
    if not concerned:
        named = f"{command.scope} {command.target}" + (f" with metric {command.metric}" if command.metric else "")
        return _dead_letter(record, "unknown_device", f"no device of the fleet is {named}", now_ms)
    log.info(
        "device command",
        extra={"action": "device_command", "command": command.command, "command_id": command.command_id}
        | {"devices": concerned},
    )
    return None


def _dead_letter(record: InRecord, reason: str, detail: str, now_ms: int) -> OutRecord:
    metrics.DEAD_LETTERS.labels(reason).inc()
    origin = Origin(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp=record.timestamp,
        key=record.key,
        value=record.value,
        headers=record.headers,
    )
    letter = dead_letter(
        origin, stage="generate", reason=reason, detail=detail, now_ms=now_ms, keep_bytes=KEEP_COMMAND_BYTES
    )
    return OutRecord(DEVICE_DEADLETTER.name, letter.key, encode_dead_letter_record(letter), now_ms)

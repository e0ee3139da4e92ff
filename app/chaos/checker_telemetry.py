"""The laws of telemetry: what was acknowledged is on the topic, in order; what producers say of themselves balances."""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import msgspec

from app.chaos.checker_folder import AckLine, BookLine
from app.chaos.checker_laws import Law, law
from app.executions_check import Log
from config.topics import DEVICE_TELEMETRY

Source = tuple[str, str]


class _Sample(msgspec.Struct):
    """Of a sample, what tells which one it is."""

    device_id: str
    session_id: str | int
    seq: int
    is_historical: bool = False


@dataclass(slots=True)
class Seqs:
    """The seqs of one session that are there, as ranges; the first of each is counted, the others are repeats."""

    firsts: list[int] = field(default_factory=list)
    lasts: list[int] = field(default_factory=list)
    repeats: int = 0

    def add(self, seq: int) -> bool:
        """Whether it is new."""
        firsts, lasts = self.firsts, self.lasts
        if lasts and seq == lasts[-1] + 1:
            lasts[-1] = seq
            return True
        at = bisect_right(firsts, seq)
        if at and seq <= lasts[at - 1]:
            self.repeats += 1
            return False
        joins_left = at > 0 and lasts[at - 1] == seq - 1
        joins_right = at < len(firsts) and firsts[at] == seq + 1
        if joins_left and joins_right:
            lasts[at - 1] = lasts.pop(at)
            firsts.pop(at)
        elif joins_left:
            lasts[at - 1] = seq
        elif joins_right:
            firsts[at] = seq
        else:
            firsts.insert(at, seq)
            lasts.insert(at, seq)
        return True

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(last - first + 1 for first, last in zip(self.firsts, self.lasts, strict=True))

    @property
    def gaps(self) -> int:
        """How many are missing between the first and the last."""
        return self.lasts[-1] - self.firsts[0] + 1 - self.count if self.firsts else 0

    def missing(self, first: int, last: int) -> int:
        """How many of a range are not there."""
        there = 0
        for begin, end in zip(self.firsts, self.lasts, strict=True):
            there += max(0, min(end, last) - max(begin, first) + 1)
        return last - first + 1 - there


@dataclass(slots=True)
class Readings:
    """What is on the topic: seqs by device and session, and what came out of order."""

    sources: dict[Source, Seqs] = field(default_factory=lambda: defaultdict(Seqs))
    says_order: list[str] = field(default_factory=list)
    records: int = 0
    unreadable: int = 0
    _newest: dict[tuple[Source, bool], int] = field(default_factory=dict)

    def take(self, value: bytes | None) -> None:
        """One record of the topic, in the order of its partition."""
        self.records += 1
        try:
            sample = _decode(value or b"")
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self.unreadable += 1
            return
        source = (sample.device_id, str(sample.session_id))
        if not self.sources[source].add(sample.seq):
            return
        # What comes late from a spool has an order of its own.
        line = (source, sample.is_historical)
        newest = self._newest.get(line, -1)
        if sample.seq < newest:
            self.says_order.append(f"{source[0]}, session {source[1]}: seq {sample.seq} came after {newest}")
        self._newest[line] = max(newest, sample.seq)

    @property
    def distinct(self) -> int:
        """Different readings."""
        return sum(seqs.count for seqs in self.sources.values())


_decode = msgspec.json.Decoder(_Sample).decode


async def read_telemetry(reader: Log) -> Readings:
    """The whole topic."""
    found = Readings()
    topic = DEVICE_TELEMETRY.name
    start, end = await reader.begins(topic), await reader.ends(topic)
    async with aclosing(reader.read(topic, start, end)) as batches:
        async for batch in batches:
            for record in batch:
                found.take(record.value)
    return found


def telemetry(found: Readings, acks: Sequence[AckLine] | None, books: Sequence[BookLine] | None) -> Law:
    """Of each device what was acknowledged is on the topic, each session in order and whole but for what is told."""
    says = list(found.says_order)
    looked = found.distinct
    totals: Counter[str] = Counter()
    for ack in acks or ():
        count = ack.last - ack.first + 1
        totals[ack.outcome] += count
        seqs = found.sources.get((ack.device, str(ack.session)), Seqs())
        missing = seqs.missing(ack.first, ack.last)
        if ack.outcome == "ok" and missing:
            text = f"{ack.device}, session {ack.session}: {missing} of seq {ack.first} to {ack.last}"
            says.append(f"{text} were acknowledged and are not on the topic")
        if ack.outcome == "fail" and missing < count:
            text = f"{ack.device}, session {ack.session}: {count - missing} of seq {ack.first} to {ack.last}"
            says.append(f"{text} were refused and are on the topic")
    gaps = sum(seqs.gaps for seqs in found.sources.values())
    told = sum(book.dead_lettered + sum(book.dropped.values()) + book.spooled + book.in_flight for book in books or ())
    if acks is None and gaps > told:
        says.append(f"{gaps:,} readings are missing within sessions, producers tell of {told:,}")
    repeats = sum(seqs.repeats for seqs in found.sources.values())
    return law(
        "telemetry", looked, says, records=found.records, readings=looked, repeats=repeats, gaps=gaps,
        unreadable=found.unreadable, **{f"said_{name}": count for name, count in totals.items()},
    )  # fmt: skip


def books(found: Readings, lines: Sequence[BookLine]) -> Law:
    """Each producer's ledger balances, and together they acknowledged no more than is on the topic."""
    says = [f"{book.producer}: {text}" for book in lines for text in _unbalanced(book)]
    acknowledged = sum(book.acknowledged for book in lines)
    if acknowledged > found.distinct:
        says.append(f"producers say {acknowledged:,} acknowledged, the topic has {found.distinct:,}")
    generated = sum(book.generated for book in lines)
    dropped: Counter[str] = Counter()
    for book in lines:
        dropped.update(book.dropped)
    return law("books", len(lines), says, generated=generated, acknowledged=acknowledged, dropped=dict(dropped))


def _unbalanced(book: BookLine) -> Iterable[str]:
    told = book.acknowledged + book.spooled + book.dead_lettered + sum(book.dropped.values()) + book.in_flight
    if told != book.generated:
        yield f"{book.generated:,} were generated, {told:,} are accounted for"
    if min(book.in_flight, book.spooled, book.acknowledged) < 0:
        yield "something was counted twice"

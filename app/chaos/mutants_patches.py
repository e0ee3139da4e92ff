"""Bugs for the product, put in from outside: each function replaces one of its functions by one that is wrong.

They are applied in a process of their own before the product starts (`app.chaos.mutants`), so that nothing of them is
in the product; that each still finds what it replaces is a test.
"""

import asyncio
import importlib
import itertools
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

Patch = Callable[[], None]


def swap(place: str, make: Callable[[Any], Any]) -> None:
    """Replace `module:name` or `module:Class.name` by what `make` makes of it; an error when it is not there."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    setattr(owner, name, make(getattr(owner, name)))


def nothing() -> None:
    """The product as it is: the control."""


def commit_before_output() -> None:
    """A range is acknowledged to the transport first, and its outputs are sent a moment later."""

    def make(settle: Any) -> Any:
        async def mutated(self: Any, tables: Any, written: Any, now_ms: int, changes: Any, batch: Any) -> None:
            if batch is not None:
                batch.ack()
            await asyncio.sleep(0.6)
            await settle(self, tables, written, now_ms, changes, None)

        return mutated

    swap("agents.stage:_Worker._settle", make)


def acknowledge_before_produce() -> None:
    """A start is answered with 202 a second before it is sent."""
    sending: set[asyncio.Task[None]] = set()

    def make(publish: Any) -> Any:
        async def mutated(self: Any, records: Any) -> None:
            async def later() -> None:
                await asyncio.sleep(1.0)
                await publish(self, records)

            task = asyncio.create_task(later())
            sending.add(task)
            task.add_done_callback(sending.discard)

        return mutated

    swap("app.http.start:Starter.publish", make)


def stale_reports() -> None:
    """A report is believed whatever attempt and token it is of."""

    def make(report: Any) -> Any:
        succeeded = importlib.import_module("app.domain.workflow.events").TaskSucceeded

        def mutated(turn: Any, command: Any) -> None:
            state, task, item = turn.state, command.task, command.item
            work = state.find(task, item)
            if command.error is not None or work is None or not work.attempt:
                report(turn, command)
                return
            place = {"task": task, "item": item, "attempt": command.attempt}
            turn.emit(succeeded(seq=state.seq, at=turn.now, result=command.result, **place))
            turn.go_on(turn.graph.nodes[task], item)

        return mutated

    swap("app.domain.workflow.decide:_report", make)


def no_fencing() -> None:
    """Epochs and the lease are ignored: whoever was an owner believes that it is one."""

    def without_epoch(make_run: Any) -> Any:
        def mutated(execution_id: str, workflow: str, version: str, _: int, *rest: Any) -> bytes:
            run: bytes = make_run(execution_id, workflow, version, 1, *rest)
            return run

        return mutated

    swap("agents.engine_store:join_run", without_epoch)
    swap("agents.engine_store:encode_run", without_epoch)
    swap("app.adapters.lease:Lease._look", lambda _: lambda _self, _doubtful_s: True)
    swap("tables.partition:TablePartition._check_alone", lambda _: lambda _self: None)


def no_dedupe() -> None:
    """The Idempotency-Key of a start is not looked at."""
    swap("app.http.start:repeatable_id", lambda _: lambda *_: str(uuid.uuid4()))


def forgets_the_ended() -> None:
    """An execution that has ended is not known any more, so that its start begins it anew."""
    swap("agents.engine_store:Executions.ended", lambda _: lambda *_: None)


def lost_changelog_record() -> None:
    """One row in eleven is written to the disk and not to the changelog."""
    count = itertools.count()

    def make(records: Any) -> Any:
        def mutated(self: Any, rows: Mapping[bytes, bytes | None], *rest: Any) -> Any:
            return records(self, {key: row for key, row in rows.items() if next(count) % 11}, *rest)

        return mutated

    swap("tables.partition:TablePartition._changelog_records", make)


def _rewrite(change: Callable[[list[Any]], Sequence[Any]]) -> None:
    """Have the events of every decision changed before they are written."""

    def make(join: Any) -> Any:
        wire = importlib.import_module("app.workflow_wire")

        def mutated(execution_id: str, workflow: str, version: str, epoch: int, *rest: Any) -> Any:
            run = wire.decode_run(join(execution_id, workflow, version, epoch, *rest))
            return wire.encode_run(execution_id, workflow, version, epoch, change(list(run.events)))

        return mutated

    swap("agents.engine_store:join_run", make)


def swapped_events() -> None:
    """The last two events of an execution change places."""

    def exchange(events: list[Any]) -> list[Any]:
        if len(events) < 2 or events[-1].type != "execution_ended":
            return events
        one, two = events[-2], events[-1]
        return [*events[:-2], replace(two, seq=one.seq), replace(one, seq=two.seq)]

    _rewrite(exchange)


def event_after_the_end() -> None:
    """Something happens to one execution in seven after it has ended."""
    count = itertools.count()

    def add(events: list[Any]) -> list[Any]:
        last = events[-1]
        if last.type != "execution_ended" or next(count) % 7:
            return events
        paused = importlib.import_module("app.domain.workflow.events").ExecutionPaused
        return [*events, paused(seq=last.seq + 1, at=last.at, command_id="ghost")]

    _rewrite(add)


def skipped_timer_row() -> None:
    """A timer is only in memory: its row is not written."""
    swap("agents.engine_batch:Batch.set_timer", lambda _: lambda *_: None)


def early_timer() -> None:
    """Timers fire a quarter of a second before they are due."""
    swap("tables.timers:Timers.due", lambda due: lambda self, now_ms, most: due(self, now_ms + 250, most))


def effect_twice() -> None:
    """An effect is sent once more under another key."""

    def make(send: Any) -> Any:
        async def mutated(self: Any, call: Any, key: str, body: Any) -> Any:
            await send(self, call, f"{key}#", body)
            return await send(self, call, key, body)

        return mutated

    swap("app.adapters.tasks.types.sink_http:HttpSinkTask._send", make)


def key_of_the_attempt() -> None:
    """Every delivery of a piece of work has an idempotency key of its own."""
    own = property(lambda self: f"{self.execution_id}/{self.task}/{uuid.uuid4()}")
    swap("app.domain.workflow.orders:TaskOrder.idempotency_key", lambda _: own)


def dropped_report() -> None:
    """One report in thirteen of what ran in this process is not heard."""
    count = itertools.count(1)

    def make(hear: Any) -> Any:
        def mutated(self: Any, report: Any) -> None:
            if next(count) % 13:
                hear(self, report)

        return mutated

    swap("agents.engine:Engine.hear", make)


def outbox_not_sent_again() -> None:
    """What was written and perhaps not sent when its owner died is not sent by the next."""
    swap("tables.partition:unpack_outbox", lambda unpack: lambda packed: (unpack(packed)[0], []))


def restore_without_the_tail() -> None:
    """A restore reads the changelog but for its last sixty records."""

    def make(fill: Any) -> Any:
        async def mutated(self: Any, reader: Any, end: int, now_ms: int) -> Any:
            return await fill(self, reader, max(self.next, end - 60), now_ms)

        return mutated

    swap("tables.restore:Opening.fill", make)


def failed_counts_as_acknowledged() -> None:
    """What the broker refused is told to the ledger as acknowledged."""
    place = "agents.ledger:Books.delivered"
    swap(place, lambda delivered: lambda self, topic, count, _reason: delivered(self, topic, count, None))


def late_data_dropped() -> None:
    """What comes too late for its window is neither rolled up nor told."""
    swap("app.domain.rollup:_add_late", lambda _: lambda *_: None)


def duplicates_counted() -> None:
    """A reading that comes twice counts twice."""

    def make(dedupe: Any) -> Any:
        class _Blind:
            """The module, which finds nothing twice."""

            def __getattr__(self, name: str) -> Any:
                return getattr(dedupe, name)

            @staticmethod
            def observe(*given: Any) -> Any:
                verdict = dedupe.observe(*given)
                return dedupe.NEW if verdict == dedupe.DUPLICATE else verdict

        return _Blind()

    swap("app.domain.rollup:dedupe", make)


PATCHES: Final[Mapping[str, Patch]] = {
    patch.__name__.replace("_", "-"): patch
    for patch in (
        nothing,
        commit_before_output,
        acknowledge_before_produce,
        stale_reports,
        no_fencing,
        no_dedupe,
        forgets_the_ended,
        lost_changelog_record,
        swapped_events,
        event_after_the_end,
        skipped_timer_row,
        early_timer,
        effect_twice,
        key_of_the_attempt,
        dropped_report,
        outbox_not_sent_again,
        restore_without_the_tail,
        failed_counts_as_acknowledged,
        late_data_dropped,
        duplicates_counted,
    )
}

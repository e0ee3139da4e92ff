"""Carries out attempts of tasks: coroutines on the loop, blocking ones in threads, the others in task processes.

The life of an attempt: (1) `submit` gives it a slot, or refuses it; (2) it is prepared; (3) it runs where its type
says; (4) its result becomes JSON, a file when it is large; (5) it is reported, once, and the slot is free.
What does not end by itself is ended: past its time-out, silent for longer than its heartbeat allows, or cancelled, a
coroutine is cancelled, a thread is asked, a process is killed; a coroutine or thread that goes on all the same is
left behind after a grace: its slot is free, it is counted, and with too many of them no more of its kind begin.
A coroutine that holds up the loop, so that nothing of this could happen, is ended by `guard`.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from app import metrics
from app.adapters.tasks import guard, turns
from app.adapters.tasks.failures import told
from app.adapters.tasks.payload import Payloads, TooLarge, encode, encode_in_thread, is_plain
from app.adapters.tasks.preparation import Preparation, Prepared, Unprepared
from app.adapters.tasks.processes import ProcessPool, TaskProcess
from app.adapters.tasks.protocol import Kind, Resources, TaskCall, TaskType
from app.adapters.tasks.spans import enter
from app.adapters.tasks.threads import Raised, ThreadPool
from app.domain.workflow.commands import Heartbeat, Report, TaskError
from app.domain.workflow.orders import TaskOrder
from app.errors import TaskFailed
from app.ports import Clock, Reported, Tracing
from config.redact import redact_text

SWEEP_S: Final = 0.05
# What a task is given was bounded when it became a result or an input.
_NO_LIMIT: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class ExecutorLimits:
    """The bounds of an executor; units are in the names. `worker` names this process in reports."""

    concurrency: int = 1_024
    threads: int = 16
    waiting: int = 256
    timeout_s: float = 3_600.0
    cancel_grace_s: float = 2.0
    abandoned: int = 64
    heartbeat_interval_s: float = 1.0
    held_up_s: float = 2.0
    result_bytes: int = 524_288
    payload_bytes: int = 64 << 20
    claim_check: bool = False
    worker: str = ""


class _Run:
    """One attempt under way."""

    __slots__ = (
        "beat_s", "began_s", "cancelled", "deadline_s", "heard_s", "in_thread", "kind", "left_s", "order", "process",
        "redact", "report", "runs", "started_ms", "task", "verdict", "waits", "waits_since_s",
    )  # fmt: skip

    def __init__(self, order: TaskOrder, report: Reported, kind: Kind | None) -> None:
        self.order = order
        self.report: Reported | None = report  # None: nothing more is said
        self.kind = kind
        self.task: asyncio.Task[None] | None = None
        self.process: TaskProcess | None = None
        self.redact: Callable[[str], str] = redact_text
        self.runs = False  # no longer waiting for its turn
        self.in_thread = False  # where only asking helps
        self.cancelled = False  # asked to stop
        self.verdict: TaskError | None = None  # why it is being ended, when that is a failure
        self.started_ms = 0
        self.began_s = self.heard_s = self.beat_s = 0.0
        self.deadline_s = self.left_s = float("inf")  # when it is ended; when it is left behind
        self.waits = 0  # for a turn at something shared
        self.waits_since_s = 0.0


class Executor:
    """The `TaskExecutor` of `app.ports`; made inside the loop that it works on."""

    def __init__(
        self,
        limits: ExecutorLimits,
        preparation: Preparation,
        processes: ProcessPool,
        clock: Clock,
        payloads: Payloads | None = None,
        resources: Resources | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.limits = limits
        self.abandoned_coroutines = 0
        self._preparation = preparation
        self._processes = processes
        self._threads = ThreadPool(limits.threads)
        self._clock = clock
        self._payloads = payloads if limits.claim_check else None
        self._resources = resources
        self._tracing = tracing
        self._runs: dict[int, _Run] = {}  # by identity, in the order they came
        self._by_execution: dict[str, list[_Run]] = {}
        self._of_kind: dict[Kind | None, int] = {"async": 0, "blocking": 0, "process": 0, None: 0}
        self._in_line = 0  # who waits for a turn
        self._left: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._guard = guard.LoopGuard.use(limits.held_up_s)
        self._closed = False

    # ---- what the engine asks ----

    @property
    def free(self) -> int:
        """Attempts that could begin now."""
        return 0 if self._closed else self.limits.concurrency - len(self._runs)

    @property
    def abandoned(self) -> int:
        """Coroutines and threads that were left behind and have not come back."""
        return self.abandoned_coroutines + self._threads.abandoned

    @property
    def processes(self) -> ProcessPool:
        """The task processes."""
        return self._processes

    def submit(self, order: TaskOrder, report: Reported) -> bool:
        """(1). See `app.ports.TaskExecutor`."""
        if len(self._runs) >= self.limits.concurrency or self._closed:
            return False
        kind = self._preparation.kind(order)
        if kind is not None and kind != "async" and self._of_kind[kind] >= self._room(kind):
            return False
        if self._in_line and self._in_line >= self.limits.waiting and self._preparation.takes_turns(order):
            return False
        run = _Run(order, report, kind)
        self._of_kind[kind] += 1
        self._runs[id(run)] = run
        self._by_execution.setdefault(order.execution_id, []).append(run)
        now_s = self._clock.monotonic_s()
        run.heard_s = run.began_s = now_s
        run.started_ms = self._clock.now_ms()
        run.deadline_s = self._unwanted_s(order, now_s)
        run.task = self._loop.create_task(self._attend(run))
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)
        return True

    def cancel(
        self, execution_id: str, task: str | None = None, item: int | None = None, *, before: int | None = None
    ) -> None:
        """Ask what runs to stop, and end it when it does not. None of it is reported."""
        for run in self._by_execution.get(execution_id, []):
            order = run.order
            if before is not None and order.token >= before:
                continue
            if (task is None or order.task == task) and (item is None or order.item == item):
                run.report = None
                self._ask_to_stop(run)

    async def close(self) -> None:
        """End everything within the grace, and give the resources back; nothing that runs is reported."""
        self._closed = True
        runs = list(self._runs.values())
        for run in runs:
            run.report = None
            self._ask_to_stop(run)
        tasks = [run.task for run in runs if run.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=self.limits.cancel_grace_s)
        for run in list(self._runs.values()):
            self._leave(run)
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        if self._guard is not None:
            self._guard.let_go()
            self._guard = None
        self._threads.close()
        await self._processes.close()
        if self._resources is not None:
            await self._resources.close()

    # ---- one attempt ----

    async def _attend(self, run: _Run) -> None:
        """(2) to (5); whatever is raised is the outcome."""
        error: BaseException | None = None
        result: Any = None
        if self._tracing is not None:
            enter(self._tracing, run.order)
        try:
            prepared, run.redact = await self._preparation.prepare(run.order)
            check: Callable[[Any, Resources | None], None] | None = getattr(prepared.task_type, "check", None)
            if check is not None:
                check(prepared.params, self._resources)
            if prepared.kind != run.kind:
                self._of_kind[run.kind] -= 1
                self._of_kind[prepared.kind] += 1
                run.kind = prepared.kind
            if prepared.kind == "async":
                self._began(run)
                result = await self._run_async(run, prepared)
            elif prepared.kind == "blocking":
                self._check_left(self._threads.abandoned, "thread")
                result = await self._run_blocking(run, prepared)
            else:
                result = await self._run_in_process(run, prepared)
        except Unprepared as unprepared:
            run.redact = unprepared.redact
            error = unprepared.error
        except Raised as raised:
            error = raised.error
        except BaseException as raised:  # noqa: BLE001 - SystemExit and KeyboardInterrupt are failures of the task
            error = raised
        self._end(run, result, error)
        # By reference counting nothing else goes: the task's context leads back to the run, an error to this frame. At
        # 1,000 attempts a second the collector would stop the engine for 150 to 250 ms every five seconds.
        run.task = error = None

    async def _run_async(self, run: _Run, prepared: Prepared) -> Any:
        self._check_left(self.abandoned_coroutines, "coroutine")
        turns.tell(lambda waits: self._waits(run) if waits else self._has_its_turn(run))
        carry_out = _method(prepared.task_type, "run")
        guard.enter()
        try:
            value = await carry_out(self._call(run, prepared, lambda: self._beat(run)))
        finally:
            guard.leave()
        if is_plain(value):
            return value
        return await self._kept(await encode(value, self._largest))

    async def _run_blocking(self, run: _Run, prepared: Prepared) -> Any:
        carry_out = _method(prepared.task_type, "run_sync")
        call = self._call(run, prepared, lambda: self._beat_from_thread(run))

        def began() -> None:
            run.in_thread = True
            self._began(run)

        encoded = await self._threads.run(lambda: encode_in_thread(carry_out(call), self._largest), began)
        return await self._kept(encoded)

    async def _run_in_process(self, run: _Run, prepared: Prepared) -> Any:
        order = run.order
        job = {
            "type": order.type,
            "given": prepared.given,
            "rows": prepared.rows,
            "context": prepared.context,
            "idempotency_key": order.idempotency_key,
            "attempt": order.attempt,
            "deadline_ms": order.deadline_ms,
            "traceparent": order.traceparent,
        }
        encoded = await encode(job, _NO_LIMIT, "the call")
        async with self._processes.process() as process:
            self._began(run)
            run.process = process
            answer = await process.run(encoded, lambda: self._beat(run))
            run.process = None
        if answer.ok:
            return await self._kept(answer.content)
        raise _raised(orjson.loads(answer.content))

    def _call(self, run: _Run, prepared: Prepared, heartbeat: Callable[[], None]) -> TaskCall[Any]:
        order = run.order
        return TaskCall(
            params=prepared.params,
            rows=prepared.rows,
            context=prepared.context,
            idempotency_key=order.idempotency_key,
            attempt=order.attempt,
            deadline_ms=order.deadline_ms,
            heartbeat=heartbeat,
            cancelled=lambda: run.cancelled,
            resources=self._resources,
            traceparent=order.traceparent,
        )

    async def _kept(self, encoded: bytes) -> Any:
        """(4): the result as whoever reads it later will see it."""
        limit = self.limits.result_bytes
        if len(encoded) <= limit:
            return orjson.loads(encoded)
        if self._payloads is None or len(encoded) > self._largest:
            raise TooLarge(len(encoded), limit if self._payloads is None else self._largest)
        return await asyncio.to_thread(self._payloads.store, encoded)

    @property
    def _largest(self) -> int:
        return max(self.limits.payload_bytes, self.limits.result_bytes)

    def _began(self, run: _Run) -> None:
        """It runs from now on: its time-out counts."""
        run.runs = True
        now_s = self._clock.monotonic_s()
        run.began_s = run.heard_s = now_s
        run.started_ms = self._clock.now_ms()
        timeout_s = run.order.timeout_s
        run.deadline_s = min(run.deadline_s, now_s + (self.limits.timeout_s if timeout_s is None else timeout_s))

    def _waits(self, run: _Run) -> None:
        """It waits for a turn: its time-out does not go on."""
        self._in_line += 1
        run.waits += 1
        if run.waits == 1:
            run.runs, run.waits_since_s = False, self._clock.monotonic_s()

    def _has_its_turn(self, run: _Run) -> None:
        self._in_line -= 1
        run.waits -= 1
        if run.waits == 0:
            now_s = self._clock.monotonic_s()
            run.deadline_s = min(run.deadline_s + now_s - run.waits_since_s, self._unwanted_s(run.order, now_s))
            run.runs, run.heard_s = True, now_s

    def _unwanted_s(self, order: TaskOrder, now_s: float) -> float:
        """When nobody wants the result any more."""
        if order.deadline_ms is None:
            return float("inf")
        return now_s + (order.deadline_ms - self._clock.now_ms()) / 1000

    def _check_left(self, left: int, what: str) -> None:
        if left > self.limits.abandoned:
            raise TaskFailed("TooManyAbandoned", f"{left} {what}s of earlier tasks hang in this process")

    # ---- the end ----

    def _end(self, run: _Run, result: Any, error: BaseException | None) -> None:
        """(5): from here on the slot is free; a run that was left behind has had its end."""
        if self._runs.pop(id(run), None) is None:
            return
        self._forget(run)
        report, run.report = run.report, None
        if report is None:
            return
        if run.verdict is not None:
            report(self._report(run, None, run.verdict))
        elif error is None:
            report(self._report(run, result, None))
        else:
            report(self._report(run, None, told(error, run.redact)))

    def _report(self, run: _Run, result: Any, error: TaskError | None) -> Report:
        order = run.order
        return Report(
            execution_id=order.execution_id,
            task=order.task,
            item=order.item,
            attempt=order.attempt,
            token=order.token,
            result=result,
            error=error,
            started_ms=run.started_ms,
            duration_ms=round((self._clock.monotonic_s() - run.began_s) * 1000, 3),
            worker=self.limits.worker,
        )

    def _forget(self, run: _Run) -> None:
        self._of_kind[run.kind] -= 1
        runs = self._by_execution[run.order.execution_id]
        if len(runs) == 1:
            del self._by_execution[run.order.execution_id]
        else:
            runs.remove(run)

    def _room(self, kind: Kind) -> int:
        size = self.limits.threads if kind == "blocking" else self._processes.limits.processes
        return size + self.limits.waiting

    # ---- heartbeats, time-outs, cancellation ----

    def _beat(self, run: _Run) -> None:
        """It is alive; the engine hears of it when the task has a heartbeat, and not too often."""
        now_s = self._clock.monotonic_s()
        run.heard_s = now_s
        order = run.order
        if order.heartbeat_s is None or run.report is None or now_s - run.beat_s < self.limits.heartbeat_interval_s:
            return
        run.beat_s = now_s
        run.report(
            Heartbeat(
                execution_id=order.execution_id,
                task=order.task,
                item=order.item,
                attempt=order.attempt,
                token=order.token,
            )
        )

    def _beat_from_thread(self, run: _Run) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._beat, run)

    def _sweep(self) -> None:
        """Look for what is late, silent, or does not stop."""
        now_s = self._clock.monotonic_s()
        for run in list(self._runs.values()):
            if now_s >= run.left_s:
                self._leave(run)
            elif run.cancelled:
                continue
            elif run.waits:
                if now_s >= self._unwanted_s(run.order, now_s):
                    self._give_up(run, "Timeout", "the attempt waited for its turn until nobody wanted its result")
            elif now_s >= run.deadline_s:
                what = "did not end" if run.runs else "waited for its turn and did not begin"
                self._give_up(run, "Timeout", f"the attempt {what} within {run.deadline_s - run.began_s:.3g} s")
            elif run.order.heartbeat_s is not None and now_s - run.heard_s > run.order.heartbeat_s:
                silence = f"the attempt was silent for {now_s - run.heard_s:.1f} s"
                self._give_up(run, "HeartbeatTimeout", f"{silence}, longer than {run.order.heartbeat_s:g} s")
        self._sweeping = self._loop.call_later(SWEEP_S, self._sweep) if self._runs else None

    def _give_up(self, run: _Run, type_: str, message: str) -> None:
        """End an attempt that has failed without knowing it; a process has had its time and gets no grace."""
        run.verdict = TaskError(type=type_, message=message)
        if run.process is not None:
            run.process.kill()
        self._ask_to_stop(run)

    def _ask_to_stop(self, run: _Run) -> None:
        if run.cancelled:
            return
        run.cancelled = True
        run.left_s = self._clock.monotonic_s() + self.limits.cancel_grace_s
        if run.process is not None:
            run.process.ask_to_stop()
        elif run.task is not None and not run.in_thread:
            run.task.cancel()

    def _leave(self, run: _Run) -> None:
        """It did not stop in its grace: a process is killed, a thread or coroutine left behind."""
        if run.process is not None:
            run.process.kill()
        task = run.task
        assert task is not None
        task.cancel()
        if run.kind == "async":
            self.abandoned_coroutines += 1
            metrics.TASKS_ABANDONED.labels("coroutine").inc()
            task.add_done_callback(self._came_back)
        self._left.add(task)
        task.add_done_callback(self._left.discard)
        self._end(run, None, asyncio.CancelledError())

    def _came_back(self, _: "asyncio.Task[None]") -> None:
        self.abandoned_coroutines -= 1
        metrics.TASKS_ABANDONED.labels("coroutine").dec()


def _method(task_type: TaskType, name: str) -> Callable[[TaskCall[Any]], Any]:
    """A look at the Protocol itself would take longer than a small task."""
    found: Callable[[TaskCall[Any]], Any] | None = getattr(task_type, name, None)
    if found is None:
        raise TaskFailed("BrokenPlugin", f"the type {task_type.name} has no method {name}", retryable=False)
    return found


def _raised(told: Mapping[str, Any]) -> TaskFailed:
    """The failure that a task process tells of; what it says is not trusted to be well-formed."""
    detail = told.get("detail")
    return TaskFailed(
        str(told.get("type") or "Error"),
        str(told.get("message") or "the task failed"),
        retryable=told.get("retryable") is not False,
        detail=detail if isinstance(detail, dict) else {},
    )

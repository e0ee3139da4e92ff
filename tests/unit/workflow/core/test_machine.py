"""Laws of the engine's core under any interleaving of commands, repeats, stale reports, timers and clock jumps."""

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.domain.workflow.commands import (
    Admit,
    Cancel,
    ChildEnded,
    Command,
    Heartbeat,
    Pause,
    Report,
    Resume,
    RetryExecution,
    Signal,
    Start,
    TaskError,
    TimerFired,
)
from app.domain.workflow.definition import Workflow
from app.domain.workflow.effects import Dispatch, heard
from app.domain.workflow.events import ExecutionEnded, ExecutionRetried
from tests.unit.workflow.core.world import ID, Owner, workflows

PICK = st.integers(0, 10_000)
ERRORS = st.sampled_from(
    (
        TaskError(type="HttpStatus", message="status 500"),
        TaskError(type="Fatal", message="it is broken"),
        TaskError(type="BadInput", message="no such column", retryable=False),
    )
)


class Machine(RuleBasedStateMachine):
    """One execution of a random workflow, told anything at any time."""

    owner: Owner
    said: list[Command]
    ids: int

    @initialize(definition=workflows(), queued=st.booleans(), payload=st.sampled_from((None, {"x": 1})))
    def begin(self, definition: Workflow, queued: bool, payload: Any) -> None:
        self.owner = Owner(definition)
        self.said = []
        self.ids = 0
        self.owner.start(payload, queued=queued)

    @property
    def is_over(self) -> bool:
        return self.owner.state is not None and self.owner.state.is_over

    def new_id(self) -> str:
        self.ids += 1
        return f"c{self.ids}"

    def say(self, command: Command, **options: Any) -> None:
        self.said.append(command)
        self.owner.tell(command, **options)

    def report(self, dispatch: Dispatch, error: TaskError | None) -> None:
        self.owner.running.discard(dispatch)
        task, item, attempt, token = dispatch
        result = None if error else {"of": task, "item": item}
        self.say(
            Report(execution_id=ID, task=task, item=item, attempt=attempt, token=token, result=result, error=error)
        )

    @precondition(lambda self: self.owner.running)
    @rule(pick=PICK, error=st.one_of(st.none(), st.none(), ERRORS))
    def attempt_ends(self, pick: int, error: TaskError | None) -> None:
        running = sorted(self.owner.running, key=str)
        self.report(running[pick % len(running)], error)

    @precondition(lambda self: self.owner.dispatched)
    @rule(pick=PICK, shift=st.sampled_from((-1, 1)))
    def report_that_is_stale_changes_nothing(self, pick: int, shift: int) -> None:
        task, item, attempt, token = self.owner.dispatched[pick % len(self.owner.dispatched)]
        before = len(self.owner.history)
        for wrong in ((attempt + shift, token), (attempt, token + shift)):
            self.owner.tell(Report(execution_id=ID, task=task, item=item, attempt=wrong[0], token=wrong[1]))
        assert len(self.owner.history) == before

    @precondition(lambda self: self.said)
    @rule(pick=PICK)
    def repeat_changes_nothing(self, pick: int) -> None:
        command = self.said[pick % len(self.said)]
        had_effect = isinstance(command, Report | ChildEnded) or (
            getattr(command, "command_id", None) in self.owner.state.applied  # type: ignore[union-attr]
        )
        before = len(self.owner.history)
        self.owner.tell(command)
        if had_effect:
            assert len(self.owner.history) == before

    @precondition(lambda self: self.owner.timers)
    @rule(pick=PICK, late=st.integers(0, 3_000), back=st.booleans())
    def timer_falls_due(self, pick: int, late: int, back: bool) -> None:
        """Also while the clock that decisions see lies behind."""
        names = sorted(self.owner.timers)
        name = names[pick % len(names)]
        due = self.owner.timers.pop(name)
        self.owner.now = due - 5_000 if back else max(self.owner.now, due + late)
        self.say(TimerFired(execution_id=ID, name=name, due_ms=due))

    @rule(name=st.sampled_from(("go", "t1", "undo", "unasked")), payload=st.integers(0, 3))
    def signal_comes(self, name: str, payload: int) -> None:
        self.say(Signal(execution_id=ID, command_id=self.new_id(), name=name, payload=payload))

    @precondition(lambda self: self.owner.children)
    @rule(pick=PICK, status=st.sampled_from(("succeeded", "succeeded", "failed", "cancelled", "timed_out", "skipped")))
    def child_ends(self, pick: int, status: str) -> None:
        ids = sorted(self.owner.children)
        child = self.owner.children.pop(ids[pick % len(ids)])
        parent = child.parent
        self.say(
            ChildEnded(
                execution_id=ID,
                task=parent.task,
                item=parent.item,
                attempt=parent.attempt,
                child_id=child.child_id,
                status=status,
                result={"child": 1},
            )
        )

    @precondition(lambda self: self.owner.running)
    @rule(pick=PICK)
    def heartbeat_moves_only_its_timer(self, pick: int) -> None:
        running = sorted(self.owner.running, key=str)
        task, item, attempt, token = running[pick % len(running)]
        beat = Heartbeat(execution_id=ID, task=task, item=item, attempt=attempt, token=token)
        assert self.owner.tell(beat) == []
        assert self.owner.state is not None
        self.owner.do(heard(self.owner.state, beat, self.owner.graph, self.owner.now))

    @precondition(lambda self: not self.is_over)
    @rule()
    def pause(self) -> None:
        self.say(Pause(execution_id=ID, command_id=self.new_id()))

    @precondition(lambda self: self.owner.state.paused)
    @rule()
    def resume(self) -> None:
        self.say(Resume(execution_id=ID, command_id=self.new_id()))

    @rule()
    def admit(self) -> None:
        self.say(Admit(execution_id=ID))

    @precondition(lambda self: len(self.owner.history) > 3)
    @rule()
    def cancel(self) -> None:
        self.say(Cancel(execution_id=ID, command_id=self.new_id(), reason="enough"))

    @precondition(lambda self: self.is_over)
    @rule(pick=PICK, whole=st.booleans(), queued=st.booleans())
    def retry(self, pick: int, whole: bool, queued: bool) -> None:
        names = list(self.owner.definition.tasks)
        start = None if whole else names[pick % len(names)]
        self.say(RetryExecution(execution_id=ID, command_id=self.new_id(), from_task=start), queued=queued)

    @rule()
    def second_start_changes_nothing(self) -> None:
        assert self.owner.tell(Start(execution_id=ID, workflow="w", version="v1")) == []

    @rule(by=st.integers(-10_000, 10_000))
    def clock_jumps(self, by: int) -> None:
        self.owner.now = max(0, self.owner.now + by)

    @invariant()
    def laws_hold(self) -> None:
        self.owner.hold()

    @invariant()
    def each_run_ends_once(self) -> None:
        ends = sum(isinstance(event, ExecutionEnded) for event in self.owner.history)
        retries = sum(isinstance(event, ExecutionRetried) for event in self.owner.history)
        assert ends == retries + self.is_over
        assert len(self.owner.ends) == ends

    def teardown(self) -> None:
        """Whatever has happened: when all that is in hand ends well, so does the execution."""
        if not hasattr(self, "owner"):
            return
        owner = self.owner
        for _ in range(500):
            assert owner.state is not None
            if owner.state.is_over:
                break
            if owner.state.paused:
                self.resume()
            elif not owner.state.admitted:
                self.admit()
            elif owner.running:
                self.report(min(owner.running, key=str), None)
            elif owner.children:
                self.child_ends(0, "succeeded")
            elif owner.state.asked:
                self.say(Signal(execution_id=ID, command_id=self.new_id(), name=next(iter(owner.state.asked))))
            else:
                name = min(owner.timers, key=owner.timers.__getitem__)
                due = owner.timers.pop(name)
                owner.now = max(owner.now, due)
                self.say(TimerFired(execution_id=ID, name=name, due_ms=due))
            owner.hold()
        assert owner.state is not None
        assert owner.state.is_over, "it does not end"


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

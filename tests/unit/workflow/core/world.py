"""Definitions to try, expressions without CEL, and an owner that keeps its books as an engine does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from app.domain.workflow.commands import Command, Report, Start, TaskError, TimerFired
from app.domain.workflow.decide import advance, decide
from app.domain.workflow.definition import MapOver, Retry, Task, Workflow
from app.domain.workflow.effects import (
    CancelChild,
    CancelWork,
    ClearTimer,
    Dispatch,
    Effect,
    Ended,
    SetTimer,
    StartChild,
    effects,
    outstanding,
)
from app.domain.workflow.events import Event, ExecutionEnded
from app.domain.workflow.evolve import fold
from app.domain.workflow.expressions import ExpressionError
from app.domain.workflow.graph import Graph, graph_of
from app.domain.workflow.legal import violations
from app.domain.workflow.state import Execution

ID = "0190d6a0-0000-7000-8000-000000000001"


class PlainExpressions:
    """`true`, `false`, a number, `list N`, a name or `name.field`; `fails` and unknown names give no answer."""

    def evaluate(self, source: str, names: Mapping[str, Any]) -> Any:
        if source in {"true", "false"}:
            return source == "true"
        if source.lstrip("-").isdigit():
            return int(source)
        if source.startswith("list "):
            return [f"item{n}" for n in range(int(source[5:]))]
        name, *path = source.split(".")
        if name not in names:
            raise ExpressionError(f"no such name: {name}")
        value = names[name]
        for step in path:
            try:
                value = value[step]
            except (KeyError, TypeError) as error:
                raise ExpressionError(f"no such field: {step}") from error
        return value

    def render(self, params: Any, names: Mapping[str, Any]) -> Any:
        if isinstance(params, str) and params.startswith("${") and params.endswith("}"):
            return self.evaluate(params[2:-1], names)
        if isinstance(params, Mapping):
            return {key: self.render(value, names) for key, value in params.items()}
        if isinstance(params, list | tuple):
            return [self.render(value, names) for value in params]
        return params


EXPRESSIONS = PlainExpressions()


def task(name: str, *needs: str, type: str = "source.http", **fields: Any) -> Task:  # noqa: A002  # as in a definition
    """A task in few words; `over` makes it a map."""
    over = fields.pop("over", None)
    if over is not None:
        fields["map"] = MapOver(over=over, concurrency=fields.pop("concurrency", 10))
    return Task(name=name, type=type, needs=needs, **fields)


def workflow(*tasks: Task, **fields: Any) -> Workflow:
    """A definition of these tasks."""
    return Workflow(id="w", version="v1", tasks={each.name: each for each in tasks}, **fields)


# ---- random definitions

retries = st.builds(
    Retry,
    attempts=st.integers(1, 3),
    backoff_s=st.sampled_from((0.0, 0.1, 2.0)),
    jitter=st.sampled_from((0.0, 0.5)),
    non_retryable=st.sampled_from(((), ("Fatal",))),
)


def mostly(usual: Sequence[Any], *odd: Any) -> st.SearchStrategy[Any]:
    """One of `usual`; one time in ten what makes a task fail before it begins."""
    return st.integers(0, 9).flatmap(lambda n: st.sampled_from(odd if n == 9 else usual))


PARAMS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "source.http": st.just({}),
    "wait": mostly(({"seconds": 5}, {"seconds": 0}, {"until": "7000"}), {"seconds": "fails"}, {}),
    "approval": mostly(({}, {"signal": "go"}, {"signal": "go", "timeout_s": 3}), {"signal": "${fails}"}),
    "workflow": mostly(({"id": "child"}, {"id": "child", "input": {"x": "${input}"}}), {"id": "${fails}"}),
}


@st.composite
def tasks(draw: st.DrawFn, name: str, earlier: tuple[str, ...] = ()) -> Task:
    """A task of any kind; most can begin, some cannot."""
    kind = draw(st.sampled_from(("source.http", "source.http", "source.http", "wait", "approval", "workflow")))
    over = draw(mostly((None, None, None, "list 0", "list 1", "list 4", "list 4"), "fails", "7"))
    return Task(
        name=name,
        type=kind,
        needs=draw(st.lists(st.sampled_from(earlier), max_size=3).map(tuple)) if earlier else (),
        params=draw(PARAMS[kind]),
        when=draw(mostly((None, None, None, "true", "false"), "fails", "3")),
        map=None if over is None else MapOver(over=over, concurrency=draw(st.integers(1, 3))),
        retry=draw(retries),
        timeout_s=draw(st.sampled_from((None, None, 4.0))),
        heartbeat_s=draw(st.sampled_from((None, None, 1.0))),
    )


@st.composite
def workflows(draw: st.DrawFn) -> Workflow:
    """A DAG of one to six tasks."""
    made: list[Task] = []
    for n in range(draw(st.integers(1, 6))):
        made.append(draw(tasks(f"t{n}", tuple(each.name for each in made))))
    on_failure = draw(st.one_of(st.none(), tasks("undo")))
    return workflow(*made, on_failure=on_failure, timeout_s=draw(st.sampled_from((None, None, 20.0))))


# ---- an owner


@dataclass
class Owner:
    """One execution and what its owner has in hand; every command is checked against the laws of the core."""

    definition: Workflow
    now: int = 1_000
    state: Execution | None = None
    history: list[Event] = field(default_factory=list)
    running: set[Dispatch] = field(default_factory=set)
    timers: dict[str, int] = field(default_factory=dict)
    children: dict[str, StartChild] = field(default_factory=dict)
    dispatched: list[Dispatch] = field(default_factory=list)
    ends: list[Ended] = field(default_factory=list)
    graph: Graph = field(init=False)

    def __post_init__(self) -> None:
        self.graph = graph_of(self.definition)

    def start(self, input: Any = None, **options: Any) -> list[Event]:  # noqa: A002  # as the command calls it
        start = Start(execution_id=ID, workflow="w", version="v1", input=input, trigger={"kind": "http"})
        return self.tell(start, **options)

    def tell(self, command: Command, **options: Any) -> list[Event]:
        """Decide, hold the laws of one decision, evolve, and do what follows."""
        before = None if self.state is None else self.state.fork()
        events = decide(self.state, command, self.graph, self.now, EXPRESSIONS, **options)
        assert self.state == before, "decide changes nothing"
        advanced, again = advance(before, command, self.graph, self.now, EXPRESSIONS, **options)
        assert again == events, "advance decides the same"
        self.state = fold(events, self.state)
        assert self.state == advanced, "advance evolves the same"
        self.history += events
        if events:
            assert self.state is not None
            self.do(effects(self.state, events, self.graph))
        return events

    def do(self, made: tuple[Effect, ...]) -> None:
        for effect in made:
            match effect:
                case Dispatch():
                    assert effect not in self.dispatched, "every attempt is dispatched once"
                    self.dispatched.append(effect)
                    self.running.add(effect)
                case SetTimer():
                    self.timers[effect.name] = effect.due_ms
                case ClearTimer():
                    self.timers.pop(effect.name, None)
                case StartChild():
                    assert effect.child_id not in self.children
                    self.children[effect.child_id] = effect
                case CancelChild():
                    del self.children[effect.child_id]
                case CancelWork(None):
                    self.running.clear()
                case CancelWork():
                    self.running = {e for e in self.running if (e.task, e.item) != (effect.task, effect.item)}
                case Ended():
                    self.ends.append(effect)

    def hold(self) -> None:
        """The laws of where an execution stands."""
        if self.state is None:
            return
        assert violations(self.history, self.definition) == []
        assert [event.seq for event in self.history] == list(range(len(self.history)))
        assert fold(self.history) == self.state
        hand = outstanding(self.state, self.graph)
        assert {e for e in hand if isinstance(e, Dispatch)} == self.running
        assert {e.child_id for e in hand if isinstance(e, StartChild)} == set(self.children)
        wanted = {e.name: e.due_ms for e in hand if isinstance(e, SetTimer)}
        if self.state.paused:  # what fell due meanwhile is used up; resume sets it again
            assert set(self.timers) <= set(wanted)
        else:
            assert {name: due for name, due in self.timers.items() if not name.startswith("heartbeat")} == {
                name: due for name, due in wanted.items() if not name.startswith("heartbeat")
            }
            assert set(self.timers) == set(wanted)
            working = [e for e in hand if not (isinstance(e, SetTimer) and e.name.startswith("execution"))]
            assert self.state.is_over or not self.state.admitted or working or self.state.asked, "it is stuck"


# ---- stories

BROKEN = TaskError(type="HttpStatus", message="status 500")


def begun(*tasks: Task, **fields: object) -> Owner:
    owner = Owner(workflow(*tasks, **fields))
    owner.start({"n": 1})
    return owner


def under_way(owner: Owner) -> list[str]:
    return sorted(each.task for each in owner.running)


def report(owner: Owner, name: str, result: object = None, error: TaskError | None = None) -> list[Event]:
    """The attempt of a task that runs ends."""
    (dispatch,) = [each for each in owner.running if each.task == name]
    owner.running.discard(dispatch)
    events = owner.tell(
        Report(
            execution_id=ID,
            task=name,
            item=dispatch.item,
            attempt=dispatch.attempt,
            token=dispatch.token,
            result=result,
            error=error,
        )
    )
    owner.hold()
    return events


def fire(owner: Owner, prefix: str) -> list[Event]:
    """The timer whose name begins so falls due."""
    (name,) = [each for each in owner.timers if each.startswith(prefix)]
    due = owner.timers.pop(name)
    owner.now = max(owner.now, due)
    events = owner.tell(TimerFired(execution_id=ID, name=name, due_ms=due))
    owner.hold()
    return events


def end(owner: Owner) -> ExecutionEnded:
    last = owner.history[-1]
    assert isinstance(last, ExecutionEnded)
    return last

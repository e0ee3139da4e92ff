"""Laws of the bytes of workflow topics: what was written is read as it was, and garbage is told in one sentence."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import workflow_wire as wire
from app.domain.workflow.commands import (
    Admit,
    Cancel,
    ChildEnded,
    Debounce,
    Heartbeat,
    Parent,
    Pause,
    Report,
    Resume,
    RetryExecution,
    Signal,
    Start,
    TaskError,
    TimerFired,
)
from app.domain.workflow.events import EVENT_TYPES, Event, TaskFailed
from app.domain.workflow.orders import TaskOrder

text = st.text(st.characters(codec="utf-8"), max_size=12)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
counts = st.integers(0, 2**53)
floats = st.floats(allow_nan=False, allow_infinity=False)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | floats | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
objects = st.dictionaries(text, values, max_size=3)
items = st.none() | st.integers(0, 9_999)
errors = st.builds(TaskError, type=text, message=text, retryable=st.booleans(), detail=objects)
parents = st.builds(Parent, execution_id=names, task=text, item=items, attempt=counts)
# What hypothesis cannot tell from the annotations, or would fill with what JSON has not.
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "execution_id": names,
    "input": values,
    "result": values,
    "payload": values,
    "items": st.lists(values, max_size=4).map(tuple),
    "trigger": objects,
    "params": objects,
    "context": objects,
    "headers": st.dictionaries(text, text, max_size=2),
    "item": items,
    "error": st.none() | errors,
    "parent": st.none() | parents,
    "debounce": st.none() | st.builds(Debounce, key=text, seconds=floats),
    "duration_ms": floats,
    "timeout_s": st.none() | floats,
    "heartbeat_s": st.none() | floats,
}


def built(cls: type[Any], **more: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Any instance of a record of ours."""
    fields = cls.__dataclass_fields__
    known = {name: FIELDS[name] for name in fields if name in FIELDS}
    texts = {name: text for name in fields if name not in FIELDS and "str" in str(fields[name].type) and name != "type"}
    whole = {name: counts for name in fields if name not in FIELDS and fields[name].type is int}
    lists = {name: st.lists(text, max_size=3).map(tuple) for name in ("tasks", "kept") if name in fields}
    return st.builds(cls, **{**texts, **whole, **known, **lists, **more})


TOLD = (Start, Report, Heartbeat, ChildEnded, Cancel, Pause, Resume, Signal, RetryExecution)
commands = st.one_of([built(cls) for cls in TOLD])
statuses = {"status": st.sampled_from(("queued", "running", "succeeded", "failed", "timed_out"))}
events: st.SearchStrategy[Event] = st.one_of(
    [
        built(
            cls,
            **(statuses if "status" in cls.__dataclass_fields__ else {}),
            **({"error": errors} if cls is TaskFailed else {}),
        )
        for cls in EVENT_TYPES.values()
    ]
)


@given(commands)
def test_command_is_read_as_it_was_written(command: Any) -> None:
    assert wire.decode_command(wire.encode_command(command)) == command
    assert wire.command_type(wire.encode_command(command)) == command.type


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(events, min_size=1, max_size=4), counts, text)
def test_run_is_read_as_it_was_written(made: list[Any], epoch: int, name: str) -> None:
    run = tuple(type(event)(**{**_fields(event), "seq": 7 + n}) for n, event in enumerate(made))
    read = wire.decode_run(wire.encode_run("e", name, "v", epoch, run))
    assert read == wire.Run("e", name, "v", epoch, 7, run)
    for cut in range(1, len(run)):
        joined = wire.join_run("e", name, "v", epoch, 7, [wire.encode_events(part) for part in (run[:cut], run[cut:])])
        assert joined == wire.encode_run("e", name, "v", epoch, run)


def _fields(event: Event) -> dict[str, Any]:
    return {name: getattr(event, name) for name in event.__dataclass_fields__ if name != "type"}


@given(built(TaskOrder, type=text))
def test_order_is_read_as_it_was_written(order: TaskOrder) -> None:
    assert wire.decode_order(wire.encode_order(order)) == order


@given(st.binary(max_size=60))
def test_garbage_is_refused_with_a_sentence(value: bytes) -> None:
    for decode in (wire.decode_command, wire.decode_run, wire.decode_order):
        with pytest.raises(ValueError, match=r"^an? "):
            decode(value)


@given(commands, st.integers(0, 400))
def test_command_cut_short_is_refused(command: Any, keep: int) -> None:
    value = wire.encode_command(command)
    with pytest.raises(ValueError, match=r"^a "):
        wire.decode_command(value[: min(keep, len(value) - 1)])


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "a command has a value"),
        (b"", "a command cannot be read: Input data was truncated"),
        (b"[]", "a command cannot be read: Expected `object`, got `array`"),
        (b'{"type":"cancel"}', "a cancel cannot be read: Object missing required field `execution_id`"),
        (b'{"type":"pause","execution_id":"","command_id":"c"}', "1 to 200 characters, not 0"),
        (b'{"type":"stop"}', "no command is called 'stop': there are start, report"),
        (b'{"type":"report","execution_id":"e","task":"t","item":"x","attempt":1,"token":1}', "$.item"),
        (b'{"type":"resume","execution_id":"\xff","command_id":"c"}', "utf-8"),
        (b'{"type":"start","execution_id":"e","workflow":"w","version":"v","input":' + b"[" * 100_000, "recursion"),
    ],
    ids=range(9),
)
def test_refusal_says_what_is_wrong(value: bytes | None, says: str) -> None:
    with pytest.raises(ValueError) as refused:
        wire.decode_command(value)
    assert says.lower() in str(refused.value).lower()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("command", [Admit(execution_id="e"), TimerFired(execution_id="e", name="wait/a//1", due_ms=1)])
def test_what_only_an_owner_may_say_is_refused_from_a_topic(command: Any) -> None:
    with pytest.raises(ValueError, match="no command is called"):
        wire.decode_command(wire.encode_command(command))


def test_run_with_a_gap_is_refused() -> None:
    value = b'{"execution_id":"e","workflow":"w","version":"v","epoch":1,"first_seq":4,"events":[%s]}'
    event = b'{"type":"execution_admitted","seq":5,"at":1}'
    with pytest.raises(ValueError, match="without a gap"):
        wire.decode_run(value % event)
    with pytest.raises(ValueError, match="without a gap"):
        wire.decode_run(value % b"")


def test_fields_of_a_later_version_are_passed_over() -> None:
    value = b'{"type":"pause","execution_id":"e","command_id":"c","since":"tomorrow"}'
    assert wire.decode_command(value) == Pause(execution_id="e", command_id="c")

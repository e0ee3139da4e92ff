"""A definition is read whole: what is right becomes a workflow, what is wrong is all told with its place."""

import json
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.adapters.tasks.registry import Registry
from app.definition_wire import Definition, decode_definition, registration, version_of, workflow_of
from app.definitions.reading import check_document, read_definition
from app.domain.workflow.definition import Concurrency, MapOver, Rate, Retry, ScheduleTrigger, Task, TopicTrigger
from app.domain.workflow.graph import graph_of

TYPES = Registry(plug_ins=())
WHOLE = """\
# Everything a definition can say.
id: press-overheat
description: Tells the shift when a press is too hot.
triggers:
  - http: {}
  - {schedule: "*/5 * * * *", timezone: Europe/Berlin, overlap: allow, catch_up: all, input: {device_id: press-1}}
  - topic: device.signals
    when: severity == 'critical' && record.value > 1.0
    key: device_id
    debounce_s: 30
    input: {device_id: device_id, since: at - 60000}
concurrency: {key: input.device_id, limit: 2, when_full: skip}
rate: {limit: 10, per_s: 60}
priority: 7
timeout_s: 90.5
tasks:
  readings:
    type: source.sql
    with: {url: "${secret:plant_db}", query: "select 1 where device = :device_id"}
    retry: {attempts: 5, backoff_s: 0.2, factor: 2, max_s: 30, jitter: 0.2, non_retryable: [SqlStatement]}
    timeout_s: 5
    heartbeat_s: 2
    queue: heavy
  worst: {type: transform.cel, needs: readings, with: {filter: row.temperature > 90.0 && input.device_id != ''}}
  each: {type: transform.cel, needs: [worst], map: worst, with: {from: "[item]", value: "size(rows) + index"}}
  few: {type: transform.cel, needs: [each], map: {over: each, concurrency: 2}, with: {from: "${item}", map: row}}
  ask: {type: approval, needs: [few], when: size(worst) > 0, with: {signal: go, timeout_s: 60}}
  pause: {type: wait, needs: [few], with: {seconds: size(needs.few) + size(readings)}}
  later: {type: wait, needs: [few], with: {until: "2030-01-01T00:00:00Z"}}
  child: {type: workflow, needs: [ask, pause], with: {id: other, version: abc, input: {rows: "${worst}"}}}
on_failure: {type: sink.http, with: {url: "https://example.com/${error.task}", body: "${input}"}}
"""


def messages(text: str) -> list[str]:
    return [problem.at("f") for problem in read_definition(text, TYPES).problems]


def with_task(task: str, **more: Any) -> str:
    document = {"id": "w", "tasks": {"one": {"type": "transform.cel", "with": {"map": "row"}}}, **more}
    return json.dumps(document)[:-2] + f', "two": {task}' + "}}"


def test_every_construct_becomes_its_part_of_the_workflow() -> None:
    reading = read_definition(WHOLE, TYPES)
    assert reading.problems == ()
    workflow = reading.workflow
    assert workflow is not None
    assert workflow.description.startswith("Tells the shift")
    assert workflow.http
    assert workflow.schedules == (
        ScheduleTrigger(
            cron="*/5 * * * *",
            timezone="Europe/Berlin",
            overlap="allow",
            catch_up="all",
            input={"device_id": "press-1"},
        ),
    )
    assert workflow.topics == (
        TopicTrigger(
            topic="device.signals",
            when="severity == 'critical' && record.value > 1.0",
            key="device_id",
            debounce_s=30,
            input={"device_id": "device_id", "since": "at - 60000"},
        ),
    )
    assert workflow.concurrency == Concurrency(key="input.device_id", limit=2, when_full="skip")
    assert (workflow.rate, workflow.priority, workflow.timeout_s) == (Rate(limit=10, per_s=60), 7, 90.5)
    assert workflow.tasks["readings"] == Task(
        name="readings",
        type="source.sql",
        params={"url": "${secret:plant_db}", "query": "select 1 where device = :device_id"},
        retry=Retry(attempts=5, backoff_s=0.2, factor=2, max_s=30, jitter=0.2, non_retryable=("SqlStatement",)),
        timeout_s=5,
        heartbeat_s=2,
        queue="heavy",
    )
    assert workflow.tasks["worst"].needs == ("readings",)
    assert workflow.tasks["each"].map == MapOver(over="worst")
    assert workflow.tasks["few"].map == MapOver(over="each", concurrency=2)
    assert workflow.on_failure is not None
    assert graph_of(workflow).leaves == ("later", "child")


def test_what_is_read_back_from_the_topic_is_the_same_workflow() -> None:
    reading = read_definition(WHOLE, TYPES)
    assert reading.definition is not None
    record = registration(reading.definition, 5)[0]
    assert record.key == f"workflow:press-overheat@{reading.definition.version}".encode()
    assert record.value is not None
    assert workflow_of(decode_definition(record.value)) == reading.workflow
    assert decode_definition(record.value).registered_at == 5


def test_json_and_yaml_of_the_same_content_are_the_same_version() -> None:
    yaml = read_definition(WHOLE, TYPES)
    assert yaml.definition is not None
    text = json.dumps(yaml.definition.document, indent="\t", sort_keys=True)
    again = read_definition(text, TYPES)
    assert again.problems == ()
    assert again.definition is not None
    assert again.definition.version == yaml.definition.version
    assert len(again.definition.version) == 12
    checked = check_document(yaml.definition.document, TYPES)
    assert checked.workflow == yaml.workflow


def test_another_content_is_another_version() -> None:
    document = {"id": "w", "tasks": {"a": {"type": "wait", "with": {"seconds": 1}}}}
    assert version_of(document) != version_of({**document, "priority": 0})
    definition = Definition("w", version_of(document), document)
    assert workflow_of(definition) == replace(workflow_of(definition))


@pytest.mark.parametrize(
    ("triggers", "http"),
    [(None, True), ([], False), ([{"http": {}}], True), ([{"http": True}], True), ([{"http": False}], False)],
)
def test_starts_over_http_are_allowed_unless_other_triggers_are_named_alone(triggers: Any, http: bool) -> None:
    document: dict[str, Any] = {"id": "w", "tasks": {"a": {"type": "wait", "with": {"seconds": 1}}}}
    if triggers is not None:
        document["triggers"] = triggers
    reading = check_document(document, TYPES)
    assert reading.workflow is not None
    assert reading.workflow.http is http


WRONG = """\
id: press overheat
triggers:
  - {htp: {}}
  - {schedule: "*/5 * * * 9x", timezone: Europe/Berln}
  - {topic: device.signals, when: "severity === 'x'", key: device_id, debounce_s: 1}
concurrency: {key: inputs.device_id, limit: 0, when_fll: queue}
timeout_s: -1
prority: 3
tasks:
  readings: {type: source.sqll, with: {query: "select 1"}}
  in: {type: source.sql, with: {url: "${secret:x}", qery: "select 1"}}
  worst:
    type: transform.cel
    needs: [reading, c]
    with: {map: rov.x, filter: row.temperature >}
  c: {type: wait, needs: worst, with: {seconds: -1}, retry: {attempt: 3}}
  d: {type: workflow, with: {id: press overheat, input: "${c}"}, when: frobnicate(input)}
  e: {type: sink.http, needs: [d, d], timeout_s: "5", with: {url: "${needs.readings}", max: 3}}
  e: {}
on_failure: {type: approval, needs: [e]}
"""
TOLD = [
    "f:1:1 id: 'press overheat' does not fit",
    "f:3:5 triggers[0]: a trigger has one of http, schedule and topic",
    "f:4:6 triggers[1].schedule: day of week: '9X' is not a number",
    "f:4:32 triggers[1].timezone: timezone: 'Europe/Berln' is no zone",
    "f:5:29 triggers[2].when: is no CEL: at character 12",
    "f:6:15 concurrency.key: inputs is not known here; did you mean input?",
    "f:6:38 concurrency.limit: must be at least 1, not 0",
    "f:6:48 concurrency.when_fll: unknown field; did you mean when_full?",
    "f:7:1 timeout_s: must be more than 0, not -1",
    "f:8:1 prority: unknown field; did you mean priority?",
    "f:10:14 tasks.readings.type: there is no task type source.sqll; did you mean source.sql?",
    "f:11:3 tasks.in: in means something in expressions",
    "f:11:26 tasks.in.with.query: is required",
    "f:11:53 tasks.in.with.qery: unknown field; did you mean query?",
    "f:14:13 tasks.worst.needs[0]: there is no task reading; did you mean readings?",
    "f:15:12 tasks.worst.with.map: rov is not known here; did you mean row?",
    "f:15:24 tasks.worst.with.filter: is no CEL: at character 18",
    "f:16:19 tasks.c.needs: the tasks need each other in a circle: c → worst → c",
    "f:16:40 tasks.c.with.seconds: must be at least 0, not -1",
    "f:16:62 tasks.c.retry.attempt: unknown field; did you mean attempts?",
    "f:17:30 tasks.d.with.id: a workflow cannot start itself",
    "f:17:50 tasks.d.with.input: c has perhaps not ended: add it to needs",
    "f:17:66 tasks.d.when: there is no function frobnicate",
    "f:18:35 tasks.e.needs[1]: d is named twice",
    "f:18:39 tasks.e.timeout_s: expected a number, not '5'",
    "f:18:62 tasks.e.with.url: readings is not among the needs; known are d",
    "f:18:88 tasks.e.with.max: unknown field",
    "f:19:3 tasks.e: is given twice, first in line 18",
    "f:20:14 on_failure.type: on_failure cannot be of the type approval",
    "f:20:30 on_failure.needs: unknown field",
]


def test_every_problem_is_told_at_once_with_its_line_column_and_field() -> None:
    told = messages(WRONG)
    assert [one[: len(wanted)] for one, wanted in zip(told, TOLD, strict=True)] == TOLD
    assert read_definition(WRONG, TYPES).definition is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "f:1:1 there is nothing in it"),
        ("[]", "f:1:1 expected keys with values, not []"),
        ("just text", "f:1:1 expected keys with values, not 'just text'"),
        ("a: [", "f:2:1 is not YAML: did not find expected node content"),
        ("a: 1\n--- \nb: 2", "f:2:1 is not YAML: holds more than one document"),
        ("id: x\ntasks: &a\n  b: *a", "f:3:3 tasks.b: it refers to itself"),
        ("id: !!python/object:os.system x\ntasks: {}", "f:1:1 id: the tag !python/object:os.system is not known here"),
        ("id: x\ntasks: {}", "f:2:1 tasks: needs at least 1"),
        ("id: x", "f:1:1 tasks: is required"),
        ("id: 5\ntasks: 3", "f:1:1 id: expected text"),
        ("id: x\ntasks: [a]", "f:2:1 tasks: expected keys with values, not ['a']"),
        ("id: x\ntasks: {a: 5}", "f:2:9 tasks.a: expected keys with values, not 5"),
        ("id: x\ntasks: {a-b: {type: wait, with: {seconds: 1}}}", "f:2:9 tasks.a-b: the name of a task has letters"),
        ("id: x\ntasks: {a: {type: wait}}", "f:2:9 tasks.a.with: a wait has either seconds or until"),
        ("id: x\ntasks: {a: {type: [wait]}}", "f:2:13 tasks.a.type: expected text"),
        ("? [a]\n: 1", "a key must be text"),
        ("id: \udc80", "is not UTF-8 text"),
        ('id: "\\ud800"', "is not YAML"),
    ],
)
def test_a_text_that_is_no_definition_is_told_so(text: str, told: str) -> None:
    assert any(told in one for one in messages(text)), messages(text)


def test_bytes_that_are_no_text_are_told_so() -> None:
    assert read_definition(b"id: x\n\xff", TYPES).problems[0].at("f") == "f:2:1 it is not UTF-8 text"


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ('{"type": "wait", "with": {"seconds": 1}, "needs": ["two"]}', "a task cannot need itself"),
        ('{"type": "wait", "with": {"seconds": "one.x + missing"}, "needs": ["one"]}', "missing is not known here"),
        ('{"type": "wait", "with": {"seconds": "item"}}', "item is not known here"),
        ('{"type": "wait", "with": {"seconds": "${1"}}', "the ${ at character 1 is never closed"),
        ('{"type": "wait", "with": {"seconds": 1, "until": 5}}', "a wait has either seconds or until"),
        ('{"type": "approval", "with": {"timeout_s": 0}}', "must be more than 0"),
        ('{"type": "workflow"}', "tasks.two.with.id: is required"),
        ('{"type": "transform.cel", "with": {}}', "one of filter, map and value is needed"),
        ('{"type": "transform.cel", "with": {"map": {"a": "row.", "b": "rows"}}}', "two.with.map.a: is no CEL"),
        ('{"type": "transform.cel", "with": {"map": "row", "from": "worst"}}', "worst is not known here"),
        ('{"type": "transform.cel", "map": "input.x.map(a, b)", "with": {"map": "row"}}', "b is not known here"),
        ('{"type": "transform.jmespath", "with": {"query": "[?"}}', "two.with.query"),
        ('{"type": "transform.aggregate", "with": {"aggregates": {"a": "summ(x)"}}}', "two.with.aggregates"),
        ('{"type": "sink.http", "with": {"url": "https://x", "method": "GET"}}', "method: expected one of"),
        ('{"type": "sink.http", "with": {"url": "https://x/${secret:}"}}', "names no secret"),
        ('{"type": "sink.http", "with": {"url": "https://x"}, "when": 5}', "two.when: expected text"),
        ('{"type": "sink.http", "with": {"url": "https://x"}, "timeout_s": 1e400}', "two.timeout_s: the number is too"),
    ],
)
def test_a_task_that_is_wrong_is_told_so(task: str, told: str) -> None:
    reading = read_definition(with_task(task), TYPES)
    assert reading.definition is None
    assert any(told in problem.at("f") for problem in reading.problems), reading.problems


@pytest.mark.parametrize(
    "task",
    [
        '{"type": "sink.http", "with": {"url": "${input.url}", "timeout_s": "${input.t}", "headers": "${input.h}"}}',
        '{"type": "sink.http", "with": {"url": "https://x", "body": {"a": ["${one}"]}}, "needs": ["one"]}',
        '{"type": "wait", "with": {"seconds": "${input.seconds}"}, "when": "one == null || true", "needs": ["one"]}',
        '{"type": "wait", "with": {"until": "2030-01-01"}}',
        '{"type": "transform.cel", "map": "input", "with": {"from": "[item, index]", "map": "row + item"}}',
        '{"type": "transform.cel", "with": {"map": "row", "from": ["${input}", 1]}}',
    ],
)
def test_what_is_only_known_at_run_time_is_not_judged(task: str) -> None:
    assert read_definition(with_task(task), TYPES).problems == ()


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ('{"type": "sink.http", "with": {"url": "https://me:pw@x"}}', "has a password in clear"),
        ('{"type": "sink.http", "with": {"url": "https://x", "headers": {"X-Api-Key": "a"}}}', "looks like a secret"),
        ('{"type": "wait", "with": {"seconds": 1}, "queue": "q"}', "does nothing for the type wait"),
        (
            '{"type": "sink.http", "with": {"url": "https://x"}, "timeout_s": 1, "heartbeat_s": 2}',
            "longer than",
        ),
    ],
)
def test_what_is_doubtful_is_a_warning_and_no_obstacle(task: str, told: str) -> None:
    reading = read_definition(with_task(task), TYPES)
    assert reading.definition is not None
    assert [told in problem.message for problem in reading.warnings] == [True]
    assert " warning: " in reading.warnings[0].at("f")
    assert reading.errors == ()


def test_secret_values_are_never_quoted() -> None:
    task = '{"type": "sink.http", "with": {"url": "https://x", "headers": {"a": {"b": "hunter2"}}}}'
    told = messages(with_task(task))
    assert told
    assert not any("hunter2" in one for one in told)


def test_limits_hold() -> None:
    tasks = {f"t{at}": {"type": "wait", "with": {"seconds": 1}} for at in range(501)}
    reading = check_document({"id": "w", "tasks": tasks}, TYPES)
    assert [one.message for one in reading.problems] == ["may have 500 at most"]
    assert check_document({"id": "w", "tasks": dict(list(tasks.items())[:500])}, TYPES).problems == ()
    long = {"id": "w", "description": "x" * 300_000, "tasks": tasks}
    assert "the most is 262144" in check_document(long, TYPES).problems[0].message
    assert "the most is 262144" in read_definition(orjson.dumps(long), TYPES).problems[0].message
    bomb = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{new}: &{new} [*{old},*{old},*{old},*{old},*{old},*{old},*{old},*{old}]\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert any("unfolds to more than" in one for one in messages(bomb))
    assert any("nested deeper" in one for one in messages("id: " + "[" * 60 + "]" * 60))
    assert messages("[" * 100_000) != []


def test_a_text_with_very_many_problems_is_answered_with_the_first_hundred() -> None:
    many = "id: x\ntasks:\n" + "".join(f"  t{at}: {{typ: x, wiht: 3}}\n" for at in range(8000))
    assert len(messages(many)) == 100
    doubtful = {f"t{at}": {"type": "sink.http", "with": {"url": "https://a:b@x"}} for at in range(499)}
    wrong = {**doubtful, "last": {"type": "wait", "needs": ["absent"], "with": {"seconds": 1}}}
    assert check_document({"id": "w", "tasks": wrong}, TYPES).definition is None
    assert len(check_document({"id": "w", "tasks": doubtful}, TYPES).warnings) == 100


def test_what_yaml_1_1_would_take_for_a_switch_or_a_time_is_text() -> None:
    text = "id: on\ndescription: 12:30\ntasks: {no: {type: wait, with: {until: 2030-01-01}}}\n"
    reading = read_definition(text, TYPES)
    assert reading.definition is not None
    assert reading.definition.document == {
        "id": "on",
        "description": "12:30",
        "tasks": {"no": {"type": "wait", "with": {"until": "2030-01-01"}}},
    }


def test_merged_keys_give_way_to_what_is_written_out() -> None:
    text = "id: w\ntasks:\n  a: &a {type: wait, with: {seconds: 1}}\n  b: {<<: *a, with: {seconds: 2}, needs: a}\n"
    reading = read_definition(text, TYPES)
    assert reading.workflow is not None
    assert reading.workflow.tasks["b"].params == {"seconds": 2}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = ["id", "triggers", "tasks", "concurrency", "rate", "on_failure", "with", "needs", "type", "map", "schedule"]
_FIELD = st.sampled_from([*_FIELDS, "topic", "when", "http", "retry"])


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        _JSON | st.sampled_from(["wait", "transform.cel", "${", "${a}"]),
        lambda inner: st.dictionaries(_FIELD, inner, max_size=4) | st.lists(inner, max_size=3),
        max_leaves=12,
    )
)
def test_any_document_is_answered_with_problems(value: Any) -> None:
    for document in (value, {"id": "w", "tasks": {"a": value, "b": value}, "on_failure": value, "triggers": [value]}):
        reading = check_document(document, TYPES)
        assert (reading.definition is None) == bool(reading.errors)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="id: wtasks{}[]\n-'\"&*!|>#,?a1\t", max_size=80))
def test_any_text_is_answered_with_problems(text: str) -> None:
    reading = read_definition(text, TYPES)
    assert (reading.definition is None) == bool(reading.errors)


@pytest.mark.parametrize("hole", ["${input.device}", "${secret:table}"])
def test_text_of_a_query_takes_no_expression(hole: str) -> None:
    text = with_task(json.dumps({"type": "source.sql", "with": {"url": "sqlite:///x", "query": f"select {hole}"}}))
    (message,) = messages(text)
    assert "tasks.two.with.query" in message
    assert "bind values by name" in message
    assert messages(text.replace("select $", "select $$")) == []

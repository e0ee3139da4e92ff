"""Laws of schedules and backfills over HTTP, with their owner behind it and no broker between."""

import pytest

from app.http.entity_schemas import BackfillView, ScheduleView
from tests.helpers.time_api import Api

NIGHTLY = {"workflow": "press-overheat", "cron": "0 3 * * *", "timezone": "Europe/Berlin"}
NOVEMBER = {"id": "november", **NIGHTLY, "from": "2025-11-01T00:00:00Z", "to": "2025-11-30T23:59:59Z"}


@pytest.fixture
def api() -> Api:
    return Api()


async def test_a_schedule_that_was_put_can_be_read_paused_resumed_run_and_deleted(api: Api) -> None:
    put = await api.ask("PUT", "schedules/nightly", json=NIGHTLY)
    assert put["applied"] is True
    shown = await api.ask("GET", "schedules/nightly", 200)
    assert shown == put["schedule"]
    ScheduleView.model_validate(shown)
    assert (shown["next_at"], shown["source"]) == (1763690400000, "person")
    assert (await api.ask("POST", "schedules/nightly/pause"))["schedule"]["paused"] is True
    assert (await api.ask("POST", "schedules/nightly/resume"))["schedule"]["paused"] is False
    ran = await api.ask("POST", "schedules/nightly/run")
    assert ran["schedule"]["running"] == [start.execution_id for start in api.world.starts]
    gone = await api.ask("DELETE", "schedules/nightly")
    assert (gone["applied"], gone["schedule"]) == (True, None)
    await api.ask("GET", "schedules/nightly", 404)


async def test_a_repeat_with_the_same_idempotency_key_has_no_effect(api: Api) -> None:
    await api.ask("PUT", "schedules/nightly", json=NIGHTLY)
    for _ in range(2):
        await api.ask("POST", "schedules/nightly/run", headers={"Idempotency-Key": "once"})
    assert len(api.world.starts) == 1
    order = {name: value for name, value in NOVEMBER.items() if name != "id"}
    names = [(await api.ask("POST", "backfills", json=order, headers={"Idempotency-Key": "b"}))["id"] for _ in range(2)]
    assert names[0] == names[1]
    assert len(api.known.entities("backfill")) == 1


async def test_lists_are_by_name_paged_and_filtered(api: Api) -> None:
    for name in ("c", "a", "b"):
        await api.ask("PUT", f"schedules/{name}", json=NIGHTLY | {"paused": name == "b"})
    first = await api.ask("GET", "schedules?limit=2", 200)
    assert [each["id"] for each in first["items"]] == ["a", "b"]
    rest = await api.ask("GET", f"schedules?limit=2&cursor={first['next_cursor']}", 200)
    assert ([each["id"] for each in rest["items"]], rest["next_cursor"]) == (["c"], None)
    paused = await api.ask("GET", "schedules?paused=true", 200)
    assert [each["id"] for each in paused["items"]] == ["b"]
    assert (await api.ask("GET", "schedules?workflow=other", 200))["items"] == []


async def test_a_backfill_runs_over_its_range_and_can_be_cancelled(api: Api) -> None:
    started = (await api.ask("POST", "backfills", json=NOVEMBER | {"concurrency": 2}))["backfill"]
    BackfillView.model_validate(started)
    assert (started["total"], started["running_count"], started["status"]) == (30, 2, "running")
    assert api.world.starts[0].trigger["due"] == "2025-11-01T02:00:00.000Z"
    await api.ask("POST", "backfills", 409, json=NOVEMBER)
    assert (await api.ask("GET", "backfills/november", 200))["started"] == 2
    cancelled = (await api.ask("POST", "backfills/november/cancel", json={"running": False}))["backfill"]
    assert cancelled["status"] == "cancelled"
    assert api.world.cancels == []
    listed = await api.ask("GET", "backfills?status=cancelled", 200)
    assert [each["id"] for each in listed["items"]] == ["november"]


async def test_a_backfill_can_take_everything_from_a_schedule(api: Api) -> None:
    await api.ask("PUT", "schedules/nightly", json=NIGHTLY | {"input": {"site": "north"}})
    order = {"schedule": "nightly", "from": 1761955200000, "to": 1764547199000}
    started = (await api.ask("POST", "backfills", json=order))["backfill"]
    assert (started["workflow"], started["cron"], started["timezone"], started["input"], started["total"]) == (
        "press-overheat",
        "0 3 * * *",
        "Europe/Berlin",
        {"site": "north"},
        30,
    )
    await api.ask("POST", "backfills", 404, json=order | {"schedule": "none"})


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("PUT", "schedules/x", NIGHTLY | {"cron": "61 * * * *"}, 422, "minute"),
        ("PUT", "schedules/x", NIGHTLY | {"timezone": "Mars"}, 422, "timezone"),
        ("PUT", "schedules/x", NIGHTLY | {"every_s": 60}, 422, "not both"),
        ("PUT", "schedules/x", {"workflow": "press-overheat"}, 422, "either cron or every"),
        ("PUT", "schedules/x", NIGHTLY | {"workflow": "none"}, 422, "No workflow none is registered."),
        ("PUT", "schedules/x", NIGHTLY | {"version": "v9"}, 422, "No version v9"),
        ("PUT", "schedules/x", NIGHTLY | {"overlap": "maybe"}, 422, "overlap"),
        ("PUT", "schedules/x", NIGHTLY | {"colour": "red"}, 422, "colour"),
        ("PUT", "schedules/-x", NIGHTLY, 422, "A name has"),
        ("PUT", "schedules/backfill.x", NIGHTLY, 422, "kept for"),
        ("POST", "schedules/none/pause", None, 404, "There is no schedule none."),
        ("DELETE", "schedules/none", None, 404, "There is no schedule none."),
        ("POST", "backfills/none/cancel", None, 404, "There is no backfill none."),
        ("POST", "backfills", NOVEMBER | {"to": "2025-10-01T00:00:00Z"}, 422, "ends before it begins"),
        ("POST", "backfills", NOVEMBER | {"to": "soon"}, 400, "RFC 3339"),
        ("POST", "backfills", NOVEMBER | {"cron": "* * * * *", "from": 0}, 422, "split it"),
        ("POST", "backfills", NOVEMBER | {"to": "2025-11-01T00:00:00Z"}, 422, "Nothing is due"),
        ("POST", "backfills", {"from": 1, "to": 2, "cron": "@daily"}, 422, "workflow"),
        ("POST", "backfills", NOVEMBER | {"concurrency": 0}, 422, "concurrency"),
    ],
)
async def test_what_cannot_be_done_is_a_problem_that_says_why_and_nothing_is_sent(
    api: Api, method: str, path: str, body: object, status: int, said: str
) -> None:
    problem = await api.ask(method, path, status, json=body)
    assert said in str([problem["detail"], problem.get("errors")])
    assert api.sent.records == []


async def test_nothing_is_denied_before_everything_was_read(api: Api) -> None:
    api.known.ready = False
    for path in ("schedules", "schedules/nightly", "backfills", "backfills/x"):
        await api.ask("GET", path, 503)

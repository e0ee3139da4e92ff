"""Laws of cron: due when the wall clock says so, once each, whatever the clocks do."""

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.domain.workflow.cron import ALIASES, Cron, CronError, parse_cron

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Windows of a few days around changes of the clocks: forwards and back, by an hour, by half an hour, by a day,
# at midnight and a minute past it.
CHANGES = (
    ("Europe/Berlin", datetime(2026, 3, 28, 12)),
    ("Europe/Berlin", datetime(2026, 10, 24, 12)),
    ("America/New_York", datetime(2026, 3, 7, 12)),
    ("America/New_York", datetime(2026, 10, 31, 12)),
    ("Australia/Lord_Howe", datetime(2026, 4, 4, 0)),
    ("Australia/Lord_Howe", datetime(2026, 10, 3, 0)),
    ("America/St_Johns", datetime(2010, 11, 6, 12)),
    ("America/Sao_Paulo", datetime(2017, 10, 14, 12)),
    ("America/Sao_Paulo", datetime(2018, 2, 17, 12)),
    ("Pacific/Apia", datetime(2011, 12, 29, 0)),
)
WINDOW = timedelta(hours=40)


def ms(at: datetime) -> int:
    return (at.astimezone(UTC) - EPOCH) // timedelta(milliseconds=1)


def local(zone: str, *parts: int, fold: int = 0) -> int:
    return ms(datetime(*parts, tzinfo=ZoneInfo(zone), fold=fold))  # type: ignore[arg-type, misc]


def between(cron: Cron, start_ms: int, end_ms: int) -> list[int]:
    found = []
    at = start_ms
    while (at := cron.next_after(at)) < end_ms:
        found.append(at)
    return found


def matches(cron: Cron, wall: datetime) -> bool:
    return cron.holds_on(wall.date()) and wall.hour in cron.hours and wall.minute in cron.minutes


def by_walking(cron: Cron, start: datetime, end: datetime) -> list[int]:
    """Another way to the same: every minute is walked, and the wall-clock times that it newly shows are looked at."""
    found = []
    at = start - timedelta(days=2)
    reached = at.astimezone(cron.zone).replace(tzinfo=None)
    while (at := at + timedelta(minutes=1)) < end:
        wall = at.astimezone(cron.zone).replace(tzinfo=None)
        if cron.runs_through:
            due = matches(cron, wall)
        else:
            newly = [reached + timedelta(minutes=n + 1) for n in range(int((wall - reached).total_seconds()) // 60)]
            due = any(matches(cron, each) for each in newly)
            reached = max(reached, wall)
        if due and at > start:
            found.append(ms(at))
    return found


def a_field(low: int, high: int) -> st.SearchStrategy[str]:
    value = st.integers(low, high)
    spans = st.tuples(value, value).map(sorted)
    return st.one_of(
        st.just("*"),
        value.map(str),
        st.integers(1, high - low + 1).map(lambda step: f"*/{step}"),
        st.tuples(spans, st.integers(1, 5)).map(lambda each: f"{each[0][0]}-{each[0][1]}/{each[1]}"),
        st.lists(value, min_size=1, max_size=4).map(lambda each: ",".join(map(str, each))),
    )


EXPRESSIONS = st.tuples(a_field(0, 59), a_field(0, 23), st.just("*"), st.just("*"), a_field(0, 6)).map(" ".join)
HOURS_OF_THE_NIGHT = st.tuples(a_field(0, 59), a_field(0, 4), st.just("* * *")).map(" ".join)


@example("* * * * 6", ("America/St_Johns", datetime(2010, 11, 6, 12)))  # 00:01 on Sunday is 23:01 on Saturday again
@given(st.one_of(EXPRESSIONS, HOURS_OF_THE_NIGHT), st.sampled_from(CHANGES))
def test_what_is_due_is_what_a_walk_over_every_minute_finds(text: str, change: tuple[str, datetime]) -> None:
    zone, begins = change
    cron = parse_cron(text, zone)
    start = begins.replace(tzinfo=UTC)
    assert between(cron, ms(start), ms(start + WINDOW)) == by_walking(cron, start, start + WINDOW)


@given(
    st.tuples(a_field(0, 59), a_field(0, 23), a_field(1, 28), a_field(1, 12), a_field(0, 6)).map(" ".join),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
    st.integers(0, 4_000_000_000_000),
)
def test_due_times_grow_strictly_and_match_the_fields(text: str, zone: str, at_ms: int) -> None:
    cron = parse_cron(text, zone)
    for _ in range(5):
        due = cron.next_after(at_ms)
        assert due > at_ms
        assert cron.next_after(due - 1) == due, "what lies between changes nothing"
        wall = (EPOCH + timedelta(milliseconds=due)).astimezone(cron.zone).replace(tzinfo=None)
        assert (wall.second, wall.microsecond) == (0, 0)
        assert matches(cron, wall) or not cron.runs_through
        at_ms = due


def test_a_job_in_the_skipped_hour_runs_once_right_after_it() -> None:
    day = ("Europe/Berlin", 2026, 3, 29)
    found = between(parse_cron("*/20 2 * * *", day[0]), local(*day, 0, 0), local(*day, 23, 0))
    assert found == [local(*day, 3, 0)]


def test_a_job_in_the_repeated_hour_runs_in_its_first_pass() -> None:
    day = ("Europe/Berlin", 2026, 10, 25)
    found = between(parse_cron("30 2 * * *", day[0]), local(*day, 0, 0), local(*day, 23, 0))
    assert found == [local(*day, 2, 30, fold=0)]
    assert parse_cron("30 2 * * *", day[0]).next_after(found[0]) == local("Europe/Berlin", 2026, 10, 26, 2, 30)


@pytest.mark.parametrize(("month", "day", "runs"), [(3, 29, 23 * 12), (10, 25, 25 * 12), (6, 1, 24 * 12)])
def test_every_five_minutes_runs_through_the_changes(month: int, day: int, runs: int) -> None:
    start, end = local("Europe/Berlin", 2026, month, day), local("Europe/Berlin", 2026, month, day + 1)
    found = between(parse_cron("*/5 * * * *", "Europe/Berlin"), start - 1, end)
    assert len(found) == runs
    assert {later - earlier for earlier, later in itertools.pairwise(found)} == {300_000}


def test_half_an_hour_is_skipped_and_repeated_on_lord_howe() -> None:
    zone = "Australia/Lord_Howe"
    forwards = between(parse_cron("15 2 * * *", zone), local(zone, 2026, 10, 4), local(zone, 2026, 10, 5))
    assert forwards == [local(zone, 2026, 10, 4, 2, 30)]
    back = between(parse_cron("45 1 * * *", zone), local(zone, 2026, 4, 5), local(zone, 2026, 4, 6))
    assert back == [local(zone, 2026, 4, 5, 1, 45, fold=0)]


def test_a_day_that_a_zone_left_out_is_due_once_when_the_next_begins() -> None:
    cron = parse_cron("0 8-20 30 12 *", "Pacific/Apia")
    assert cron.next_after(local("Pacific/Apia", 2011, 12, 29, 23)) == local("Pacific/Apia", 2011, 12, 31, 0)
    assert cron.next_after(local("Pacific/Apia", 2011, 12, 31, 0)) == local("Pacific/Apia", 2012, 12, 30, 8)


def test_the_29th_of_february_is_found_however_far_it_is() -> None:
    assert parse_cron("0 0 29 2 *").next_after(local("UTC", 2097, 1, 1)) == local("UTC", 2104, 2, 29)


def test_names_aliases_and_either_case_mean_the_same() -> None:
    names, numbers = parse_cron("0 6 * jan-mar Mon-FRI"), parse_cron("0 6 * 1-3 1-5")
    assert names.next_after(0) == numbers.next_after(0)
    assert parse_cron("0 0 * * 7").days_of_week == parse_cron("0 0 ? * SUN").days_of_week == {6}
    assert parse_cron("0 0 * * FRI-SUN").days_of_week == {4, 5, 6}
    for alias, text in ALIASES.items():
        assert parse_cron(alias).next_after(1) == parse_cron(text).next_after(1)


def test_two_restricted_day_fields_mean_either_and_a_star_means_both() -> None:
    start, end = local("UTC", 2026, 11, 1), local("UTC", 2026, 12, 1)
    days = [due // 86_400_000 for due in between(parse_cron("0 0 13 * FRI"), start - 1, end)]
    assert len(days) == 4  # Fridays 6, 13, 20 and 27
    assert len(between(parse_cron("0 0 15 * FRI"), start - 1, end)) == 5
    assert between(parse_cron("0 0 */2 * FRI"), start - 1, end) == [
        local("UTC", 2026, 11, 13),
        local("UTC", 2026, 11, 27),
    ]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("60 * * * *", "minute"),
        ("*/90 * * * *", "minute"),
        ("*/0 * * * *", "minute"),
        ("5/15 * * * *", "minute"),
        ("a * * * *", "minute"),
        ("1,,2 * * * *", "minute"),
        ("* 24 * * *", "hour"),
        ("* 5-1 * * *", "hour"),
        ("* *-3 * * *", "hour"),
        ("* -1 * * *", "hour"),
        ("* * 0 * *", "day of month"),
        ("* * L * *", "day of month"),
        ("* * * 13 *", "month"),
        ("* * * MON *", "month"),
        ("* * * * 8", "day of week"),
        ("* * * * FRI#2", "day of week"),
        ("0 0 30 2 *", "day of month"),
        ("0 0 31 4,6,9,11 *", "day of month"),
        ("", "five fields"),
        ("* * * *", "five fields"),
        ("* * * * * *", "five fields"),
        ("@often", "@often"),
        ("*" * 201, "characters"),
    ],
)
def test_nonsense_is_refused_with_one_sentence_that_names_the_field(text: str, field: str) -> None:
    with pytest.raises(CronError) as refused:
        parse_cron(text)
    said = str(refused.value)
    assert field in said
    assert said.endswith(".")
    assert "\n" not in said


@pytest.mark.parametrize("zone", ["Berlin", "", "../etc/passwd", "/etc/localtime", "Europe", "a\x00b"])
def test_an_unknown_zone_is_refused(zone: str) -> None:
    with pytest.raises(CronError, match="timezone"):
        parse_cron("@daily", zone)


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        cron = parse_cron(text)
    except CronError:
        return
    assert cron.next_after(0) > 0

"""Cron: five fields in a time zone, and the instant at which they next hold.

Fields: minute (0-59), hour (0-23), day of month (1-31), month (1-12 or JAN-DEC), day of week (0-7 or SUN-SAT, 0 and 7
are Sunday); in each `*`, a value, `a-b`, `*/n`, `a-b/n`, and lists of those by comma. `?` in a day field means `*`.
When neither day field begins with `*` it is enough that one of them holds, else both must (as in Vixie cron).

What happens when the clocks change (docs/decisions/0012-cron.md):
- The hour field is `*`: the schedule runs through. Every minute that really passes and matches is due; a repeated hour
  has its runs twice, a skipped one none.
- The hour field names hours: a wall-clock time is due once, at the first instant at which the clock has reached it.
  Times of a repeated hour are due in its first pass alone; all times of a skipped hour are due together, once, at the
  first instant after it.
"""

import calendar
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

MINUTE: Final = timedelta(minutes=1)
DAY: Final = timedelta(days=1)
ALIASES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MONTHS: Final = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS: Final = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_MAX_CHARS: Final = 200
# 29 February on a given day of the week is at most 40 years away (28, and 12 more where a century has no leap day).
_HORIZON_DAYS: Final = 41 * 366
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST: Final = datetime(9900, 1, 1, tzinfo=UTC)
_PART: Final = re.compile(r"^(\*|[0-9A-Z]+)(?:-([0-9A-Z]+))?(?:/([0-9]+))?$")


class _Field(NamedTuple):
    name: str
    low: int
    high: int
    words: tuple[str, ...] = ()
    first_word: int = 0


_FIELDS: Final = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, _MONTHS, 1),
    _Field("day of week", 0, 7, _DAYS, 0),
)


class CronError(ValueError):
    """A cron expression means nothing; the message is one sentence that names the field."""


@dataclass(frozen=True, slots=True)
class Cron:
    """A parsed expression. `days_of_week` counts from Monday = 0, as `date.weekday`."""

    text: str
    zone: ZoneInfo
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    days_of_week: frozenset[int]
    either_day: bool
    runs_through: bool

    def next_after(self, at_ms: int) -> int:
        """The first instant (ms UTC) later than `at_ms` at which it is due."""
        at = _EPOCH + timedelta(milliseconds=at_ms)
        assert at < _LAST, "no clock of ours goes that far"
        due = self._next_passing(at) if self.runs_through else self._next_on_the_wall(at)
        return (due - _EPOCH) // timedelta(milliseconds=1)

    def holds_on(self, day: date) -> bool:
        """Whether it may be due on this day."""
        if day.month not in self.months:
            return False
        of_month, of_week = day.day in self.days, day.weekday() in self.days_of_week
        return of_month or of_week if self.either_day else of_month and of_week

    def _next_on_the_wall(self, at: datetime) -> datetime:
        """The earliest instant after `at` at which the wall clock first reaches a matching time.

        That instant never goes back as the wall-clock times go on, so the first that is late enough is the answer.
        """
        wall = at.astimezone(self.zone).replace(tzinfo=None)
        while True:
            wall = self._next_wall(wall)
            due = first_reached(wall, self.zone)
            if due > at:
                return due

    def _next_wall(self, after: datetime) -> datetime:
        """The first matching wall-clock time later than `after`."""
        if self.holds_on(after.date()):
            for hour in self.hours:
                if hour < after.hour:
                    continue
                for minute in self.minutes:
                    if (hour, minute) > (after.hour, after.minute):
                        return after.replace(hour=hour, minute=minute, second=0, microsecond=0)
        day = self._next_day(after.date())
        return datetime(day.year, day.month, day.day, self.hours[0], self.minutes[0])  # noqa: DTZ001 - a wall clock

    def _next_day(self, after: date) -> date:
        day = after
        for _ in range(_HORIZON_DAYS):
            if day.month in self.months or day.day > 27:
                day += DAY
            else:
                day = day.replace(day=28)  # a month that is not meant is left in a few steps
            if self.holds_on(day):
                return day
        raise AssertionError(f"{self.text} is never due")

    def _next_passing(self, at: datetime) -> datetime:
        """The next minute that really passes and matches; days that do not match are left in one step."""
        wall = at.astimezone(self.zone)
        due = at + timedelta(seconds=60 - wall.second) - timedelta(microseconds=wall.microsecond)
        while True:
            wall = due.astimezone(self.zone)
            if not self.holds_on(wall.date()) and wall.hour < 2 and self.holds_on(wall.date() - DAY):
                due += MINUTE  # a clock that goes back now shows the end of the day before once more
            elif not self.holds_on(wall.date()):
                midnight = datetime.combine(self._next_day(wall.date()), datetime.min.time())
                # A repeated hour may lie before midnight: the last stretch is walked.
                due = max(due + MINUTE, first_reached(midnight, self.zone) - 120 * MINUTE)
            elif wall.minute in self.minutes:
                return due
            else:
                due += MINUTE


def first_reached(wall: datetime, zone: ZoneInfo) -> datetime:
    """The first instant at which the wall clock of `zone` shows `wall` or, where it leaves it out, later."""
    due = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if due.astimezone(zone).replace(tzinfo=None) == wall:
        return due
    # `wall` is skipped: what was computed lies after the jump; the jump is where the clock begins to be ahead of it.
    before, after = due - 2 * (due.astimezone(zone).replace(tzinfo=None) - wall), due
    while after - before > timedelta(seconds=1):
        middle = before + (after - before) // 2
        if middle.astimezone(zone).replace(tzinfo=None) >= wall:
            after = middle
        else:
            before = middle
    return after.replace(microsecond=0)


@lru_cache(maxsize=4_096)
def parse_cron(text: str, timezone: str = "UTC") -> Cron:
    """The meaning of `text` in a zone of the IANA database. Raises `CronError`."""
    zone = _zone(timezone)
    if len(text) > _MAX_CHARS:
        raise CronError(f"A cron expression has at most {_MAX_CHARS} characters, this one {len(text)}.")
    words = ALIASES.get(text.strip().lower(), text).upper().split()
    if text.strip().startswith("@") and text.strip().lower() not in ALIASES:
        raise CronError(f"There is no alias {text.strip()}; there are {', '.join(ALIASES)}.")
    if len(words) != len(_FIELDS):
        raise CronError(
            f"A cron expression has five fields (minute, hour, day of month, month, day of week), "
            f"{text.strip()!r} has {len(words)}."
        )
    for place in (2, 4):
        words[place] = "*" if words[place] == "?" else words[place]
    minutes, hours, days, months, of_week = (_values(*each) for each in zip(words, _FIELDS, strict=True))
    starred = words[2].startswith("*") or words[4].startswith("*")
    cron = Cron(
        text=text.strip(),
        zone=zone,
        minutes=tuple(sorted(minutes)),
        hours=tuple(sorted(hours)),
        days=frozenset(days),
        months=frozenset(months),
        days_of_week=frozenset((day - 1) % 7 for day in of_week),
        either_day=not starred,
        runs_through=words[1] == "*",
    )
    _refuse_never(cron)
    return cron


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise CronError(f"timezone: {name!r} is no zone of the IANA database, such as Europe/Berlin or UTC.") from error


def _values(word: str, field: _Field) -> set[int]:
    return {value for part in word.split(",") for value in _part(part, field)}


def _part(part: str, field: _Field) -> range:
    found = _PART.match(part)
    if found is None:
        raise CronError(f"{field.name}: {part!r} is not a value, a-b, * or one of those with /n.")
    first, last, step_text = found.groups()
    if first == "*":
        if last is not None:
            raise CronError(f"{field.name}: {part!r} is a range from *.")
        low, high = field.low, 6 if field.words is _DAYS else field.high
    else:
        low = _value(first, field)
        high = low if last is None else _value(last, field)
        if step_text is not None and last is None:
            raise CronError(f"{field.name}: a step needs a range, as in {low}-{field.high}/{step_text}, not {part!r}.")
        high = 7 if field.words is _DAYS and last in {"0", "SUN"} and low > 0 else high
        if high < low:
            raise CronError(f"{field.name}: the range {part!r} runs backwards; write two, joined by a comma.")
    step = 1 if step_text is None else int(step_text)
    if step_text is not None and not 1 <= step <= field.high - field.low + 1:
        raise CronError(f"{field.name}: a step of {step} does not fit into {field.low}-{field.high}.")
    return range(low, high + 1, step)


def _value(word: str, field: _Field) -> int:
    if word in field.words:
        return field.words.index(word) + field.first_word
    if not word.isdigit():
        named = f" or {field.words[0]} to {field.words[-1]}" if field.words else ""
        raise CronError(f"{field.name}: {word!r} is not a number from {field.low} to {field.high}{named}.")
    value = int(word)
    if not field.low <= value <= field.high:
        raise CronError(f"{field.name}: {value} is not within {field.low}-{field.high}.")
    return value


def _refuse_never(cron: Cron) -> None:
    """30 February and the like; a day of the week alone comes every week."""
    if cron.either_day:
        return
    longest = max(29 if month == 2 else calendar.monthrange(2001, month)[1] for month in cron.months)
    if min(cron.days) > longest:
        raise CronError(f"day of month: {cron.text!r} is never due, no month that is meant has a day {min(cron.days)}.")

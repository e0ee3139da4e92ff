"""Who may begin: concurrency and rate per workflow and key, as one partition's owner counts them.

What it knows is a function of the live executions (and of begins less than `per_s` ago): `rebuilt` from them it is
the same, so that nothing can leak by a kill or a restart. An execution counts from its admission to its end, however
it ends. Workflows without limits leave no trace.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any, Final, NamedTuple, Self

from app.domain.workflow.definition import WhenFull, Workflow

OWN_LIMIT_MAX: Final = 10_000


class Policy(NamedTuple):
    """The limits of a workflow; None is no limit. The one offered last holds for all executions of a lane."""

    limit: int | None
    when_full: WhenFull
    rate: int | None
    per_ms: int

    @property
    def is_free(self) -> bool:
        """There is nothing to count."""
        return self.limit is None and self.rate is None


def own_limit(trigger: Mapping[str, Any]) -> int | None:
    """How many executions of its key a signal of a rule wants at once; None when nothing readable is said."""
    given = trigger.get("concurrency")
    return given if type(given) is int and 1 <= given <= OWN_LIMIT_MAX else None


def policy_of(workflow: Workflow, own: int | None = None) -> Policy:
    """The limits that a definition sets, or, where it sets none, the one that its signal brings."""
    concurrency, rate = workflow.concurrency, workflow.rate
    if own is not None and concurrency is None and rate is None:
        return Policy(limit=own, when_full="queue", rate=None, per_ms=0)
    return Policy(
        limit=None if concurrency is None else max(1, concurrency.limit),
        when_full="queue" if concurrency is None else concurrency.when_full,
        rate=None if rate is None else max(1, rate.limit),
        per_ms=0 if rate is None else max(1, round(rate.per_s * 1000)),
    )


class Entry(NamedTuple):
    """An execution as the limiter sees it; `order` is its arrival (any number that grows).

    `began_at` is when it was admitted, None while it waits. `is_over` ones matter for the rate only. `own` is the limit
    that came with its trigger.
    """

    execution_id: str
    workflow: str
    key: str | None
    priority: int
    order: int
    began_at: int | None = None
    is_over: bool = False
    own: int | None = None


class Verdict(NamedTuple):
    """What becomes of a start: it begins, waits (`queued`), or is passed over (`skipped` says why).

    The executions of `cancel` are to be cancelled to make room; their ends admit the one that waits.
    """

    queued: bool = False
    skipped: str | None = None
    cancel: tuple[str, ...] = ()


@dataclass(slots=True)
class _Lane:
    """The executions that are counted together."""

    policy: Policy
    running: dict[str, None] = field(default_factory=dict)
    leaving: set[str] = field(default_factory=set)
    waiting: dict[str, Entry] = field(default_factory=dict)
    line: list[tuple[int, int, str]] = field(default_factory=list)
    began: deque[int] = field(default_factory=deque)
    wakes_at: int = -1

    def has_place(self) -> bool:
        return self.policy.limit is None or len(self.running) < self.policy.limit

    def opens_at(self, now_ms: int) -> int:
        """When the rate lets another begin: `now_ms` when it does already."""
        rate, per_ms = self.policy.rate, self.policy.per_ms
        if rate is None:
            self.began.clear()
            return now_ms
        if self.began and self.began[-1] > now_ms:  # the clock went back: what lies ahead counts as now
            self.began = deque(min(at, now_ms) for at in self.began)
        while self.began and self.began[0] <= now_ms - per_ms:
            self.began.popleft()
        return now_ms if len(self.began) < rate else self.began[len(self.began) - rate] + per_ms

    def begin(self, execution_id: str, at_ms: int) -> None:
        self.running[execution_id] = None
        if self.policy.rate is not None:
            self.began.append(at_ms)

    def wait(self, entry: Entry) -> None:
        self.waiting[entry.execution_id] = entry
        heappush(self.line, (-entry.priority, entry.order, entry.execution_id))

    def leave_line(self, execution_id: str) -> None:
        """The line keeps what left it until it is met or makes up half of it."""
        if self.waiting.pop(execution_id, None) is not None and len(self.line) > 2 * len(self.waiting) + 8:
            self.line = [place for place in self.line if place[2] in self.waiting]
            heapify(self.line)

    def first(self) -> str | None:
        while self.line:
            _, order, execution_id = self.line[0]
            entry = self.waiting.get(execution_id)
            if entry is not None and entry.order == order:
                return execution_id
            heappop(self.line)
        return None

    def is_idle(self, now_ms: int) -> bool:
        self.opens_at(now_ms)
        return not self.running and not self.waiting and not self.began


class Limiter:
    """The counts of one partition."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[str, str | None], _Lane] = {}
        self._lane_of: dict[str, tuple[str, str | None]] = {}
        self._touched: dict[tuple[str, str | None], None] = {}
        self._opens: list[tuple[int, str, str]] = []
        self._now_ms = 0

    @classmethod
    def rebuilt(cls, entries: Iterable[tuple[Entry, Policy]], now_ms: int) -> Self:
        """The counts of these executions; ended ones may be among them, for the rate."""
        limiter = cls()
        for entry, policy in sorted(entries, key=lambda each: (each[0].began_at or now_ms, each[0].order)):
            if policy.is_free:
                continue
            name = (entry.workflow, entry.key)
            lane = limiter._lane(name, policy)
            if entry.is_over:
                if entry.began_at is not None and policy.rate is not None:
                    lane.began.append(entry.began_at)
                continue
            limiter._lane_of[entry.execution_id] = name
            if entry.began_at is None:
                lane.wait(entry)
                limiter._touched[name] = None
            else:
                lane.begin(entry.execution_id, entry.began_at)
        return limiter

    def offer(self, entry: Entry, policy: Policy, now_ms: int, *, is_retry: bool = False) -> Verdict:
        """An execution wants to begin. A retry waits for its place, whatever the policy does with a start."""
        if policy.is_free or entry.execution_id in self._lane_of:
            return Verdict()
        name = (entry.workflow, entry.key)
        lane = self._lane(name, policy)
        is_open = lane.opens_at(now_ms) <= now_ms
        if lane.has_place() and is_open and not lane.waiting:
            self._lane_of[entry.execution_id] = name
            lane.begin(entry.execution_id, now_ms)
            return Verdict()
        cancel: tuple[str, ...] = ()
        if not lane.has_place() and not is_retry:
            if policy.when_full == "skip":
                limit = policy.limit
                return Verdict(skipped=f"{limit} of {entry.workflow!r} with the same key run already, the limit")
            if policy.when_full == "cancel_running":
                cancel = self._make_room(lane)
        self._lane_of[entry.execution_id] = name
        lane.wait(entry)
        self._touched[name] = None
        return Verdict(queued=True, cancel=cancel)

    def release(self, execution_id: str) -> None:
        """It has ended, begun or not."""
        name = self._lane_of.pop(execution_id, None)
        if name is None:
            return
        lane = self._lanes[name]
        lane.running.pop(execution_id, None)
        lane.leaving.discard(execution_id)
        lane.leave_line(execution_id)
        self._touched[name] = None

    def admit(self, now_ms: int) -> list[str]:
        """The executions that may begin now, highest priority then longest wait first; they count from here on."""
        if now_ms < self._now_ms:  # the clock went back: what opens in its future opens sooner now
            self._opens.clear()
            for each, asleep in self._lanes.items():
                asleep.wakes_at = -1
                self._touched[each] = None
        self._now_ms = now_ms
        while self._opens and self._opens[0][0] <= now_ms:
            _, workflow, key = heappop(self._opens)
            self._touched[workflow, _key(key)] = None
        admitted: list[str] = []
        for name in self._touched:
            lane = self._lanes.get(name)
            if lane is None:
                continue
            while lane.has_place() and (first := lane.first()) is not None:
                opens_at = lane.opens_at(now_ms)
                if opens_at > now_ms:
                    self._wake(name, lane, opens_at)
                    break
                heappop(lane.line)
                del lane.waiting[first]
                lane.begin(first, now_ms)
                admitted.append(first)
            if lane.is_idle(now_ms):
                del self._lanes[name]
            elif not lane.running and not lane.waiting:  # only its rate is remembered: look again when that is past
                self._wake(name, lane, lane.began[-1] + lane.policy.per_ms)
        self._touched.clear()
        return admitted

    def next_ms(self) -> int | None:
        """When `admit` is to be called again although nothing ends: a rate opens. None: not for that."""
        return self._opens[0][0] if self._opens else None

    def running(self, workflow: str, key: str | None) -> int:
        """Executions of a lane that count now."""
        lane = self._lanes.get((workflow, key))
        return 0 if lane is None else len(lane.running)

    def waiting(self) -> int:
        """Executions that wait for their place, over all lanes."""
        return sum(len(lane.waiting) for lane in self._lanes.values())

    def view(self) -> dict[tuple[str, str | None], tuple[frozenset[str], tuple[str, ...], tuple[int, ...]]]:
        """Per lane: who runs, who waits in order, and the begins that the rate counts; to compare two limiters."""
        return {
            name: (
                frozenset(lane.running),
                tuple(place[2] for place in sorted(lane.line) if place[2] in lane.waiting),
                tuple(lane.began),
            )
            for name, lane in self._lanes.items()
        }

    def _lane(self, name: tuple[str, str | None], policy: Policy) -> _Lane:
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = _Lane(policy)
        elif lane.policy != policy:
            lane.policy = policy
            self._touched[name] = None
        return lane

    def _wake(self, name: tuple[str, str | None], lane: _Lane, at_ms: int) -> None:
        """Look at a lane again at `at_ms`."""
        if lane.wakes_at != at_ms:
            lane.wakes_at = at_ms
            heappush(self._opens, (at_ms, name[0], _text(name[1])))

    @staticmethod
    def _make_room(lane: _Lane) -> tuple[str, ...]:
        """All that wait, and the oldest that run, but for the places that stay below the limit."""
        room = (lane.policy.limit or 1) - 1
        staying = [each for each in lane.running if each not in lane.leaving]
        leaving = [each for each in lane.waiting if each not in lane.leaving] + staying[: max(0, len(staying) - room)]
        lane.leaving.update(leaving)
        return tuple(leaving)


def _text(key: str | None) -> str:
    """A key that sorts, None too."""
    return "-" if key is None else f"+{key}"


def _key(text: str) -> str | None:
    return None if text == "-" else text[1:]

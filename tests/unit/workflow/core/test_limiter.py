"""Laws of the limiter: its limits hold, nobody waits without a reason, and it forgets what has ended."""

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.domain.workflow.definition import Concurrency, Rate, Workflow
from app.domain.workflow.limiter import Entry, Limiter, Policy, Verdict, own_limit, policy_of

FREE = Policy(None, "queue", None, 0)
ONE = Policy(1, "queue", None, 0)
TWO_A_SECOND = Policy(None, "queue", 2, 1_000)


def entry(name: str, priority: int = 0, order: int = 0, key: str | None = "k") -> Entry:
    return Entry(name, "w", key, priority, order)


class Machine(RuleBasedStateMachine):
    """Executions of one workflow and three keys, offered, admitted and ended at random."""

    @initialize(
        limit=st.sampled_from((None, 1, 2)),
        when_full=st.sampled_from(("queue", "skip", "cancel_running")),
        rate=st.sampled_from((None, 1, 3)),
    )
    def begin(self, limit: int | None, when_full: str, rate: int | None) -> None:
        self.policy = Policy(limit, when_full, rate, 1_000 if rate else 0)  # type: ignore[arg-type]
        self.limiter = Limiter()
        self.now = 10_000
        self.live: dict[str, Entry] = {}
        self.over: list[Entry] = []
        self.made = 0

    def begun(self, name: str) -> None:
        self.live[name] = self.live[name]._replace(began_at=self.now)

    @rule(key=st.sampled_from((None, "a", "b")), priority=st.integers(0, 2), is_retry=st.booleans())
    def offer(self, key: str | None, priority: int, is_retry: bool) -> None:
        self.made += 1
        name = f"e{self.made}"
        one = Entry(name, "w", key, priority, self.made)
        before = self.limiter.running("w", key)
        verdict = self.limiter.offer(one, self.policy, self.now, is_retry=is_retry)
        if verdict.skipped is not None:
            assert self.policy.when_full == "skip"
            assert not is_retry
            assert before == self.policy.limit
            return
        self.live[name] = one
        if not verdict.queued:
            self.begun(name)
        assert set(verdict.cancel) < set(self.live)
        for other in verdict.cancel:
            self.end(other)
        self.admit()
        if verdict.cancel and self.policy.rate is None:
            assert self.live[name].began_at is not None, "room was made for it"

    def end(self, name: str) -> None:
        self.over.append(self.live.pop(name)._replace(is_over=True))
        self.limiter.release(name)

    @precondition(lambda self: self.live)
    @rule(pick=st.integers(0, 1_000))
    def one_ends(self, pick: int) -> None:
        self.end(sorted(self.live)[pick % len(self.live)])
        self.admit()

    @rule(by=st.sampled_from((-5_000, 1, 300, 700, 5_000)))
    def time_passes(self, by: int) -> None:
        self.now += by
        self.admit()

    def admit(self) -> None:
        for name in self.limiter.admit(self.now):
            assert self.live[name].began_at is None, "it is admitted once"
            self.begun(name)

    @invariant()
    def concurrency_is_at_most_its_limit(self) -> None:
        for key in (None, "a", "b"):
            running = [each for each in self.live.values() if each.key == key and each.began_at is not None]
            assert self.limiter.running("w", key) == (0 if self.policy.is_free else len(running))
            assert self.policy.limit is None or len(running) <= self.policy.limit

    @invariant()
    def who_waits_is_known_and_has_a_reason(self) -> None:
        waiting = [each for each in self.live.values() if each.began_at is None]
        assert self.limiter.waiting() == len(waiting)
        for key in {each.key for each in waiting}:
            is_full = self.limiter.running("w", key) == self.policy.limit
            assert is_full or (self.limiter.next_ms() or 0) > self.now

    @invariant()
    def rebuilt_from_the_live_it_is_the_same(self) -> None:
        entries = [(each, self.policy) for each in (*self.live.values(), *self.over)]
        rebuilt = Limiter.rebuilt(entries, self.now)
        here = {name: lane[:2] for name, lane in self.limiter.view().items() if lane[0] or lane[1]}
        there = {name: lane[:2] for name, lane in rebuilt.view().items() if lane[0] or lane[1]}
        assert there == here

    def teardown(self) -> None:
        """When all have ended, and the rate's time has passed, nothing is left."""
        if not hasattr(self, "limiter"):
            return
        for name in list(self.live):
            self.end(name)
        self.limiter.admit(self.now)
        self.now += 20_000
        assert self.limiter.admit(self.now) == []
        assert self.limiter.view() == {}
        assert self.limiter.next_ms() is None


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_definition_without_limits_is_free() -> None:
    assert policy_of(Workflow(id="w", version="v", tasks={})) == FREE


def test_definition_says_its_limits() -> None:
    limited = Workflow(
        id="w",
        version="v",
        tasks={},
        concurrency=Concurrency(key="input.device", limit=3, when_full="skip"),
        rate=Rate(limit=5, per_s=0.5),
    )
    assert policy_of(limited) == Policy(3, "skip", 5, 500)


def test_a_signal_brings_a_limit_where_the_definition_has_none() -> None:
    free = Workflow(id="w", version="1", tasks={})
    assert policy_of(free, 3) == Policy(3, "queue", None, 0)
    own = Concurrency(limit=7, when_full="skip")
    for limited in (replace(free, concurrency=own), replace(free, rate=Rate(limit=2, per_s=1))):
        assert policy_of(limited, 3) == policy_of(limited)


@pytest.mark.parametrize(
    ("said", "limit"),
    [(1, 1), (10_000, 10_000), (0, None), (10_001, None), (-1, None), (True, None), ("2", None), (2.0, None)],
)
def test_a_limit_of_a_signal_is_a_whole_number(said: object, limit: int | None) -> None:
    assert own_limit({"kind": "kafka", "concurrency": said}) == limit
    assert own_limit({"kind": "http"}) is None


def test_waiting_line_goes_by_priority_then_arrival() -> None:
    limiter = Limiter()
    limiter.offer(entry("first"), ONE, 0)
    for order, (name, priority) in enumerate((("low", 0), ("high", 5), ("high too", 5), ("low too", 0))):
        assert limiter.offer(entry(name, priority, order), ONE, 0).queued
    admitted = []
    running = "first"
    for _ in range(4):
        limiter.release(running)
        (running,) = limiter.admit(0)
        admitted.append(running)
    assert admitted == ["high", "high too", "low", "low too"]


def test_full_lane_that_skips_says_why() -> None:
    limiter = Limiter()
    skipping = ONE._replace(when_full="skip")
    limiter.offer(entry("first"), skipping, 0)
    assert "limit" in (limiter.offer(entry("second"), skipping, 0).skipped or "")
    assert limiter.offer(entry("third"), skipping, 0, is_retry=True).queued


def test_newest_takes_the_place_of_those_that_run_and_those_that_wait() -> None:
    limiter = Limiter()
    taking = Policy(2, "cancel_running", None, 0)
    for name in ("a", "b"):
        assert limiter.offer(entry(name), taking, 0) == Verdict()
    assert limiter.offer(entry("c", order=1), taking, 0) == Verdict(queued=True, cancel=("a",))
    assert limiter.offer(entry("d", order=2), taking, 0).cancel == ("c",)


def test_keys_do_not_hold_each_other_up() -> None:
    limiter = Limiter()
    assert not limiter.offer(entry("a", key="x"), ONE, 0).queued
    assert not limiter.offer(entry("b", key="y"), ONE, 0).queued
    assert limiter.offer(entry("c", key="x"), ONE, 0).queued


def test_rate_holds_over_every_window() -> None:
    limiter = Limiter()
    begins = [0 for n in range(10) if not limiter.offer(entry(f"e{n}", order=n), TWO_A_SECOND, 0).queued]
    while (due := limiter.next_ms()) is not None or limiter.waiting():
        now = due if due is not None else begins[-1]
        begins += [now for _ in limiter.admit(now)]
    assert len(begins) == 10
    assert all(later - earlier >= 1_000 for earlier, later in zip(begins, begins[2:], strict=False))


def test_clock_put_back_does_not_close_a_rate_for_longer() -> None:
    limiter = Limiter()
    limiter.offer(entry("a"), TWO_A_SECOND, 3_600_000)
    limiter.offer(entry("b"), TWO_A_SECOND, 3_600_000)
    assert limiter.offer(entry("c", order=1), TWO_A_SECOND, 0).queued
    limiter.admit(0)
    assert limiter.next_ms() == 1_000
    assert limiter.admit(1_000) == ["c"]

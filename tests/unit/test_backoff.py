"""The laws of waiting between attempts."""

from hypothesis import given
from hypothesis import strategies as st

from app.domain.backoff import BackoffPolicy, ceiling_ms, delay_ms

policies = st.builds(
    BackoffPolicy,
    first_ms=st.integers(1, 10_000),
    max_ms=st.integers(1, 3_600_000),
    multiplier=st.floats(1.0, 10.0),
    jitter=st.floats(0.0, 1.0),
)
attempts = st.integers(1, 10**9) | st.integers(1, 20)
draws = st.floats(0.0, 1.0, exclude_max=True)


@given(policies, attempts, draws, st.integers(0, 10**12))
def test_no_wait_is_longer_than_the_longest(policy: BackoffPolicy, attempt: int, draw: float, asked_ms: int) -> None:
    assert 0 <= delay_ms(policy, attempt, draw, asked_ms) <= policy.max_ms


@given(policies, st.integers(1, 200))
def test_the_ceiling_never_falls_from_one_attempt_to_the_next(policy: BackoffPolicy, attempt: int) -> None:
    assert ceiling_ms(policy, attempt) <= ceiling_ms(policy, attempt + 1) <= policy.max_ms


@given(policies, attempts, draws)
def test_jitter_takes_off_at_most_its_share(policy: BackoffPolicy, attempt: int, draw: float) -> None:
    least = ceiling_ms(policy, attempt) * (1 - policy.jitter)
    assert least - 1 <= delay_ms(policy, attempt, draw) <= ceiling_ms(policy, attempt) + 1


@given(policies, attempts, draws, st.integers(0, 3_600_000))
def test_what_the_other_side_asks_for_is_waited_within_the_bound(
    policy: BackoffPolicy, attempt: int, draw: float, asked_ms: int
) -> None:
    assert delay_ms(policy, attempt, draw, asked_ms) >= min(asked_ms, policy.max_ms)


def test_waits_double_up_to_the_cap() -> None:
    policy = BackoffPolicy(first_ms=100, max_ms=1_000, multiplier=2.0, jitter=0.0)
    assert [delay_ms(policy, attempt, 0.9) for attempt in range(1, 7)] == [100, 200, 400, 800, 1_000, 1_000]

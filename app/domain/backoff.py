"""How long to wait before the next attempt: exponential, capped, with jitter."""

from typing import NamedTuple


class BackoffPolicy(NamedTuple):
    """Bounds of the waits; `jitter` is the share of a wait that is drawn at random, 0 to 1.

    Without jitter all workers that lost the same server would come back to it in the same instant.
    """

    first_ms: int = 100
    max_ms: int = 30_000
    multiplier: float = 2.0
    jitter: float = 0.5


def ceiling_ms(policy: BackoffPolicy, attempt: int) -> int:
    """Return the longest wait before retry number `attempt` (from 1): it grows until `max_ms` and stays there."""
    if policy.multiplier <= 1.0:
        return min(policy.first_ms, policy.max_ms)
    wait_ms = float(policy.first_ms)
    # Multiplied step by step and left at the cap: a power of a large `attempt` would overflow.
    for _ in range(attempt - 1):
        if wait_ms >= policy.max_ms:
            break
        wait_ms *= policy.multiplier
    return int(min(wait_ms, policy.max_ms))


def delay_ms(policy: BackoffPolicy, attempt: int, draw: float, asked_ms: int = 0) -> int:
    """Return the wait before retry number `attempt` (from 1).

    `draw` is a uniform random number in [0, 1). `asked_ms` is what the other side asked for
    (HTTP Retry-After): never less than that is waited, unless it is more than `max_ms`.
    """
    ceiling = ceiling_ms(policy, attempt)
    drawn = ceiling - ceiling * policy.jitter * draw
    return round(min(max(drawn, float(asked_ms)), float(policy.max_ms)))

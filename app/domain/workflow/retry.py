"""When a failed attempt is tried again."""

from hashlib import blake2b

from app.domain.workflow.commands import TaskError
from app.domain.workflow.definition import Retry


def retry_at_ms(retry: Retry, error: TaskError, failures: int, now_ms: int, seed: str) -> int | None:
    """The instant of the next attempt after `failures` in this run, None when there is none.

    `seed` names the attempt: its jitter is the same whenever and wherever it is worked out.
    """
    if failures >= retry.attempts or not error.retryable or error.type in retry.non_retryable:
        return None
    return now_ms + delay_ms(retry, failures, seed)


def delay_ms(retry: Retry, failures: int, seed: str) -> int:
    """backoff_s * factor^(failures - 1), longer or shorter by up to `jitter`, between 0 and max_s."""
    try:
        delay = retry.backoff_s * retry.factor ** (failures - 1)
    except OverflowError:
        delay = retry.max_s
    delay = min(delay, retry.max_s)
    if retry.jitter:
        share = int.from_bytes(blake2b(seed.encode(errors="replace"), digest_size=8).digest(), "big") / 2**63 - 1
        delay *= 1 + retry.jitter * share
    return round(1000 * max(0.0, min(delay, retry.max_s)))

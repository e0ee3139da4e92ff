r"""The limits of one partition: who may begin, and what a new owner must know to count on.

Concurrency is counted from the live executions themselves. A rate also counts begins of executions that have ended:
those are remembered in a row a lane, `r` workflow `\x1f` key, so that a restart lets nobody begin too early.
"""

import struct
from collections.abc import Callable, Iterable
from typing import Final

from app.domain.workflow.definition import Workflow
from app.domain.workflow.limiter import Entry, Limiter, Policy, Verdict, policy_of
from tables.executions import Header
from tables.partition import Changes

BEGINS: Final = b"r"
_AT: Final = struct.Struct(">Q")


class Gate:
    """Asks the limiter and keeps its rows."""

    def __init__(self, get: Callable[[bytes], bytes | None]) -> None:
        """`get` sees what the batch under way has decided."""
        self._get = get
        self._limiter = Limiter()
        self._entries: list[tuple[Entry, Policy]] = []
        self._rated: dict[str, tuple[bytes, Policy]] = {}
        self._policies: dict[tuple[str, str], Policy] = {}

    # ---- takeover ----

    def restore(self, execution_id: str, workflow: Workflow, header: Header) -> None:
        """A live execution of the rows; `rebuild` follows when all are told."""
        policy = self._policy(workflow, header.own_limit)
        if policy.is_free:
            return
        began_at = header.began_at if header.admitted else None
        entry = Entry(execution_id, workflow.id, header.key, header.priority, header.arrival, began_at)
        self._entries.append((entry, policy))
        if policy.rate is not None:
            self._rated[execution_id] = (_row_key(workflow.id, header.key), policy)

    def rebuild(
        self, rows: Iterable[tuple[bytes, bytes]], policy_now: Callable[[str], Policy | None], now_ms: int
    ) -> None:
        """Count what was restored, and the begins of `rows` that no live execution stands for."""
        stand: dict[bytes, list[int]] = {}
        for entry, policy in self._entries:
            if policy.rate is not None and entry.began_at is not None:
                stand.setdefault(_row_key(entry.workflow, entry.key), []).append(entry.began_at)
        for key, row in rows:
            workflow, key_text = _lane_of(key)
            now = policy_now(workflow)
            if now is None or now.rate is None:
                continue
            known = stand.get(key, [])
            for at in _begins(row):
                if at in known:
                    known.remove(at)
                else:
                    self._entries.append((Entry("", workflow, key_text, 0, 0, at, is_over=True), now))
        self._limiter = Limiter.rebuilt(self._entries, now_ms)
        self._entries = []

    # ---- decisions ----

    def is_free(self, entry: Entry, workflow: Workflow) -> bool:
        """Whether an execution begins whatever others do."""
        return self._policy(workflow, entry.own).is_free

    def ask(
        self, entry: Entry, workflow: Workflow, changes: Changes, now_ms: int, *, is_retry: bool = False
    ) -> Verdict:
        """Whether an execution may begin."""
        policy = self._policy(workflow, entry.own)
        if policy.is_free:
            return _FREE
        verdict = self._limiter.offer(entry, policy, now_ms, is_retry=is_retry)
        if policy.rate is not None and verdict.skipped is None:
            self._rated[entry.execution_id] = (_row_key(entry.workflow, entry.key), policy)
            if not verdict.queued:
                self._began(entry.execution_id, changes, now_ms)
        return verdict

    def release(self, execution_id: str) -> None:
        """It has ended, begun or not."""
        self._limiter.release(execution_id)
        self._rated.pop(execution_id, None)

    def admit(self, changes: Changes, now_ms: int) -> list[str]:
        """Those that may begin now; they count from here on."""
        admitted = self._limiter.admit(now_ms)
        for execution_id in admitted:
            self._began(execution_id, changes, now_ms)
        return admitted

    def next_ms(self) -> float:
        """When `admit` may let somebody in although nothing ends."""
        at_ms = self._limiter.next_ms()
        return float("inf") if at_ms is None else at_ms

    @property
    def waiting(self) -> int:
        """Executions in line."""
        return self._limiter.waiting()

    def running(self, workflow: str, key: str | None) -> int:
        """Executions that hold a place."""
        return self._limiter.running(workflow, key)

    def _began(self, execution_id: str, changes: Changes, now_ms: int) -> None:
        rated = self._rated.get(execution_id)
        if rated is None:
            return
        key, policy = rated
        row = self._get(key)
        since_ms = now_ms - policy.per_ms
        begins = [at for at in (_begins(row) if row else ()) if at > since_ms] + [now_ms]
        kept = begins[-(policy.rate or 1) :]
        changes.put(key, b"".join(_AT.pack(at) for at in (policy.per_ms, *kept)))

    def _policy(self, workflow: Workflow, own: int | None) -> Policy:
        if own is not None:
            return policy_of(workflow, own)
        name = (workflow.id, workflow.version)
        policy = self._policies.get(name)
        if policy is None:
            if len(self._policies) >= 1_000:
                self._policies.clear()
            policy = self._policies[name] = policy_of(workflow)
        return policy


_FREE: Final = Verdict()


def _row_key(workflow: str, key: str | None) -> bytes:
    """A lane without a key is not that of the empty key."""
    return BEGINS + (workflow if key is None else f"{workflow}\x1f{key}").encode()


def _lane_of(row_key: bytes) -> tuple[str, str | None]:
    workflow, found, key = row_key[1:].decode().partition("\x1f")
    return workflow, key if found else None


def _begins(row: bytes) -> list[int]:
    return [at for (at,) in _AT.iter_unpack(row)][1:]


def is_past(row: bytes, now_ms: int) -> bool:
    """None of the begins of a row counts any more."""
    numbers = [number for (number,) in _AT.iter_unpack(row)]
    return bool(numbers[-1] + numbers[0] < now_ms)

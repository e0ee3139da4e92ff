"""Work that waits for a free hand: by priority, in turn between workflows, and nobody for ever.

The order of `pop`:
1. the highest priority first;
2. within a priority the workflows in turn, one piece each, so that one with 10,000 pieces holds no other up;
3. within a workflow the oldest first;
4. but every 16th pop serves the lower priorities, in turn: of `n` priorities each gets at least one pop in
   16 * (n - 1), however much of a higher one keeps coming.

Each step costs O(log priorities). The queue has no limit of its own: it holds only what live executions have in hand,
and who starts executions limits those.
"""

from bisect import insort
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
TURN_OF_THE_LOW: Final = 16  # one pop in 16: 6 % of the hands for what would starve


class FairQueue(Generic[K, V]):
    """Pieces of work by key; `K` names a piece once, such as (execution id, task, item)."""

    def __init__(self) -> None:
        self._where: dict[K, tuple[int, str]] = {}
        self._levels: dict[int, dict[str, dict[K, V]]] = {}
        self._order: list[int] = []  # negative priorities, so that the highest comes first
        self._pops = 0
        self._low = 0

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, key: K) -> bool:
        return key in self._where

    def push(self, key: K, work: V, workflow: str, priority: int) -> None:
        """Put a piece at the end of its workflow's line; under a key that waits already it takes that place."""
        if key in self._where:
            self.discard(key)
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = {}
            insort(self._order, -priority)
        level.setdefault(workflow, {})[key] = work
        self._where[key] = (priority, workflow)

    def pop(self) -> V | None:
        """The next piece, None when nothing waits."""
        if not self._order:
            return None
        self._pops += 1
        at = 0
        if self._pops % TURN_OF_THE_LOW == 0 and len(self._order) > 1:
            self._low = self._low % (len(self._order) - 1) + 1
            at = self._low
        priority = -self._order[at]
        level = self._levels[priority]
        workflow = next(iter(level))
        line = level.pop(workflow)
        key = next(iter(line))
        work = line.pop(key)
        del self._where[key]
        if line:
            level[workflow] = line  # to the end: the others have their turn first
        elif not level:
            self._forget(priority)
        return work

    def discard(self, key: K) -> V | None:
        """Take a piece out, None when it does not wait."""
        where = self._where.pop(key, None)
        if where is None:
            return None
        priority, workflow = where
        level = self._levels[priority]
        line = level[workflow]
        work = line.pop(key)
        if not line:
            del level[workflow]
            if not level:
                self._forget(priority)
        return work

    def _forget(self, priority: int) -> None:
        del self._levels[priority]
        self._order.remove(-priority)

"""The ledger of a producer: every record that was generated is accounted for."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Ledger:
    """Counts of records since the start.

    generated + recovered = acknowledged + spooled + dead-lettered + dropped{reason} + in flight. `recovered` are
    those that an earlier process left in the spool. `spooled` are those on disk now: a record that leaves the spool
    for the broker is in flight again. In flight is not kept here: it is what the equation leaves over, to be held
    against the queues themselves.
    """

    generated: int = 0
    recovered: int = 0
    acknowledged: int = 0
    spooled: int = 0
    dead_lettered: int = 0
    dropped: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def in_flight(self) -> int:
        """Records generated and of no known fate yet; negative when one was counted twice."""
        known = self.acknowledged + self.spooled + self.dead_lettered + sum(self.dropped.values())
        return self.generated + self.recovered - known

    def balances(self, queued: int) -> bool:
        """Whether the records without a fate are exactly those that wait in queues and buffers."""
        return self.in_flight == queued

    def with_generated(self, count: int) -> "Ledger":
        return replace(self, generated=self.generated + _counted(count))

    def with_acknowledged(self, count: int) -> "Ledger":
        return replace(self, acknowledged=self.acknowledged + _counted(count))

    def with_dead_lettered(self, count: int) -> "Ledger":
        return replace(self, dead_lettered=self.dead_lettered + _counted(count))

    def with_dropped(self, reason: str, count: int) -> "Ledger":
        """`reason` is a metric label: lower case words joined by underscores."""
        dropped = {**self.dropped, reason: self.dropped.get(reason, 0) + _counted(count)}
        return replace(self, dropped=MappingProxyType(dropped))

    def with_recovered(self, count: int) -> "Ledger":
        """Records found in the spool at the start."""
        return replace(self, recovered=self.recovered + _counted(count), spooled=self.spooled + count)

    def with_spooled(self, count: int) -> "Ledger":
        return replace(self, spooled=self.spooled + _counted(count))

    def with_unspooled(self, count: int) -> "Ledger":
        """Records taken from the spool to be sent."""
        return replace(self, spooled=self.spooled - _counted(count))


def _counted(count: int) -> int:
    assert count >= 0, "records are never taken back"
    return count

"""The running ledger of a process that produces telemetry, shown as metrics."""

from collections.abc import Mapping

from app import metrics
from app.domain.ledger import Ledger


class Books:
    """Keeps the ledger of one topic.

    Counts come in by the tick or the batch, never by the record. `delivered` is what a producer
    calls for each batch: (topic, records, reason of failure or None).
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.ledger = Ledger()
        self.accepted_records = 0
        self.delivered_records = 0
        self.waiting_records = 0  # made and not yet handed to the producer

    def generated(self, by_device_type: Mapping[str, int]) -> None:
        """Samples that were made, or would have been (the same are then dropped)."""
        for device_type, count in by_device_type.items():
            metrics.GENERATED.labels(device_type).inc(count)
        total = sum(by_device_type.values())
        self.ledger = self.ledger.with_generated(total)
        metrics.LEDGER.labels("generated").inc(total)

    def accepted(self, count: int) -> None:
        """Records that the producer has taken over."""
        self.accepted_records += count

    def delivered(self, topic: str, count: int, reason: str | None) -> None:
        """Records that the producer has done with: acknowledged, or failed for `reason`."""
        if topic != self.topic:
            return
        self.delivered_records += count
        if reason is not None:
            self.dropped(reason, count)
            return
        self.ledger = self.ledger.with_acknowledged(count)
        metrics.LEDGER.labels("acknowledged").inc(count)

    def recovered(self, count: int) -> None:
        """Records of an earlier process that are in the spool; said once it is open, be there none."""
        self.ledger = self.ledger.with_recovered(count)
        metrics.LEDGER.labels("recovered").inc(count)

    def spooled(self, count: int) -> None:
        """Records that were accepted and are on disk now."""
        if count:
            self.delivered_records += count
            self.ledger = self.ledger.with_spooled(count)
            metrics.LEDGER.labels("spooled").inc(count)

    def unspooled(self, count: int) -> None:
        """Records of the spool that the producer has taken over: they are under way again."""
        if count:
            self.accepted_records += count
            self.ledger = self.ledger.with_unspooled(count)
            metrics.LEDGER.labels("unspooled").inc(count)

    def lost_from_spool(self, reason: str, count: int) -> None:
        """Records of the spool that nobody will send."""
        self.unspooled(count)
        self.lost_on_the_way(reason, count)

    def lost_on_the_way(self, reason: str, count: int) -> None:
        """Records that were accepted and that neither the broker nor the disk will have."""
        self.delivered_records += count
        self.dropped(reason, count)

    def dropped(self, reason: str, count: int) -> None:
        if count:
            self.ledger = self.ledger.with_dropped(reason, count)
            metrics.LEDGER.labels(f"dropped_{reason}").inc(count)

    def dead_lettered(self, count: int) -> None:
        self.ledger = self.ledger.with_dead_lettered(count)
        metrics.LEDGER.labels("dead_lettered").inc(count)

    @property
    def imbalance(self) -> int:
        """Records whose fate is unknown beyond those that wait; 0 unless something is wrong."""
        return self.ledger.in_flight - self.waiting_records - self.unacknowledged

    @property
    def unacknowledged(self) -> int:
        """Records that the producer has and has not done with."""
        return self.accepted_records - self.delivered_records

    def balances(self, waiting: int) -> bool:
        """Whether every record is accounted for, when `waiting` of them are not yet with the producer."""
        return self.ledger.balances(waiting + self.unacknowledged)

"""What a spool asks of the batched producer: how long records wait, how far they are, and to have them back."""

# ruff: noqa: SLF001 - a part of `BatchProducer` that only those with a spool need
import time
from collections.abc import Sequence
from typing import Final

from app.adapters.producer import BatchProducer
from app.adapters.producer_lane import Lane
from app.errors import BrokerUnavailable
from app.ports import TakenBack, Way

TAKEN_BACK: Final = "taken_back"


class Retractable:
    """A batched producer whose unsent records of one topic can be had back."""

    def __init__(self, producer: BatchProducer, topic: str) -> None:
        self._producer = producer
        self._topic = topic
        self.send_nowait = producer.send_nowait
        self.partitions = producer.partitions

    def _lanes(self) -> Sequence[Lane]:
        return [lane for lane in self._producer._lanes.values() if lane.topic == self._topic]

    def waiting_s(self) -> float:
        """For how long the oldest batch has been under way without an end; 0 when nothing waits."""
        since = [at for lane in self._lanes() if (at := lane.waits_since()) is not None]
        return max(0.0, time.monotonic() - min(since)) if since else 0.0

    def ways(self) -> dict[int, Way]:
        """How far each partition is."""
        return {lane.partition: Way(lane.settled, lane.appended) for lane in self._lanes()}

    def take_back(self) -> dict[int, TakenBack]:
        """Take everything that has no end yet, by partition, in order.

        The client goes with what it holds of them: it sends none of them later, though one that is on the wire may be
        on the broker already, or come there.
        """
        producer = self._producer
        taken: dict[int, TakenBack] = {}
        for lane in self._lanes():
            if lane.records:
                rest = lane.cut_all()
                rest.holds_slot = False
                lane.sent.append(rest)
            if not lane.sent:
                continue
            batches = list(lane.sent)
            taken[lane.partition] = TakenBack(lane.settled, [record for batch in batches for record in batch.records])
            for batch in batches:
                producer._release(batch)
                lane.settle(batch, TAKEN_BACK)
                if batch.via is not None:
                    error = BrokerUnavailable(f"{self._topic} is not acknowledged.")
                    producer._replace(batch.via, error, progress=False)
        return taken

"""Which devices have fallen silent, found without looking at those that have not."""

from heapq import heappop, heappush


class IdleClock:
    """Deadlines of the devices of one partition, in wall milliseconds.

    A device has one live heap entry however often it speaks: an entry that comes up too early is put back at
    the device's present deadline. So `touch` costs two look-ups, and `due` sees one entry when nothing is due.
    """

    def __init__(self) -> None:
        self._deadlines: dict[str, int] = {}
        self._queued: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._deadlines)

    def touch(self, device_id: str, deadline_ms: int | None) -> None:
        """Set the device's deadline; None when it has nothing left to close."""
        if deadline_ms is None:
            self._deadlines.pop(device_id, None)
            return
        self._deadlines[device_id] = deadline_ms
        queued = self._queued.get(device_id)
        if queued is None or deadline_ms < queued:
            self._queued[device_id] = deadline_ms
            heappush(self._heap, (deadline_ms, device_id))

    def next_ms(self) -> int | None:
        """Return a time before which nothing is due; None when nothing ever is."""
        return self._heap[0][0] if self._heap else None

    def due(self, now_ms: int, limit: int) -> list[str]:
        """Take up to `limit` devices whose deadline has come; each must be touched again to come up again."""
        found: list[str] = []
        while self._heap and self._heap[0][0] <= now_ms and len(found) < limit:
            queued_ms, device_id = heappop(self._heap)
            if self._queued.get(device_id) != queued_ms:
                continue  # superseded by an earlier entry
            del self._queued[device_id]
            deadline_ms = self._deadlines.get(device_id)
            if deadline_ms is None:
                continue
            if deadline_ms <= now_ms:
                del self._deadlines[device_id]
                found.append(device_id)
            else:
                self.touch(device_id, deadline_ms)
        return found

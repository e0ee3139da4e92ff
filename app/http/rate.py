"""How many starts a client may make: one token bucket each, for a bounded number of clients."""

from collections import OrderedDict
from typing import Final

_CLIENTS_MAX: Final = 10_000


class Rates:
    """Buckets of `burst` tokens that fill by `per_s`; a client that was silent longest is forgotten first."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, count: int, now_s: float) -> float:
        """Take `count` tokens and return 0, or take none and return the seconds until there are so many.

        More than a whole bucket is granted to a full one, and paid back before the next.
        """
        tokens, since_s = self._buckets.pop(client, (self._burst, now_s))
        tokens = min(self._burst, tokens + (now_s - since_s) * self._per_s)
        wanted = min(float(count), self._burst)
        granted = tokens >= wanted
        self._buckets[client] = (tokens - count if granted else tokens, now_s)
        if len(self._buckets) > _CLIENTS_MAX:
            self._buckets.popitem(last=False)
        return 0.0 if granted else (wanted - tokens) / self._per_s

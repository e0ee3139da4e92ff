"""The lag of all readers of one process, shown as metrics: a partition that nobody reads any more is not shown."""

from collections.abc import Mapping

from app import metrics

Lags = Mapping[tuple[str, int], int]


class LagBoard:
    """Merges the readers' lags a partition: two groups may read the same topic, and the worse one counts."""

    def __init__(self) -> None:
        self._by_reader: dict[str, Lags] = {}

    def show(self, reader: str, lags: Lags) -> None:
        """Replace what `reader` told before: records that wait, by (topic, partition)."""
        before = self._by_reader.get(reader, {})
        self._by_reader[reader] = lags
        for place in before.keys() | lags.keys():
            told = [by[place] for by in self._by_reader.values() if place in by]
            topic, partition = place[0], str(place[1])
            if told:
                metrics.LAG_RECORDS.labels(topic, partition).set(max(told))
            else:
                # Another process shows it from now on.
                metrics.LAG_RECORDS.remove(topic, partition)
                metrics.LAG_SECONDS.remove(topic, partition)

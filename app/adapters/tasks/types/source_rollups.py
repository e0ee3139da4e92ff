"""The task type source.rollups: the rollups of a device's metric, read back from the topic device.rollups.

The topic, not the API's read model: it is there without a gateway, it goes back as far as its retention, and of each
window the latest revision is what any other reader sees. The price is reading the device's partition from the
beginning of the range on; `max_scan` bounds it.
"""

from contextlib import aclosing
from typing import Any, Final

import orjson
from pydantic import Field

from app.adapters.tasks.protocol import Kind, TaskCall
from app.adapters.tasks.spans import call_span, kafka_call
from app.adapters.tasks.types.params import Params
from app.adapters.tasks.types.values import Budget
from config.topics import DEVICE_ROLLUPS

# A rollup is made after its window begins by the device's clock, which may be so far ahead of ours.
_AHEAD_MS: Final = 600_000


class RollupParams(Params):
    """What source.rollups is told."""

    device_id: str = Field(min_length=1, max_length=128, description="Device.")
    metric: str | None = Field(None, description="Metric; left out: all of the device.")
    window_ms: int = Field(60_000, ge=1, description="Length of the windows, one of rollup.windows.")
    since: int | str = Field(
        "-3600s", description="Windows that begin at this instant or later: milliseconds UTC, ISO 8601, or `-90s`."
    )
    until: int | str | None = Field(None, description="Windows that begin before this instant; left out: all of them.")
    final: bool = Field(default=False, description="Only windows that are final.")
    topic: str = Field(DEVICE_ROLLUPS.name, description="Topic of the rollups.")
    max_rows: int = Field(1_000, ge=1, description="More windows than this are an error.")
    max_scan: int = Field(1_000_000, ge=1, le=10_000_000, description="More records than this are not read.")


class RollupSource:
    """Of each window the highest revision."""

    name = "source.rollups"
    params_model = RollupParams
    kind: Kind = "async"
    pure = False

    async def run(self, call: TaskCall[RollupParams]) -> list[dict[str, Any]]:
        """The rollups as on the topic, by window_start and metric."""
        from app.adapters.tasks.types.topic_slice import (  # noqa: PLC0415 - a vendor in need
            instant_ms,
            records_of,
            slice_of,
            translated,
        )

        params, settings = call.params, call.shared.settings
        now_ms = call.shared.clock.now_ms()
        since_ms = instant_ms(params.since, now_ms, "since") or 0
        until_ms = instant_ms(params.until, now_ms, "until")
        reader, key = call.shared.reader(), params.device_id.encode()
        budget = Budget(min(params.max_rows, settings.source_rows), settings.source_bytes)
        latest: dict[tuple[int, str], dict[str, Any]] = {}
        asked = call_span("client", lambda: kafka_call(params.topic, "poll", "receive"))
        with asked, translated(params.topic):
            wanted = (await slice_of(reader, params.topic, since_ms - _AHEAD_MS, None)).only(params.device_id)
            async with aclosing(records_of(reader, wanted, call, params.max_scan)) as records:
                async for record in records:
                    if record.key != key or record.value is None:
                        continue
                    rollup = _read(record.value)
                    if rollup is None or not _is_wanted(rollup, params, since_ms, until_ms):
                        continue
                    place = (rollup["window_start"], rollup["metric"])
                    if place not in latest:
                        budget.add(rollup)
                    if place not in latest or rollup["revision"] >= latest[place]["revision"]:
                        latest[place] = rollup
        found = [latest[place] for place in sorted(latest)]
        return [rollup for rollup in found if rollup.get("is_final")] if params.final else found


def _read(value: bytes) -> dict[str, Any] | None:
    """The rollup; None for what is none, which is left to the dead letters of others."""
    try:
        found = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    fields = {"device_id", "metric", "window_start", "window_ms", "revision"}
    return found if isinstance(found, dict) and fields <= found.keys() else None


def _is_wanted(rollup: dict[str, Any], params: RollupParams, since_ms: int, until_ms: int | None) -> bool:
    return bool(
        rollup["device_id"] == params.device_id
        and rollup["window_ms"] == params.window_ms
        and (params.metric is None or rollup["metric"] == params.metric)
        and rollup["window_start"] >= since_ms
        and (until_ms is None or rollup["window_start"] < until_ms)
    )

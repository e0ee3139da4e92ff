"""What the operational endpoints answer with: this process, or the whole of what a supervisor runs."""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

import orjson
from prometheus_client import CollectorRegistry

from app.http.health import HealthRegistry, Part
from app.http.metrics import exposition
from app.metrics import LEDGER

JSON = "application/json"
SUPERVISOR_URL = "HEADRACE_SUPERVISOR_URL"
PATHS: dict[Part, str] = {
    "summary": "/health",
    "live": "/health/live",
    "startup": "/health/startup",
    "ready": "/health/ready",
}


class Answer(NamedTuple):
    """A response before it meets any framework."""

    status: int
    body: bytes
    content_type: str = JSON


class OpsView(Protocol):
    """Answers of the operational endpoints; none of them may take longer than a second or so."""

    async def health(self, part: Part) -> Answer: ...
    async def metrics(self, accept: str) -> Answer: ...
    async def config(self) -> Answer: ...
    async def ledger(self) -> Answer: ...


def ledger_of_process() -> dict[str, float]:
    """Records by outcome since this process started."""
    return {
        sample.labels["outcome"]: sample.value
        for family in LEDGER.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    }


ON_DISK: Final = ("recovered", "spooled", "unspooled")


def on_disk(outcomes: Mapping[str, float]) -> int:
    """Records in the spool, by the counters of what was in it, went into it and left it."""
    return int(outcomes.get("recovered", 0) + outcomes.get("spooled", 0) - outcomes.get("unspooled", 0))


def ledger_document(outcomes: dict[str, float]) -> dict[str, Any]:
    """Generated + recovered = acknowledged + dead-lettered + dropped{reason} + spooled + in flight.

    `outcomes` are counters: `recovered` were in the spool at the start, `spooled` went into it and `unspooled` left it;
    the document's `spooled` are those in it now. In flight is what was generated or recovered and has no other outcome
    yet, so it can only be wrong by being negative: then something was counted twice, and the ledger does not balance.
    """
    counted = {name: int(value) for name, value in outcomes.items() if name not in ON_DISK}
    generated, recovered = counted.pop("generated", 0), int(outcomes.get("recovered", 0))
    if any(outcomes.get(name) for name in ON_DISK):
        counted["spooled"] = on_disk(outcomes)
    in_flight = generated + recovered - sum(counted.values())
    return {
        "generated": generated,
        **({"recovered": recovered} if recovered else {}),
        "outcomes": dict(sorted(counted.items())),
        "in_flight": in_flight,
        "balanced": in_flight >= 0,
        "complete": True,
    }


class LocalView:
    """This process alone."""

    def __init__(
        self, health: HealthRegistry, registry: CollectorRegistry, effective: Callable[[], dict[str, Any]]
    ) -> None:
        self._health = health
        self._registry = registry
        self._effective = effective

    async def health(self, part: Part) -> Answer:
        status, body = self._health.report(part)
        return Answer(status, orjson.dumps(body))

    async def metrics(self, accept: str) -> Answer:
        body, content_type = exposition(self._registry, accept)
        return Answer(200, body, content_type)

    async def config(self) -> Answer:
        return Answer(200, orjson.dumps(self._effective(), default=str))

    async def ledger(self) -> Answer:
        return Answer(200, orjson.dumps(ledger_document(ledger_of_process())))

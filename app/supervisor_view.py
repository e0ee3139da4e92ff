"""One view of all children: merged metrics, health and ledger; a child that does not answer shows as down."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpx
import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from app.http.health import HealthRegistry, Part
from app.http.metrics import exposition
from app.http.view import ON_DISK, PATHS, Answer, ledger_document, on_disk
from app.metrics import REGISTRY
from app.supervisor import Slot, Supervisor
from config.supervisor import SupervisorSettings

log = logging.getLogger(__name__)

LEDGER_FAMILY = "telemetry_ledger_records"
OWN_ROLE = "supervisor"


class Merged(Collector):
    """The families of several processes as one, each sample with the label `role` of its process.

    `silent` are the roles whose process runs but did not answer in time: their share is missing in every sum.
    """

    def __init__(self) -> None:
        self._families: dict[str, Metric] = {}
        self.silent: list[str] = []

    def add(self, role: str, families: Iterable[Metric]) -> None:
        """Samples that name a role themselves keep it; a family of another type than the first seen is left out."""
        for family in families:
            into = self._families.get(family.name)
            if into is None:
                into = Metric(family.name, family.documentation, family.type, family.unit)
                self._families[family.name] = into
            if into.type != family.type:
                log.error(
                    "two processes disagree on the type of a metric",
                    extra={"action": "metrics_conflict", "metric": family.name, "role": role},
                )
                continue
            into.samples += [_labelled(sample, role) for sample in family.samples]

    def collect(self) -> Iterable[Metric]:
        return list(self._families.values())

    def total(self, family: str, **labels: str) -> float:
        """The sum of a counter's or gauge's samples that carry these labels."""
        found = self._families.get(family)
        if found is None:
            return 0.0
        names = (family, f"{family}_total")
        wanted = labels.items()
        return sum(s.value for s in found.samples if s.name in names and wanted <= s.labels.items())

    def by_label(self, family: str, label: str, **labels: str) -> Counter[str]:
        """Sums of a counter or gauge by one of its labels."""
        sums: Counter[str] = Counter()
        found = self._families.get(family)
        for sample in found.samples if found else ():
            if sample.name in {family, f"{family}_total"} and labels.items() <= sample.labels.items():
                sums[sample.labels.get(label, "")] += sample.value  # type: ignore[assignment]  # sums of floats
        return sums

    def buckets(self, family: str) -> dict[float, float]:
        """Cumulated counts of a histogram by upper bound, over all its samples."""
        sums: dict[float, float] = {}
        found = self._families.get(family)
        for sample in found.samples if found else ():
            if sample.name == f"{family}_bucket":
                bound = float(sample.labels["le"])
                sums[bound] = sums.get(bound, 0.0) + sample.value
        return sums


def _labelled(sample: Sample, role: str) -> Sample:
    if "role" in sample.labels:
        return sample
    return sample._replace(labels={**sample.labels, "role": role})


def encode(merged: Merged, accept: str) -> tuple[bytes, str]:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(merged)
    return exposition(registry, accept)


class SupervisorView:
    """Answers for the supervisor and its children together."""

    def __init__(
        self,
        supervisor: Supervisor,
        settings: SupervisorSettings,
        own: HealthRegistry,
        config: Callable[[], dict[str, Any]],
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._supervisor = supervisor
        self._settings = settings
        self._own = own
        self._config = config
        self._monotonic_s = monotonic_s
        self._answered_s: dict[int, float] = {}
        # Proxies of the environment have no business between loopback processes.
        self._client = httpx.AsyncClient(timeout=settings.scrape_timeout_ms / 1000, trust_env=False)

    async def close(self) -> None:
        await self._client.aclose()

    async def scrape(self) -> Merged:
        """The metrics of every child that answers in time, and the supervisor's own."""
        merged = Merged()
        merged.add(OWN_ROLE, REGISTRY.collect())
        slots = self._slots()
        for slot, text in zip(slots, await self._from_all(slots, "/metrics"), strict=True):
            if text is not None and text.status_code == 200:
                merged.add(slot.role, text_string_to_metric_families(text.text))
                slot.seen_ledger = dict(merged.by_label(LEDGER_FAMILY, "outcome", role=slot.role))
            elif slot.child is not None:
                merged.silent.append(slot.role)
        return merged

    async def metrics(self, accept: str) -> Answer:
        body, content_type = encode(await self.scrape(), accept)
        return Answer(200, body, content_type)

    async def config(self) -> Answer:
        """What is in force in the first child that answers: they reload their settings, the supervisor does not."""
        for answer in await self._from_all(self._slots(), "/config"):
            if answer is not None and answer.status_code == 200:
                return Answer(200, answer.content)
        return Answer(200, orjson.dumps(self._config(), default=str))

    async def ledger(self) -> Answer:
        return Answer(200, orjson.dumps(self.ledger_of(await self.scrape())))

    def ledger_of(self, merged: Merged) -> dict[str, Any]:
        """Of all children since the start, the ended ones included.

        What a killed child had in flight when it was last seen is `unknown_after_crash`: the broker
        may or may not have it, and it is not counted as in flight. `complete` is false from then on, because
        what such a child did after it was last seen is in no figure here.
        """
        living = merged.by_label(LEDGER_FAMILY, "outcome")
        crashed = self._supervisor.crashed_ledger
        total = {name: int(value) for name, value in (living + self._supervisor.closed_ledger + crashed).items()}
        # What one producer leaves in the spool the next one recovers: it is one and the same.
        known = any(name in living for name in ON_DISK)
        there = on_disk(living) if known else self._supervisor.left_on_disk
        recovered = there - on_disk({**total, "recovered": 0})
        # Fewer than were known to be there: a killed producer had sent them since it was last seen.
        unseen = max(0, -recovered)
        total["unspooled"] = total.get("unspooled", 0) + unseen
        document = ledger_document({**total, "recovered": max(0, recovered)})
        unknown = max(0, ledger_document(dict(crashed))["in_flight"]) + unseen
        document["in_flight"] -= unknown
        return {**document, "unknown_after_crash": unknown, "complete": self._supervisor.silent_deaths == 0}

    async def health(self, part: Part) -> Answer:
        if part == "live":
            status, body = self._own.report("live")
            return Answer(status, orjson.dumps(body))
        slots = self._slots()
        found = await self._from_all(slots, PATHS[part])
        ok, body = self._merged_health(part, slots, found)
        return Answer(200 if ok else 503, orjson.dumps(body))

    async def look(self) -> None:
        """Note which children are healthy; kill one that has not answered for too long."""
        slots = self._slots()
        found = await self._from_all(slots, PATHS["ready"])
        now_s = self._monotonic_s()
        for slot, answer in zip(slots, found, strict=True):
            child = slot.child
            if child is None:
                continue
            if answer is not None:
                self._answered_s[child.pid] = now_s
            healthy = answer is not None and answer.status_code == 200
            slot.healthy_since_s = (slot.healthy_since_s or now_s) if healthy else None
            silent_s = now_s - self._answered_s.get(child.pid, child.started_s)
            if silent_s > self._settings.unresponsive_after_s:
                self._supervisor.kill(slot.role, f"no answer for {silent_s:.0f} s")
        alive = {slot.child.pid for slot in slots if slot.child is not None}
        self._answered_s = {pid: at for pid, at in self._answered_s.items() if pid in alive}

    def _slots(self) -> list[Slot]:
        return list(self._supervisor.slots.values())

    def _merged_health(
        self, part: Part, slots: Sequence[Slot], found: Sequence[httpx.Response | None]
    ) -> tuple[bool, dict[str, Any]]:
        _, body = self._own.report(part)
        ok = self._own.report("ready" if part == "summary" else part)[0] == 200
        children: dict[str, Any] = {}
        for slot, answer in zip(slots, found, strict=True):
            child: dict[str, Any] = _json(answer) if answer is not None else _absent(slot)
            ok &= answer is not None and answer.status_code == 200
            for name, check in child.pop("checks", {}).items():
                body["checks"][f"{slot.role}: {name}"] = check
            children[slot.role] = {**child, "pid": slot.child.pid if slot.child else None, "restarts": slot.restarts}
        statuses = {str(child["status"]) for child in children.values()}
        body["status"] = (
            "ok" if ok else next((s for s in ("down", "starting", "stopping") if s in statuses), "not ready")
        )
        body["children"] = children
        if part == "summary":
            body["roles"] = [slot.role for slot in slots]
        return ok, body

    async def _from_all(self, slots: Sequence[Slot], path: str) -> list[httpx.Response | None]:
        return list(await asyncio.gather(*(self._get(slot, path) for slot in slots)))

    async def _get(self, slot: Slot, path: str) -> httpx.Response | None:
        if slot.child is None or slot.child.url is None:
            return None
        try:
            # httpx counts its time-out from byte to byte; a dripping answer must not be waited for either.
            async with asyncio.timeout(self._settings.scrape_timeout_ms / 1000):
                return await self._client.get(slot.child.url + path)
        except (httpx.HTTPError, TimeoutError):
            return None


def _absent(slot: Slot) -> dict[str, Any]:
    if slot.child is None:
        return {"status": "down", "detail": "The process has ended and waits for its restart."}
    if slot.child.url is None:
        return {"status": "starting", "detail": "The process has not announced itself yet."}
    return {"status": "down", "detail": "The process does not answer."}


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return {"status": "down", "detail": "The process answers what is no JSON."}
    return body if isinstance(body, dict) and "status" in body else {"status": "down", "detail": "No health document."}

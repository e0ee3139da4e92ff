"""How often a healthy member is taken for dead: a loaded cluster without any fault, and its removals counted.

`python -m app.bench.false_removals --minutes 60`: three nodes, readings and executions at a rate, and processes that
want every core besides. The law is 0. A removal is an event of the nodes' own logs, or a line of the broker's, whose
session time-out is behind everything. A run in which little of the load was done, or a process changed, proves nothing.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from app.adapters.topic_reader import TopicReader
from app.bench.failover import DEFINITION, WORKFLOW
from app.cluster_run import LocalCluster, LocalNode
from app.domain.workflow.events import ExecutionEnded
from app.workflow_wire import decode_run
from config.kafka import KafkaSettings
from config.topics import DEVICE_TELEMETRY, WORKFLOW_EVENTS

STARTS = 20
START_PATH = f"/api/v1/workflows/{WORKFLOW}/execute:batch"
DONE_SHARE = 0.9
EXPIRED = b"heartbeat expiration"
REMOVALS = frozenset({"died", "frozen", "removed"})
SUSPICIONS = frozenset({"unreachable", "gone"})
ROLES = (("producer", "worker", "coordinator", "api-gateway"), ("worker", "coordinator"), ("worker", "coordinator"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON line; exit code 1 when a healthy member was removed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=int, default=2_000, help="samples a second of the fleet")
    parser.add_argument("--burners", type=int, default=os.cpu_count() or 1, help="processes that only compute")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(_run(Path(folder), chosen.minutes * 60, chosen.rate, chosen.burners))
    print(json.dumps(found))
    return 1 if found["healthy_members_removed"] or found["problems"] else 0


async def _run(folder: Path, seconds: float, rate: int, burners: int) -> dict[str, object]:
    settings = {
        "device.count": max(1, rate),
        "device.sample_interval_ms": 1000,
        "log.format": "json",
        "tasks.python_modules": ["app.bench.ours"],
    }
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731 - one line
    async with LocalCluster(folder=folder, roles=ROLES, settings=settings, say=say) as cluster:
        before = {node.name: node.pids() for node in cluster.nodes}
        skip = {node.name: node.log_file.stat().st_size for node in cluster.nodes}
        expired, samples = _expired(folder), await _count(cluster.bootstrap, DEVICE_TELEMETRY.name)
        begun_s, load_1m, accepted = time.monotonic(), [], 0
        with _burning(burners):
            async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
                await client.post(f"{cluster.nodes[0].api_url}/api/v1/workflows", json=DEFINITION)
                while time.monotonic() - begun_s < seconds:
                    load_1m.append(os.getloadavg()[0])
                    accepted += await _start_some(client, cluster.nodes[0])
                    await _glance(client, cluster.nodes)
                    await asyncio.sleep(1.0)
        events = Counter(event for node in cluster.nodes for event in _events(node, skip[node.name]))
        changed = sum(node.pids() != before[node.name] for node in cluster.nodes)
        expired = _expired(folder) - expired
        samples = await _count(cluster.bootstrap, DEVICE_TELEMETRY.name) - samples
        ended = await _ended(cluster.bootstrap)
    problems = [f"the processes of {changed} nodes changed"] if changed else []
    if samples < DONE_SHARE * rate * seconds:
        problems.append(f"only {samples:,} of {rate * seconds:,.0f} samples came")
    if ended < DONE_SHARE * accepted or not accepted:
        problems.append(f"only {ended:,} of {accepted:,} executions ended")
    return {
        "minutes": round(seconds / 60, 2),
        "nodes": len(ROLES),
        "burners": burners,
        "load_1m_max": round(max(load_1m, default=0.0), 1),
        "samples": samples,
        "executions": ended,
        "healthy_members_removed": sum(events[event] for event in REMOVALS) + expired,
        "of_these_by_the_broker": expired,
        "suspicions": sum(events[event] for event in SUSPICIONS),
        "problems": problems,
        "events": dict(sorted(events.items())),
    }


def _expired(folder: Path) -> int:
    """Members whose session ended, as the broker's own log tells."""
    logs = folder.glob("kafka/node-*/kafka.log*")
    return sum(log.read_bytes().count(EXPIRED) for log in logs)


async def _count(bootstrap: str, topic: str) -> int:
    reader = TopicReader(KafkaSettings(bootstrap_servers=bootstrap))
    return sum((await reader.ends(topic)).values())


async def _ended(bootstrap: str) -> int:
    """Executions that ended; a new owner may send an end again."""
    reader, name = TopicReader(KafkaSettings(bootstrap_servers=bootstrap)), WORKFLOW_EVENTS.name
    found = set[str]()
    async for batch in reader.read(name, await reader.begins(name), await reader.ends(name)):
        runs = (decode_run(record.value) for record in batch)
        found |= {run.execution_id for run in runs if isinstance(run.events[-1], ExecutionEnded)}
    return len(found)


async def _start_some(client: httpx.AsyncClient, node: LocalNode) -> int:
    """A few executions; how many were accepted. A busy node may answer late."""
    body = [{"input": {"number": number}} for number in range(STARTS)]
    try:
        answer = await client.post(f"{node.api_url}{START_PATH}", json=body)
    except httpx.HTTPError as error:
        print(f"{node.name}: {error!r}", file=sys.stderr)
        return 0
    return STARTS if answer.status_code == httpx.codes.ACCEPTED else 0


async def _glance(client: httpx.AsyncClient, nodes: Sequence[LocalNode]) -> None:
    """Ask every node for its health, as a monitor does; a busy one may answer late."""
    for node in nodes:
        try:
            await client.get(f"{node.health_url}/health/ready")
        except httpx.HTTPError as error:
            print(f"{node.name}: {error!r}", file=sys.stderr)


def _events(node: LocalNode, skip: int) -> Iterator[str]:
    with node.log_file.open("rb") as log:
        log.seek(skip)
        for line in log:
            if b'"cluster_event"' in line:
                yield str(json.loads(line).get("event", ""))


@contextmanager
def _burning(count: int) -> Iterator[None]:
    processes = [multiprocessing.get_context("spawn").Process(target=_burn, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _burn() -> None:
    while True:
        sum(range(10_000))


if __name__ == "__main__":
    sys.exit(main())

"""A cluster whose brokers have lost their majority rides it out: not ready, one line, and on by itself, nothing lost.

With the benchmarks, as it starts three brokers and waits for what Kafka needs to find itself again.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.cluster_run import LocalCluster, LocalNode
from config.embedded import EmbeddedSettings
from tests.helpers.kafka import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.bench, pytest.mark.timeout(600)]

WORKFLOW = {"id": "echo", "tasks": {"say": {"type": "transform.cel", "with": {"map": "row"}}}}
PATIENCE_S = 240.0
EMBEDDED = EmbeddedSettings(port=0, heap_mib=256, start_timeout_s=PATIENCE_S)
ROLES = (("api-gateway", "coordinator"),)


def _lines(node: LocalNode, action: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in node.log_file.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("action") == action and line["logger"] == "app.cluster_registry"]


def _is_ready(node: LocalNode) -> bool:
    try:
        return httpx.get(f"{node.health_url}/health/ready", trust_env=False, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


async def _ended(node: LocalNode, execution_id: str) -> bool:
    def look() -> bool:
        try:
            found = httpx.get(f"{node.api_url}/api/v1/executions/{execution_id}", trust_env=False, timeout=5)
        except httpx.HTTPError:
            return False
        return found.status_code == 200 and found.json()["status"] == "succeeded"

    return await until(look, f"{execution_id} has succeeded", PATIENCE_S)


async def _start(node: LocalNode) -> str | None:
    """The id of an acknowledged execution; None when it was not acknowledged."""
    async with httpx.AsyncClient(base_url=node.api_url, trust_env=False, timeout=20) as api:
        try:
            answer = await api.post("/api/v1/workflows/echo/execute", json={"input": {"row": 1}})
        except httpx.HTTPError:
            return None
    return answer.json()["execution_id"] if answer.status_code == 202 else None


async def test_a_lost_majority_of_brokers_is_ridden_out(tmp_path: Path) -> None:
    async with LocalCluster(
        folder=tmp_path, nodes=1, brokers=3, roles=ROLES, ready_s=PATIENCE_S, embedded=EMBEDDED
    ) as cluster:
        (node,), kafka = cluster.nodes, cluster.kafka
        assert kafka is not None
        async with httpx.AsyncClient(base_url=node.api_url, trust_env=False, timeout=30) as api:
            registered = await api.post("/api/v1/workflows", json=WORKFLOW)
            assert registered.is_success, registered.text
        before = await _start(node)
        assert before is not None
        await _ended(node, before)

        said = len(_lines(node, "broker_unavailable"))  # while three brokers began
        lost = sorted(kafka.pids)[:2]
        for broker in lost:
            kafka.kill(broker)
        await until(lambda: not _is_ready(node), "readiness tells the truth", PATIENCE_S)
        await until(lambda: len(_lines(node, "broker_unavailable")) > said, "one line says so", PATIENCE_S)
        assert await _start(node) is None, "nothing is acknowledged that may be lost"
        assert node.pid is not None, "the node goes on"

        await asyncio.gather(*map(kafka.start_node, lost))
        await until(lambda: _is_ready(node), "it goes on by itself", PATIENCE_S)
        assert len(_lines(node, "broker_unavailable")) == said + 1
        assert len(_lines(node, "broker_found")) == said + 1
        shouted = [line for line in node.log_file.read_text().splitlines() if '"logger":"aiokafka' in line]
        assert len(shouted) < 300, "Kafka's client does not bury that line"
        after = await _start(node)
        assert after is not None
        await _ended(node, after)
        await _ended(node, before)

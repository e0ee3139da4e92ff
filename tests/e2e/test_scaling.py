"""A cluster grows and shrinks under load: partitions follow, every start is accepted, every execution succeeds."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.cluster_run import LocalCluster, LocalNode
from config.embedded import EmbeddedSettings
from tests.helpers.kafka import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]

WORKFLOW = {
    "id": "steps",
    "tasks": {
        "one": {"type": "transform.cel", "with": {"map": "row"}},
        "rest": {"type": "wait", "needs": ["one"], "with": {"seconds": 0.2}},
        "two": {"type": "transform.cel", "needs": ["rest"], "with": {"map": "row"}},
    },
}
PATIENCE_S = 240.0
EVERY_S = 0.05
EMBEDDED = EmbeddedSettings(port=0, heap_mib=256, start_timeout_s=PATIENCE_S)


class Load:
    """Starts as they were sent and answered; every answer but 202 is kept."""

    def __init__(self) -> None:
        self.accepted: list[str] = []
        self.refused: list[str] = []

    async def goes_on(self) -> None:
        """Wait for twenty more."""
        enough = len(self.accepted) + 20
        await until(lambda: len(self.accepted) > enough, "it goes on", PATIENCE_S)

    async def run(self, url: str) -> None:
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as api:
            while True:
                answer = await api.post("/api/v1/workflows/steps/execute", json={"row": 1})
                if answer.status_code == 202:
                    self.accepted.append(answer.json()["execution_id"])
                else:
                    self.refused.append(f"{answer.status_code} {answer.text}")
                await asyncio.sleep(EVERY_S)


@contextlib.asynccontextmanager
async def loaded(node: LocalNode) -> AsyncIterator[Load]:
    load = Load()
    running = asyncio.create_task(load.run(node.api_url))
    try:
        await until(lambda: len(load.accepted) > 5 or running.done(), "it is under load", PATIENCE_S)
        yield load
        assert not running.done(), running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _owners(node: LocalNode) -> set[str]:
    """The nodes that have partitions, once every partition has an owner; else nobody."""
    with contextlib.suppress(httpx.HTTPError):
        answer = httpx.get(f"{node.api_url}/api/v1/cluster/stats", trust_env=False, timeout=5)
        found: dict[str, Any] = answer.json() if answer.status_code == 200 else {"ownerless": True}
        if not found["ownerless"]:
            return {each["node_id"] for each in found["nodes"] if each["state"] == "ready" and each["partitions"]}
    return set()


async def test_nodes_come_and_go_under_load_and_no_execution_fails(tmp_path: Path) -> None:
    roles = (("api-gateway", "coordinator"),)
    async with LocalCluster(folder=tmp_path, nodes=1, roles=roles, ready_s=PATIENCE_S, embedded=EMBEDDED) as cluster:
        first = cluster.nodes[0]
        async with httpx.AsyncClient(base_url=first.api_url, trust_env=False, timeout=30) as api:
            registered = await api.post("/api/v1/workflows", json=WORKFLOW)
            assert registered.is_success, registered.text
            async with loaded(first) as load:
                for _ in range(2):
                    joined = cluster.nodes[await cluster.add_node(("coordinator",))]
                    await until(lambda: len(_owners(first)) == 2, "both have partitions", PATIENCE_S)
                    await load.goes_on()
                    assert await cluster.stop_node(cluster.nodes.index(joined)), "it stops in order"
                    await until(lambda: _owners(first) == {first.name}, "the first has everything", PATIENCE_S)
            assert load.refused == []

            async def status(execution_id: str) -> str:
                answer = await api.get(f"/api/v1/executions/{execution_id}")
                said: str = answer.json().get("status", answer.text)
                return said

            left = set(load.accepted)
            deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
            while left and asyncio.get_running_loop().time() < deadline_s:
                said = {each: await status(each) for each in left}
                assert set(said.values()) <= {"running", "pending", "waiting", "succeeded"}, said
                left = {each for each, state in said.items() if state != "succeeded"}
            assert not left

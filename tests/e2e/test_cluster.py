"""Laws of `headrace cluster`: nodes by one command, who may not join them, and an end that leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.processes import Started, get, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROLES = ("--roles", "api-gateway,coordinator", "--roles", "coordinator")
READY_S = 240.0


def _run(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "app", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    folder = tmp_path_factory.mktemp("cluster")
    flags = ("--set", "http.port=0", "--set", "supervisor.demo_workflows=false", "--set", "embedded.heap_mib=256")
    running = Started(_run(folder, "cluster", "--nodes", "2", "--data-dir", str(folder / "all"), *ROLES, *flags))
    try:
        yield running
    finally:
        family = psutil.Process(running.pid).children(recursive=True) if running.process.poll() is None else []
        running.process.kill()
        running.process.wait(10)
        for child in family:
            if child.is_running():
                child.kill()
        running.close()


def _up(cluster: Started) -> str:
    """The address of the first API, once all are up."""
    until(lambda: "Ctrl-C stops" in cluster.output or cluster.process.poll() is not None, cluster.output, READY_S)
    return cluster.said(r"API\s+(\S+)/docs")[1]


def _stats(url: str) -> dict[str, Any]:
    answer = get(f"{url}/api/v1/cluster/stats")
    return answer.json() if answer is not None and answer.status_code == 200 else {}


def _folder(cluster: Started) -> Path:
    return Path(cluster.said(r"Data\s+(\S+),")[1])


def test_the_nodes_share_the_partitions_and_one_of_them_leads(cluster: Started) -> None:
    url = _up(cluster)

    def spread() -> dict[str, Any]:
        found = _stats(url)
        nodes = found.get("nodes", ())
        is_whole = len(nodes) == 2 and all(node["state"] == "ready" and node["partitions"] for node in nodes)
        return found if is_whole and not found["ownerless"] else {}

    found = until(spread, "both nodes have partitions", READY_S)
    assert found["leader"] == "node-1"
    engine = next(group for group in found["groups"] if group["group"] == "headrace-workflow")
    assert (engine["partitions"], engine["owned"]) == (4, 4)
    shown = _run(_folder(cluster), "cluster", "stats", "--url", url)
    said, _ = shown.communicate(timeout=60)
    assert shown.returncode == 0, said
    assert "2 nodes, Up, node-1 leads, every partition has an owner." in said


def test_a_second_node_with_the_folder_or_the_name_of_one_is_refused_and_changes_nothing(cluster: Started) -> None:
    url = _up(cluster)
    folder, kafka = _folder(cluster), cluster.said(r"Kafka\s+(\S+:\d+)")[1]
    ports = [f"{section}.port=0" for section in ("http", "health", "metrics")]
    common = [f"kafka.bootstrap_servers={kafka}", *ports]
    same_folder = [f"tables.directory={folder}/node-2/.headrace/tables"]
    same_name = [f"tables.directory={folder}/other", "cluster.node_id=node-2"]
    for own, code, sentence in (
        (same_folder, 3, "is in use by another node with the role coordinator"),
        (same_name, 2, "A node with the name node-2 is in the cluster already"),
    ):
        flags = [word for flag in (*common, *own) for word in ("--set", flag)]
        second = _run(folder, "up", "--roles", "coordinator", *flags)
        said, _ = second.communicate(timeout=READY_S)
        assert second.returncode == code, said
        lines = [line for line in said.splitlines() if line.startswith("headrace: ")]
        assert len(lines) == 1, said
        assert sentence in lines[0]
        assert "Traceback" not in said
    assert {node["node_id"]: node["state"] for node in _stats(url)["nodes"]} == {"node-1": "ready", "node-2": "ready"}


def test_a_killed_node_is_not_reached_and_its_partitions_go_to_the_other(cluster: Started) -> None:
    url = _up(cluster)
    os.kill(int(cluster.said(r"node-2 .*process (\d+)")[1]), signal.SIGKILL)

    def taken_over() -> bool:
        found = _stats(url)
        return found.get("unreachable") == ["node-2"] and not found["ownerless"]

    until(taken_over, "node-1 has everything", READY_S)
    assert "node-2 has ended (killed by SIGKILL)" in cluster.said(r".*node-2 has ended.*")[0]


def test_ctrl_c_ends_everything_in_order_and_leaves_no_process(cluster: Started) -> None:
    _up(cluster)
    family = psutil.Process(cluster.pid).children(recursive=True)
    assert len(family) >= 4, "Kafka, a node and its processes"
    cluster.signal(signal.SIGINT)
    assert cluster.ended(60) == 0, cluster.output
    assert "Everything has stopped in order." in cluster.output
    assert not [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    assert json.loads((_folder(cluster) / "node-1" / "node.log").read_text().splitlines()[0])["service"] == "headrace"

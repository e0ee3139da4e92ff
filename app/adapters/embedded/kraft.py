"""What a KRaft node is told and what its folder must hold before it starts."""

import base64
import os
import shutil
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.errors import EnvironmentError_
from config.embedded import EmbeddedSettings

HOST = "127.0.0.1"
_FORMAT_TIMEOUT_S = 120
_META = "meta.properties"
_CHECKPOINT = "bootstrap.checkpoint"


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One combined broker and controller: its number, ports and folder."""

    node_id: int
    port: int
    controller_port: int
    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def properties(self) -> Path:
        return self.folder / "server.properties"


def broker_properties(
    plan: NodePlan, plans: Sequence[NodePlan], settings: EmbeddedSettings, overrides: Mapping[str, str]
) -> dict[str, str]:
    """The broker's settings; `overrides` come last."""
    copies = min(3, len(plans))
    in_sync = min(2, len(plans))
    properties = {
        "process.roles": "broker,controller",
        "node.id": plan.node_id,
        "controller.quorum.voters": ",".join(f"{one.node_id}@{HOST}:{one.controller_port}" for one in plans),
        "listeners": f"PLAINTEXT://{HOST}:{plan.port},CONTROLLER://{HOST}:{plan.controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{plan.port}",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": plan.data,
        "auto.create.topics.enable": "false",
        "default.replication.factor": copies,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": copies,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": in_sync,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": in_sync,
        "share.coordinator.state.topic.num.partitions": 4,
        # A group is complete when its members say so; tests and takeovers must not wait for stragglers.
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 500,
        "message.max.bytes": settings.message_max_bytes,
        "replica.fetch.max.bytes": settings.message_max_bytes,
        # A killed broker may come back only when its old session has ended, 9 s by default: a single one
        # should be back within 5 s, and of three the cluster should notice the loss in 3 s.
        "broker.session.timeout.ms": 3000 if len(plans) > 1 else 2000,
        "broker.heartbeat.interval.ms": 500,
        # A follower asks a new leader that does not lead yet again after this long. With the default of 1 s nothing
        # that waits for all replicas is acknowledged for a second more after a broker was lost.
        "replica.fetch.backoff.ms": 100,
        # 128 MB by default, a quarter of our heap; 16 MB still maps 700,000 keys a pass.
        "log.cleaner.dedupe.buffer.size": 16 << 20,
        "num.network.threads": 2,
        "num.io.threads": 4,
    }
    return {name: str(value) for name, value in properties.items()} | dict(overrides)


def log4j_properties(plan: NodePlan) -> str:
    """Kafka's own log: at most five files of 10 MB in the node's folder."""
    return f"""\
status = error
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = {plan.folder}/kafka.log
appender.file.filePattern = {plan.folder}/kafka.log.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{{ISO8601}} %p %m (%c)%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 10MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 4
rootLogger.level = info
rootLogger.appenderRef.file.ref = file
"""


def write_configuration(plan: NodePlan, properties: Mapping[str, str]) -> None:
    plan.data.mkdir(parents=True, exist_ok=True)
    plan.properties.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
    (plan.folder / "log4j2.properties").write_text(log4j_properties(plan))


def cluster_id_of(plan: NodePlan) -> str | None:
    """The cluster a formatted folder belongs to; None when it is not formatted."""
    try:
        lines = (plan.data / _META).read_text().splitlines()
    except FileNotFoundError:
        return None
    found = [line.removeprefix("cluster.id=") for line in lines if line.startswith("cluster.id=")]
    return found[0] if found and found[0] else None


def new_kafka_uuid() -> str:
    """A UUID as Kafka writes it: 22 characters of URL-safe base64, never with a dash in front."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        if not text.startswith("-"):
            return text


def format_folder(plan: NodePlan, cluster_id: str, command: Sequence[str], checkpoints: Path) -> None:
    """Prepare an empty folder for its first start.

    Kafka's StorageTool does it once a machine (1 s of JVM); the checkpoint it writes names only the
    feature levels of this Kafka version, so it is kept in `checkpoints` and later folders are
    prepared from it without a JVM. `command` is java with its class path.
    """
    kept = checkpoints / _CHECKPOINT
    if not kept.exists():
        _format_with_kafka(plan, cluster_id, command)
        partial = kept.with_name(f"{_CHECKPOINT}.{os.getpid()}")
        shutil.copyfile(plan.data / _CHECKPOINT, partial)
        partial.replace(kept)
        return
    shutil.copyfile(kept, plan.data / _CHECKPOINT)
    meta = {
        "version": "1",
        "cluster.id": cluster_id,
        "node.id": str(plan.node_id),
        "directory.id": new_kafka_uuid(),
    }
    partial = plan.data / f"{_META}.partial"
    partial.write_text("".join(f"{name}={value}\n" for name, value in meta.items()))
    partial.replace(plan.data / _META)  # last: a folder with this file counts as formatted


def _format_with_kafka(plan: NodePlan, cluster_id: str, command: Sequence[str]) -> None:
    done = subprocess.run(  # noqa: S603 - our own Java with our own arguments
        [*command, "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(plan.properties)],
        capture_output=True,
        text=True,
        timeout=_FORMAT_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it gave no reason"]
        raise EnvironmentError_(f"Kafka could not prepare {plan.data}: {said[-1]}")

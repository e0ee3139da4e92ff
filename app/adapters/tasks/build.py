"""The executor of a process, made from the settings."""

import os
import socket
from pathlib import Path

from app.adapters.producer import ProducerLimits
from app.adapters.tasks.executor import Executor, ExecutorLimits
from app.adapters.tasks.payload import Payloads
from app.adapters.tasks.preparation import Preparation
from app.adapters.tasks.processes import ProcessLimits, ProcessPool
from app.adapters.tasks.registry import Registry
from app.adapters.tasks.resources import Resources
from app.adapters.tasks.secrets import Secrets
from app.domain.workflow.expressions import Expressions
from app.ports import Clock, Tracing
from config.settings import Settings


def new_executor(
    settings: Settings,
    expressions: Expressions,
    clock: Clock,
    producer: ProducerLimits,
    concurrency: int | None = None,
    tracing: Tracing | None = None,
) -> Executor:
    """An executor, inside the running loop; `concurrency` bounds it further than `tasks.concurrency` does.

    `producer` is how tasks write to the service's own cluster. Whoever makes it closes it.
    """
    tasks = settings.tasks
    payloads = Payloads(Path(tasks.payload_directory).expanduser(), tasks.payload_retention_s)
    limits = ExecutorLimits(
        concurrency=min(tasks.concurrency, concurrency or tasks.concurrency),
        threads=tasks.threads,
        waiting=tasks.waiting,
        timeout_s=tasks.timeout_s,
        cancel_grace_s=tasks.cancel_grace_ms / 1000,
        abandoned=tasks.abandoned,
        heartbeat_interval_s=tasks.heartbeat_interval_ms / 1000,
        held_up_s=tasks.held_up_ms / 1000,
        result_bytes=settings.workflow.result_bytes,
        payload_bytes=tasks.payload_bytes,
        claim_check=tasks.claim_check,
        worker=f"{socket.gethostname()}:{os.getpid()}",
    )
    processes = ProcessLimits(
        processes=tasks.processes,
        tasks_each=tasks.process_tasks,
        memory_bytes=tasks.process_memory_bytes,
        start_timeout_s=tasks.process_start_timeout_ms / 1000,
        frame_bytes=tasks.payload_bytes if tasks.claim_check else settings.workflow.result_bytes,
        environment=tasks.process_environment,
    )
    return Executor(
        limits,
        Preparation(Registry(), expressions, Secrets(tasks.secrets_directory), payloads),
        ProcessPool(processes),
        clock,
        payloads,
        Resources(tasks, settings.kafka, producer, expressions, clock),
        tracing,
    )

"""Figures of the running process: memory, CPU, garbage collection, event-loop delay and tasks."""

import asyncio
import time
from collections import deque
from collections.abc import Iterable

import psutil
from prometheus_client import CollectorRegistry, GCCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.metrics import LOOP_LAG, LOOP_TASKS, REGISTRY


class ProcessFigures(Collector):
    """The process under the names Prometheus' own clients use, on every system psutil knows."""

    def __init__(self) -> None:
        self._process = psutil.Process()

    def collect(self) -> Iterable[Metric]:
        with self._process.oneshot():
            memory = self._process.memory_info()
            cpu = self._process.cpu_times()
            started_s = self._process.create_time()
            fds = self._process.num_fds() if hasattr(self._process, "num_fds") else 0
            threads = self._process.num_threads()
        yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory.", value=memory.rss)
        yield GaugeMetricFamily("process_virtual_memory_bytes", "Virtual memory.", value=memory.vms)
        yield CounterMetricFamily("process_cpu_seconds", "User and system CPU time.", value=cpu.user + cpu.system)
        yield GaugeMetricFamily("process_start_time_seconds", "Start since the epoch.", value=started_s)
        yield GaugeMetricFamily("process_open_fds", "Open file descriptors.", value=fds)
        yield GaugeMetricFamily("process_threads", "Threads of the process.", value=threads)


def install(registry: CollectorRegistry = REGISTRY) -> None:
    """Register the figures of this process; once a process, before the first scrape."""
    registry.register(ProcessFigures())
    GCCollector(registry)


async def watch_loop(interval_s: float) -> None:
    """Set loop delay (the worst of the last eight looks) and task count until cancelled."""
    recent: deque[float] = deque(maxlen=8)
    while True:
        due = time.monotonic() + interval_s
        await asyncio.sleep(interval_s)
        recent.append(max(0.0, time.monotonic() - due))
        LOOP_LAG.set(max(recent))
        LOOP_TASKS.set(len(asyncio.all_tasks()))

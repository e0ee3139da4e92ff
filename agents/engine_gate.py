"""Lets executions in: all of them at once, until limits are kept here."""

from typing import NamedTuple

from agents.engine_store import Live
from app.domain.workflow.graph import Graph
from tables.executions import Header


class Verdict(NamedTuple):
    queued: bool = False
    skipped: str | None = None
    cancel: tuple[str, ...] = ()


class Gate:
    def ask(
        self, live: Live, graph: Graph, key: str | None, priority: int, now_ms: int, *, may_skip: bool = True
    ) -> Verdict:
        return Verdict()

    def release(self, execution_id: str, now_ms: int) -> None:
        return

    def admitted(self, now_ms: int) -> list[str]:
        return []

    def next_ms(self) -> float:
        return float("inf")

    def restore(self, execution_id: str, graph: Graph, header: Header) -> None:
        return

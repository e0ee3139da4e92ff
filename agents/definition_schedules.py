"""The schedules that definitions ask for, held against those that there are: what to put and what to delete.

The n-th schedule of a workflow's newest version is called `<workflow>.<n>`. One that a person has changed since is that
person's, and left alone; one that is no longer asked for is deleted.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from agents.engine_entities import SCHEDULE_PREFIX
from app.domain.workflow.cadence import Cadence
from app.domain.workflow.definition import ScheduleTrigger, Workflow
from app.domain.workflow.schedule import ScheduleDelete, SchedulePut, ScheduleSpec

FROM_DEFINITION: Final = "definition"
Summaries = Mapping[str, Mapping[str, Any]]


def wanted_schedules(workflows: Iterable[Workflow]) -> dict[str, ScheduleSpec]:
    """By name, what the newest versions ask for; what means nothing is left out."""
    return {
        f"{workflow.id}.{number}": spec
        for workflow in workflows
        for number, trigger in enumerate(workflow.schedules, 1)
        if (spec := _spec(workflow.id, trigger)).problem() is None
    }


def differences(
    wanted: Mapping[str, ScheduleSpec], there: Summaries, now_ms: int
) -> Iterator[SchedulePut | ScheduleDelete]:
    """The commands that make the schedules of definitions what they ask for."""
    for name, spec in wanted.items():
        summary = there.get(name)
        if summary is None or (summary.get("source") == FROM_DEFINITION and not _as_asked(spec, summary)):
            yield SchedulePut(
                entity_id=SCHEDULE_PREFIX + name,
                command_id=f"{name}@{now_ms}",
                spec=spec,
                source=FROM_DEFINITION,
            )
    for name, summary in there.items():
        if summary.get("source") == FROM_DEFINITION and name not in wanted:
            yield ScheduleDelete(entity_id=SCHEDULE_PREFIX + name, command_id=f"{name}@{now_ms}")


def _spec(workflow: str, trigger: ScheduleTrigger) -> ScheduleSpec:
    return ScheduleSpec(
        workflow=workflow,
        cadence=Cadence(cron=trigger.cron, timezone=trigger.timezone),
        input=dict(trigger.input),
        overlap=trigger.overlap,
        catch_up=trigger.catch_up,
    )


def _as_asked(spec: ScheduleSpec, summary: Mapping[str, Any]) -> bool:
    return (
        summary.get("workflow") == spec.workflow
        and summary.get("cron") == spec.cadence.cron
        and summary.get("timezone") == spec.cadence.timezone
        and summary.get("input") == spec.input
        and summary.get("overlap") == spec.overlap
        and summary.get("catch_up") == spec.catch_up
    )

"""Settings of `headrace up`, which keeps one process a role alive."""

from config.section import Section, setting


class SupervisorSettings(Section):
    """Restart policy and the supervisor's view of its children."""

    restart_backoff_ms: int = setting(
        500, description="Pause before the first restart of a dead child; doubles each time.", unit="ms", ge=1
    )
    restart_backoff_max_ms: int = setting(30_000, description="Longest pause before a restart.", unit="ms", ge=1)
    healthy_after_s: float = setting(
        30.0, description="A child that lived this long starts again with the shortest pause.", unit="s", gt=0
    )
    scrape_timeout_ms: int = setting(
        1000, description="A child that answers no later than this is part of the merged view.", unit="ms", ge=10
    )
    unresponsive_after_s: float = setting(
        30.0,
        description="A child that answers nothing for this long is killed and restarted.",
        unit="s",
        gt=0,
    )
    drain_timeout_s: float = setting(
        10.0,
        description="On stop, the worker may take this long to reach the end of its topics.",
        unit="s",
        ge=0,
        le=600,
    )
    status_interval_s: float = setting(
        1.0, description="Time between two rate lines on a terminal; ten times that elsewhere.", unit="s", gt=0
    )
    demo_workflows: bool = setting(
        default=True,
        description="On start, `headrace up` registers two demonstration workflows where they are unknown, and starts"
        " the one that fails on purpose.",
    )

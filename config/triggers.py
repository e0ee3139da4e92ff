"""Settings of what starts workflows without being asked: topics and the schedules of definitions."""

from config.section import Section, setting


class TriggersSettings(Section):
    """How the topics that workflows listen to are followed."""

    refresh_interval_ms: int = setting(
        1_000,
        ge=50,
        le=3_600_000,
        unit="ms",
        description="Between two looks at the definitions: for new triggers, and for schedules to put or delete.",
    )
    topic_check_interval_s: float = setting(
        30.0,
        ge=0.1,
        le=86_400,
        unit="s",
        description="Between two looks for topics that workflows listen to and that did not exist so far.",
    )
    batches_in_flight: int = setting(
        8, ge=1, le=1_000, unit="batches", description="Batches of records whose starts are on their way to the broker."
    )

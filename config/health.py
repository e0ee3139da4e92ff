"""Settings of the health port."""

from config.section import Section, setting


class HealthSettings(Section):
    """Where `/health` and its parts are served."""

    host: str = setting("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = setting(8081, ge=0, le=65_535, unit="port", description="Port to listen on; 0 takes a free one.")
    stall_after_s: float = setting(
        30.0, gt=0, unit="s", description="No progress for this long while records wait makes the process not ready."
    )
    exit_after_s: float = setting(
        120.0,
        gt=0,
        unit="s",
        description="No progress for this long while records wait ends the process, to be restarted.",
    )
    watchdog_interval_s: float = setting(1.0, gt=0, unit="s", description="Time between two looks of the watchdog.")
    stop_deadline_s: float = setting(
        30.0, gt=0, le=600, unit="s", description="An orderly stop, all of it, takes no longer than this."
    )

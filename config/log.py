"""Settings of the log."""

from typing import Literal

from config.section import Section, setting

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


def _quiet() -> dict[str, Level]:
    return {
        "aiokafka": "WARNING",
        "faust": "WARNING",
        "httpx": "WARNING",
        "mode": "WARNING",
        # "Timer commit is overlapping": a tick came late on a busy machine. The loop lag is a metric of ours.
        "mode.timers": "ERROR",
        "watchfiles": "WARNING",
    }


class LogSettings(Section):
    """What is logged, where to and in which form."""

    level: Level = setting("INFO", reload="hot", description="Records below this level are not written.")
    levels: dict[str, Level] = setting(
        default_factory=_quiet, reload="hot", description="Levels of single loggers, by their dotted name."
    )
    sample_rate: float = setting(
        1.0,
        ge=0,
        le=1,
        unit="share",
        reload="hot",
        description="Share of DEBUG and INFO records that is kept; WARNING and above are always kept.",
    )
    format: Literal["auto", "json", "console"] = setting(
        "auto", reload="hot", description="Form of a line; auto is console on a terminal and JSON elsewhere."
    )
    color: Literal["auto", "always", "never"] = setting(
        "auto", reload="hot", description="Colour in the console form; auto is on a terminal only."
    )
    file: str | None = setting(
        None, description="File to write to instead of stdout, a new one each day (UTC); the role joins its name."
    )
    keep_days: int = setting(30, ge=1, le=3650, unit="days", description="Daily files kept.")
    service: str = setting("headrace", min_length=1, description="Field `service` of each record.")
    environment: str = setting("development", description="Field `environment` of each record.")
    pod: str | None = setting(None, description="Field `pod` of each record; the name of the host when not given.")
    namespace: str = setting("", description="Field `namespace` of each record.")

"""Whether the end of the topics is worth waiting for at a stop: told from how the lag shrinks."""

from typing import Literal, NamedTuple

# Lag is counted anew once a second or so; a shorter look says nothing.
LOOK_S = 2.0


class Look(NamedTuple):
    """The records that wait at one moment."""

    at_s: float
    lag: float


def outlook(first: Look, now: Look, ends_s: float) -> Literal["done", "wait", "hopeless"]:
    """`hopeless` when at the pace seen since `first` the lag is not gone by `ends_s`; the next start goes on."""
    if now.lag <= 0:
        return "done"
    watched_s = now.at_s - first.at_s
    if watched_s < LOOK_S:
        return "wait"
    pace = (first.lag - now.lag) / watched_s
    return "wait" if now.lag <= pace * (ends_s - now.at_s) else "hopeless"

"""Every kind of fault there is, by name."""

from collections.abc import Sequence
from typing import Final

from app.chaos import faults_broker, faults_load, faults_net, faults_process, faults_state
from app.chaos.rig import Shape
from app.chaos.scene import Entry
from app.errors import UserError

CATALOG: Final[dict[str, Entry]] = {
    entry.kind.name: entry
    for faults in (faults_process, faults_net, faults_broker, faults_state, faults_load)
    for entry in faults.FAULTS
}


def chosen_kinds(names: Sequence[str], shape: Shape) -> list[Entry]:
    """Those that are named, or all that the shape allows. A name may be a beginning: `kill`, `net`.

    Raises `UserError` for a name that fits none.
    """
    if not names:
        return [entry for entry in CATALOG.values() if shape.brokers >= entry.needs_brokers]
    found: dict[str, Entry] = {}
    for name in names:
        fitting = {known: entry for known, entry in CATALOG.items() if known == name or known.startswith(f"{name}-")}
        if not fitting:
            raise UserError(f"There is no fault {name}; there are {', '.join(CATALOG)}.")
        found |= fitting
    if unfit := [name for name, entry in found.items() if shape.brokers < entry.needs_brokers]:
        raise UserError(f"{', '.join(unfit)} cannot be done with --brokers {shape.brokers}.")
    return list(found.values())

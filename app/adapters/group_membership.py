"""Whether a Faust app that should be in its group has silently dropped out of it: nothing else would ever notice.

A consumer thread that has ended, or the task in it that joins and heartbeats, leaves an app that looks idle: no lag is
known to it any more. Leans on private names of pinned releases, as app.adapters.transport does.
"""

from app.adapters.faust_app import App
from app.domain.watchdog import Progress


def membership(app: App) -> Progress:
    """For the watchdog: something waits while the app is out of its group though the group's broker is known.

    A broker that is away and a restore that takes long are no reason to start the process again.
    """
    return Progress(int(_is_out(app)), 0, "it is out of its consumer group and does not come back")


def _is_out(app: App) -> bool:
    consumer = app._consumer
    if consumer is None or not app.started or app.should_stop:
        return False
    thread = consumer._thread
    client = thread._consumer
    if client is None:
        return False  # it starts
    worker, coordinator = thread._thread, client._coordinator
    if worker is not None and not worker.is_alive():
        return True
    joining = getattr(coordinator, "_coordination_task", None)
    if joining is not None and joining.done():
        return True
    return getattr(coordinator, "coordinator_id", None) is not None and not app.member_id

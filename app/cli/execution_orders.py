"""Orders of `headrace executions`: to executions by their ids, or to all that match."""

import sys
from collections.abc import Callable
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from app.cli.api import Api, Url
from app.cli.broker import Since, since_ms
from app.cli.options import AsJson, ConfigFile, SetFlags, print_json
from app.errors import UserError

Ids = Annotated[
    list[str] | None, typer.Argument(metavar="EXECUTION", help="These; or select by options.", show_default=False)
]
OfWorkflow = Annotated[str | None, typer.Option("--workflow", "-w", metavar="WORKFLOW", help="All of this workflow.")]
OfStatus = Annotated[
    list[str] | None, typer.Option("--status", "-s", metavar="STATUS", help="All in this status; repeatable.")
]
OfKey = Annotated[str | None, typer.Option("--key", metavar="KEY", help="All with this concurrency key.")]
Until = Annotated[str | None, typer.Option("--until", metavar="WHEN", help="All asked for before; as --since.")]
Everything = Annotated[bool, typer.Option("--all", help="All that the order can apply to.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell what would be reached.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
FromTask = Annotated[
    str | None, typer.Option("--from", metavar="TASK", help="Run this task again, and all that need it.")
]
Reason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; it is kept in the history.")]


class Order:
    """One order with whom it is for."""

    def __init__(
        self,
        action: str,
        ids: list[str] | None,
        *,
        workflow: str | None = None,
        status: list[str] | None = None,
        key: str | None = None,
        since: str | None = None,
        until: str | None = None,
        everything: bool = False,
        **fields: Any,
    ) -> None:
        self.action = action
        self.ids = list(dict.fromkeys(ids or ()))
        self.fields = {name: value for name, value in fields.items() if value not in (None, "")}
        times = {"since": since_ms(since), "until": since_ms(until, "--until")}
        chosen = {"workflow": workflow, "status": status or None, "key": key, **times}
        self.filter: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
        if everything:
            self.filter["all"] = True
        if bool(self.ids) == bool(self.filter):
            raise UserError("Say which: EXECUTION…, or --workflow, --status, --key, --since, --until or --all.")

    def send(self, api: Api, *, dry_run: bool, yes: bool) -> dict[str, Any]:
        """What was reached, or would be. Asks before it reaches what was not named."""
        body: dict[str, Any] = {"ids": self.ids} if self.ids else self.filter
        path = f"executions:{self.action}"
        if len(self.ids) == 1 and not dry_run:
            return self._one(api)
        if self.ids or dry_run or yes:
            return dict(api.post(path, body={**body, **self.fields, "dry_run": dry_run}))
        if not sys.stdin.isatty():
            raise UserError(f"There is nobody to ask here: pass --yes to {self.action}, or --dry-run to see whom.")
        plan = api.post(path, body={**body, **self.fields, "dry_run": True})
        if not plan["matched"] or not typer.confirm(f"{self.action} {_counted(plan)}?"):
            return {**plan, "matched": 0}
        return dict(api.post(path, body={**body, **self.fields, "dry_run": False}))

    def _one(self, api: Api) -> dict[str, Any]:
        """By its own route, which says why when it cannot be."""
        fields = dict(self.fields)
        path = [self.action]
        body: Any = fields or None
        if self.action == "signal":
            path.append(fields["signal"])
            body = fields.get("payload")
        told = api.post("executions", self.ids[0], *path, body=body)
        return {"action": self.action, "matched": 1, "sent": 1, "more": False, "execution_ids": self.ids, **told}


def add_orders(app: typer.Typer) -> None:
    """The commands that change something."""
    for command in (
        _order("cancel", "Cancel executions: running tasks are asked to stop, then ended.", OfStatus, reason=Reason),
        _order("pause", "Pause executions: what runs ends, nothing else begins."),
        _order("resume", "Let paused executions go on."),
        _order(
            "retry", "Retry executions from their failed tasks, or again from any task.", OfStatus, from_task=FromTask
        ),
        signal,
        redrive,
    ):
        app.command()(command)


def _order(action: str, says: str, status: Any = None, **own: Any) -> Callable[..., None]:
    """A command with all filters (by status only where that leaves a choice) and options of its own."""
    filters = {"ids": Ids, "workflow": OfWorkflow, "status": status, "key": OfKey, "since": Since, "until": Until}
    how = {"dry_run": DryRun, "yes": Yes, "url": Url, "config": ConfigFile, "flags": SetFlags, "as_json": AsJson}
    options = {**filters, "everything": Everything, **own, **how}
    if status is None:
        del options["status"]

    def command(**given: Any) -> None:
        sent = {name: given.pop(name) for name in how}
        _send(Order(action, **given), sent.pop("url"), sent.pop("config"), sent.pop("flags"), **sent)

    def parameter(name: str, option: Any) -> Parameter:
        default = False if get_args(option)[0] is bool else None
        return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=option)

    command.__name__, command.__doc__, command.__annotations__ = action, says, dict(options)
    command.__signature__ = Signature([parameter(*each) for each in options.items()])  # type: ignore[attr-defined]
    return command


def signal(
    execution_id: Annotated[str, typer.Argument(metavar="EXECUTION", help="Its id.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The signal that an approval waits for.")],
    payload: Annotated[
        list[str] | None,
        typer.Option(
            "--payload", "-p", metavar="JSON|@FILE|-|KEY=VALUE", help="What the approval results in; repeatable."
        ),
    ] = None,
    url: Url = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Signal an approval of an execution."""
    from app.cli.trigger import read_input  # noqa: PLC0415 - the two name each other

    order = Order("signal", [execution_id], signal=name, payload=read_input(payload) if payload else None)
    _send(order, url, config, flags, dry_run=False, yes=True, as_json=as_json)


def redrive(
    workflow: OfWorkflow = None,
    key: OfKey = None,
    since: Since = None,
    until: Until = None,
    everything: Everything = False,
    from_task: FromTask = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    url: Url = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Retry every execution that has failed or timed out, as far as it matches."""
    if not (workflow or key or since or until or everything):
        raise UserError("Say which: --workflow, --key, --since, --until or --all.")
    order = Order(
        "retry",
        None,
        workflow=workflow,
        status=["failed", "timed_out"],
        key=key,
        since=since,
        until=until,
        from_task=from_task,
    )
    _send(order, url, config, flags, dry_run=dry_run, yes=yes, as_json=as_json)


def _send(
    order: Order,
    url: str | None,
    config: Path | None,
    flags: list[str] | None,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    done = order.send(Api(url, config, flags), dry_run=dry_run, yes=yes)
    if as_json:
        print_json(done)
    elif not done["matched"]:
        print(f"Nothing to {order.action}.")
    elif dry_run:
        print(f"{order.action} would reach {_counted(done)}: {', '.join(done['execution_ids'][:10])}")
    else:
        print(f"{order.action} sent to {_counted(done)}")
    if done["more"] and not as_json:
        print("More match than one order may reach; repeat it.")


def _counted(done: dict[str, Any]) -> str:
    return "1 execution" if done["matched"] == 1 else f"{done['matched']:,} executions"

"""`headrace trigger`: start an execution, and wait for its end when asked."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from app.cli.api import Api, Url
from app.cli.execution_outcome import FINAL, outcome, print_outcome
from app.cli.options import AsJson, ConfigFile, SetFlags, print_json
from app.errors import UserError

_LOOK_S = 0.2
_WAIT_S = 20.0  # of one request; the API's own limit is http.starts.wait_max_s


def command(
    workflow: Annotated[str, typer.Argument(metavar="WORKFLOW", help="Its id, as in press-overheat.")],
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            metavar="JSON|@FILE|-|KEY=VALUE",
            help="The input: JSON, a file of JSON, - for stdin, or fields one by one; repeatable.",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end; exit code 1 unless it succeeds.")] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="Longest time that --wait waits.")
    ] = 300.0,
    key: Annotated[str | None, typer.Option("--key", metavar="KEY", help="The concurrency key.")] = None,
    version: Annotated[
        str | None, typer.Option("--version", metavar="VERSION", help="This one, not the latest.")
    ] = None,
    priority: Annotated[int | None, typer.Option("--priority", metavar="N", help="Higher ones begin first.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option("--idempotency-key", metavar="KEY", help="A repeat with the same key starts nothing.")
    ] = None,
    url: Url = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Start an execution of a workflow."""
    body = {"input": read_input(given or [])}
    body |= {name: value for name, value in (("key", key), ("priority", priority)) if value is not None}
    query: dict[str, Any] = {"version": version} if version is not None else {}
    if wait:
        query["wait"] = min(timeout_s, _WAIT_S)
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
    api = Api(url, config, flags)
    begun_s = time.perf_counter()
    found = api.post("workflows", workflow, "execute", body=body, query=query, headers=headers, timeout_s=60.0)
    if wait:
        found = _wait(api, found, timeout_s - (time.perf_counter() - begun_s))
    if as_json:
        print_json(found)
    elif wait:
        print_outcome(found)
    else:
        print(f"{found['execution_id']}  {found['workflow']} {found['version']} accepted")
    if wait:
        raise typer.Exit(outcome(found))


def read_input(given: Sequence[str]) -> Any:
    """The input that options name: one JSON document, or an object of KEY=VALUE. Raises `UserError`."""
    fields: dict[str, Any] = {}
    whole: list[Any] = []
    for text in given:
        name, is_field, value = text.partition("=")
        if text == "-":
            whole.append(_json(sys.stdin.buffer.read(), "stdin"))
        elif text.startswith("@"):
            whole.append(_json(_content(text[1:]), text[1:]))
        elif is_field and name.isidentifier():
            fields[name] = _value(value)
        else:
            whole.append(_json(text.encode(), "--input"))
    if len(whole) > 1 or (whole and fields and not isinstance(whole[0], dict)):
        raise UserError("--input: give one document, or fields as KEY=VALUE, which may change a document's.")
    return {**whole[0], **fields} if whole and fields else whole[0] if whole else fields


def _value(text: str) -> Any:
    """JSON where it is JSON, else the text itself."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"--input @{path}: {error.strerror}.") from error


def _json(content: bytes, where: str) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error}.") from error


def _wait(api: Api, found: dict[str, Any], left_s: float) -> dict[str, Any]:
    """The execution as it is at its end, or when the time is over."""
    ends_s = time.perf_counter() + left_s
    while found.get("status") not in FINAL and time.perf_counter() < ends_s:
        time.sleep(min(_LOOK_S, max(0.0, ends_s - time.perf_counter())))
        found = api.get("executions", found["execution_id"])
    return found

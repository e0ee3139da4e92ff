"""`headrace workflows`: definitions of workflows checked, registered and read."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from app.cli.api import Api, Url
from app.cli.broker import as_time
from app.cli.options import AsJson, ConfigFile, SetFlags, print_json
from app.cli.tables import show_table
from app.errors import UserError

if TYPE_CHECKING:
    from app.definitions.problems import Problem

app = typer.Typer()

PAGE = 1000
SUFFIXES = (".yaml", ".yml", ".json")

Files = Annotated[
    list[Path],
    typer.Argument(metavar="FILE", help="YAML or JSON files, folders of them, or - for standard input."),
]


class Source(NamedTuple):
    """One file as it was read."""

    name: str
    content: bytes


@app.command()
def validate(files: Files, as_json: AsJson = False) -> None:
    """Check definitions without a running system; tells every problem with its place.

    Task types of plug-ins are known when they are installed here. Exit code 2 when one of the files is not valid.
    """
    from app.adapters.tasks.registry import Registry  # noqa: PLC0415 - `--help` must not wait for it
    from app.definitions.reading import read_definition  # noqa: PLC0415 - as above

    types = Registry()
    found = [(source.name, read_definition(source.content, types)) for source in read(files)]
    if as_json:
        print_json({"items": [_checked(name, reading) for name, reading in found]})
    else:
        for name, reading in found:
            for problem in reading.problems:
                print(problem.at(name))
            if reading.definition is not None:
                print(f"{name}: {reading.definition.id} is valid, version {reading.definition.version}")
    _refuse([name for name, reading in found if reading.definition is None], len(found), "")


@app.command()
def apply(
    files: Files,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only let the system check them.")] = False,
    url: Url = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Register definitions with a running system: all files, or none when one of them is not valid.

    Content that is known already stays the version it is; what is new becomes the latest version.
    """
    api = Api(url, config, flags)
    sources = read(files)
    checked = [(source, *api.submit("workflows", content=source.content, dry_run="true")) for source in sources]
    wrong = []
    for source, status, answer in checked:
        if status != 200:
            wrong.append(source.name)
            for problem in _problems(answer):
                print(problem.at(source.name), file=sys.stderr)
    _refuse(wrong, len(sources), ", nothing was applied")
    applied: list[dict[str, Any]] = []
    for source, _, answer in checked:
        status, result = (200, answer) if dry_run else api.submit("workflows", content=source.content)
        if status not in {200, 201}:
            done = f"; applied before it: {', '.join(one['id'] for one in applied)}" if applied else ""
            raise UserError(f"{source.name} was refused: {result.get('detail', 'no reason was given')}{done}")
        applied.append({"file": source.name, **result})
        for problem in _problems({"errors": result.get("warnings", [])}, severity="warning"):
            print(problem.at(source.name), file=sys.stderr)
    if as_json:
        print_json({"items": applied})
        return
    rows = [(one["id"], one["version"], _outcome(one, dry_run=dry_run), one["file"]) for one in applied]
    show_table(("workflow", "version", "", "file"), rows)


@app.command("list")
def list_workflows(url: Url = None, config: ConfigFile = None, flags: SetFlags = None, as_json: AsJson = False) -> None:
    """List workflows by id, each with its latest version."""
    items = _pages(Api(url, config, flags), "workflows")
    if as_json:
        print_json({"items": items})
        return
    if not items:
        print("No workflow is registered: `headrace workflows apply FILE` does that.")
        return
    headings = ("workflow", "latest", ">versions", ">tasks", "registered", "description")
    show_table(headings, (_row(one) for one in items))


@app.command()
def show(
    workflow: Annotated[str, typer.Argument(metavar="WORKFLOW", help="Its id, as in press-overheat.")],
    version: Annotated[str | None, typer.Option("--version", metavar="VERSION", help="Without it the latest.")] = None,
    versions: Annotated[bool, typer.Option("--versions", help="List its versions instead.")] = False,
    url: Url = None,
    config: ConfigFile = None,
    flags: SetFlags = None,
    as_json: AsJson = False,
) -> None:
    """Show a definition as it was registered; what is printed can be applied again."""
    api = Api(url, config, flags)
    if versions:
        items = _pages(api, "workflows", workflow, "versions")
        if as_json:
            print_json({"items": items})
            return
        rows = [(one["version"], as_time(one["registered_at"]), "latest" if one["latest"] else "") for one in items]
        show_table(("version", "registered", ""), rows)
        return
    found = api.get("workflows", workflow, version=version)
    if as_json:
        print_json(found)
        return
    import yaml  # noqa: PLC0415 - only this needs it

    print(f"# {found['id']}, version {found['version']}, registered {as_time(found['registered_at'])}")
    print(yaml.safe_dump(found["definition"], sort_keys=False, allow_unicode=True, width=110), end="")


def read(files: list[Path]) -> list[Source]:
    """The files, and those of folders in the order of their names. Raises `UserError`."""
    found: list[Source] = []
    for file in files:
        if str(file) == "-":
            found.append(Source("standard input", sys.stdin.buffer.read()))
        elif file.is_dir():
            inside = sorted(each for each in file.iterdir() if each.suffix in SUFFIXES and each.is_file())
            if not inside:
                raise UserError(f"{file}: there are no {', '.join(SUFFIXES)} files in this folder.")
            found += [_read(each) for each in inside]
        else:
            found.append(_read(file))
    return found


def _read(file: Path) -> Source:
    try:
        return Source(str(file), file.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{file}: there is no such file.") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}.") from error


def _pages(api: Api, *path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = api.get(*path, cursor=cursor, limit=PAGE)
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def _problems(answer: Any, severity: Any = "error") -> list["Problem"]:
    """The problems in an answer of the API; at least one."""
    from app.definitions.problems import Problem  # noqa: PLC0415 - `--help` must not wait for it

    errors = answer.get("errors", ())
    found = [
        Problem(each["field"], each["message"], each.get("line") or 0, each.get("column") or 0, severity)
        for each in errors
    ]
    if not found and severity == "error":
        found.append(Problem("", str(answer.get("detail", "it was refused"))))
    return found


def _checked(name: str, reading: Any) -> dict[str, Any]:
    definition = reading.definition
    return {
        "file": name,
        "id": None if definition is None else definition.id,
        "version": None if definition is None else definition.version,
        "problems": [problem._asdict() for problem in reading.problems],
    }


def _refuse(wrong: list[str], count: int, so: str) -> None:
    """Raises `UserError` when a file is not valid."""
    if wrong:
        what = f"{wrong[0]} is" if count == 1 else f"{len(wrong)} of {count} files are"
        raise UserError(f"{what} not valid{so}.")


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    counts = (str(one["versions"]), str(len(one["tasks"])))
    return (one["id"], one["version"], *counts, as_time(one["registered_at"]), one["description"])


def _outcome(one: dict[str, Any], *, dry_run: bool) -> str:
    if dry_run:
        return "valid"
    return "registered" if one["created"] else "is the latest already"

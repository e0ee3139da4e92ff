"""The HTTP API of a running system, as the command line asks it; its problems become our errors."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from app.cli.options import load_settings
from app.errors import HeadraceError, Unavailable, UserError

if TYPE_CHECKING:
    import httpx

Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="Address of the API; without it http.host and http.port."),
]

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - what is listened on is not what is asked
TIMEOUT_S = 30.0


class Api:
    """One running system."""

    def __init__(self, url: str | None, config: Path | None, flags: list[str] | None) -> None:
        if url is None:
            http = load_settings(config, flags).settings.http
            url = f"http://{_ANY_HOST.get(http.host, http.host)}:{http.port}"
        if not url.startswith(("http://", "https://")):
            raise UserError(f"--url {url}: write it whole, as in http://127.0.0.1:8080.")
        self.url = url.rstrip("/")

    def get(self, *path: str, **query: object) -> Any:
        """The JSON of a read; query parameters that are None are left out."""
        return self._ask("GET", path, query={key: value for key, value in query.items() if value is not None})

    def post(self, *path: str, body: dict[str, Any]) -> Any:
        """The JSON answer to an order."""
        return self._ask("POST", path, body=body)

    def _ask(
        self,
        method: str,
        path: tuple[str, ...],
        query: dict[str, Any] | None = None,
        body: dict[str, Any] | None = None,
    ) -> Any:
        import httpx  # noqa: PLC0415 - `--help` must not wait for it

        where = f"{self.url}/api/v1/{'/'.join(quote(part, safe='') for part in path)}"
        # A proxy of the environment is not for this machine itself.
        local = self.url.split("//", 1)[1].startswith(_LOOPBACK)
        try:
            with httpx.Client(timeout=TIMEOUT_S, trust_env=not local) as client:
                answer = client.request(method, where, params=query, json=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(
                f"No Headrace answers at {self.url} ({_cause(error)}); start `headrace up`, or name another by --url."
            ) from error
        if answer.is_success:
            try:
                return answer.json()
            except ValueError as error:
                raise Unavailable(f"What answers at {self.url} is not Headrace; name it by --url.") from error
        raise _refusal(answer)


def _cause(error: Exception) -> str:
    text = str(error).strip().rstrip(".")
    return text.removeprefix("[Errno 111] ").lower() or type(error).__name__


def _refusal(answer: "httpx.Response") -> HeadraceError:
    try:
        problem = answer.json()
        text = str(problem["detail"])
        wrong = [f"{each['field']}: {each['message']}" for each in problem.get("errors", ())]
    except (ValueError, KeyError, TypeError):
        return Unavailable(f"What answers at {answer.request.url} is not Headrace (HTTP {answer.status_code}).")
    sentence = "; ".join([text, *wrong])
    if answer.status_code >= 500:
        return Unavailable(sentence)
    return UserError(sentence)

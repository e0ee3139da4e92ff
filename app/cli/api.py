"""The HTTP API of a running system, as the command line asks it; its problems become our errors."""

import contextlib
from collections.abc import Iterator
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
PAGE = 500


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

    def post(
        self,
        *path: str,
        body: Any,
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Any:
        """The JSON answer to an order."""
        return self._ask("POST", path, query=query, body=body, headers=headers, timeout_s=timeout_s)

    @contextlib.contextmanager
    def lines(
        self, *path: str, silent_s: float = 60.0, headers: dict[str, str] | None = None
    ) -> "Iterator[Iterator[str]]":
        """The lines of a stream as they come; `silent_s` without any ends it. Raises as `get`."""
        import httpx  # noqa: PLC0415 - `--help` must not wait for it

        timeout = httpx.Timeout(TIMEOUT_S, read=silent_s)
        try:
            with (
                httpx.Client(timeout=timeout, trust_env=not self._local) as client,
                client.stream("GET", self._where(path), headers=headers) as answer,
            ):
                if not answer.is_success:
                    answer.read()
                    raise _refusal(answer)
                yield answer.iter_lines()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(f"The stream of {self.url} broke off ({_cause(error)}).") from error

    def _where(self, path: tuple[str, ...]) -> str:
        return f"{self.url}/api/v1/{'/'.join(quote(part, safe='') for part in path)}"

    @property
    def _local(self) -> bool:
        """A proxy of the environment is not for this machine itself."""
        return self.url.split("//", 1)[1].startswith(_LOOPBACK)

    def submit(self, *path: str, content: bytes, **query: str) -> tuple[int, Any]:
        """Post a text as it is; status and JSON of the answer, also when it is refused for what it says (422)."""
        answer = self._answer("POST", path, params=query, content=content)
        if answer.is_success or answer.status_code == 422:
            return answer.status_code, self._json(answer)
        raise _refusal(answer)

    def put(self, *path: str, body: dict[str, Any]) -> Any:
        """The JSON answer to what is to be there."""
        return self._ask("PUT", path, body=body)

    def delete(self, *path: str) -> Any:
        """The JSON answer to what is to be gone."""
        return self._ask("DELETE", path)

    def pages(self, *path: str, limit: int, **query: object) -> tuple[list[dict[str, Any]], bool]:
        """The first `limit` items of a list, page by page, and whether there are more."""
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while len(found) < limit:
            page = self.get(*path, **query, cursor=cursor, limit=min(PAGE, limit - len(found)))
            found += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        return found, cursor is not None

    def _ask(
        self,
        method: str,
        path: tuple[str, ...],
        query: dict[str, Any] | None = None,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Any:
        answer = self._answer(method, path, timeout_s=timeout_s, params=query, json=body, headers=headers)
        if answer.is_success:
            return self._json(answer)
        raise _refusal(answer)

    def _answer(
        self, method: str, path: tuple[str, ...], timeout_s: float = TIMEOUT_S, **options: Any
    ) -> "httpx.Response":
        import httpx  # noqa: PLC0415 - `--help` must not wait for it

        try:
            with httpx.Client(timeout=timeout_s, trust_env=not self._local) as client:
                return client.request(method, self._where(path), **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(
                f"No Headrace answers at {self.url} ({_cause(error)}); start `headrace up`, or name another by --url."
            ) from error

    def _json(self, answer: "httpx.Response") -> Any:
        try:
            return answer.json()
        except ValueError as error:
            raise Unavailable(f"What answers at {self.url} is not Headrace; name it by --url.") from error


def _cause(error: Exception) -> str:
    text = str(error).strip().rstrip(".")
    return text.removeprefix("[Errno 111] ").lower() or type(error).__name__


def _refusal(answer: "httpx.Response") -> HeadraceError:
    try:
        problem = answer.json()
        text = str(problem["detail"])
        errors = [each for each in problem.get("errors", ()) if each["message"] != text]
        wrong = [f"{each['field']}: {each['message'].rstrip('.')}" for each in errors]
    except (ValueError, KeyError, TypeError):
        return Unavailable(f"What answers at {answer.request.url} is not Headrace (HTTP {answer.status_code}).")
    sentence = f"{text.rstrip('.')}: {'; '.join(wrong)}." if wrong else text
    if answer.status_code >= 500:
        return Unavailable(sentence)
    return UserError(sentence)

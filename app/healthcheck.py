"""Asks a health endpoint and tells by its exit code: `python -m app.healthcheck [URL]`, for images without a shell."""

import http.client
import json
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

DEFAULT_URL = "http://127.0.0.1:8081/health/ready"
TIMEOUT_S = 3.0
BODY_BYTES_MAX = 65_536

HEALTHY, UNHEALTHY, WRONG_USE = 0, 1, 2


def main(arguments: Sequence[str]) -> int:
    """0 for an answer 200, 1 for any other or none, 2 for what is no URL; says which in one line.

    Nothing but the standard library is imported and no proxy of the environment is asked, so that a
    probe costs little and speaks to nobody but the endpoint.
    """
    url = arguments[0] if arguments else DEFAULT_URL
    endpoint = _endpoint(url)
    if len(arguments) > 1 or endpoint is None:
        sys.stderr.write(f"usage: python -m app.healthcheck [http://HOST:PORT/PATH], not {' '.join(arguments)!r}\n")
        return WRONG_USE
    try:
        status, body = _get(*endpoint)
    except (OSError, http.client.HTTPException) as error:
        sys.stdout.write(f"{url} does not answer: {error}\n")
        return UNHEALTHY
    sys.stdout.write(f"{status} {_verdict(body)}\n")
    return HEALTHY if status == http.HTTPStatus.OK else UNHEALTHY


def _endpoint(url: str) -> tuple[str, int, str] | None:
    """Host, port and path of an http URL; None for anything else."""
    try:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            return None
        return parts.hostname, parts.port or 80, parts.path or "/"
    except ValueError:
        return None


def _get(host: str, port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.read(BODY_BYTES_MAX)
    finally:
        connection.close()


def _verdict(body: bytes) -> str:
    """The status of a health document and the checks that fail; of anything else the beginning."""
    try:
        document = json.loads(body)
        failing = [f"{name} ({check['detail']})" for name, check in document["checks"].items() if not check["ok"]]
        return ": ".join([document["status"], *([", ".join(failing)] if failing else [])])
    except (ValueError, KeyError, TypeError, AttributeError):
        return body[:100].decode(errors="replace").strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

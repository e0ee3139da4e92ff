"""Laws of the probe of our images: its exit code is the health, whatever answers."""

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from app.healthcheck import main

OK = {"status": "ok", "checks": {"fleet": {"ok": True, "detail": "10 devices"}}}
LATE = {
    "status": "not ready",
    "checks": {"fleet": {"ok": True, "detail": ""}, "transform": {"ok": False, "detail": "partitions none"}},
}


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """An HTTP server with one answer for everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/health/ready"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "code", "said"),
    [
        (200, json.dumps(OK).encode(), 0, "200 ok\n"),
        (503, json.dumps(LATE).encode(), 1, "503 not ready: transform (partitions none)\n"),
        (200, b"Prometheus is Healthy.\n", 0, "200 Prometheus is Healthy.\n"),
        (404, b"[]", 1, "404 []\n"),
        (500, b"\xff\xfe", 1, "500 \ufffd\ufffd\n"),
    ],
)
def test_the_exit_code_is_the_health(
    capsys: pytest.CaptureFixture[str], status: int, body: bytes, code: int, said: str
) -> None:
    with answering(status, body) as url:
        assert main([url]) == code
    assert capsys.readouterr().out == said


def test_nobody_there_is_not_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(200, b"") as url:
        pass
    assert main([url]) == 1
    assert "does not answer" in capsys.readouterr().out


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with answering(200, b"ok") as url:
        assert main([url]) == 0


@pytest.mark.parametrize(
    "arguments", [["ftp://x/"], ["health"], ["http://"], ["http://a:b/"], ["http://a:1/", "http://b:1/"]]
)
def test_what_is_no_url_is_wrong_use(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 2
    assert "usage" in capsys.readouterr().err


def test_the_probe_loads_nothing_but_the_standard_library() -> None:
    code = "import sys, app.healthcheck; print(sorted({'pydantic', 'httpx', 'aiokafka', 'typer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

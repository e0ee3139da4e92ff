"""Secrets of tasks: where they come from, that inputs cannot name them, and that texts do not tell them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.adapters.expressions import CelExpressions
from app.adapters.tasks.secrets import Resolution, Secrets
from app.errors import TaskFailed
from config.environment import from_environ
from config.settings import Settings


def resolved(params: Any, secrets: Secrets, **names: Any) -> Any:
    """As an executor does it: references out, expressions rendered, secrets in."""
    resolution = Resolution(secrets)
    return resolution.put_back(CelExpressions().render(resolution.take_out(params), names))


def test_the_environment_comes_before_files(tmp_path: Path) -> None:
    (tmp_path / "plant_db").write_text("from the file\n")
    (tmp_path / "other").write_text("two\nlines\n")
    environ = {"HEADRACE_SECRET_PLANT_DB": "from the environment", "HEADRACE_SECRET_exact": "as written", "PATH": "/x"}
    secrets = Secrets(str(tmp_path), environ)
    assert resolved("${secret:plant_db}", secrets) == "from the environment"
    assert resolved("${secret:exact}", secrets) == "as written"
    assert resolved(["Bearer ${secret:other}!", {"x": 1}], secrets) == ["Bearer two\nlines!", {"x": 1}]
    assert resolved("${secret:plant_db}", Secrets(str(tmp_path), {})) == "from the file"


def test_a_rotated_file_needs_no_restart(tmp_path: Path) -> None:
    secrets = Secrets(str(tmp_path), {})
    for value in ("old", "new"):
        (tmp_path / "token").write_text(value)
        assert resolved("${secret:token}", secrets) == value


@pytest.mark.parametrize("name", ["unknown", "PATH", "../x", "a/b", "", "x\0y", "folder", "large", "binary"])
def test_an_unknown_secret_is_named_and_not_tried_again(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "large").write_bytes(b"x" * 70_000)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    (tmp_path.parent / "x").write_text("outside")
    with pytest.raises(TaskFailed) as failed:
        resolved(f"${{secret:{name}}}", Secrets(str(tmp_path), {"PATH": "/x"}))
    assert (failed.value.type, failed.value.retryable, failed.value.detail) == (
        "UnknownSecret",
        False,
        {"secret": name},
    )
    assert "/x" not in failed.value.message.replace("../x", "")


def test_an_input_cannot_name_a_secret() -> None:
    secrets = Secrets(None, {"HEADRACE_SECRET_DB": "the value"})
    hostile = {"text": "${secret:db}"}
    assert resolved("got ${input.text}", secrets, input=hostile) == "got ${secret:db}"
    assert resolved("${input.text} and ${secret:db}", secrets, input=hostile) == "${secret:db} and the value"
    assert resolved("$${secret:db}", secrets) == "${secret:db}"


def test_a_secret_that_looks_like_an_expression_stays_text() -> None:
    secrets = Secrets(None, {"HEADRACE_SECRET_DB": "${1 + 1}\\1\\g<0>"})
    assert resolved("${secret:db}", secrets) == "${1 + 1}\\1\\g<0>"


def test_texts_do_not_tell_the_secrets_of_an_attempt() -> None:
    environ = {"HEADRACE_SECRET_DB": "postgresql://plant:Pa55@word@db/x", "HEADRACE_SECRET_KEY": "abcd-1234"}
    resolution = Resolution(Secrets(None, environ))
    resolution.put_back(resolution.take_out(["${secret:db}", "${secret:key}"]))
    said = resolution.redact("no way to postgresql://plant:Pa55@word@db/x with Pa55 and abcd-1234; token=xyz")
    for secret in ("abcd-1234", "Pa55", "xyz"):
        assert secret not in said


def test_secrets_are_no_settings() -> None:
    layer = from_environ(Settings, {"HEADRACE_SECRET_PLANT_DB": "x"})
    assert (layer.data, layer.problems) == ({}, [])


@settings(max_examples=40)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_what_has_no_reference_is_left_alone(params: Any) -> None:
    resolution = Resolution(Secrets(None, {}))
    if "secret:" not in repr(params):
        assert resolution.put_back(resolution.take_out(params)) == params


def test_texts_do_not_tell_a_secret_however_it_is_spelled() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASCBKcwggSjAgEAAoIB\n-----END KEY-----"
    secrets = Secrets(
        None,
        {
            "HEADRACE_SECRET_DB": "mysql://plant:p%40ss%2Fw0rd@db/x",
            "HEADRACE_SECRET_Q": "a'b\"c é&",
            "HEADRACE_SECRET_KEY": key,
        },
    )
    resolution = Resolution(secrets)
    resolution.put_back(resolution.take_out("${secret:db} ${secret:q} ${secret:key}"))
    for text in (
        "access denied for plant using p@ss/w0rd",
        "p%40ss%2Fw0rd",
        f"bad header {'a' + chr(39) + 'b' + chr(34) + 'c é&'!r}",
        f"bad body {json.dumps({'q': 'a' + chr(39) + 'b' + chr(34) + 'c é&'})}",
        "GET /?q=a%27b%22c+%C3%A9%26",
        repr(key),
        "bad line MIIEvQIBADANBgkqhkiG9w0B",
    ):
        said = resolution.redact(text)
        assert "[REDACTED]" in said, text
        for part in ("w0rd", "é", "00e9", "C3", "MIIE", "AQEF"):
            assert part not in said, (text, said)

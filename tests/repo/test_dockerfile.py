"""Laws of the Dockerfile: two stages, hashes, nothing but what is in the repository, and no root at the end."""

import re

import pytest

from tests.helpers.compose import ROOT, instructions, stages
from tests.repo.tree import PACKAGES, files

BUILDER, FINAL = stages()
IGNORED = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line and line[0] != "#"]
KNOWN = {
    "FROM", "ENV", "WORKDIR", "COPY", "RUN", "LABEL", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"
}  # fmt: skip


def copied_from_the_repository() -> list[str]:
    return [
        source
        for stage in (BUILDER, FINAL)
        for copy in stage.all("COPY")
        if "from" not in copy.flags
        for source in copy.arguments[:-1]
    ]


def test_a_file_is_read_as_docker_reads_it() -> None:
    text = 'FROM a AS b\n# no\nRUN x \\\n    # no\n    && y\nCOPY --from=b --chown=1:1 /a /b\nCMD ["a b", "c"]\n'
    words = instructions(text)
    assert [one.word for one in words] == ["FROM", "RUN", "COPY", "CMD"]
    assert words[1].text == "x && y"
    assert (words[2].flags, words[2].arguments) == ({"from": "b", "chown": "1:1"}, ["/a", "/b"])
    assert words[3].exec_form == ["a b", "c"]


def test_every_instruction_is_a_known_one() -> None:
    assert {one.word for stage in (BUILDER, FINAL) for one in stage.instructions} <= KNOWN


def test_both_stages_have_one_pinned_base_of_our_python() -> None:
    assert BUILDER.image == FINAL.image
    assert re.fullmatch(r"python:3\.11\.\d+-slim-[a-z]+", FINAL.image)
    assert (BUILDER.name, FINAL.name) == ("builder", None)


def test_only_what_is_in_the_repository_is_copied() -> None:
    sources = copied_from_the_repository()
    for source in sources:
        assert any(path == ROOT / source or path.is_relative_to(ROOT / source) for path in files()), source
    assert set(PACKAGES) <= set(sources)
    assert not [one for stage in (BUILDER, FINAL) for one in stage.instructions if one.word == "ADD"]


def test_nothing_but_what_is_copied_reaches_the_builder() -> None:
    assert IGNORED[0] == "*"
    let_through = [line[1:] for line in IGNORED if line.startswith("!")]
    assert sorted(let_through) == sorted(copied_from_the_repository())
    # The last rule that matches decides, so what stays out comes after what is let in.
    assert IGNORED[len(let_through) + 1 :] == ["**/__pycache__", "**/*.pyc"]


def test_every_package_is_installed_with_its_hash_or_is_our_own() -> None:
    installs = [
        part.strip() for run in BUILDER.all("RUN") for part in run.text.split("&&") if re.search(r"\binstall\b", part)
    ]
    assert len(installs) == 3
    for install in installs:
        hashed = "--require-hashes" in install and re.search(r"-r requirements(-build)?\.lock$", install)
        our_own = "--no-deps --no-index" in install and install.endswith("/headrace-*.whl")
        assert hashed or our_own, install
    assert "PIP_NO_CACHE_DIR=1" in BUILDER.last("ENV").text


def test_the_image_gets_the_environment_and_nothing_else_of_the_builder() -> None:
    (copy,) = FINAL.all("COPY")
    assert copy.flags == {"from": "builder"}
    assert copy.arguments == ["/opt/headrace", "/opt/headrace"]
    assert "--without-pip /opt/headrace" in " ".join(run.text for run in BUILDER.all("RUN"))
    assert not [run for run in FINAL.all("RUN") if re.search(r"pip|apt|curl|wget", run.text)]


def test_the_image_runs_as_a_numbered_user_without_a_shell() -> None:
    uid, gid = FINAL.last("USER").text.split(":")
    assert int(uid) >= 10_000
    assert int(gid) >= 10_000
    (made,) = FINAL.all("RUN")
    assert f"--uid {uid} " in made.text
    assert "/usr/sbin/nologin" in made.text
    assert f"install -d -o {uid} -g {gid} " in made.text
    assert f"{FINAL.last('WORKDIR').text}/.headrace" in made.text
    order = [one.word for one in FINAL.instructions]
    assert order.index("USER") > max(index for index, word in enumerate(order) if word in {"RUN", "COPY"})


@pytest.mark.parametrize("word", ["ENTRYPOINT", "CMD"])
def test_the_process_is_ours_and_no_shell(word: str) -> None:
    assert FINAL.last(word).exec_form


def test_the_image_says_how_it_is_stopped_asked_and_reached() -> None:
    assert FINAL.last("STOPSIGNAL").text == "SIGTERM"
    assert FINAL.last("EXPOSE").text == "8080 8081 9095"
    check = FINAL.last("HEALTHCHECK")
    assert check.text.startswith('CMD ["python", "-m", "app.healthcheck", ')
    assert set(check.flags) == {"interval", "timeout", "start-period", "retries"}


def test_no_secret_is_built_in() -> None:
    text = (ROOT / "Dockerfile").read_text("utf-8")
    assert not re.search(r"password|secret|token|api_?key", text, re.IGNORECASE)

"""Laws of the ledger of effects: one answer a key, lower tokens refused, nothing answered that is not on the disk."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from app.chaos.ledger import Book

EFFECT = {"execution": "e", "step": "s", "attempt": 1, "token": 5, "hash": "h"}
TAKEN = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 4)), max_size=30)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@contextmanager
def ledger(path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    arguments = [sys.executable, "-m", "app.chaos.ledger", "--port", "0", "--file", str(path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            yield process, f"http://{told['host']}:{told['port']}"
        finally:
            process.kill()


@given(TAKEN)
def test_one_effect_a_key_is_accepted_and_no_token_goes_back(
    tmp_path_factory: Any, taken: list[tuple[str, str, int]]
) -> None:
    book = Book(tmp_path_factory.mktemp("ledger") / "one")
    answers: dict[str, Any] = {}
    tokens: dict[tuple[str, str], int] = {}
    for execution, step, token in taken:
        effect = {**EFFECT, "execution": execution, "step": step, "token": token}
        key = f"{execution}/{step}"
        status, body = book.take(effect, key)
        assert (status == 409) == (token < tokens.get((execution, step), -1))
        if status == 200:
            tokens[execution, step] = token
            assert body == answers.setdefault(key, body)
    assert book.counts["accepted"] == len(answers)
    book.close()


@given(TAKEN, st.integers(0, 30), st.booleans())
@settings(max_examples=25)
def test_a_ledger_that_starts_again_answers_as_if_it_never_stopped(
    tmp_path_factory: Any, taken: list[tuple[str, str, int]], stop: int, cut: bool
) -> None:
    def answer(book: Book, execution: str, step: str, token: int) -> tuple[int, Any]:
        found = book.take({**EFFECT, "execution": execution, "step": step, "token": token}, f"{execution}/{step}")
        book.write(book.take_group())
        return found

    folder = tmp_path_factory.mktemp("ledger")
    one = Book(folder / "one")
    whole = [answer(one, *each) for each in taken]
    one.close()
    first = Book(folder / "two")
    parts = [answer(first, *each) for each in taken[:stop]]
    first.close()
    if cut:
        with (folder / "two").open("ab") as file:
            file.write(b'{"kind":"accep')
    second = Book(folder / "two")
    parts += [answer(second, *each) for each in taken[stop:]]
    second.close()
    assert parts == whole
    assert [row["kind"] for row in rows(folder / "two")] == [row["kind"] for row in rows(folder / "one")]


async def test_what_is_answered_before_a_kill_is_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    answered: list[str] = []
    with ledger(path) as (process, url):
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:

            async def send(number: int) -> None:
                key = f"e{number}/s"
                body = {**EFFECT, "execution": f"e{number}"}
                response = await client.post("/effect", json=body, headers={"Idempotency-Key": key})
                assert response.json()["kind"] == "accepted"
                answered.append(key)
                if len(answered) == 20:
                    process.kill()

            results = await asyncio.gather(*map(send, range(80)), return_exceptions=True)
    unexpected = [each for each in results if each is not None and not isinstance(each, httpx.TransportError)]
    assert not unexpected
    assert len(answered) >= 20
    kept = {row["key"] for row in rows(path)}
    assert set(answered) <= kept


def test_what_is_no_effect_is_refused_and_written_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with ledger(path) as (_, url), httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        key = {"Idempotency-Key": "k"}
        bad = [
            client.post("/effect", json=EFFECT),
            client.post("/effect", content=b"{", headers=key),
            client.post("/effect", json={**EFFECT, "token": "5"}, headers=key),
            client.post("/effect", json={"execution": "e"}, headers=key),
        ]
        assert [response.status_code for response in bad] == [400] * 4
        assert client.get("/effect").status_code == 404
        taken = [client.post("/effect", json={**EFFECT, "token": token}, headers=key) for token in (5, 6, 5)]
        assert [response.status_code for response in taken] == [200, 200, 409]
        assert taken[0].json() == taken[1].json()
        told = client.get("/stats").json()
    assert {name: told[name] for name in ("accepted", "repeat", "zombie", "bad")} == {
        "accepted": 1, "repeat": 1, "zombie": 1, "bad": 4
    }  # fmt: skip
    assert [row["kind"] for row in rows(path)] == ["accepted", "repeat", "zombie"]


def test_it_shares_no_code_with_the_product() -> None:
    code = "import sys, app.chaos.ledger; print([n for n in sys.modules if n.split('.')[0] in {'agents', 'tables'}"
    code += " or n.startswith('app.') and not n.startswith('app.chaos')])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"

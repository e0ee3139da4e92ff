"""Laws of the generated reference: it agrees with the models."""

from pathlib import Path

import pytest

from config import tree
from config.load import fingerprint, load
from config.reference import as_markdown, as_yaml
from config.settings import Settings

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("file", "text", "option"),
    [("config/headrace.yaml", as_yaml, ""), ("docs/configuration.md", as_markdown, " --markdown")],
)
def test_the_committed_reference_agrees_with_the_settings(file, text, option) -> None:
    current = (ROOT / file).read_text(encoding="utf-8")
    assert current == text(), f"run: headrace config reference{option} > {file}"


def test_the_reference_file_is_exactly_the_defaults() -> None:
    loaded = load(ROOT / "config/headrace.yaml", environ={})
    assert loaded.settings == Settings()
    assert fingerprint(loaded.settings) == fingerprint(Settings())


def test_every_key_is_in_the_file_and_on_the_page() -> None:
    loaded = load(ROOT / "config/headrace.yaml", environ={})
    page = as_markdown()
    for leaf in tree.leaves(Settings):
        assert loaded.origin(leaf.path).startswith(f"{ROOT}/config/headrace.yaml:"), leaf.dotted
        assert f"| `{leaf.dotted}` |" in page

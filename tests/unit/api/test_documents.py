"""Tables in the documents are those of the code."""

from pathlib import Path

from api.settings import Settings
from hub.errors import Code
from tests import ROOT


def test_settings_table_in_readme_is_generated_from_the_code() -> None:
    assert _between(ROOT / "README.md", "settings") == Settings.table()


def test_error_table_in_the_protocol_is_generated_from_the_code() -> None:
    assert _between(ROOT / "hub" / "protocol.md", "errors") == Code.table()


def _between(path: Path, name: str) -> str:
    """What stands between `<!-- name: … -->` and `<!-- /name -->`."""
    text = path.read_text()
    begin = text.index("\n", text.index(f"<!-- {name}:")) + 1
    return text[begin : text.index(f"<!-- /{name} -->")]

"""Tables in the documents are those of the code, and the files that they name exist."""

import re
from pathlib import Path

import pytest

from api.documents.build import files
from api.settings import Settings
from hub.errors import Code
from storage.postgres.database import CONNECTIONS_MAX
from tests import ROOT


def test_documents_of_the_interface_are_those_of_the_code() -> None:
    stale = [path.name for path, content in files() if path.read_bytes() != content]
    assert stale == [], "out of date: `make documents` writes them anew"


def test_settings_table_in_readme_is_generated_from_the_code() -> None:
    assert _between(ROOT / "README.md", "settings") == Settings.table()


def test_error_table_in_the_protocol_is_generated_from_the_code() -> None:
    assert _between(ROOT / "hub" / "protocol.md", "errors") == Code.table()


@pytest.mark.parametrize("page", ["README.md", "runbook.md"])
def test_pages_say_how_many_connections_a_process_needs(page: str) -> None:
    text = (ROOT / "infra" / page).read_text()
    said = re.findall(r"(\d+)(?: connections)? for each worker process", text)
    said += re.findall(r"(\d+) connections of Postgres a process", text)
    assert said
    assert {int(number) for number in said} == {CONNECTIONS_MAX}


PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted(ROOT.glob("[a-z]*/**/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    named = re.findall(r"`((?:hub|storage|api|tests|loadtest|infra)/[\w./-]+)`", text)
    linked = re.findall(r"\]\((?!\w+:)([^)#]+)", text)
    missing = {path for path in named if not (ROOT / path).exists()}
    missing |= {path for path in linked if not (page.parent / path).exists()}
    assert missing <= {"infra/containers/.env"}  # which each operator makes


def _between(path: Path, name: str) -> str:
    """What stands between `<!-- name: … -->` and `<!-- /name -->`."""
    text = path.read_text()
    begin = text.index("\n", text.index(f"<!-- {name}:")) + 1
    return text[begin : text.index(f"<!-- /{name} -->")]

"""`python -m api.documents.build`: writes the files that the hub serves, as `make documents` does.

They stand in the repository: a review sees what a change means to clients. A test fails where they
are older than the code.
"""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import orjson

from api.documents.asyncapi import asyncapi
from api.documents.examples import examples
from api.documents.openapi import openapi
from api.documents.page import page
from api.documents.postman import postman
from api.documents.routes import FOLDER
from api.documents.schemas import Json

STYLE = Path(__file__).with_name("page.css")


def files() -> Iterator[tuple[Path, bytes]]:
    """Path and content of each."""
    rest = openapi(version("budget-hub"), examples().calls)
    socket = asyncapi(version("budget-hub"), examples().sent)
    yield FOLDER / "openapi.json", _text(rest)
    yield FOLDER / "asyncapi.json", _text(socket)
    yield FOLDER / "postman.json", _text(postman(rest))
    yield FOLDER / "docs.html", page(rest, socket, STYLE.read_text()).encode()


def _text(document: Json) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


if __name__ == "__main__":
    for path, content in files():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)

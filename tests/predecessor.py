"""The version of the hub before this one, from the repository's own history, ready to be started.

That is the last release in CHANGELOG.md which is not the version in pyproject.toml, as of the
commit that put it there. While there is none: the commit before the newest migration, whose code
knows the schema without it.
"""

import io
import os
import re
import subprocess
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

_RELEASE = re.compile(r"^## \[?v?(\d+\.\d+\.\d+)\b", re.MULTILINE)
_MIGRATIONS = "storage/migrations"


class Unknown(Exception):
    """Which version was before this one cannot be told here; the message says why."""


class Predecessor(NamedTuple):
    """Its commit, what it is, and the folder with its files."""

    commit: str
    what: str
    folder: Path

    @property
    def rolls(self) -> bool:
        """Whether its hubs may run beside those of this version. 0.1.0 has another digest."""
        return (self.folder / _MIGRATIONS / "0004_digest.sql").exists()

    def environ(self) -> dict[str, str]:
        """What makes a Python process of today's environment run its code."""
        return {"PYTHONPATH": str(self.folder)}


def check_out(root: Path, folder: Path) -> Predecessor:
    """The predecessor of the version in `root`, its files in `folder`. Raises `Unknown`."""
    try:
        top = Path(_git(root, "rev-parse", "--show-toplevel"))
    except FileNotFoundError:
        raise Unknown("there is no git") from None
    except subprocess.CalledProcessError:
        top = None
    if top is None or not top.samefile(root):
        raise Unknown("this folder is no git checkout")
    if _git(root, "rev-parse", "--is-shallow-repository") == "true":
        raise Unknown("the checkout has no history: git fetch --unshallow")
    release = older_release((root / "CHANGELOG.md").read_text(), _version(root))
    if release is not None:
        commit, what = _commit_of_release(root, release), f"release {release}"
    else:
        commit, what = _commit_before_newest_migration(root)
    try:
        archive = subprocess.run(
            ["git", "archive", "--format=zip", commit],
            cwd=root,
            env=_environ(),
            capture_output=True,
            check=True,
        ).stdout
    except subprocess.CalledProcessError:  # a clone may have left its files elsewhere
        raise Unknown(f"git has not all of {commit}") from None
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        files.extractall(folder)
    return Predecessor(commit, what, folder)


def older_release(changelog: str, version: str) -> str | None:
    """The newest release in the text that is not `version` itself, as the text has it."""
    release = version.partition(".dev")[0]
    return next((found for found in _RELEASE.findall(changelog) if found != release), None)


def _version(root: Path) -> str:
    version: str = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    return version


def _commit_of_release(root: Path, release: str) -> str:
    pattern = rf"^## \[?v?{re.escape(release)}"
    found = _git(root, "log", "--reverse", "--format=%H", "-G", pattern, "--", "CHANGELOG.md")
    if not found:
        raise Unknown(f"no commit puts {release} into CHANGELOG.md")
    return found.split()[0]


def _commit_before_newest_migration(root: Path) -> tuple[str, str]:
    name = max(path.name for path in (root / _MIGRATIONS).glob("*.sql"))
    path = f"{_MIGRATIONS}/{name}"
    added = _git(root, "log", "--diff-filter=A", "--format=%H", "--", path)
    before = f"{added.split()[-1]}^" if added else "HEAD"  # not committed yet
    try:
        commit = _git(root, "rev-parse", "--verify", "--quiet", f"{before}^{{commit}}")
        _git(root, "cat-file", "-e", f"{commit}:{_MIGRATIONS}")
    except subprocess.CalledProcessError:
        raise Unknown(f"there was no hub before {name}") from None
    return commit, f"the commit before {name}"


def _git(root: Path, *arguments: str) -> str:
    """Raises `CalledProcessError`, and `FileNotFoundError` where there is no git."""
    return subprocess.run(
        ["git", *arguments], cwd=root, env=_environ(), capture_output=True, text=True, check=True
    ).stdout.strip()


def _environ() -> dict[str, str]:
    """Without what a hook of git would say about another repository."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

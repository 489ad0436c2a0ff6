"""Which version was before this one, as histories of every shape tell it."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.predecessor import Unknown, check_out, older_release
from tests.requirements import program

MIGRATIONS = "storage/migrations"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with nothing in it."""
    program("git", "git")
    root = tmp_path / "root"
    root.mkdir()
    git(root, "init", "--quiet", "--initial-branch=main")
    return root


@pytest.mark.parametrize(
    ("changelog", "version", "expected"),
    [
        ("# Changelog\n\n## Unreleased\n", "0.1.0.dev0", None),
        ("## Unreleased\n\n## 0.1.0\n", "0.1.0", None),  # this one is the first
        ("## Unreleased\n\n## 0.1.0 - 2026-11-21\n", "0.2.0.dev0", "0.1.0"),
        ("## [0.2.0]\n\n## [0.1.0]\n", "0.2.0", "0.1.0"),
        ("## 0.10.0\n\n## 0.9.1\n\n## 0.9.0\n", "0.11.0.dev0", "0.10.0"),
    ],
)
def test_the_version_before_is_the_last_other_release(
    changelog: str, version: str, expected: str | None
) -> None:
    assert older_release(changelog, version) == expected


def test_a_release_is_the_commit_that_names_it(root: Path, tmp_path: Path) -> None:
    committed(root, "0.1.0.dev0", "## Unreleased\n", ["0001_initial.sql"])
    release = committed(root, "0.1.0", "## 0.1.0\n", [])
    committed(root, "0.2.0.dev0", "## Unreleased\n\n## 0.1.0\n\nMore.\n", ["0002_more.sql"])
    found = check_out(root, tmp_path / "files")
    assert (found.commit, found.what) == (release, "release 0.1.0")
    names = [path.name for path in (tmp_path / "files" / MIGRATIONS).iterdir()]
    assert names == ["0001_initial.sql"]


def test_without_a_release_it_is_the_commit_before_the_newest_migration(
    root: Path, tmp_path: Path
) -> None:
    before = committed(root, "0.1.0.dev0", "", ["0001_initial.sql"])
    committed(root, "0.1.0.dev0", "", ["0002_more.sql"])
    last = committed(root, "0.1.0.dev0", "Afterwards.\n", [])
    assert check_out(root, tmp_path / "committed").commit == before
    (root / MIGRATIONS / "0003_not_committed_yet.sql").touch()
    assert check_out(root, tmp_path / "uncommitted").commit == last


def test_where_history_does_not_tell_the_reason_is_said(root: Path, tmp_path: Path) -> None:
    with pytest.raises(Unknown, match="no git checkout"):
        check_out(tmp_path, tmp_path / "files")
    committed(root, "0.1.0.dev0", "", ["0001_initial.sql"])
    with pytest.raises(Unknown, match="no hub before 0001_initial"):
        check_out(root, tmp_path / "files")
    committed(root, "0.1.0.dev0", "", ["0002_more.sql"])
    git(tmp_path, "clone", "--quiet", "--depth", "1", root.as_uri(), "shallow")
    with pytest.raises(Unknown, match="--unshallow"):
        check_out(tmp_path / "shallow", tmp_path / "files")
    with pytest.raises(Unknown, match="no git checkout"):  # an archive within another repository
        check_out(root / "storage", tmp_path / "files")


def committed(root: Path, version: str, changelog: str, migrations: list[str]) -> str:
    (root / MIGRATIONS).mkdir(parents=True, exist_ok=True)
    for name in migrations:
        (root / MIGRATIONS / name).touch()
    (root / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n')
    (root / "CHANGELOG.md").write_text(changelog)
    git(root, "add", ".")
    who = ("-c", "user.name=tests", "-c", "user.email=tests@example.org")
    git(root, *who, "commit", "--quiet", "--no-verify", "--message", version)
    return git(root, "rev-parse", "HEAD")


def git(folder: Path, *arguments: str) -> str:
    # Not what a hook of git, which may run this, says about its own repository.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # Nor what its user likes: to sign commits, hooks of his own.
    environ |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    return subprocess.run(
        ["git", *arguments], cwd=folder, env=environ, capture_output=True, text=True, check=True
    ).stdout.strip()

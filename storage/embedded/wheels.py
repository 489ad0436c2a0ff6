"""The programs of a wheel: where they are, and a copy that ordinary users can run."""

import importlib.metadata
import importlib.util
import os
import shutil
import stat
from contextlib import ExitStack, suppress
from pathlib import Path

from storage.embedded import EmbeddedError
from storage.embedded.locks import lock

COPY_TIMEOUT_S = 60.0
STATE_FOLDERS = (Path("/var/lib"), Path("/var/tmp"))


def installed(package: str, folder: str, program: str) -> Path:
    """The package's folder, in which `program` is."""
    # Found, not imported: importing the Postgres wheel warns and reads the environment.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise EmbeddedError(f'{package} is not installed: pip install "budget-hub[embedded]"')
    source = Path(spec.origin).parent / folder
    if not (source / program).exists():
        raise EmbeddedError(f"the installed {package} has no {folder}/{program}")
    return source


def public_copy(source: Path, package: str, folder: Path) -> Path:
    """Copy programs, once, to a folder that everybody can read and only root can write."""
    state = next((folder for folder in STATE_FOLDERS if os.access(folder, os.W_OK)), None)
    if state is None:
        raise EmbeddedError(f"{source} is closed to ordinary users, and there is no place to copy")
    public = state / "budget-hub"
    with suppress(FileExistsError):
        public.mkdir()
        public.chmod(0o755)  # whatever the umask
    found = public.lstat()
    if found.st_uid != 0 or found.st_mode != stat.S_IFDIR | 0o755:
        raise EmbeddedError(f"{public} should be a folder of root with mode 0755")
    name = "-".join([package, importlib.metadata.version(package), *folder.parts])
    copy, new = public / name, public / f"{name}.new"
    # Programs of a wheel find its libraries by the way from one to the other.
    installed = source.parents[len(folder.parts)]
    libraries = installed / f"{package}.libs"
    with ExitStack() as held:
        busy = f"another process is copying to {copy}"
        lock(public / f"{name}.lock", held, wait_s=COPY_TIMEOUT_S, refusal=busy)
        if not copy.exists():
            if new.exists():
                shutil.rmtree(new)
            ignore = shutil.ignore_patterns("include")
            for each in (source, libraries):
                if each.exists():
                    target = new / each.relative_to(installed)
                    shutil.copytree(each, target, symlinks=True, ignore=ignore)
            for path in (new, *new.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if os.access(path, os.X_OK) else 0o644)
            os.sync()  # a crash must not leave it named but incomplete
            new.rename(copy)
    return copy / package / folder

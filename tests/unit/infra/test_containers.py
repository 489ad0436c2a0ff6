"""The containers, as far as their files tell: what runs there, as whom, and with which packages.

That they are built, come up and serve is shown by the workflow `ci`, where there is a Docker.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.settings import Settings
from tests import ROOT

FOLDER = ROOT / "infra" / "containers"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
DRAIN_S = 25  # the longest a hub may take to end (api/process/server.py)


def test_the_image_has_the_locked_packages_that_serve_and_no_others() -> None:
    """Those of the tests and the embedded services stay out."""
    everything = pins(ROOT / "requirements.lock")
    serve, build = pins(FOLDER / "serve.lock"), pins(FOLDER / "build.lock")
    assert serve.items() <= everything.items(), "make lock"
    assert build.items() <= everything.items(), "make lock"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {name_of(line) for line in project["project"]["dependencies"]}
    assert wanted <= serve.keys(), "make lock"
    extra = {
        name_of(line)
        for line in project["dependency-groups"]["dev"]
        + project["project"]["optional-dependencies"]["embedded"]
    }
    assert extra & serve.keys() <= {"markdown-it-py"}  # which rich needs
    installs = re.findall(r"pip .*?install .*?(?=&&|\n[A-Z#])", DOCKERFILE, re.DOTALL)
    assert len(installs) == 3
    assert all("--require-hashes" in one or "--no-index" in one for one in installs)


def test_the_image_runs_as_an_ordinary_user_with_a_health_check() -> None:
    first, last = DOCKERFILE.split("\nFROM ")[1:]
    assert " AS build" in first
    user = re.findall(r"^USER (\d+):(\d+)$", last, re.MULTILINE)
    assert user == [("10001", "10001")]
    assert last.index("USER ") < last.index("ENTRYPOINT")
    assert "HEALTHCHECK" in last and "alive.py" in last
    assert 'ENTRYPOINT ["budget-hub"]\nCMD ["serve"]' in last


def test_the_health_check_fails_where_nothing_answers() -> None:
    """And says so; the other way is shown by compose's `--wait`."""
    environ = {"PORT": "1", "http_proxy": "http://127.0.0.1:1"}
    command = [sys.executable, str(FOLDER / "alive.py")]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("http://127.0.0.1:1/healthz: ")


def test_two_hubs_stand_behind_a_proxy_on_one_postgres_and_one_redis() -> None:
    assert SERVICES.keys() == {"hub-1", "hub-2", "migrate", "proxy", "postgres", "redis"}
    assert SERVICES["hub-1"] == SERVICES["hub-2"]
    # Migrations first, then hubs, then whoever sends devices to them.
    assert SERVICES["hub-1"]["depends_on"]["migrate"] == {
        "condition": "service_completed_successfully"
    }
    for hub in ("hub-1", "hub-2"):
        assert SERVICES["proxy"]["depends_on"][hub] == {"condition": "service_healthy"}
    published = [name for name, service in SERVICES.items() if "ports" in service]
    assert published == ["proxy"]
    assert COMPOSE["networks"]["back"] == {"internal": True}
    assert SERVICES["proxy"]["networks"] == ["front"]


def test_every_container_has_a_read_only_root_and_no_privileges() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_a_hub_may_finish_its_drain() -> None:
    assert int(SERVICES["hub-1"]["stop_grace_period"].removesuffix("s")) > DRAIN_S


def test_every_setting_can_be_set_where_the_image_does_not() -> None:
    """One that compose does not pass on would stay at its default without a word."""
    known = {name.upper() for name in Settings.model_fields}
    in_image = set(re.findall(r"^    ([A-Z_]+)=", DOCKERFILE, re.MULTILINE))
    in_image -= {"PYTHONDONTWRITEBYTECODE"}
    of_libraries = {
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        *("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SERVICE_NAME"),
        *("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"),
    }
    given = SERVICES["hub-1"]["environment"].keys() - of_libraries
    assert in_image == {"HOST", "PORT", "PRODUCTION", "PHOTO_DIR"}
    # PRODUCTION refuses the emulator.
    assert given == known - in_image - {"FIREBASE_AUTH_EMULATOR_HOST"}


def test_the_example_of_settings_has_all_that_is_required() -> None:
    text = (FOLDER / "compose.yaml").read_text()
    example = set(re.findall(r"^([A-Z_]+)=", (FOLDER / "env.example").read_text(), re.MULTILINE))
    required = set(re.findall(r"\$\{([A-Z_]+):\?", text))
    asked = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", text)) | {"COMPOSE_PROFILES"}
    assert required == {"DATABASE_URL", "REDIS_URL", "AUTH_SECRET"}
    assert required <= example <= asked


def test_no_secret_has_a_default() -> None:
    text = (FOLDER / "compose.yaml").read_text()
    secrets = re.findall(r"\$\{(\w*(?:SECRET|PASSWORD|KEY|URL)\w*):(.)([^}]*)", text)
    assert len(secrets) >= 5
    for name, kind, default in secrets:
        assert kind == "?" or default in ("", "-"), name


def test_the_proxy_asks_for_readiness_and_keeps_the_metrics_inside() -> None:
    lines = [line.strip() for line in (FOLDER / "haproxy.cfg").read_text().splitlines()]
    assert "http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host hub" in lines
    assert "http-request deny deny_status 404 if { path -m beg /metrics }" in lines
    assert [line.split()[1] for line in lines if line.startswith("server ")] == ["hub-1", "hub-2"]
    # Longer than the longest long-poll.
    timeouts = dict(line.split()[1:] for line in lines if line.startswith("timeout "))
    assert int(timeouts["server"].removesuffix("s")) > 60
    assert "option forwardfor" in lines
    assert "${TRUSTED_PROXIES:-1}" in (FOLDER / "compose.yaml").read_text()


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    """A folder with a `docker` that writes down what it is told, and fails at the word `BROKEN`."""
    program = tmp_path / "docker"
    program.write_text(
        '#!/bin/sh\necho "$*" >> "$0.log"\ncase "$*" in *"$BROKEN") exit 1;; esac\nexit 0\n'
    )
    program.chmod(0o755)
    return tmp_path


def deploy(docker: Path, what: str, broken: str = "nothing") -> tuple[int, list[str]]:
    """The exit code, and what Docker was told."""
    environ = {"PATH": f"{docker}{os.pathsep}{os.defpath}", "IMAGE": "hub@digest", "BROKEN": broken}
    ended = subprocess.run(
        ["bash", str(FOLDER / "deploy"), what], env=environ, capture_output=True, check=False
    )
    log = docker / "docker.log"
    return ended.returncode, log.read_text().splitlines() if log.exists() else []


def test_a_deploy_replaces_one_hub_after_the_other(docker: Path) -> None:
    code, told = deploy(docker, "hubs")
    assert code == 0
    assert [line.split()[-1] for line in told] == ["hub-1", "hub-2", "proxy"]
    assert all("--wait" in line.split() and "--no-deps" in line.split() for line in told)


def test_a_hub_that_does_not_come_up_ends_the_deploy_there(docker: Path) -> None:
    code, told = deploy(docker, "hubs", broken="hub-1")
    assert code != 0
    assert [line.split()[-1] for line in told] == ["hub-1"]


def test_a_migration_that_fails_is_not_taken_for_done(docker: Path) -> None:
    assert deploy(docker, "migrate")[0] == 0
    assert deploy(docker, "migrate", broken="migrate")[0] != 0
    assert deploy(docker, "something else")[0] == 2


def pins(path: Path) -> dict[str, str]:
    """Version (and where it counts) by package, of a lock."""
    found = re.findall(r"^([a-z0-9._-]+)==(.+?) \\$", path.read_text(), re.MULTILINE)
    assert found
    return dict(found)


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return match[0].lower()

"""The workflows: in which order what is deployed, what may do what, and that nothing is by name."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import ROOT

FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}")
ENVIRONMENTS = ["dev", "staging", "prod"]


def workflow(name: str) -> Any:
    # BaseLoader: all scalars are text, and `on` is a word.
    return yaml.load((FOLDER / f"{name}.yml").read_text(), yaml.BaseLoader)


def needs(job: Any) -> list[str]:
    wanted = job.get("needs", [])
    return [wanted] if isinstance(wanted, str) else wanted


def scripts(job: Any) -> list[str]:
    return [step["run"] for step in job.get("steps", []) if "run" in step]


def test_an_environment_gets_terraform_then_migrations_then_the_hubs() -> None:
    jobs = workflow("environment")["jobs"]
    assert {name: needs(job) for name, job in jobs.items()} == {
        "terraform": [],
        "migrations": ["terraform"],
        "deploy": ["migrations"],
    }
    last = {name: scripts(job) for name, job in jobs.items()}
    assert last["terraform"][-1] == "terraform apply planned"
    assert last["migrations"][-1] == "infra/containers/deploy migrate"
    assert "infra/containers/deploy hubs" in last["deploy"]
    for name, job in jobs.items():
        # A job that runs whatever became of the one before would break the order.
        assert "if" not in job and "continue-on-error" not in job, name
        environment = job["environment"]
        environment = environment if isinstance(environment, str) else environment["name"]
        assert environment == "${{ inputs.environment }}"


def test_a_push_to_main_deploys_what_was_checked_environment_after_environment() -> None:
    deploy = workflow("deploy")
    assert deploy["on"] == {"push": {"branches": ["main"]}}
    assert deploy["concurrency"]["cancel-in-progress"] == "false"
    jobs = deploy["jobs"]
    assert jobs["checks"]["uses"] == "./.github/workflows/ci.yml"
    assert needs(jobs["image"]) == ["checks"]
    before = ["image", "dev", "staging"]
    for name, previous in zip(ENVIRONMENTS, before, strict=True):
        job = jobs[name]
        assert job["uses"] == "./.github/workflows/environment.yml"
        assert previous in needs(job)
        assert job["with"]["environment"] == name
        # By digest: what staging tried is what prod gets.
        assert job["with"]["image"] == "${{ needs.image.outputs.image }}"
        assert "if" not in job
    assert list(jobs) == ["checks", "image", *ENVIRONMENTS]
    assert "digest" in jobs["image"]["outputs"]["image"]


def test_every_environment_has_its_files_of_terraform() -> None:
    folder = ROOT / "infra" / "terraform" / "environments"
    for ending in (".tfvars", ".s3.tfbackend"):
        names = {path.name.removesuffix(ending) for path in folder.glob(f"*{ending}")}
        assert names == set(ENVIRONMENTS)


def test_ci_runs_the_checks_on_every_python_that_is_promised() -> None:
    job = workflow("ci")["jobs"]["check"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert job["strategy"]["matrix"]["python"] == promised == ["3.11", "3.12", "3.13", "3.14"]
    assert scripts(job)[-1] == ".ci/run"
    # With its history: the upgrade test is skipped otherwise.
    assert job["steps"][0]["with"]["fetch-depth"] == "0"


def test_ci_audits_dependencies_and_looks_for_secrets() -> None:
    for name in ("ci", "nightly"):
        assert scripts(workflow(name)["jobs"]["security"]) == ["make scan-secrets", "make audit"]


def test_the_night_runs_faults_and_comments_benchmarks_that_got_worse() -> None:
    nightly = workflow("nightly")
    assert "schedule" in nightly["on"]
    jobs = nightly["jobs"]
    assert "make faults" in scripts(jobs["faults"])
    assert "make bench" in scripts(jobs["benchmarks"])
    comment = jobs["comment"]
    assert needs(comment) == ["benchmarks"]
    assert comment["if"] == "needs.benchmarks.outputs.regressions != ''"
    assert comment["permissions"] == {"issues": "write"}
    assert all("uses" not in step for step in comment["steps"])  # no code of the repository


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_workflow_may_no_more_than_it_needs(path: Path) -> None:
    content = workflow(path.stem)
    assert content["permissions"] in ({}, {"contents": "read"})
    for name, job in content["jobs"].items():
        writes = {what for what, how in job.get("permissions", {}).items() if how == "write"}
        assert writes <= {"id-token", "packages", "issues"}, name
        if "uses" not in job:
            # The night's faults take hours; GitHub itself ends a job after six.
            longest = 350 if (path.stem, name) == ("nightly", "faults") else 60
            assert int(job["timeout-minutes"]) <= longest, name
        for step in job.get("steps", []):
            if "checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] == "false", name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_action_is_pinned_by_its_commit(path: Path) -> None:
    """A tag can be moved to other code, which then has our secrets."""
    for job in workflow(path.stem)["jobs"].values():
        used = [job, *job.get("steps", [])]
        for name in [each["uses"] for each in used if "uses" in each]:
            assert name.startswith("./.github/workflows/") or PINNED.fullmatch(name), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_script_is_put_together_from_what_others_write(path: Path) -> None:
    """A branch's name, say: values come to a script as variables."""
    for job in workflow(path.stem)["jobs"].values():
        assert not [script for script in scripts(job) if "${{" in script]


def test_make_knows_every_target_that_a_workflow_runs() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for path in FILES:
        for job in workflow(path.stem)["jobs"].values():
            for script in scripts(job):
                assert set(re.findall(r"\bmake ([a-z-]+)", script)) <= targets

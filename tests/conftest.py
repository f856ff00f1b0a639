"""A copy of the project in which the whole pipeline has run at the smoke preset."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from forks import run_in_fork
from ruamel.yaml import YAML

from clarep.pipeline.new import commit_all, copy_project

HOME = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // 2)))  # two workers share the cores


gc.disable()  # until all tests are collected: imports take a fifth less


def pytest_collection_finish():
    """What was imported stays; so the collector need not look at it again."""
    gc.freeze(), gc.enable()


PROJECTS = dict.fromkeys(["tests/test_bad_input.py", "tests/test_experiment.py"], "tests/test_pipeline.py")  # shared


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A worker takes whole files, since their tests share a project; notebooks go one by one.

    Marks `xdist_group` would say it, but xdist 3.8 does not pass them on under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByProject(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return nodeid if file.endswith("test_notebooks.py") else PROJECTS.get(file, file)

    return ByProject(config, log)


def run_in(folder: Path, *command: str, timeout: float = 1500) -> subprocess.CompletedProcess:
    """Run a command of this environment in a copy of the project."""
    scripts = str(Path(sys.executable).parent)
    env = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "DVC_NO_ANALYTICS": "1",
    }
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout)


def copy_of_project(target: Path) -> Path:
    """The files that git would add, in a repository of their own."""
    copy_project(HOME, target, leave_out=["runs/*", "dvc.lock"])
    commit_all(target, "copy")
    return target


def run_all(home: Path, *commands: tuple[str, ...]) -> None:
    """Run commands in a copy of the project; none may fail."""
    for command in commands:
        done = run_in(home, *command)
        assert done.returncode == 0, (command, done.stdout[-3000:] + done.stderr[-3000:])


def run_stages(home: Path, settings: tuple[str, ...], overrides: dict[str, dict], stages: list[str]) -> None:
    """Stages with other settings than those that a command writes."""
    run_all(home, settings)
    params = (yaml := YAML()).load(home / "params.yaml")
    for section, values in overrides.items():
        params[section].update(values)
    yaml.dump(params, home / "params.yaml")
    run_one_process(home, *stages)


def run_one_process(home: Path, *stages: str) -> None:
    """Stages of `params.yaml`, in a process that they share."""
    done = run_in_fork(home, "tests/one_process.py", *stages)
    assert done.returncode == 0, done.stdout[-6000:]


def check_missing(home: Path, preset: str, words: list[str], *command: str) -> None:
    """A preset whose files are not there says which, and how to fetch them, in the command that DVC would call."""
    run_all(home, ("python", "-m", "clarep.params", preset))
    done = run_in(home, "python", "-m", *command)
    text = done.stdout + done.stderr
    assert done.returncode != 0 and all(word in text for word in words), text[-2000:]


def check_pipeline(home, kind: str, layers: tuple[str, ...], metrics: set[str], arms: set[str]) -> None:
    """What has to be in `runs/` after a pipeline with another kind of teacher."""
    model = json.loads((home / "runs/teacher/model/clarep.json").read_text())
    assert model["checkpoint"] == "checkpoint" and len(model["weights"]) == 16
    assert kind in (home / "runs/teacher/teacher.ipynb").read_text()
    assert json.loads((home / "runs/select/choice.json").read_text())["layer"].startswith(layers)
    table = pd.read_csv(home / "runs/report/results.csv")
    assert metrics <= set(table[(table.arm == "clarid") & (table.stage == "representation")].metric)
    assert set(table[table.stage == "evaluate"].arm) == arms
    assert "<h1>" in (home / "runs/report/index.html").read_text()


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> Path:
    """A project after `make repro` at the smoke preset; what that printed is in `.scratch/repro.log`."""
    home = copy_of_project(tmp_path_factory.mktemp("clarep"))
    run_all(home, ("python", "-m", "clarep.params", "smoke"), ("mkdir", ".scratch"))
    done = run_in(home, "make", "ENV=", "repro")
    (home / ".scratch/repro.log").write_text(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return home


@pytest.fixture
def run(smoke) -> Callable[..., subprocess.CompletedProcess]:
    """Run a command in the smoke project."""
    return lambda *command, **kw: run_in(smoke, *command, **kw)

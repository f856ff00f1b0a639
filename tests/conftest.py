"""A copy of the project in which the whole pipeline has run at the smoke preset."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // 2)))  # two workers share the cores


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
    """The files that git knows or would add, in a repository of their own."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=HOME, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (HOME / name).is_file() and not name.startswith(("runs/", "dvc.lock")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(HOME / name, target / name)
    for command in (
        ["git", "init", "-q"],
        ["git", "add", "-A"],
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "copy"],
    ):
        subprocess.run(command, cwd=target, check=True, capture_output=True)
    return target


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> Path:
    """A project after `dvc repro` at the smoke preset."""
    home = copy_of_project(tmp_path_factory.mktemp("clarep"))
    for command in (("python", "-m", "clarep.params", "smoke"), ("dvc", "repro")):
        done = run_in(home, *command)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return home


@pytest.fixture
def run(smoke) -> Callable[..., subprocess.CompletedProcess]:
    """Run a command in the smoke project."""
    return lambda *command, **kw: run_in(smoke, *command, **kw)

"""A fork tests the package of its folder, and what fails in it is seen."""

import os
import sys

import pytest
from forks import run_in_fork

SCRIPT = """import os, sys
import clarep, torch
print(clarep.place, os.getcwd(), sys.argv[1:], os.environ["PYTHONPATH"], os.environ["COLOUR"], flush=True)
%s
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clarep").mkdir()
    (tmp_path / "clarep/__init__.py").write_text("place = 'a copy'")
    return tmp_path


def test_a_fork_has_the_folders_package_and_the_callers_environment(folder, monkeypatch):
    monkeypatch.setenv("COLOUR", "red")
    (folder / "script.py").write_text(SCRIPT % "")
    done = run_in_fork(folder, "script.py", "--k", "4")
    assert done.returncode == 0 and done.stdout == f"a copy {folder} ['--k', '4'] {folder} red\n", done.stdout
    assert sys.modules["clarep"].__file__ != str(folder / "clarep/__init__.py") and os.getcwd() != str(folder)


@pytest.mark.parametrize(
    "line, message",
    [
        ("sys.exit('refused')", "refused"),
        ("assert 1 == 2, 'wrong'", "AssertionError: wrong"),
        ("os._exit(3)", "a copy"),
    ],
)
def test_what_fails_in_a_fork_is_seen(folder, monkeypatch, line, message):
    monkeypatch.setenv("COLOUR", "red")
    (folder / "clarep/__main__.py").write_text(SCRIPT % line)
    done = run_in_fork(folder, "-m", "clarep")
    assert done.returncode != 0 and message in done.stdout, done.stdout

"""Rot, planted in a copy of the project: the check fails, names the file and says what to run."""

import subprocess

import pytest
from conftest import copy_of_project, run_in

ROT = {  # what breaks the house: file, old, new, what the check says
    "an uncleaned cell": ("nbs/01_files.ipynb", '"execution_count": null', '"execution_count": 7', "run `nbdev-clean`"),
    "an un-exported edit": ("nbs/02_images.ipynb", "127.5", "127.4", "nbdev-export changes the library"),
    "an edit of the library": ("clarep/digits.py", "\n", "\n\n", "edit notebooks, not clarep/; run `make export`"),
    "a broken link": ("nbs/index.ipynb", "](", "](nowhere.ipynb) [](", "links that lead nowhere"),
    "a parameter's name": ("nbs/stages/clareps.ipynb", '"tol = ', '"tolerance = ', "edit that; run `make export`"),
    "a parameter's value": ("nbs/stages/student.ipynb", '"epochs = ', '"epochs = 1', "parameters cells differ"),
    "a saved error": (
        "nbs/02_images.ipynb",
        '"outputs": []',
        '"outputs": [{"output_type": "error", "ename": "E", "evalue": "e", "traceback": []}]',
        "in `make lab` run all cells, save",
    ),
    "outputs of a stage": (
        "nbs/stages/tune.ipynb",
        '"outputs": []',
        '"outputs": [{"output_type": "stream", "name": "stdout", "text": ["1\\n"]}]',
        "outputs that should not be saved",
    ),
    "a name": ("tests/conftest.py", "HOME = ", "told = HOME = ", "participles as names"),
}
PLACE = {"nbs/02_images.ipynb nbdev-export changes the library": "clarep/images.py"}  # where a file is not itself named


@pytest.fixture(scope="module")
def rotten(tmp_path_factory) -> tuple[subprocess.CompletedProcess, str, str]:
    """The check in a tree with all of `ROT`, and Git's view of the tree before and after.

    test_presets asks the check of a project that is in order.
    """
    home = copy_of_project(tmp_path_factory.mktemp("check"))
    for file, old, new, _ in ROT.values():
        text = (home / file).read_text()
        assert old in text
        (home / file).write_text(text.replace(old, new, 1))
    before = run_in(home, "git", "diff").stdout
    done = run_in(home, "python", ".ci/check.py")
    return done, before, run_in(home, "git", "diff").stdout


@pytest.mark.parametrize("rot", ROT)
def test_rot_fails_the_check_with_what_to_run(rotten, rot):
    done, (file, _, _, message) = rotten[0], ROT[rot]
    assert done.returncode != 0 and message in done.stderr, done.stderr
    problem = done.stderr.split(message)[1].split("error:")[0]
    assert PLACE.get(f"{file} {message}", file) in problem, done.stderr


def test_the_check_changes_nothing(rotten):
    _, before, after = rotten
    assert before and before == after

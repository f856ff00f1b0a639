"""A user's project, with another teacher, an arm and a method of its own, after all stages."""

import re

import pytest
from conftest import check_pipeline, copy_of_project, run_all, run_one_process
from forks import run_in_fork
from recipes import RECIPES, append_cell

from clarep.pipeline.stage import STAGES

LESS = """# The user's arm and method beside the least that is compared
data: {recoloured: false}
probes: {n: 1, epochs: 20}
representation: {methods: [clarid, low_frequency, random, high_frequency]}
compare: {arms: [ce, cadistill, flat-labels], seeds: [0]}
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A user's project after all stages: another teacher, an arm and a method in one place each."""
    home = copy_of_project(tmp_path_factory.mktemp("own"))
    (home / "presets/less.yaml").write_text(LESS)
    for title in ("Add an arm", "Add a method of removing directions"):
        for step in (s for s in RECIPES[title] if s.kind == "python"):
            append_cell(home, step)
    settings = ("python", "-m", "clarep.params", "imagenet-dit-xl", "smoke", "less")
    run_all(home, ("nbdev-export",), ("nbdev-clean",), settings)
    run_one_process(home, *STAGES)
    return home


def test_whole_pipeline_with_a_transformer(own):
    check_pipeline(own, "DiTTeacher", ("transformer_blocks",), {"class_retained"}, {"ce", "cadistill", "flat-labels"})


def test_an_arm_and_a_method_are_added_in_one_place_each(own):
    table = (own / "runs/report/results.csv").read_text()
    assert re.search(r"evaluate,flat-labels,0,acc_clean,all,", table)
    assert re.search(r"representation,high_frequency,0,class_retained,all,", table)
    assert "`flat-labels`" in (own / "runs/report/report.md").read_text()


def test_a_users_project_stays_green(own):
    """The check passes there, and so do the notebooks that show what is in `runs/`."""
    which = "index or identify or directions or representation or comparison"
    run_all(own, ("make", "ENV=", "check"))
    done = run_in_fork(own, "-m", "pytest", "-n", "0", "tests/test_notebooks.py", "-k", which)
    assert done.returncode == 0, done.stdout[-6000:]

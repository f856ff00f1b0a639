"""A user's project, with another teacher, an arm and a method of its own, after all stages."""

import re
import sys

import nbformat
import pytest
from conftest import check_pipeline, copy_of_project, run_all

from clarep.pipeline.stage import STAGES

NEW_ARM = """
#| export
class FlatLabels(nn.Module):
    "Cross-entropy with smoothed labels (Szegedy et al. 2016)."
    def __init__(self, loss_weight: float):
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, student, x, y, generator):
        return {"ce": F.cross_entropy(student(x), y, label_smoothing=self.loss_weight)}


ARMS["flat-labels"] = Arm(
    "baseline", "nothing", lambda tensors, s, context: FlatLabels(s["loss_weight"]), {"loss_weight": [0.1, 0.2]})
"""
NEW_METHOD = """
#| export
def checkerboards(case) -> torch.Tensor: # `b k c h w`
    "Products of the highest cosine waves, of one channel each (a control)."
    return low_frequencies(case.x, case.x[0].numel())[:, -case.k:].contiguous()


METHODS["high_frequency"] = Method("control", "#56B4E9", "v:", directions=checkerboards)
"""


def append_cell(path, source: str) -> None:
    notebook = nbformat.read(path, 4)
    notebook.cells.append(nbformat.v4.new_code_cell(source.strip()))
    nbformat.write(notebook, path)


LESS = """# The user's arm and method beside the least that is compared
representation: {methods: [clarid, low_frequency, random, high_frequency]}
compare: {arms: [ce, cadistill, flat-labels]}
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A user's project after all stages: another teacher, an arm and a method in one place each."""
    home = copy_of_project(tmp_path_factory.mktemp("own"))
    (home / "presets/less.yaml").write_text(LESS)
    append_cell(home / "nbs/cadistill/02_arms.ipynb", NEW_ARM)
    append_cell(home / "nbs/clarid/04_controls.ipynb", NEW_METHOD)
    settings = ("python", "-m", "clarep.params", "imagenet-dit-xl", "smoke", "less")
    run_all(home, ("nbdev-export",), ("nbdev-clean",), settings, ("python", "tests/one_process.py", *STAGES))
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
    notebooks = ("-m", "pytest", "-n", "0", "tests/test_notebooks.py", "-k", which)
    run_all(own, ("make", "ENV=", "check"), (sys.executable, *notebooks))

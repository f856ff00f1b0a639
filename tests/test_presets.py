"""Every preset is a possible experiment; with `smoke` they run, without it they say exactly what is not here.

A user's project has another teacher, an arm and a method of its own; it runs once, and all that must hold there is
asked of it.
"""

import json
import re
import sys

import nbformat
import pandas as pd
import pytest
from conftest import HOME, copy_of_project, run_in

from clarep.diffusion.tiny_models import PREFIX
from clarep.files import load_json
from clarep.params import apply_preset
from clarep.pipeline.prepare import arm_conflicts, method_conflicts, teacher_conflicts
from clarep.pipeline.stage import STAGES, teacher_info

PRESETS = sorted(p.stem for p in (HOME / "presets").glob("*.yaml"))
SMALL = [f"{name} smoke" for name in PRESETS if name not in ("default", "smoke")]
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


@pytest.mark.parametrize("names", [*PRESETS, *SMALL])
def test_preset_is_a_possible_experiment(names, tmp_path):
    params = apply_preset(names, HOME / "presets", tmp_path / "params.yaml")
    assert (params.teacher.checkpoint is None) == (names.split()[0] not in ("imagenet-dit-xl", "text-sd15"))
    assert ("smoke" in names) == (params.student.epochs == 4)
    assert not [*arm_conflicts(params), *method_conflicts(params)]
    if params.teacher.checkpoint is None or params.teacher.checkpoint.startswith(PREFIX):
        assert not [*teacher_conflicts(params, teacher_info(params))]


def run_all(home, *commands: tuple[str, ...]) -> None:
    for command in commands:
        done = run_in(home, *command)
        assert done.returncode == 0, (command, done.stdout[-3000:] + done.stderr[-3000:])


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_of_project(tmp_path_factory.mktemp("presets"))


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


@pytest.mark.xdist_group("presets")
@pytest.mark.parametrize(
    "name, message",
    [
        ("imagenet-dit-xl", ["facebook/DiT-XL-2-256", "hf download facebook/DiT-XL-2-256"]),
        (
            "text-sd15",
            ["stable-diffusion-v1-5/stable-diffusion-v1-5", "hf download stable-diffusion-v1-5/stable-diffusion-v1-5"],
        ),
        ("cifar10", ["uoft-cs/cifar10", "hf download --repo-type dataset uoft-cs/cifar10"]),
        ("fashion-mnist", ["train-images-idx3-ubyte", "data/fashion-mnist"]),
    ],
)
def test_what_a_preset_lacks_is_named(name, message, project, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(project / "empty"))
    assert run_in(project, "python", "-m", "clarep.params", name).returncode == 0
    done = run_in(project, "dvc", "exp", "run", "teacher")
    text = done.stdout + done.stderr
    assert done.returncode != 0 and all(words in text for words in message), text[-2000:]
    assert str(project / "empty") in text or name == "fashion-mnist"


def check_pipeline(home, kind: str, layers: tuple[str, ...], metrics: set[str], arms: set[str]) -> None:
    """What has to be in `runs/` after a pipeline with another kind of teacher."""
    model = load_json(home / "runs/teacher/model/clarep.json")
    assert model["checkpoint"] == "checkpoint" and len(model["weights"]) == 16
    assert kind in (home / "runs/teacher/teacher.ipynb").read_text()
    assert json.loads((home / "runs/select/choice.json").read_text())["layer"].startswith(layers)
    table = pd.read_csv(home / "runs/report/results.csv")
    assert metrics <= set(table[(table.arm == "clarid") & (table.stage == "representation")].metric)
    assert set(table[table.stage == "evaluate"].arm) == arms
    assert "<h1>" in (home / "runs/report/index.html").read_text()


@pytest.mark.xdist_group("own")
def test_whole_pipeline_with_a_transformer(own):
    check_pipeline(own, "DiTTeacher", ("transformer_blocks",), {"class_retained"}, {"ce", "cadistill", "flat-labels"})


@pytest.mark.xdist_group("presets")
def test_whole_pipeline_with_a_text_conditional_teacher(project):
    settings = ("python", "-m", "clarep.params", "text-sd15", "smoke")
    run_all(project, settings, ("python", "tests/one_process.py", *STAGES))
    metrics = {"class_retained", "background_retained"}
    check_pipeline(project, "TextTeacher", ("down_blocks.0", "mid_block"), metrics, {"ce", "cadistill"})


@pytest.mark.xdist_group("own")
def test_an_arm_and_a_method_are_added_in_one_place_each(own):
    table = (own / "runs/report/results.csv").read_text()
    assert re.search(r"evaluate,flat-labels,0,acc_clean,all,", table)
    assert re.search(r"representation,high_frequency,0,class_retained,all,", table)
    assert "`flat-labels`" in (own / "runs/report/report.md").read_text()


@pytest.mark.xdist_group("own")
def test_a_users_project_stays_green(own):
    """The check passes there, and so do the notebooks that show what is in `runs/`."""
    which = "index or identify or directions or representation or comparison"
    notebooks = ("-m", "pytest", "-n", "0", "tests/test_notebooks.py", "-k", which)
    check = (("ruff", "check", "."), ("python", ".ci/check.py"), ("python", "docs/readme.py", "--check"))
    run_all(own, *check, (sys.executable, *notebooks))


@pytest.mark.xdist_group("presets")
@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist"])
def test_smoke_presets_of_other_data_reach_their_students(name, project):
    settings = ("python", "-m", "clarep.params", name, "smoke")
    stages = [stage for stage in STAGES if stage not in ("representation", "directions", "report")]
    run_all(project, settings, ("python", "tests/one_process.py", *stages))
    assert load_json(project / "runs/student/cadistill-0/tests/metrics.json")["acc_clean"] >= 0

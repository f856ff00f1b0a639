"""Every preset is a possible experiment; with `smoke` they run, without it they say exactly what is not here."""

import json
import sys

import pandas as pd
import pytest
from conftest import HOME, copy_of_project, run_in

from clarep.files import load_json
from clarep.params import apply_preset

PRESETS = sorted(p.stem for p in (HOME / "presets").glob("*.yaml"))
SMALL = [f"{name} smoke" for name in ("cifar10", "fashion-mnist", "imagenet-dit-xl", "text-sd15")]
pytestmark = pytest.mark.xdist_group("presets")


@pytest.mark.parametrize("names", [*PRESETS, *SMALL])
def test_preset_is_a_possible_experiment(names, tmp_path):
    params = apply_preset(names, HOME / "presets", tmp_path / "params.yaml")
    assert (params.teacher.checkpoint is None) == (names.split()[0] not in ("imagenet-dit-xl", "text-sd15"))
    assert ("smoke" in names) == (params.student.epochs == 4)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_of_project(tmp_path_factory.mktemp("presets"))


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


@pytest.mark.parametrize(
    "names, kind, layer",
    [
        ("imagenet-dit-xl smoke", "DiTTeacher", "transformer_blocks"),
        ("text-sd15 smoke", "TextTeacher", "down_blocks.0 mid_block"),
    ],
)
def test_whole_pipeline_with_another_kind_of_teacher(names, kind, layer, project):
    for command in (("python", "-m", "clarep.params", *names.split()), ("dvc", "repro")):
        done = run_in(project, *command)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    model = load_json(project / "runs/teacher/model/clarep.json")
    assert model["checkpoint"] == "checkpoint" and len(model["weights"]) == 16
    assert kind in (project / "runs/teacher/teacher.ipynb").read_text()
    assert json.loads((project / "runs/select/choice.json").read_text())["layer"].startswith(tuple(layer.split()))
    table = pd.read_csv(project / "runs/report/results.csv")
    metrics = {"class_retained"} | ({"background_retained"} if names.startswith("text") else set())
    assert metrics <= set(table[(table.arm == "clarid") & (table.stage == "representation")].metric)
    assert set(table[table.stage == "evaluate"].arm) == {"ce", "cadistill"}
    assert "<h1>" in (project / "runs/report/index.html").read_text()


@pytest.mark.parametrize("names", ["cifar10 smoke", "fashion-mnist smoke"])
def test_smoke_presets_of_other_data_reach_their_students(names, project):
    for command in (("python", "-m", "clarep.params", *names.split()), ("dvc", "repro", "student@cadistill-0")):
        done = run_in(project, *command)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert load_json(project / "runs/student/cadistill-0/tests/metrics.json")["acc_clean"] >= 0


def test_a_users_project_stays_green(project):
    """With another teacher in runs/ and other settings, the check passes, and so do notebooks that look there."""
    which = "index or pipeline or params or stage or comparison or representation"
    notebooks = ("-m", "pytest", "-n", "0", "tests/test_notebooks.py", "-k", which)
    for command in (
        ("python", "-m", "clarep.params", "imagenet-dit-xl", "smoke"),
        ("dvc", "repro"),
        ("ruff", "check", "."),
        ("python", ".ci/check.py"),
        ("python", "docs/readme.py", "--check"),
        (sys.executable, *notebooks),
    ):
        done = run_in(project, *command)
        assert done.returncode == 0, (command, done.stdout[-3000:] + done.stderr[-3000:])

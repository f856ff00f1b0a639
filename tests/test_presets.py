"""Every preset is a possible experiment; those at smoke size run, the others say exactly what is not here."""

import json

import pandas as pd
import pytest
from conftest import HOME, copy_of_project, run_in

from clarep.files import load_json
from clarep.params import apply_preset

PRESETS = sorted(p.stem for p in (HOME / "presets").glob("*.yaml"))
pytestmark = pytest.mark.xdist_group("presets")


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_a_possible_experiment(name, tmp_path):
    params = apply_preset(name, HOME / "presets", tmp_path / "params.yaml")
    assert (params.teacher.checkpoint is None) == (name not in ("imagenet-dit-xl", "text-sd15", "imagenet-dit-xl-smoke", "text-sd15-smoke"))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_of_project(tmp_path_factory.mktemp("presets"))


@pytest.mark.parametrize("name, said", [
    ("imagenet-dit-xl", ["facebook/DiT-XL-2-256", "hf download facebook/DiT-XL-2-256"]),
    ("text-sd15", ["stable-diffusion-v1-5/stable-diffusion-v1-5", "hf download stable-diffusion-v1-5/stable-diffusion-v1-5"]),
    ("cifar10", ["uoft-cs/cifar10", "hf download --repo-type dataset uoft-cs/cifar10"]),
    ("fashion-mnist", ["train-images-idx3-ubyte", "data/fashion-mnist"]),
])
def test_what_a_preset_lacks_is_named(name, said, project, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(project / "empty"))
    assert run_in(project, "python", "-m", "clarep.params", name).returncode == 0
    done = run_in(project, "dvc", "exp", "run", "teacher")
    told = done.stdout + done.stderr
    assert done.returncode != 0 and all(words in told for words in said), told[-2000:]
    assert str(project / "empty") in told or name == "fashion-mnist"


@pytest.mark.parametrize("name, kind, layer", [("imagenet-dit-xl-smoke", "DiTTeacher", "transformer_blocks"), ("text-sd15-smoke", "TextTeacher", "down_blocks.0 mid_block")])
def test_whole_pipeline_with_another_kind_of_teacher(name, kind, layer, project):
    for command in (("python", "-m", "clarep.params", name), ("dvc", "repro")):
        done = run_in(project, *command)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    made = load_json(project / "runs/teacher/model/clarep.json")
    assert made["checkpoint"] == "checkpoint" and len(made["weights"]) == 16 and kind in (project / "runs/teacher/teacher.ipynb").read_text()
    assert json.loads((project / "runs/select/choice.json").read_text())["layer"].startswith(tuple(layer.split()))
    table = pd.read_csv(project / "runs/report/results.csv")
    known = {"class_retained", "background_retained"} if name == "text-sd15-smoke" else {"class_retained"}
    assert known <= set(table[(table.arm == "clarid") & (table.stage == "representation")].metric)
    assert set(table[table.stage == "evaluate"].arm) == {"ce", "cadistill"}
    assert "What was found" in (project / "runs/report/index.html").read_text()

"""What this repository says of its own experiment: README, presets, size of the library. `make new` leaves it out."""

import re

import pytest
from conftest import HOME, check_missing, copy_of_project, run_in, run_stages

from clarep.files import load_json
from clarep.params import apply_preset
from clarep.pipeline.stage import STAGES

LESS = {"data": {"recoloured": False}, "probes": {"n": 1, "epochs": 10}, "compare": {"seeds": [0]}}
PRESETS = sorted(p.stem for p in (HOME / "presets").glob("*.yaml"))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_of_project(tmp_path_factory.mktemp("experiment"))


def test_the_library_does_not_grow():
    """The goal was 6,700 lines, before other issues asked for folders, checkpoints and a suite; the limit is today."""
    modules = [p for p in (HOME / "clarep").rglob("*.py") if p.stem not in ("__init__", "_modidx")]
    assert sum(len(p.read_text().splitlines()) for p in modules) <= 13310


def test_the_seven_lines_of_the_readme_run(smoke):
    code = re.search(r"```python\n(.*?)```", (smoke / "README.md").read_text(), re.DOTALL)[1]
    code += "\nprint(tuple(reps.samples.shape), reps.jacobian_products.min().item() > 0)"
    done = run_in(smoke, "python", "-c", code)
    assert done.returncode == 0 and "(10, 32, 32, 3) True" in done.stdout, done.stdout + done.stderr


def test_the_readme_is_one_screen(smoke):
    assert len((smoke / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_its_teacher_unless_it_names_a_checkpoint(name, tmp_path):
    params = apply_preset(name, HOME / "presets", tmp_path / "params.yaml")
    assert (params.teacher.checkpoint is None) == (name not in ("imagenet-dit-xl", "text-sd15"))
    assert (name == "smoke") == (params.student.epochs == 4)


@pytest.mark.parametrize(
    "name, message",
    [
        ("cifar10", ["uoft-cs/cifar10", "hf download --repo-type dataset uoft-cs/cifar10"]),
        ("fashion-mnist", ["train-images-idx3-ubyte", "data/fashion-mnist"]),
    ],
)
def test_data_that_a_preset_lacks_are_named(name, message, project, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(project / "empty"))
    check_missing(project, name, [*message], "clarep.pipeline.stage", "data")


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist"])
def test_smoke_presets_of_other_data_reach_their_students(name, project):
    settings = ("python", "-m", "clarep.params", name, "smoke")
    stages = [stage for stage in STAGES if stage not in ("representation", "directions", "report")]
    run_stages(project, settings, LESS, stages)
    assert load_json(project / "runs/student/cadistill-0/tests/metrics.json")["acc_clean"] >= 0

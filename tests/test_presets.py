"""Every preset is a possible experiment; checkpoints run at smoke size, and are named where they are not here."""

import pytest
from conftest import HOME, check_missing, check_pipeline, copy_of_project, run_stages

from clarep.diffusion.tiny_models import PREFIX
from clarep.params import apply_preset
from clarep.pipeline.prepare import arm_conflicts, method_conflicts, teacher_conflicts
from clarep.pipeline.stage import STAGES, teacher_info

PRESETS = sorted(p.stem for p in (HOME / "presets").glob("*.yaml"))
SMALL = [f"{name} smoke" for name in PRESETS if name not in ("default", "smoke")]


@pytest.mark.parametrize("names", [*PRESETS, *SMALL])
def test_preset_is_a_possible_experiment(names, tmp_path):
    params = apply_preset(names, HOME / "presets", tmp_path / "params.yaml")
    assert "smoke" not in names or params.student.epochs == 4
    assert not [*arm_conflicts(params), *method_conflicts(params)]
    if params.teacher.checkpoint is None or params.teacher.checkpoint.startswith(PREFIX):
        assert not [*teacher_conflicts(params, teacher_info(params))]


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
    ],
)
def test_what_a_preset_lacks_is_named(name, message, project, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(project / "empty"))
    check_missing(project, name, [*message, str(project / "empty")], "clarep.pipeline.prepare")


def test_whole_pipeline_with_a_text_conditional_teacher(project):
    settings = ("python", "-m", "clarep.params", "text-sd15", "smoke")
    less = {"data": {"recoloured": False}, "representation": {"methods": ["clarid", "random", "low_frequency"]}}
    less["select"] = {"layers": ["down_blocks.0"], "num_directions": [2, 8]}
    run_stages(project, settings, less, STAGES)
    metrics = {"class_retained", "background_retained"}
    check_pipeline(project, "TextTeacher", ("down_blocks.0", "mid_block"), metrics, {"ce", "cadistill"})

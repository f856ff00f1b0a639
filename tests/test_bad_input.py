"""Bad input: one clear message that names the thing and what to do, a non-zero exit, earlier outputs intact."""

import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from clarep.pipeline.prepare import prepare


@contextmanager
def edited(path: Path, *change: str):
    """A text file with one replacement, put back afterwards; one that changes nothing is an error."""
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change, 1))
    try:
        yield
    finally:
        path.write_text(text)


@contextmanager
def without(path: Path):
    """A file moved away, and put back."""
    shutil.move(path, away := path.with_name(path.name + ".away"))
    try:
        yield
    finally:
        shutil.move(away, path)


def refused(done, *message):
    assert done.returncode != 0
    for part in message:
        assert part in done.stdout + done.stderr, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize(
    "change, message",
    [
        (("  k: 8", "  kk: 8"), "did you mean `k`"),
        (("  k: 8", "  k: 1000"), "a latent has only 3*16*16 = 768"),
        (("  t_e: 100", "  t_e: 1000"), "allowed: 1 to 999"),
        (("  layer: ", "  layer: middle # "), "it has: conv_in, down_blocks.0"),
        (("  rho: ", "  rho: high # "), "`data.rho`: 'high'"),
        (("  k: 8 ", "  # "), "`clareps.k`: missing"),
    ],
)
def test_impossible_settings_are_refused_by_name(smoke, monkeypatch, change, message):
    monkeypatch.chdir(smoke)
    with edited(smoke / "params.yaml", *change), pytest.raises(ValueError, match=re.escape(message)):
        prepare()


def test_a_deleted_setting_stops_the_pipeline_before_anything_is_removed(smoke, run):
    with edited(smoke / "params.yaml", "  k: 8 ", "  # "):
        refused(run("dvc", "repro"), "`clareps.k`: missing; add it to params.yaml")
    for output in ("runs/teacher/model/unet/config.json", "runs/clareps/shards/index.json", "runs/report/index.html"):
        assert (smoke / output).is_file()


@pytest.mark.parametrize(
    "lost, stage, message",
    [
        (
            "runs/clareps/shards/shard-00001.safetensors",
            ("auxiliary", "--arm", "cadistill"),
            ("has lost shard-00001.safetensors", "dvc checkout"),
        ),
        (
            "runs/teacher/model/unet/diffusion_pytorch_model.safetensors",
            ("clareps",),
            ("runs/teacher/model is damaged or incomplete", "dvc repro -f teacher"),
        ),
        ("data/prepared/splits", ("teacher",), ("teacher.safetensors is missing", "dvc repro data")),
        (
            "runs/auxiliary/cadistill/tensors.safetensors",
            ("student", "--arm", "cadistill", "--seed", "0"),
            ("tensors.safetensors is missing", "dvc repro auxiliary@cadistill"),
        ),
    ],
)
def test_a_lost_input_is_named_and_earlier_outputs_stay(smoke, run, lost, stage, message):
    outputs = smoke / "runs" / stage[0] / "-".join(stage[2::2])
    before = sorted(outputs.rglob("*"))
    with without(smoke / lost):
        refused(
            run("python", "-m", "clarep.pipeline.stage", *stage),
            *message,
            f"stage {stage[0]} failed",
            ".scratch/executed",
        )
    assert before and set(before) - {smoke / lost} <= set(outputs.rglob("*"))


def test_a_truncated_shard_is_named(smoke, run):
    shard = smoke / "runs/clareps/shards/shard-00000.safetensors"
    whole = shard.read_bytes()
    try:
        shard.unlink()
        shard.write_bytes(whole[: len(whole) // 2])
        refused(
            run("python", "-m", "clarep.pipeline.stage", "auxiliary", "--arm", "cadistill"),
            "shard-00000.safetensors is damaged or cut short",
            "dvc repro -f clareps",
        )
    finally:
        shard.write_bytes(whole)


def test_an_unknown_stage_or_preset_is_answered_with_the_known_ones(run):
    refused(run("python", "-m", "clarep.pipeline.stage", "clarep"), "'clareps'")
    refused(
        run("python", "-m", "clarep.params", "smok"),
        "no preset 'smok'; there are: ",
        "default, ",
        "smoke",
    )
    refused(run("python", "-m", "clarep.params", "imagenet-dit-xl", "smok"), "no preset 'smok'")

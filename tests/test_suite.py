"""The command `python -m clarep.evaluate`: foreign models, kills, and what it refuses."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from conftest import HOME
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from clarep.classifiers.networks import SmallCNN
from clarep.classifiers.train import train_student
from clarep.digits import digits_on_photos
from clarep.evaluate.adversarial import masking_checks, masking_metrics
from clarep.evaluate.tasks import Classifier
from clarep.report.profile import main


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """A folder of images, weights of a network of timm, and a module of a user."""
    folder = tmp_path_factory.mktemp("suite")
    data = digits_on_photos("test", 40, 32, rho=0.3, opacity=1.0, clutter=0)
    for i, (image, label) in enumerate(zip(data.images, data.labels)):
        path = folder / "images" / data.class_names[label] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(path)
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), folder / "weights.safetensors")
    (folder / "foreign.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def network(width=10):\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), "
        "nn.Linear(4, width))\n\ndef wide():\n    return network(12)\n"
    )
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def command(place: Path, spec: str, out: str, *options: str) -> dict:
    """Arguments of `subprocess` for the command in a process of its own."""
    args = [sys.executable, "-m", "clarep.evaluate", spec, "--data", str(place / "images"), "--out", str(place / out)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return {
        "args": [*args, "--preset", "smoke", "--device", "cpu", "--image-size", "32", *options],
        "cwd": HOME,
        "env": env,
    }


def here(place: Path, spec: str, out: str, image_size: int | None = 32) -> None:
    """What the command does, in this process."""
    main(spec, str(place / "images"), str(place / out), preset="smoke", device="cpu", image_size=image_size)


def test_foreign_model_by_one_command(place):
    spec, weights = "timm:test_resnet", str(place / "weights.safetensors")
    done = subprocess.run(**command(place, spec, "timm", "--weights", weights), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    table = pd.read_csv(place / "timm/suite.csv", dtype={"class": str})
    assert {"acc_pgd20_linf_1", "masking_zero_gradient", "acc_contrast_3", "mce_raw"} <= set(table.metric)
    assert set(table.arm) == {spec} and table[table.metric.str.startswith("acc_")].value.between(0, 1).all()
    assert {"ece", "knn"} <= set(table.metric) and not table.metric.str.contains("inside").any()  # there are no masks
    page = (place / "timm/profile.html").read_text()
    assert page.count("data:image/png") == 4 and "<h1>Profile of timm:test" in page


def test_killed_and_resumed_is_equal(place):
    here(place, "foreign:network", "whole")
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(**command(place, "foreign:network", "cut"), **silent)
    first, deadline = place / "cut/tasks/attacks/acc_pgd20_linf_1.safetensors", time.monotonic() + 300
    while not first.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert first.is_file() and not (place / "cut/suite.csv").exists()
    written = first.stat().st_mtime_ns
    here(place, "foreign:network", "cut")
    assert first.stat().st_mtime_ns == written
    assert (place / "cut/suite.csv").read_bytes() == (place / "whole/suite.csv").read_bytes()


@pytest.mark.parametrize(
    ("spec", "image_size", "message"),
    [
        ("foreign:wide", 32, r"foreign:wide gives scores of shape \(40, 12\)"),
        ("foreign:network", None, "give their size in pixels"),
        ("timm:no_such_net", 32, "no such network"),
        ("foreign:nothing", 32, "foreign:nothing"),
    ],
)
def test_refused_before_anything_runs(place, spec, image_size, message):
    with pytest.raises(SystemExit, match=message):
        here(place, spec, "bad", image_size)
    assert not (place / "bad").exists()


class Quantised(nn.Module):
    """A classifier whose input is rounded, so that no gradient passes."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body((8 * x).round() / 8)


def test_masked_model_is_flagged():
    train, data = (
        digits_on_photos(*split, 16, rho=0.3, opacity=1.0, clutter=0) for split in (("train", 800), ("test", 60))
    )
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(SmallCNN(10, width=8))
        train_student(networks[-1], train, epochs=8, batch_size=50, learning_rate=1e-2, weight_decay=0.0, seed=seed)
    plain, masked, other = (
        Classifier("net", model.eval(), data.class_names, 16)
        for model in (networks[0], Quantised(networks[0]), networks[1])
    )
    verdicts = [masking_checks(masking_metrics(c, data, transfer=other)).verdict for c in (plain, masked)]
    assert (verdicts[0] == "passed").all(), verdicts[0]
    assert (verdicts[1] == "flagged").sum() >= 3, verdicts[1]

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
from clarep.evaluate.adversarial import Attack, masking_checks, masking_metrics, survivors
from clarep.evaluate.suite import SUITES, folder_images, open_data, run_suites, suites_for, task_key
from clarep.evaluate.tasks import Classifier
from clarep.files import DataError, fingerprint
from clarep.images import Images
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
        "nn.Linear(4, width))\n\ndef wide():\n    return network(12)\n\n"
        "def broken():\n    return {}['weights']\n"
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


def here(place: Path, spec: str, out: str, image_size: int | None = 32, data: str = "images", **options: str) -> None:
    """What the command does, in this process."""
    main(spec, str(place / data), str(place / out), preset="smoke", device="cpu", image_size=image_size, **options)


def test_foreign_model_by_one_command(place):
    spec, weights = "timm:test_resnet", str(place / "weights.safetensors")
    call = command(place, spec, "Straße", "--weights", weights)
    call["env"]["PYTHONIOENCODING"] = "ascii"  # a terminal that lacks letters
    done = subprocess.run(**call, capture_output=True, text=True)
    assert done.returncode == 0 and "Stra\\xdfe" in done.stdout, done.stderr[-2000:]
    table = pd.read_csv(place / "Straße/suite.csv", dtype={"class": str})
    assert {"acc_pgd20_linf_1", "masking_zero_gradient", "acc_contrast_3", "mce_raw"} <= set(table.metric)
    assert set(table.arm) == {spec} and table[table.metric.str.startswith("acc_")].value.between(0, 1).all()
    assert {"ece", "knn"} <= set(table.metric) and not table.metric.str.contains("inside").any()  # there are no masks
    page = (place / "Straße/profile.html").read_text()
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
        ("foreign:broken", 32, "foreign:broken: KeyError: 'weights'; name an importable module"),
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


def two_classes(n: int = 24, low: int = 0, high: int = 256, mask: int | None = None) -> Images:
    """Noise in two classes; `mask`: rows from above that the objects cover."""
    pixels = torch.randint(low, high, (n, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    cover = torch.zeros(n, 16, 16, dtype=torch.uint8)
    cover[:, :mask] = 255
    return Images(pixels, torch.arange(n) % 2, ["a", "b"], None if mask is None else cover)


class Flipped(nn.Module):
    """A network whose code may change while its weights stay."""

    def __init__(self, sign: float):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.sign = SmallCNN(2, width=8), sign

    def forward(self, x):
        return self.sign * self.body(x)


PAIR = Classifier("pair", Flipped(1.0).eval(), ["a", "b"], 16)


def write(folder: Path, images: Images) -> Path:
    """A folder of class folders."""
    for i, (image, label) in enumerate(zip(images.images, images.labels)):
        path = folder / images.class_names[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(path)
    return folder


def test_results_depend_on_answers_masks_and_what_lies_at_paths(tmp_path):
    """Each of these changed and gave the old numbers; attacks and severities say which tasks there are."""
    write(tmp_path / "sky", two_classes(4))
    (tmp_path / "real.json").write_text("[]")
    own = {"outside": {"sky": str(tmp_path / "sky")}, "real": [str(tmp_path), str(tmp_path / "real.json")]}

    def key(classifier=PAIR, mask=4, **settings):
        return fingerprint(*task_key(classifier, two_classes(mask=mask), own | settings))

    keys = [key(), key(Classifier("pair", Flipped(-1.0).eval(), ["a", "b"], 16)), key(mask=8)]
    assert key(attacks=["pgd20_linf"], severities=[1]) == keys[0]
    keys += [key(real=[str(tmp_path)]), key(methods=["ig"], n_images=3)]
    (tmp_path / "real.json").write_text("[[1]]")
    keys.append(key())
    (tmp_path / "sky/a/0.png").rename(tmp_path / "sky/b/0.png")
    keys.append(key())
    write(tmp_path / "sky", two_classes(4, 200))
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_saved_parts_of_attacks_depend_on_answers(tmp_path):
    attack = Attack("linf", [lambda model, x, *_: x] * 2, 1)
    data = two_classes()
    stand = [
        survivors(attack, Classifier("pair", Flipped(sign).eval(), ["a", "b"], 16), data, 1, folder=tmp_path)
        for sign in (1.0, -1.0)
    ]
    assert torch.equal(stand[0], ~stand[1])


@pytest.mark.parametrize(
    ("suite", "own", "message"),
    [
        ("corruptions", {"severities": [0]}, r"is \[0\]; it takes a list of 1 or 2"),
        ("corruptions", {"severities": [6]}, "a list of 1 or 2"),
        ("corruptions", {"severities": 3}, "is 3; it takes a list"),
        ("corruptions", {"corruptions": ["fog2"]}, "gaussian_noise or shot_noise"),
        ("corruptions", {"n_images": -3}, "-3; it takes a whole number above 0"),
        ("corruptions", {"n_images": 0}, "above 0"),
        ("corruptions", {"n_images": "all"}, "'all'; it takes a whole"),
        ("corruptions", [1], r"\[1\] is no setting"),
        ("attacks", {"attacks": ["pgd"]}, "pgd20_linf or"),
        ("attacks", {"radii_linf": []}, "numbers above 0"),
        ("attacks", {"attacks": ["apgd_dlr_linf"]}, "apgd_dlr_linf works for 2 classes"),
        ("calibration", {"n_image": 5}, "'n_image' is no setting of calibration"),
        ("calibration", {"outside": ["x"]}, "a path for every name"),
        ("backgrounds", {"folder": "x"}, "'folder' is no setting of backgrounds"),
        ("attacks", {"n_images_of": {"pgd": 5}}, "takes a whole number above 0 for names of attacks"),
        ("attacks", {"n_images_of": {"cw_l2": 0}}, "above 0 for names of attacks"),
        ("teacher", {}, "its setting `teacher` names the folder"),
        ("teacher", {"teacher": str(HOME / "models/small"), "mixed_rand": "none"}, "none is not there"),
        ("teacher", {"teacher": str(HOME / "models/small")}, "takes images of 32 pixels, pair takes 16"),
        ("shifts", {}, "imagenet_a"),
        ("shifts", {"real": "x"}, "a folder and a file"),
    ],
)
def test_wrong_settings_are_refused_by_name(suite, own, message, tmp_path):
    with pytest.raises(DataError, match=message):
        run_suites(PAIR, two_classes(), [suite], tmp_path / "out", {suite: own})
    assert not (tmp_path / "out").exists()


def test_foreign_images_in_a_folder_have_an_auroc(tmp_path):
    sky = {"sky": str(write(tmp_path / "sky", two_classes(8)))}
    for name in ("noise", "../up"):
        with pytest.raises(DataError, match="cannot be called"):
            run_suites(PAIR, two_classes(), ["calibration"], tmp_path, {"calibration": {"outside": {name: sky["sky"]}}})
    (tmp_path / "calibration-old.png").write_bytes(b"of an earlier run")
    table = run_suites(PAIR, two_classes(), ["calibration"], tmp_path, {"calibration": {"outside": sky}})
    assert {"auroc_energy_sky", "auroc_energy_noise"} <= set(table.metric)
    assert [path.name for path in tmp_path.glob("*.png")] == ["calibration-reliability.png"]


def test_a_folder_says_its_order_and_what_is_passed_over(tmp_path, capsys):
    for i in range(12):
        write(
            tmp_path / "images", Images(torch.zeros(1, 16, 16, 3, dtype=torch.uint8), torch.zeros(1).long(), [str(i)])
        )
    (tmp_path / "images/3/photo.heic").write_bytes(b"x")
    folder_images(tmp_path / "images", 16, 100)
    output = capsys.readouterr().out
    assert "0, 1, 2, ...; torchvision's ImageFolder has 0, 1, 10, ..." in output and "ending .heic" in output
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="x.zip is no split .* unpacked"):
        open_data(tmp_path / "x.zip", "foreign:network")


def test_a_suite_with_settings_is_kept(capsys):
    names = suites_for(two_classes(), list(SUITES), {"shifts": {"imagenet_a": "x"}})
    assert [name for name in SUITES if name not in names] == ["attribution", "backgrounds", "teacher"]
    assert "shifts (no settings); `--settings`" in (suites_for(two_classes(), list(SUITES)), capsys.readouterr().out)[1]


@pytest.mark.parametrize("content", ["metric,class,value\nece,all,0.1\n", "arm,metric,class,value\nx,ece,all,0.1\n"])
def test_settings_and_baselines_are_refused_before_anything_runs(place, content):
    (place / "other.csv").write_text(content)
    with pytest.raises(SystemExit, match="the baseline has no (column 'arm'|gaussian_noise of severity 3)"):
        here(place, "foreign:network", "bad", suite="corruptions", baseline=str(place / "other.csv"))
    (place / "settings.yaml").write_text("calibration: [1]\n")
    with pytest.raises(SystemExit, match=r"'calibration': \[1\] is no setting"):
        here(place, "foreign:network", "bad", suite="calibration", settings=str(place / "settings.yaml"))
    assert not (place / "bad").exists()

"""Other images by params.yaml alone: a folder as it comes, and a data set of the hub that is not there."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import copy_of_project, run_in
from PIL import Image

from clarep.images import Images

CLASSES = ["ant", "bee", "cat", "dog", "elk", "f$$x$", "gnu"]


def set_data(home: Path, **values: str) -> None:
    """Change settings of section `data` as an editor would."""
    text = (home / "params.yaml").read_text()
    for key, value in values.items():
        text, n = re.subn(rf"(?m)^  {key}:.*$", f"  {key}: {value}", text, count=1)
        assert n == 1, key
    (home / "params.yaml").write_text(text)


def picture(rng: np.random.Generator, label: int, mode: str) -> Image.Image:
    """Noise around a brightness that is the class's, of any size."""
    height, width = (int(n) for n in rng.integers(18, 70, 2))
    noise = Image.fromarray(rng.normal(20 + 34 * label, 5, (height, width)).clip(0, 255).astype(np.uint8))
    opaque = [Image.new("L", (width, height), 255)] * (mode == "RGBA")
    return noise if mode == "L" else Image.merge(mode, [noise] * 3 + opaque)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A project with an image folder in ImageNet's layout: no test, three modes, one broken file."""
    home, rng = copy_of_project(tmp_path_factory.mktemp("own")), np.random.default_rng(0)
    for split, n in (("train", 20), ("val", 4)):
        for label, name in enumerate(CLASSES):
            (folder := home / "pictures" / split / name).mkdir(parents=True)
            for i in range(n):
                picture(rng, label, ("RGB", "L", "RGBA")[i % 3]).save(folder / f"{i:02}.png")
    (home / "pictures/train/ant/IMG_1.HEIC").touch()
    (home / "pictures/val/.thumbnails").mkdir()
    (home / "pictures/val/.thumbnails/1.png").touch()
    broken = home / "pictures/train/elk/03.png"
    broken.write_bytes(broken.read_bytes()[:100])
    done = run_in(home, "python", "-m", "clarep.params", "smoke")
    assert done.returncode == 0, done.stderr
    return home


def test_an_image_folder_goes_in_by_params_alone(home):
    set_data(home, name="imagefolder", path="pictures")
    done = run_in(home, "python", "-m", "clarep.pipeline.stage", "data")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"1 of \d+ images cannot be read: pictures/train/elk/03.png \(.+\); skipped", done.stdout)
    metrics = json.loads((home / "data/prepared/metrics.json").read_text())
    counts = {tuple(name.split("/")[1:]): n for name, n in metrics.items() if name.startswith("images/")}
    assert counts["train", "cannot be read"] == counts["train", "ending .heic"] == 1
    assert sum(counts.values()) == 7 * 24 + 2 and counts["validation", "used in test"] == 28
    assert re.search(r"\nvalidation +hidden or of a program +1 +pictures/val/.thumbnails/1.png\n", done.stdout)
    sets = {p.stem: Images.load(p) for p in (home / "data/prepared/splits").iterdir()}
    assert set(sets) == {"train", "teacher", "validation-original", "test-original"}
    assert sets["test-original"].labels.bincount().tolist() == [4] * 7
    assert len(sets["train"]) + len(sets["validation-original"]) == 7 * 20 - 1
    for images in sets.values():
        assert images.class_names == CLASSES and images.images.shape[1:] == (16, 16, 3) and images.mask is None
        brightness = images.images.float().mean((1, 2, 3))
        assert ((brightness - 20 - 34 * images.labels).abs() < 15).all()


def test_a_hub_data_set_that_is_not_in_the_cache_is_named_with_the_command_that_fetches_it(home, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    set_data(home, name="someone/no-such-set", path="null")
    done = run_in(home, "python", "-m", "clarep.pipeline.stage", "data")
    assert done.returncode != 0
    for part in (
        "`data.name`: someone/no-such-set is not in the local Hugging Face cache",
        str(tmp_path / "hf" / "hub"),
        "`hf download --repo-type dataset someone/no-such-set`",
    ):
        assert part in done.stdout + done.stderr, done.stdout[-2000:] + done.stderr[-2000:]

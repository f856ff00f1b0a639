"""Images with known classes only, in a project of `make new`, go through every stage to the report."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import HOME, run_stages
from PIL import Image

from clarep.pipeline.new import new_project
from clarep.pipeline.stage import STAGES

COLOURS = {
    "black frame": (10, 10, 10),
    "blue cross": (50, 80, 230),
    "cyan saltire": (60, 220, 220),
    "green square": (40, 200, 60),
    "red disc": (220, 40, 40),
    "white ring": (240, 240, 240),
    "yellow bar": (230, 220, 40),
}
OVERRIDES = {
    "probes": {"n": 1, "epochs": 20},
    "select": {"timesteps": [100]},
    "directions": {"n_per_class": 3},
    "representation": {"num_directions": [8]},
    "compare": {"seeds": [0]},
}


def a_shape(label: int, rng: np.random.Generator) -> Image.Image:
    """One coloured shape somewhere on a noisy grey; one in six is a grey image; of any size."""
    image = rng.integers(80, 120) + rng.integers(-15, 16, (16, 16, 1)).repeat(3, 2)
    y, x = np.mgrid[:16, :16] - rng.integers(7, 9, (2, 1, 1))
    box, cross = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y))
    inside = [
        (box < 7) & (box > 3),
        cross < 2,
        (abs(x - y) < 3) | (abs(x + y) < 3),
        box < 4,
        x**2 + y**2 < 20,
        abs(x**2 + y**2 - 20) < 12,
        abs(y) < 2,
    ]
    image[inside[label]] = [*COLOURS.values()][label]
    side = tuple(int(n) for n in rng.integers(16, 60, 1).repeat(2) + rng.integers(0, 3, 2))
    picture = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    return picture.convert("L" if rng.random() < 1 / 6 else "RGB").resize(side)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The whole pipeline on a new image folder: seven classes, one of them rarer, and one broken file."""
    home, rng = (folder := tmp_path_factory.mktemp("other")) / "shapes", np.random.default_rng(0)
    pictures = folder / "pictures"
    for split, n in (("train", 48), ("test", 14)):
        for label, name in enumerate(COLOURS):
            (folder := pictures / split / name).mkdir(parents=True)
            for i in range(n if label else n // 2):
                a_shape(label, rng).save(folder / f"{i:02}.png")
    broken = pictures / "train/red disc/03.png"
    broken.write_bytes(broken.read_bytes()[:60])
    new_project(HOME, home, "shapes", "Shapes", pictures, "train")
    run_stages(home, ("python", "-m", "shapes.params", "own", "smoke"), OVERRIDES, STAGES)
    assert "red disc/03.png" in (home / "data/prepared/data.ipynb").read_text()
    return home


def test_known_labels_have_their_rows_and_nothing_else_has(project):
    table = pd.read_csv(project / "runs/report/results.csv")
    assert table.columns.tolist() == ["stage", "arm", "seed", "metric", "class", "value"] and table.value.notna().all()
    assert not table.metric.str.contains("background|selectiv|mask|inside|bg_gap|mixed|regret_").any()
    tests = table[(table.stage == "evaluate") & ~table.metric.str.endswith("seconds")]
    assert set(tests.metric) == {"acc_clean", "acc_pgd20_linf"} and set(tests.arm) == {"ce", "cadistill"}
    assert set(tests["class"]) == {"all", *COLOURS}
    part = table[(table.stage == "representation") & (table["class"] == "all")]
    for method in ("clarid", "resample", "random", "low_frequency", "fresh_noise"):
        metrics = set(part[part.arm == method].metric)
        assert {"class_retained", "class_retained_guided", "judged_class", "ami", "probe_class"} <= metrics
    assert part[(part.arm == "clarid") & (part.metric == "class_retained")].value.between(-1, 1.5).all()


def test_hyperparameters_are_selected_by_the_rule_without_backgrounds(project):
    choice = json.loads((project / "runs/select/choice.json").read_text())
    columns = set(pd.read_csv(project / "runs/select/sweep.csv").columns)
    assert choice["why"] == choice["blind"]["why"]
    assert {"class_retained", "tangency"} <= columns and "selectivity" not in columns


def test_the_page_says_what_cannot_be_measured(project):
    page = (project / "runs/report/index.html").read_text()
    assert page.count("data:image/png") == 14 and "how much of the background is left cannot be measured" in page
    assert "cannot be said without masks" in page and "usual surroundings" in page
    assert "nan" not in page.split("<body>")[1].replace("data:image", "").lower()[:3000]

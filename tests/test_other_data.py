"""A data set of which only the class is known goes through every stage, by params alone."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import copy_of_project, run_in
from ruamel.yaml import YAML

from clarep.data import Images

COLOURS = {"red disc": (220, 40, 40), "blue cross": (50, 80, 230), "white ring": (240, 240, 240)}
HOW_MANY = {"train": (50, 50, 25), "validation-original": (8, 8, 4), "test-original": (12, 12, 4)}
OVERRIDES = {
    "data": {"class_names": list(COLOURS)},
    "teacher": {"train_steps": 40},
    "select": {"t_es": [100], "layers": ["mid_block"], "probe_epochs": 40},
    "representation": {"probe_epochs": 40, "n_seeds": 1, "n_images": 10, "n_samples": 10, "ks": [8]},
    "directions": {"n_a_class": 3},
    "compare": {"seeds": [0]},
}
STUDENTS = [f"{stage} --arm {arm} --seed 0" for arm in ("ce", "cadistill") for stage in ("student", "evaluate")]
STAGES = ["prepare", "teacher", "select", "clareps", "representation", "directions", *STUDENTS, "report"]


def a_shape(label: int, rng: np.random.Generator, size: int = 16) -> np.ndarray:
    """One coloured shape somewhere on a noisy grey."""
    image = rng.integers(60, 120) + rng.integers(-15, 16, (size, size, 1)).repeat(3, 2)
    y, x = np.mgrid[:size, :size] - rng.integers(6, 10, (2, 1, 1))
    inside = [x**2 + y**2 < 18, np.minimum(abs(x), abs(y)) < 2, abs(x**2 + y**2 - 16) < 9][label]
    image[inside] = list(COLOURS.values())[label]
    return image.clip(0, 255).astype(np.uint8)


def shapes(how_many: tuple[int, ...], seed: int) -> Images:
    """Images class by class, as a folder of folders is read; one class is rarer."""
    rng, labels = np.random.default_rng(seed), np.repeat(np.arange(len(how_many)), how_many)
    return Images(torch.from_numpy(np.stack([a_shape(i, rng) for i in labels])), torch.from_numpy(labels), list(COLOURS))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The whole pipeline after the stage `data`, on shapes without known backgrounds."""
    home, yaml = copy_of_project(tmp_path_factory.mktemp("other")), YAML()
    assert run_in(home, "python", "-m", "clarep.params", "smoke").returncode == 0
    settings = yaml.load(home / "params.yaml")
    for section, values in OVERRIDES.items():
        settings[section].update(values)
    yaml.dump(settings, home / "params.yaml")
    for seed, (split, how_many) in enumerate(HOW_MANY.items()):
        shapes(how_many, seed).save(home / f"data/prepared/splits/{split}.safetensors")
    for stage in STAGES:
        done = run_in(home, "python", "-m", "clarep.stage", *stage.split())
        assert done.returncode == 0, (stage, done.stdout[-3000:] + done.stderr[-3000:])
    return home


def test_what_is_known_has_its_rows_and_nothing_else(project):
    table = pd.read_csv(project / "runs/report/results.csv")
    assert table.columns.tolist() == ["stage", "arm", "seed", "metric", "class", "value"] and table.value.notna().all()
    assert not table.metric.str.contains("background|selectiv|mask|inside|bg_gap|mixed|regret").any()
    tests = table[(table.stage == "evaluate") & (table.metric != "seconds")]
    assert set(tests.metric) == {"acc_clean", "acc_pgd20_linf"} and set(tests["class"]) == {"all", *COLOURS} and set(tests.arm) == {"ce", "cadistill"}
    part = table[(table.stage == "representation") & (table["class"] == "all")]
    for method in ("clarid", "context", "random", "low_frequency", "class_pca", "fresh_noise"):
        assert {"class_retained", "class_retained_guided", "judged_class", "ami", "probe_class"} <= set(part[part.arm == method].metric)
    assert part[(part.arm == "clarid") & (part.metric == "class_retained")].value.between(-1, 1.5).all()


def test_settings_are_chosen_by_the_rule_that_knows_no_backgrounds(project):
    choice = json.loads((project / "runs/select/choice.json").read_text())
    assert choice["why"] == choice["blind"]["why"] and {"class_retained", "energy"} <= set(pd.read_csv(project / "runs/select/sweep.csv").columns)


def test_the_page_says_what_cannot_be_measured(project):
    page = (project / "runs/report/index.html").read_text()
    assert page.count("data:image/png") == 12 and "how much of the background is left cannot be measured" in page
    assert "cannot be said without masks" in page and "usual surroundings" in page and "nan" not in page.split("<body>")[1].replace("data:image", "").lower()[:3000]

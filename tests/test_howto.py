"""The recipes of nbs/howto.ipynb, run as they are written, one after the other in a copy of the project.

The settings and code of all of them are checked here; `make howto` runs them, in half an hour at smoke size.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import HOME, copy_of_project, run_all, run_in
from PIL import Image
from recipes import RECIPES, append_cell
from ruamel.yaml import YAML

from clarep.diffusion.tiny_models import make_tiny_model
from clarep.digits import digits_on_photos
from clarep.images import to_unit
from clarep.params import read_yaml

AUTHOR = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def merge(settings: dict, text: str) -> dict:
    """The settings with those of a block; a section that is named keeps its other keys."""
    for section, own in yaml.safe_load(text).items():
        settings[section].update(own)
    return settings


def test_every_recipe_has_something_to_run():
    assert len(RECIPES) == 11 and all(RECIPES.values())


@pytest.mark.parametrize("title", [t for t, steps in RECIPES.items() if any(s.kind == "yaml" for s in steps)])
def test_settings_of_a_recipe_are_settings(title):
    for step in RECIPES[title]:
        if step.kind == "yaml":
            assert step.file == "params.yaml"
            settings = read_yaml(HOME / "presets/default.yaml")
            own = [(section, key) for section, values in yaml.safe_load(step.text).items() for key in values]
            assert own and not [f"{section}.{key}" for section, key in own if key not in settings[section]]


@pytest.mark.parametrize("title", [t for t, steps in RECIPES.items() if any(s.kind == "python" for s in steps)])
def test_code_of_a_recipe_goes_into_a_notebook_that_exports(title):
    for step in RECIPES[title]:
        if step.kind == "python":
            assert "#| default_exp" in (HOME / step.file).read_text() and step.text.startswith("#| export\n")
            compile(step.text, step.file, "exec")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy with what a user brings: pictures, their masks, a model. The recipes begin with its commit `smoke`."""
    home = copy_of_project(tmp_path_factory.mktemp("howto") / "my project")
    data = digits_on_photos("train", 900, 16, rho=0.5, opacity=1.0, clutter=0)
    data = data[data.labels < 3]
    colours = np.eye(3, dtype=np.uint8)[data.labels.numpy()][:, None, None] * 120  # a few steps suffice to learn them
    pictures = data.images.numpy() // 2 + colours
    for i, (pixels, mask, label) in enumerate(zip(pictures, data.mask.numpy(), data.labels.tolist())):
        for folder, image in (("pictures", pixels), ("masks", mask)):
            (home / folder / f"digit {label}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(home / folder / f"digit {label}" / f"{i}.png")
    names = [f"digit {c}" for c in range(3)]
    x = to_unit(torch.from_numpy(pictures))
    make_tiny_model("unet", home / "models/my-model", names, x, data.labels, steps=30)
    with (home / ".gitignore").open("a") as file:
        file.write("/pictures\n/masks\n/models/my-model\n")
    follow(home, "start")
    commit = "git add -A && git commit -qm smoke && git tag smoke"
    subprocess.run(commit, cwd=home, shell=True, check=True, env={**os.environ, **AUTHOR})
    return home


def follow(home: Path, title: str) -> str:
    """Do what a recipe says; what its last block prints."""
    output = ""
    for step in RECIPES[title]:
        if step.kind == "bash":
            done = run_in(home, "env", *(f"{k}={v}" for k, v in AUTHOR.items()), "bash", "-ec", step.text)
            assert done.returncode == 0, (title, step.text, done.stdout[-3000:] + done.stderr[-3000:])
            output = done.stdout
        elif step.kind == "yaml":
            settings = YAML().load(file := home / step.file)
            YAML().dump(merge(settings, step.text), file)
        else:
            append_cell(home, step)
    return output


@pytest.mark.howto
@pytest.mark.parametrize("title", [t for t in RECIPES if t != "start"])
def test_a_recipe_does_what_it_says(title, project):
    for command in ("git reset -q --hard smoke", "git clean -qfd", "dvc checkout -q"):
        run_all(project, ("bash", "-ec", command))
    output = follow(project, title)
    if any("make repro" in step.text for step in RECIPES[title]):
        table = pd.read_csv(project / "runs/report/results.csv")
        settings = read_yaml(project / "params.yaml")
        assert set(table[table.stage == "evaluate"].arm) == set(settings["compare"]["arms"])
        assert "<h1>" in (project / "runs/report/index.html").read_text()
    if title == "Masks of your own":
        assert "acc_mixed_rand" in set(table.metric)
    if title.startswith("Share"):
        assert "up to date" in output
    if title.startswith("Sweep"):
        assert read_yaml(project / "params.yaml")["clareps"]["k"] == 4

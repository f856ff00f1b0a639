"""`make new`: a project for other images that stands on its own, from wherever the template lies."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import HOME, run_all, run_in, run_one_process
from forks import run_in_fork
from PIL import Image

from clarep.files import PACKAGE, DataError, load_json, save_tensors
from clarep.images import Images
from clarep.params import load_params
from clarep.pipeline import new
from clarep.pipeline.new import git, new_project, project_files

NAME = "vogelkunde_2"  # longer than the template's, so that lines break elsewhere
OURS = ("data/", "runs/", "dvc.lock", "docs/results/", "docs/readme.py", "nbs/findings/", "nbs/benchmarks/")
OURS += ("tests/test_experiment.py", "bench/jacobian.csv", "presets/paper.yaml")
BESIDE = {"song.wav": b"RIFF", "set 1/notes.txt": b"x", "set 2/deep/logo.svg": b"<svg/>"}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Pictures with alpha, nested in the folders of three classes, beside other files; nobody may write there."""
    folder, rng = tmp_path_factory.mktemp("data") / "Bilder é 字", np.random.default_rng(0)
    for label, name in enumerate(("kite", "owl", "wren")):
        for i in range(30):
            pixels = np.full((40, 44, 4), 60 + 60 * label, np.uint8)
            pixels[..., 3] = rng.integers(0, 2, (40, 44)) * 255
            path = folder / name / ("set 1", "set 2/deep")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        for file, content in BESIDE.items():
            (folder / name / file).write_bytes(content)
    for place in (folder, *folder.rglob("*")):
        place.chmod(0o555 if place.is_dir() else 0o444)
    yield folder
    for place in (folder, *folder.rglob("*")):
        place.chmod(0o755)


@pytest.fixture(scope="module")
def project(images, tmp_path_factory) -> Path:
    """What the command makes, in a folder with spaces and other letters."""
    dest = tmp_path_factory.mktemp("new") / "ein Projekt, ñ 字"
    flags = ["--name", NAME, "--title", 'Birds\' "calls"', "--images", str(images), "--dest", str(dest)]
    done = run_in(HOME, sys.executable, "-m", "clarep.pipeline.new", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 classes; 54 train, 18 validation, 18 test images" in done.stdout and "ending .svg" in done.stdout
    return dest


def tracked(home: Path) -> list[str]:
    return sorted(filter(None, git("ls-files", "-z", cwd=home).split("\0")))


def test_nothing_of_our_experiment_is_there(project):
    files = tracked(project)
    assert not [f for f in files if f.startswith(OURS)]
    assert {"presets/own.yaml", f"{NAME}/pipeline/new.py", "tests/test_new.py"} <= {*files}
    assert git("log", "--format=%s", cwd=project).strip() == 'Birds\' "calls": a new project'
    sources = [(project / f).read_text() for f in files if f.endswith((".py", ".ipynb")) and "04_new" not in f]
    assert len(sources) > 100 and not [s for s in sources if re.search(rf"(from|import|-m) {PACKAGE.name}\b", s)]
    params = load_params(project / "params.yaml")
    assert (params.data.n_train, params.data.size, params.directions.n_per_class) == (54, 32, 6)


@pytest.mark.parametrize("kind", ["alpha", "folder"])
def test_masks_make_the_ceiling_measurable(kind, images, tmp_path):
    masks = "alpha" if kind == "alpha" else str(images)
    text = new_project(HOME, dest := tmp_path / "masked", "masked", "Masked", images, "train", masks)
    params = load_params(dest / "params.yaml")
    assert params.data.masks == ("alpha" if kind == "alpha" else "data/masks") and "ceiling" in params.compare.arms
    assert (dest / "data/masks").is_dir() == (kind == "folder") and "data/masks" not in tracked(dest)
    for place in (text, (dest / "README.md").read_text()):
        assert "With masks there are tests on other backgrounds" in place and "Without masks" not in place


def test_masks_that_are_not_there_are_named(images, tmp_path):
    with pytest.raises(DataError, match="MASKS: there is no folder /no/masks; name one, or alpha"):
        new_project(HOME, tmp_path / "masked", "masked", "Masked", images, "train", "/no/masks")
    assert not (tmp_path / "masked").exists()


def test_it_passes_its_check(project):
    run_all(project, ("make", "ENV=", "check"))
    assert not git("status", "--porcelain", cwd=project)


def test_its_tests_of_pages_and_tour_pass(project):
    """Those that read what a made project has no copy of, before anything was run in it; `make test` runs them all."""
    files = ("tests/test_docs.py", "tests/test_tour.py")
    names = "one_click or citation or small_teacher or card"
    run_all(project, ("python", "-m", "pytest", "-n", "0", "-q", *files, "-k", names))


def test_its_data_stage_reads_the_images_and_writes_nothing_there(project, images):
    before = {path: path.stat().st_mtime_ns for path in (images, *images.rglob("*"))}
    run_one_process(project, "data")
    assert before == {path: path.stat().st_mtime_ns for path in (images, *images.rglob("*"))}
    train = Images.load(project / "data/prepared/splits/train.safetensors")
    assert train.class_names == ["kite", "owl", "wren"] and train.labels.bincount().tolist() == [18] * 3
    metrics = load_json(project / "data/prepared/metrics.json")
    assert {metrics[f"images/train/ending .{kind}"] for kind in ("wav", "txt", "svg")} == {3}
    assert not git("status", "--porcelain", "--", ":!data/prepared", ":!runs", cwd=project)


def test_files_of_one_project_open_in_the_other(project, tmp_path):
    save_tensors(tmp_path / "x.safetensors", {}, made="here")
    code = f"from {NAME}.files import load_tensors; print(load_tensors('{tmp_path}/x.safetensors')[1]['made'])"
    done = run_in(project, sys.executable, "-c", code)
    assert done.stdout == "here\n", done.stderr


@pytest.mark.skipif(not (HOME / ".git").exists(), reason="archives and worktrees are made by git")
@pytest.mark.parametrize("kind", ["archive", "worktree"])
def test_a_template_without_its_repository_makes_the_same(kind, images, tmp_path):
    clone, home, dest = tmp_path / "clone", tmp_path / "a b é", tmp_path / "dest"
    git("clone", "-q", str(HOME), str(clone), cwd=tmp_path)
    if kind == "worktree":
        git("worktree", "add", "-q", "-b", "beside", str(home), cwd=clone)
    else:
        home.mkdir()
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=clone, capture_output=True, check=True).stdout
        subprocess.run(["tar", "x"], cwd=home, input=archive, check=True)
    assert project_files(home) == project_files(clone) == tracked(clone)
    new_project(home, dest, "birds", "Birds", images, "train")
    assert (dest / ".dvc/config").read_text() == (clone / ".dvc/config").read_text()
    assert not git("status", "--porcelain", cwd=dest) and (dest / ".git").is_dir()


def test_a_new_project_is_a_template_too(project, images, tmp_path):
    flags = ("--name", "owls", "--images", str(images), "--dest", str(tmp_path / "owls"))
    done = run_in_fork(project, "-m", f"{NAME}.pipeline.new", *flags)
    assert done.returncode == 0, done.stdout[-3000:]
    sources = [f for f in (tmp_path / "owls").rglob("*") if f.suffix in (".py", ".ipynb")]
    assert len(sources) > 100 and not [f for f in sources if f"from {NAME}" in f.read_text()]
    assert "make new" in (tmp_path / "owls/README.md").read_text()


REFUSED = {  # what is wrong: what is given instead, the message
    "a place that is taken": ({"dest": HOME / "nbs"}, "nbs is there already; name another"),
    "a place inside": ({"dest": HOME / "birds"}, f"lies in {HOME}; name another"),
    "no such folder": ({"images": HOME / "no such folder"}, "there is no folder .*no such folder"),
    "no class folders": ({"images": HOME / "nbs/stages"}, "holds no folders"),
    "no such teacher": ({"teacher": "no/such-model"}, "no/such-model"),
    "no teacher in it": ({"teacher": str(HOME / "nbs")}, "nbs"),
    "a name in use": ({"name": "torch"}, "NAME: torch is taken"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_named(case, images, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    change, message = REFUSED[case]
    given = {"name": "birds", "title": "Birds", "images": images, "teacher": "train", "dest": tmp_path / "birds"}
    with pytest.raises(DataError, match=message):
        new_project(HOME, **given | change)
    assert os.listdir(tmp_path) == []


def test_what_fails_on_the_way_leaves_nothing_behind(images, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(new, "commit_all", full)
    with pytest.raises(DataError, match="No space left on device"):
        new_project(HOME, tmp_path / "birds", "birds", "Birds", images, "train")
    assert os.listdir(tmp_path) == []

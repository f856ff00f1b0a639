"""Masks of one's own: a folder of them or an alpha channel, up to the report, and every mask that is of no use."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import HOME, copy_of_project, run_stages
from forks import run_in_fork
from PIL import Image

from clarep.classifiers.networks import build_student, save_student
from clarep.digits import VARIANTS, drawn_shapes, photo, place, random_crop, tiles
from clarep.files import DataError
from clarep.images import Images
from clarep.pipeline.stage import STAGES
from clarep.sources import COUNT_KEYS, SOURCE_KEYS, Tally, prepare_sets

SCENES = {"buoy": "china", "duck": "coffee", "kite": "retina", "moth": "hubble_deep_field"}
SETTINGS = dict.fromkeys([*SOURCE_KEYS, *COUNT_KEYS], None) | {
    "name": "imagefolder", "size": 16, "max_corrupt_fraction": 1.0, "seed": 0, "n_train": 99, "n_validation": 20,
    "n_test": 20, "n_probe": 50,
}  # fmt: skip
OVERRIDES = {
    "data": {"name": "imagefolder", "path": "pictures", "n_probe": 600},
    "probes": {"n": 2, "epochs": 15},
    "select": {"timesteps": [50]},
    "clareps": {"t_e": 50},
    "directions": {"n_per_class": 3},
    "representation": {
        "num_directions": [8],
        "methods": ["clarid", "resample", "class_average", "random", "low_frequency", "fresh_noise"],
    },
    "compare": {"seeds": [0], "arms": ["ce", "cadistill", "ceiling"]},
    "suite": {"suites": ["attribution", "backgrounds"]},
}


def write_pictures(folder, n: int, kind: str, scenes: bool = True, side: int = 40) -> None:
    """Coloured shapes on a photograph of their class or a white wall, with masks in a folder or as alpha."""
    rng, (shapes, kinds) = np.random.default_rng(0), drawn_shapes("train")
    for label, (name, scene) in enumerate(SCENES.items()):
        backs = tiles(photo(scene), "train")
        for i in range(n):
            inside = place(shapes[rng.choice(np.flatnonzero(kinds == label))], side, 26, rng) > 0.5
            back = 255 * random_crop(backs, side, rng) if scenes else 255
            pixels = np.where(inside[..., None], rng.uniform(120, 255, 3), back).astype(np.uint8)
            picture, mask = Image.fromarray(pixels), Image.fromarray(inside)
            place_of = folder / "pictures" / name / f"part{i % 2}" / f"{i:02}"
            place_of.parent.mkdir(parents=True, exist_ok=True)
            if kind == "alpha":
                picture.putalpha(mask.convert("L"))
                picture.save(place_of.with_suffix(".png"))
                continue
            picture.save(place_of.with_suffix(".jpg"))
            (target := folder / "masks" / name / f"part{i % 2}").mkdir(parents=True, exist_ok=True)
            mask.save(target / f"{i:02}.png")
    for name in ("buoy/part0/splash.wav", "buoy/note.txt", "duck/duck.svg"):
        (folder / "pictures" / name).write_text("not an image")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The whole pipeline on photographs with a folder of masks, one of which is missing."""
    home = copy_of_project(tmp_path_factory.mktemp("masks"))
    write_pictures(home, 40, "folder")
    (home / "masks/moth/part1/03.png").unlink()
    overrides = OVERRIDES | {"data": OVERRIDES["data"] | {"masks": "masks"}}
    run_stages(home, ("python", "-m", "clarep.params", "smoke"), overrides, STAGES)
    return home


def test_all_measurements_of_the_default_are_there(project):
    table = pd.read_csv(project / "runs/report/results.csv")
    assert table.value.notna().all()
    tests = set(table[table.stage == "evaluate"].metric)
    assert {"acc_clean", "bg_gap", *(f"acc_{v}" for v in VARIANTS[1:])} <= tests
    own = set(table[(table.stage == "representation") & (table.arm == "clarid")].metric)
    assert {"background_retained", "selectivity", "own_scene", "mask_correlation", "change_inside"} <= own
    assert set(table[table.stage == "evaluate"].arm) == {"ce", "cadistill", "ceiling"}
    assert {*OVERRIDES["representation"]["methods"]} <= {*table[table.stage == "representation"].arm}
    assert "energy_inside" in set(table[table.stage == "directions"].metric)
    suite = pd.read_csv(project / "runs/suite/ce-0/profile/suite.csv")
    assert {"ig_inside", "mask_area", "own_bg_gap"} <= set(suite.metric)


def test_the_page_says_what_a_background_is(project):
    page = (project / "runs/report/report.md").read_text()
    assert "class of the image that it was cut from; a probe names it in" in " ".join(page.split())
    assert "cannot be measured" not in page and "usual surroundings" not in page and "nan" not in page


def test_stage_data_counts_files_and_reads_backgrounds(project):
    metrics = json.loads((project / "data/prepared/metrics.json").read_text())
    assert metrics["images/train/mask: missing"] == 1 and metrics["images/train/ending .svg"] == 1
    assert metrics["background_readable"] == 1 and metrics["background_chance"] == 0.25
    splits = project / "data/prepared/splits"
    names = ["test-original", "test-mixed_rand", "test-only_fg", "train-mixed_rand", "probe"]
    original, mixed, alone, train, probe = (Images.load(splits / f"{name}.safetensors") for name in names)
    assert torch.equal(original.mask, mixed.mask) and torch.equal(original.background, original.labels)
    assert alone.images[original.mask == 0].float().mean() < 4 and len(probe) == 600
    assert 0.1 < (train.background == train.labels).float().mean() < 0.4


@pytest.fixture(scope="module")
def walls(tmp_path_factory):
    """Stages on pictures with alpha whose objects stand before one white wall."""
    home = copy_of_project(tmp_path_factory.mktemp("alpha"))
    write_pictures(home, 40, "alpha", scenes=False)
    less = {"data": OVERRIDES["data"] | {"masks": "alpha"}, "suite": {"suites": []}}
    less |= {"probes": {"n": 1, "epochs": 20}, "compare": {"seeds": [0], "arms": ["ce", "cadistill"]}}
    run_stages(home, ("python", "-m", "clarep.params", "smoke"), OVERRIDES | less, STAGES)
    return home


def test_where_no_probe_reads_the_backgrounds_the_report_says_so(walls):
    metrics = json.loads((walls / "data/prepared/metrics.json").read_text())
    assert metrics["background_readable"] == 0 and not any("mask:" in name for name in metrics)
    page = " ".join((walls / "runs/report/report.md").read_text().split())
    assert "no probe can tell which class a background was cut from" in page and "energy on the object" in page
    assert "cannot be said without masks" not in page and "usual surroundings" not in page
    table = pd.read_csv(walls / "runs/report/results.csv")
    assert not table.metric.str.contains("background_retained|selectivity").any()
    assert {"acc_mixed_rand", "bg_gap", "mask_correlation"} <= set(table.metric)


def sets_of(folder, masks, **change):
    tally = Tally()
    settings = SETTINGS | {"path": str(folder / "pictures"), "masks": masks} | change
    return prepare_sets(settings, tally), {k: n for k, n in tally.metrics().items() if "mask" in k}


@pytest.fixture
def folders(tmp_path):
    write_pictures(tmp_path, 12, "folder")
    return tmp_path


DAMAGES = {
    "missing": lambda mask: mask.unlink(),
    "cannot be read": lambda mask: mask.write_bytes(b"damaged"),
    "other proportions": lambda mask: Image.new("L", (40, 10), 255).save(mask),
    "no background in the centre square": lambda mask: Image.new("L", (40, 40), 255).save(mask),
    "no object in the centre square": lambda mask: Image.new("L", (40, 40), 0).save(mask),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_mask_of_no_use_is_counted_and_its_image_taken_out(folders, reason):
    DAMAGES[reason](folders / "masks/duck/part0/04.png")
    sets, counts = sets_of(folders, str(folders / "masks"))
    assert counts == {f"images/train/mask: {reason}": 1}
    assert len(sets["train"]) + len(sets["validation-original"]) + len(sets["test-original"]) == 47
    message = rf"1 of 48 images cannot be read with their mask: .*duck/part0/04.jpg \(mask: {reason}"
    with pytest.raises(DataError, match=message):
        sets_of(folders, str(folders / "masks"), max_corrupt_fraction=0.01)


def test_masks_of_every_kind_and_size_are_the_same_mask(folders):
    expected = sets_of(folders, str(folders / "masks"))[0]
    kinds = ["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "index", "large", "jpg"]
    for i, file in enumerate(sorted((folders / "masks").rglob("*.png"))):
        mask, kind = Image.open(file), kinds[i % len(kinds)]
        file.unlink()
        inside = np.asarray(mask)
        if kind == "I;16":
            mask = Image.fromarray(inside.astype(np.uint16) * 65535)
        elif kind == "index":
            mask = Image.fromarray(inside.astype(np.uint8) * 7)
        elif kind == "large":
            mask = mask.resize((120, 120), Image.Resampling.NEAREST)
        elif kind == "jpg":
            mask.convert("L").save(file.with_suffix(".JPEG"), quality=100)
            continue
        else:
            mask = mask.convert(kind)
        mask.save(file.with_suffix(".tif" if kind == "L" else ".png"))
    sets, counts = sets_of(folders, str(folders / "masks"))
    assert not counts and all(torch.equal(sets[name].mask, own.mask) for name, own in expected.items())


def test_alpha_makes_the_sets_that_a_folder_makes(tmp_path):
    for kind in ("folder", "alpha"):
        write_pictures(tmp_path / kind, 12, kind)
    for file in (tmp_path / "folder/pictures").rglob("*.jpg"):  # the same colours, without the losses of JPEG
        with Image.open(tmp_path / "alpha" / file.relative_to(tmp_path / "folder").with_suffix(".png")) as picture:
            picture.convert("RGB").save(file.with_suffix(".png"))
        file.unlink()
    own = sets_of(tmp_path / "folder", str(tmp_path / "folder/masks"))[0]
    alpha, counts = sets_of(tmp_path / "alpha", "alpha")
    assert not counts and list(own) == list(alpha)
    assert all(torch.equal(own[name].images, alpha[name].images) for name in own)


def test_opaque_pictures_have_a_clear_message(tmp_path):
    write_pictures(tmp_path, 12, "folder")
    for file in (tmp_path / "pictures").rglob("*.jpg"):
        with Image.open(file) as picture:
            picture.convert("RGBA").save(file.with_suffix(".png"))
        file.unlink()
    with pytest.raises(DataError, match=r"48 of 48 .* \(mask: nothing is transparent\).* or do without `data.masks`"):
        sets_of(tmp_path, "alpha", max_corrupt_fraction=0.01)


def test_no_pixel_of_a_donors_object_is_in_any_variant(tmp_path):
    """Objects are red, of rough texture; backgrounds have no red at all."""
    write_pictures(tmp_path, 12, "folder")
    rng = np.random.default_rng(0)
    for file in (tmp_path / "pictures").rglob("*.jpg"):
        mask = np.asarray(Image.open(tmp_path / "masks" / file.relative_to(tmp_path / "pictures").with_suffix(".png")))
        pixels = rng.integers(0, 256, (*mask.shape, 3)) * np.where(mask[..., None], [1, 0, 0], [0, 1, 1])
        Image.fromarray(pixels.astype(np.uint8)).save(file.with_suffix(".png"))
        file.unlink()
    sets, _ = sets_of(tmp_path, str(tmp_path / "masks"), size=24)
    assert sets["test-no_fg"].images[..., 0].max() == 0 and sets["test-only_fg"].images[..., 1:].max() == 0
    for name in ("test-mixed_rand", "test-mixed_same", "test-mixed_next", "train-mixed_rand", "probe"):
        own = sets["test-only_fg"].images if name.startswith("test") else None
        red = sets[name].images[..., 0]
        assert own is None or torch.equal(red, own[..., 0])  # all red is the own object's
        assert sets[name].images[..., 1:].float().mean() > 30


def test_the_command_takes_masks(tmp_path):
    write_pictures(tmp_path, 6, "folder")
    student = build_student("small-cnn", 4, 8, 16)
    save_student(tmp_path / "student.safetensors", student, model="small-cnn", width=8, class_names=list(SCENES),
                 image_size=16)  # fmt: skip
    command = ("-m", "clarep.evaluate", str(tmp_path / "student.safetensors"), "--data", str(tmp_path / "pictures"))
    options = ("--preset", "smoke", "--suite", "attribution,backgrounds", "--out", str(tmp_path / "profile"))
    masks = ("--masks", str(tmp_path / "masks"), "--device", "cpu")
    done = run_in_fork(HOME, *command, *options, *masks)
    assert done.returncode == 0, done.stdout
    table = pd.read_csv(tmp_path / "profile/suite.csv")
    assert {"ig_inside", "mask_area", "acc_own_mixed_rand", "own_bg_gap"} <= set(table.metric)
    done = run_in_fork(HOME, *command, *options, "--masks", "none")
    assert done.returncode and "`data.masks`: there is no folder none" in done.stdout

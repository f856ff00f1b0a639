"""Measures of the suite on networks and folders that are not as they should be: a true row, or one clear sentence."""

import json
import math

import pytest
import torch
from PIL import Image

from clarep.classifiers.networks import SmallCNN, predict
from clarep.diffusion.models import Teacher
from clarep.diffusion.teacher import build_scheduler, build_unet, load_teacher
from clarep.diffusion.tiny_models import TINY
from clarep.digits import digits_on_photos
from clarep.evaluate.attribution import METHODS, attribution_maps, attribution_tasks
from clarep.evaluate.calibration import calibration_tasks
from clarep.evaluate.diffusion_classifier import DiffusionClassifier, diffusion_tasks
from clarep.evaluate.features import feature_map, feature_tasks, penultimate
from clarep.evaluate.shifts import composed_tasks, imagenet9_sets, imagenet_ids, real_set
from clarep.evaluate.tasks import Classifier, run_tasks
from clarep.files import DataError
from clarep.images import Images, to_unit

DATA = digits_on_photos("test", 40, 32, rho=0.3, opacity=1.0, clutter=0)
X = to_unit(DATA.images)


def small_cnn(n_classes: int = 10, names: list[str] = DATA.class_names) -> Classifier:
    torch.manual_seed(0)
    return Classifier("small-cnn", SmallCNN(n_classes, 4, stem_stride=2).eval(), names, 32)


def timm_network(name: str, **options) -> Classifier:
    import timm

    torch.manual_seed(0)
    return Classifier(name, timm.create_model(name, num_classes=10, **options).eval(), DATA.class_names, 32)


def all_tasks(c: Classifier, images: Images, methods: list[str] = METHODS) -> list:
    measures = [*attribution_tasks(c, images, methods, steps=2), *calibration_tasks(c, images)]
    return [
        *measures,
        *composed_tasks(c, images),
        *feature_tasks(lambda: penultimate(c, to_unit(images.images)), images.labels),
    ]


@pytest.mark.parametrize(
    "network, methods",
    [
        (small_cnn, METHODS),
        (lambda: timm_network("mobilenetv3_small_050"), METHODS),
        (lambda: timm_network("vit_tiny_patch16_224", img_size=32), ["ig"]),
    ],
    ids=["small-cnn", "squeeze-and-excitation", "transformer"],
)
def test_every_measure_gives_a_finite_row_per_class(tmp_path, network, methods):
    table = run_tasks(all_tasks(network(), DATA, methods), tmp_path, DATA.class_names)
    assert table.value.map(math.isfinite).all()
    rows = table[table.metric == "ig_inside"]
    assert set(rows["class"]) == {"all", *DATA.class_names} and rows.value.between(0, 1).all()


def test_a_transformer_has_no_grad_cam():
    vit = timm_network("vit_tiny_patch16_224", img_size=32)
    with pytest.raises(DataError, match="vit_tiny_patch16_224 has no convolution .*methods 'ig'"):
        attribution_tasks(vit, DATA)


def test_scores_that_are_no_numbers_are_refused_or_wrong(tmp_path):
    broken = small_cnn()
    broken.model.head.bias.data[3] = math.nan
    for task in (*calibration_tasks(broken, DATA), *attribution_tasks(broken, DATA)[1:]):
        with pytest.raises(DataError, match="small-cnn: the scores for 40 of 40 images are not finite"):
            task.run()
    assert all(task.run().max() == 0 for task in composed_tasks(broken, DATA, ["only_fg", "only_bg"]))
    with pytest.raises(DataError, match="student_features are not finite"):
        feature_tasks(lambda: torch.full((40, 8), math.nan), DATA.labels, prefix="student_")[0].run()


@pytest.mark.parametrize("kind", TINY)
def test_every_kind_of_teacher_classifies(tmp_path, kind):
    torch.manual_seed(0)
    TINY[kind](tmp_path, list("abc"), 16)
    model = DiffusionClassifier(load_teacher(tmp_path, class_names=list("abc")), 4)
    x = torch.rand(3, 3, 16, 16) * 2 - 1
    scores = model(x)
    assert scores.isfinite().all() and ((scores == 0).sum(1) == 1).all() and (scores <= 0).all()
    torch.testing.assert_close(model(x[1:2]), scores[1:2])


def test_a_teacher_that_diverged_is_refused():
    teacher = Teacher(build_unet(8, 3, [16, 32]), build_scheduler(), list("abc"))
    next(teacher.net.parameters()).data.fill_(math.nan)
    task = diffusion_tasks(teacher, list("abc"), {"clean": (torch.rand(4, 3, 8, 8), torch.zeros(4).long())}, 4)[0]
    with pytest.raises(DataError, match="is not finite, so it names no class"):
        task.run()


def test_one_class_only(tmp_path):
    only = Images(DATA.images, DATA.labels * 0, ["digit"], DATA.mask)
    c = small_cnn(1, ["digit"])
    tasks = [*calibration_tasks(c, only), *attribution_tasks(c, only, steps=2), *composed_tasks(c, only)]
    values = run_tasks(tasks, tmp_path, ["digit"]).query("`class` == 'all'").set_index("metric").value
    assert values[["acc_own_mixed_rand", "acc_own_mixed_next", "acc_own_only_bg"]].tolist() == [1, 1, 1]
    assert values[["ece", "nll", "brier", "own_bg_gap"]].tolist() == [0, 0, 0, 0]
    assert values.auroc_softmax_noise == 0.5
    with pytest.raises(DataError, match="40 images of 1 classes"):
        feature_tasks(lambda: penultimate(c, X), only.labels)
    teacher = Teacher(build_unet(8, 1, [16, 32]), build_scheduler(), ["digit"])
    assert predict(DiffusionClassifier(teacher, 2), torch.rand(3, 3, 8, 8)).tolist() == [0, 0, 0]


def test_values_belong_to_images_not_to_their_place_or_batch():
    c, order = small_cnn(), torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for method in METHODS:
        maps = attribution_maps(c, X, method, steps=2)
        torch.testing.assert_close(attribution_maps(c, X[order], method, steps=2, batch_size=7), maps[order])
    for task, other in zip(calibration_tasks(c, DATA)[:2], calibration_tasks(c, DATA[order])[:2]):
        torch.testing.assert_close(other.run(), task.run()[order])
    torch.manual_seed(0)
    teacher = Teacher(build_unet(8, 3, [16, 32]), build_scheduler(), list("abc"))
    x = torch.rand(6, 3, 8, 8)
    whole = DiffusionClassifier(teacher, 4)(x)
    torch.testing.assert_close(DiffusionClassifier(teacher, 4, batch_size=2)(x.flip(0)), whole.flip(0))


def test_maps_of_constant_features_are_drawn():
    assert (feature_map(torch.ones(12, 5), "pca") == 0).all()


@pytest.mark.parametrize(
    "content, message",
    [
        ({"0": [1]}, "holds a dict, a list is expected"),
        ([[1], [1000]], "entry 1 is \\[1000\\]"),
        ([[1], 7], "entry 1 is 7"),
        ([[1]], "ILSVRC2012_val_00000002 has no labels"),
        ([[1], [2], [3]], "ILSVRC2012_val_00000003 is not in"),
    ],
)
def test_labels_of_real_have_to_fit_the_images(tmp_path, content, message):
    c = Classifier("some", SmallCNN(2, 4).eval(), imagenet_ids()[:2], 16)
    (tmp_path / "val").mkdir()
    for i in (1, 2):
        Image.new("RGB", (8, 8)).save(tmp_path / "val" / f"ILSVRC2012_val_{i:08}.JPEG")
    (tmp_path / "real.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        real_set(tmp_path / "val", tmp_path / "real.json", c)


def test_a_mapping_of_imagenet9_with_a_hole_is_refused(tmp_path):
    c = Classifier("some", SmallCNN(2, 4).eval(), imagenet_ids()[:2], 16)
    (tmp_path / "mixed_rand/val/00_dog").mkdir(parents=True)
    (tmp_path / "in_to_in9.json").write_text('{"0": -1}')
    with pytest.raises(DataError, match="says nothing of class 1"):
        imagenet9_sets(tmp_path, tmp_path / "in_to_in9.json", c)
    (tmp_path / "in_to_in9.json").write_text('{"0": -1')
    with pytest.raises(DataError, match="is damaged or cannot be read"):
        imagenet9_sets(tmp_path, tmp_path / "in_to_in9.json", c)

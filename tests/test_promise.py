"""CLAReps retain what `select` promised where both search alike; a search that stops half-way is found out."""

import pytest
import torch

from clarep.clarid.identify import decode_images, invert_images, project_out, sensitive_directions
from clarep.clarid.select import measure_retention, probe_sweep, promise
from clarep.clarid.store import Hyperparameters
from clarep.classifiers.probes import train_probe
from clarep.classifiers.splits import known_labels
from clarep.diffusion.teacher import load_teacher
from clarep.diffusion.tiny_models import make_tiny_model
from clarep.images import Images, to_bytes, to_unit

COLOURS = torch.tensor([[-0.5, -0.5, 0.1], [0.5, -0.3, -0.3], [-0.3, 0.4, -0.4], [0.2, 0.2, 0.5]])
H = Hyperparameters(500, "x0", 2, 0.0, 8, tol=0.01, energy=None, feature_layer="output")


def patches_on_colours(n: int, seed: int) -> Images:
    """Class: the quarter that is brighter than the rest. Background: one of four colours, independent of the class."""
    generator = torch.Generator().manual_seed(seed)
    labels, background = torch.randint(4, (2, n), generator=generator)
    pattern = torch.full((n, 2, 2), -0.2)
    pattern.view(n, 4)[torch.arange(n), labels] = 0.6
    pattern = pattern.repeat_interleave(4, 1).repeat_interleave(4, 2)
    x = COLOURS[background][:, :, None, None] + pattern[:, None] + 0.1 * torch.randn(n, 3, 8, 8, generator=generator)
    return Images(to_bytes(x), labels, list("abcd"), background=background)


@pytest.fixture(scope="module")
def retained(tmp_path_factory) -> dict[str, dict[str, float]]:
    """What is left beside the promise, for other images without the first n of their directions."""
    train, validation, other = (patches_on_colours(n, seed) for seed, n in enumerate((400, 100, 100)))
    probes = [{fact: train_probe(train, y, 12, i) for fact, y in known_labels(train).items()} for i in range(2)]
    folder = tmp_path_factory.mktemp("teacher")
    make_tiny_model("unet", folder, train.class_names, to_unit(train.images), train.labels)
    teacher = load_teacher(folder)
    sweep = probe_sweep(teacher, validation, train[:100], H, [H.t_e], [H.layer], [H.k], probes)
    table = measure_retention(sweep).table

    c, x = teacher.condition(other.labels), invert_images(teacher, other, H.t_e, H.steps)
    V, *_ = sensitive_directions(teacher, x, c, H.t_e, H.layer, H.k, H.tol)

    def samples(v: torch.Tensor) -> torch.Tensor:
        return decode_images(teacher, project_out(x, v), c, H.t_e, H.steps, 0.0)

    parts = {"all": V, "first half": V[:, : H.k // 2], "second half": V[:, H.k // 2 :]}
    unprojected, truth = samples(V[:, :0]), known_labels(other)
    return {name: promise(table.iloc[-1], probes, samples(v), unprojected, truth) for name, v in parts.items()}


def test_the_directions_that_were_promised_keep_the_promise(retained):
    assert abs(retained["all"]["background_retained_z"]) < 2 and abs(retained["all"]["class_retained_z"]) < 2
    assert retained["all"]["background_retained"] < 0.4 and retained["all"]["class_retained"] > 0.9


@pytest.mark.parametrize("part", ["first half", "second half"])
def test_half_of_the_directions_break_the_promise(retained, part):
    assert retained[part]["background_retained_z"] > 2

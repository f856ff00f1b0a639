"""Measurements: a classifier's scale, its constancy or its nan must not pass for robustness or accuracy."""

import math
import tracemalloc
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from clarep.classifiers.networks import SmallCNN, accuracy, classes_of, predict
from clarep.classifiers.train import train_student
from clarep.diffusion.schedule import Schedule
from clarep.diffusion.teacher import Teacher, build_scheduler, build_unet
from clarep.digits import digits_on_photos
from clarep.evaluate import students
from clarep.evaluate.adversarial import ATTACKS, attack_tasks, survivors
from clarep.evaluate.attacks import SPREAD, margin, pgd_accuracy, pgd_linf
from clarep.evaluate.attribution import share_inside
from clarep.evaluate.background import accuracy_by_class, background_metrics
from clarep.evaluate.calibration import calibration_error
from clarep.evaluate.corruptions import corrupt
from clarep.evaluate.diffusion_classifier import diffusion_tasks
from clarep.evaluate.features import feature_tasks
from clarep.evaluate.scatter import scatter_metrics, scatter_table
from clarep.evaluate.statistics import COLUMNS, bootstrap_interval, contrasts, mean_ranks, summary
from clarep.evaluate.tasks import Classifier
from clarep.files import DataError
from clarep.images import Images, to_unit
from clarep.report.comparison import outcome
from clarep.sources import choose_classes

SCALES = [1e-4, 0.05, 1.0, 30.0, 1e3, 1e6]
ATTACK = dict(eps_255=8.0, step_255=2.0, steps=20)


class Scaled(nn.Module):
    """A classifier whose scores are multiplied and shifted: it decides as before."""

    def __init__(self, body: nn.Module, scale: float, shift: float = 0.0):
        super().__init__()
        self.body, self.scale, self.shift = body, scale, shift

    def forward(self, x):
        return self.scale * self.body(x) + self.shift


class Constant(nn.Module):
    """The same scores for every image."""

    def __init__(self, scores: list[float]):
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(scores))

    def forward(self, x):
        return self.scores + 0 * x.flatten(1).sum(1, keepdim=True)


class Broken(nn.Module):
    """Right about the class, but some scores of some images are not finite."""

    def __init__(self, classes: torch.Tensor, images: torch.Tensor, share: float, value: float):
        super().__init__()
        self.unused, self.value = nn.Parameter(torch.zeros(1)), value
        self.answers = {x.numpy().tobytes(): int(c) for x, c in zip(images, classes)}
        self.broken = {x.numpy().tobytes() for x in images[: round(share * len(images))]}

    def forward(self, x):
        keys = [i.numpy().tobytes() for i in x.detach()]
        scores = F.one_hot(torch.tensor([self.answers.get(k, 0) for k in keys]), 10).float()
        scores[[k in self.broken for k in keys], 0] = self.value
        return scores + 0 * x.flatten(1).sum(1, keepdim=True)


@pytest.fixture(scope="module")
def linear() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Ten classes on noise, labels as the classifier has them."""
    g = torch.Generator().manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(192, 10, bias=False))
    body[1].weight.data = torch.randn(10, 192, generator=g)
    x = (torch.rand(300, 3, 8, 8, generator=g) * 2 - 1) * 0.9
    return body, x, body(x).argmax(1)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A small network after a few epochs."""
    data = digits_on_photos("train", 400, 16, rho=0.3, opacity=1.0, clutter=0)
    torch.manual_seed(0)
    model = SmallCNN(10, width=8)
    train_student(model, data, epochs=8, batch_size=50, learning_rate=1e-2, weight_decay=0.0, seed=0)
    return model, to_unit(data.images)[:120], data.labels[:120]


@pytest.mark.parametrize("kind", ["linear", "trained"])
def test_the_scale_of_logits_does_not_change_robust_accuracy(kind, request):
    body, x, y = request.getfixturevalue(kind)
    eps = dict(ATTACK) if kind == "linear" else dict(eps_255=2.0, step_255=0.5, steps=10)
    right = {s: pgd_accuracy(Scaled(body, s), x, y, **eps) for s in SCALES}
    shares = {s: r.double().mean().item() for s, r in right.items()}
    assert 0 < shares[1.0] < 0.9 and max(shares.values()) - min(shares.values()) <= 0.01, shares
    shifted = pgd_accuracy(Scaled(body, 1.0, 50.0), x, y, **eps).double().mean().item()
    assert abs(shifted - shares[1.0]) <= 0.02


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e4])
def test_apgd_finds_the_true_robust_accuracy_at_any_scale(scale):
    """Of a linear classifier it is known: the share of images whose margin is beyond the radius."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(768, 2, bias=False)).eval().requires_grad_(False)
    pixels = torch.randint(30, 226, (200, 16, 16, 3), dtype=torch.uint8)
    weight = body[1].weight[0] - body[1].weight[1]
    margins = to_unit(pixels).flatten(1) @ weight
    radius = float(margins.abs().median() / weight.abs().sum()) / 2 * 255
    classifier = Classifier("linear", Scaled(body, scale), ["a", "b"], 16)
    stand = survivors(ATTACKS["apgd_ce_linf"], classifier, Images(pixels, (margins < 0).long(), ["a", "b"]), radius)
    assert abs(stand.double().mean() - 0.5) <= 0.02, stand.double().mean()


def test_attacks_that_need_more_classes_are_named(linear, capsys):
    body, x, _ = linear
    data = Images(torch.zeros(8, 8, 8, 3, dtype=torch.uint8), torch.arange(8) % 2, ["a", "b"])
    pair = Classifier("pair", nn.Sequential(body, nn.Linear(10, 2)), data.class_names, 8)
    with pytest.raises(DataError, match="apgd_dlr_linf works for 2 classes"):
        attack_tasks(pair, data, attacks=["apgd_dlr_linf"])
    assert len(attack_tasks(pair, data, attacks=["apgd_dlr_linf", "pgd20_linf"], radii_linf=[1])) == 3
    assert "left out: apgd_dlr_linf" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(20))
def test_the_margin_has_the_gradient_of_the_cross_entropy(seed):
    """Of the cross-entropy in double precision, of logits whose spread is between 10 and 40; at any scale."""
    g = torch.Generator().manual_seed(seed)
    k, scale = int(torch.randint(2, 30, (), generator=g)), 10 ** float(6 * torch.rand((), generator=g) - 3)
    z, y = torch.randn(50, k, generator=g).double(), torch.randint(k, (50,), generator=g)
    z = 20 * (z - z.amin(1, True)) / (z.amax(1, True) - z.amin(1, True))
    weights = torch.randn(12, k, generator=g).double()

    def signs(loss, z):
        v = torch.zeros(50, 12, dtype=z.dtype, requires_grad=True)
        return torch.autograd.grad(loss(z + v @ weights.to(z.dtype) * z.abs().max(), y).sum(), v)[0].sign()

    within = min(max(20 * scale, SPREAD[0]), SPREAD[1]) / 20
    exact = signs(lambda z, y: F.cross_entropy(z, y, reduction="none"), z * within)
    assert (signs(lambda z, y: margin(z, y, 20 * scale), (z * scale).float()) == exact).double().mean() > 0.995


def test_an_attack_stays_in_its_ball_at_any_scale(trained):
    body, x, y = trained
    for scale in SCALES:
        attacked = pgd_linf(Scaled(body, scale), x[:20], y[:20], 8.0, 2.0, 5, torch.Generator().manual_seed(0))
        assert attacked.isfinite().all() and (attacked - x[:20]).abs().max() <= 16 / 255 + 1e-6
        assert attacked.abs().max() <= 1


@pytest.mark.parametrize(
    "scores", [[0.0] * 10, [5.0] * 10, [0.0, 1e4] + [0.0] * 8, [-1e-8] * 9 + [0.0], [1e30] + [0.0] * 9]
)
def test_a_constant_classifier_has_a_true_row(scores, trained):
    _, x, y = trained
    model, answer = Constant(scores), int(torch.tensor(scores).argmax())
    assert accuracy(model, x, y) == (y == answer).double().mean()
    assert torch.equal(pgd_accuracy(model, x, y, **ATTACK), y == answer)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_scores_that_are_not_finite_are_no_answers(share, value):
    data = digits_on_photos("test", 40, 16, rho=0.3, opacity=1.0, clutter=0)
    x = to_unit(data.images)
    model, broken = Broken(data.labels, x, share, value), torch.arange(40) < share * 40
    assert (
        torch.equal(predict(model, x), data.labels.where(~broken, -1)) and accuracy(model, x, data.labels) == 1 - share
    )
    assert not pgd_accuracy(Constant([value] + [0.0] * 9), x, data.labels, **ATTACK).any()
    with pytest.raises(
        DataError, match=rf"test-original: the scores for {int(share * 40)} of 40 .* `student.learning_rate`"
    ):
        background_metrics(model, {"original": data})
    assert classes_of(torch.tensor([[0.0, value], [0.0, 1.0]])).tolist() == [-1, 1]


class Unmoved(nn.Module):
    """Scores that do not depend on the image; without parameters unless there is a bias."""

    def __init__(self, bias: bool):
        super().__init__()
        self.scores = nn.Parameter(torch.tensor([0.0, 1.0])) if bias else torch.tensor([0.0, 1.0])

    def forward(self, x):
        return self.scores.expand(len(x), 2)


@pytest.mark.parametrize("bias", [True, False])
def test_scores_without_a_gradient_have_a_true_row(bias, trained, capsys):
    _, x, y = trained
    assert torch.equal(pgd_accuracy(Unmoved(bias), x, (y % 2).int(), **ATTACK), y % 2 == 1)
    assert accuracy(Unmoved(bias), x, y % 2) == (y % 2).double().mean()
    assert "120 of 120 images have no gradient" in capsys.readouterr().out


def test_a_saturated_softmax_is_said(linear, capsys):
    """Robust it only looks."""
    body, x, y = linear
    pgd_accuracy(Scaled(body, 1.0), x, y, **ATTACK)
    assert not capsys.readouterr().out
    pgd_accuracy(nn.Sequential(Scaled(body, 1e3), nn.Softmax(1)), x, y, **ATTACK)
    assert "have no gradient, so PGD has not attacked them" in capsys.readouterr().out


def test_a_network_in_training_is_measured_in_evaluation_and_given_back(trained):
    body, x, y = trained
    expected, state = pgd_accuracy(body.eval(), x, y, **ATTACK), {k: v.clone() for k, v in body.state_dict().items()}
    assert torch.equal(pgd_accuracy(body.train(), x, y, **ATTACK), expected) and body.training
    assert all(torch.equal(v, state[k]) for k, v in body.state_dict().items())
    body.eval()


@pytest.mark.parametrize("shift", [1, -1])
def test_labels_outside_of_the_classes_are_refused(shift):
    with pytest.raises(ValueError, match="but the 3 classes are 0 to 2"):
        Images(torch.zeros(6, 8, 8, 3, dtype=torch.uint8), torch.arange(6) % 3 + shift, list("abc"))


class Answers(nn.Module):
    """A classifier whose scores come in another form."""

    def __init__(self, body: nn.Module, form):
        super().__init__()
        self.body, self.form = body, form

    def forward(self, x):
        return self.form(self.body(x))


def test_scores_in_other_forms_are_taken_or_refused(trained):
    """Networks of transformers answer with a mapping; a tuple may hold anything."""
    body, x, y = trained
    for form in (lambda z: {"logits": z}, lambda z: ImageClassifierOutput(logits=z)):
        assert accuracy(Answers(body, form), x, y) == accuracy(body, x, y)
        assert torch.equal(pgd_accuracy(Answers(body, form), x, y, **ATTACK), pgd_accuracy(body, x, y, **ATTACK))
    for form, what in (
        (lambda z: (z, z), "type tuple"),
        (lambda z: {"scores": z}, "type dict"),
        (lambda z: z.sum(1), "shape"),
    ):
        for measure in (lambda m: accuracy(m, x, y), lambda m: pgd_accuracy(m, x, y, **ATTACK)):
            with pytest.raises(DataError, match=f"Answers returns scores of {what}"):
                measure(Answers(body, form))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 0.01), (torch.bfloat16, 0.05)])
def test_weights_of_another_precision_are_measured(dtype, tolerance, trained):
    body, x, y = trained
    other = deepcopy(body).to(dtype)
    assert abs(accuracy(other, x, y) - accuracy(body, x, y)) <= tolerance
    robust, expected = (pgd_accuracy(m, x, y, **ATTACK).double().mean() for m in (other, body))
    assert abs(robust - expected) <= tolerance


def test_fewer_scores_than_classes_are_refused(trained):
    body, x, y = trained
    with pytest.raises(DataError, match="has 2 scores and the labels count 10 classes"):
        pgd_accuracy(Answers(body, lambda z: z[:, :2]), x, y, **ATTACK)
    assert pgd_accuracy(Answers(body, lambda z: F.pad(z, (0, 5))), x, y, **ATTACK).shape == y.shape


def test_images_that_are_all_one_have_scatter_of_nothing():
    data = Images(torch.full((60, 8, 8, 3), 7, dtype=torch.uint8), torch.arange(60) % 3, list("abc"))
    metrics = scatter_metrics(scatter_table(data, Schedule(build_scheduler())))
    assert metrics["class_scatter"] == 0 and all(map(math.isfinite, metrics.values()))


def test_a_class_that_is_absent_has_no_row_and_breaks_nothing():
    data = digits_on_photos("test", 60, 16, rho=0.3, opacity=1.0, clutter=0)
    some, fewer = data[data.labels != 3], data[(data.labels != 3) & (data.labels != 4)]
    metrics = background_metrics(
        Constant([1.0] + [0.0] * 9), {"original": some, "mixed_same": some, "mixed_rand": fewer}
    )
    assert "3" not in metrics["acc_clean"] and "4" in metrics["acc_mixed_same"] and "4" not in metrics["bg_gap"]
    assert set(metrics["bg_gap"]) == {"all", *"01256789"}
    students.tests_figure(metrics, data.class_names, "constant").clear()
    assert accuracy_by_class(torch.ones(3, dtype=bool), torch.zeros(3, dtype=int), ["only"]) == {
        "all": 1.0,
        "only": 1.0,
    }


def test_one_class_is_refused():
    with pytest.raises(DataError, match="one class only .*at least two"):
        choose_classes({"only": np.arange(5)}, None)


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_equal_arms_have_finite_statistics(n_seeds):
    """Constant classifiers: every seed and arm has the same accuracy."""
    table = pd.DataFrame(
        [
            ("evaluate", arm, seed, metric, "all", 0.1)
            for arm in ("ce", "kd", "supcon")
            for seed in range(n_seeds)
            for metric in ("acc_clean", "bg_gap")
        ],
        columns=COLUMNS,
    )
    pairs = contrasts(table, ["acc_clean", "bg_gap"], "ce")
    assert (pairs.difference == 0).all() and (pairs.p == 1).all() and (pairs.p_holm == 1).all()
    assert mean_ranks(summary(table, ["acc_clean", "bg_gap"], "ce"), {"bg_gap"}).tolist() == [2.0] * 3


@pytest.mark.parametrize("scale", [0.4, 1e3])
def test_equal_confidences_have_an_error_whatever_their_order(scale):
    scores = torch.tensor([[scale, 0.0]], dtype=torch.float64).repeat(100, 1)
    true = abs(scores[0].softmax(0)[0].item() - 0.7)
    for labels in ([0] * 70 + [1] * 30, [1] * 30 + [0] * 70, [0, 0, 1, 0, 1, 0, 0, 1, 0, 0] * 10):
        assert abs(calibration_error(scores, torch.tensor(labels)) - true) < 1e-9


def arms(**values: float) -> pd.DataFrame:
    """A metric of some arms, for three seeds."""
    rows = [("evaluate", arm, seed, "bg_gap", "all", v) for arm, v in values.items() for seed in range(3)]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_a_difference_of_rounding_is_none():
    table = arms(ce=0.9 - 0.6, kd=0.7 - 0.4)
    row = summary(table, ["bg_gap"], "ce").set_index("arm").loc["kd"]
    assert outcome("bg_gap", row.difference, row.difference_half) == "undecided"
    assert contrasts(table, ["bg_gap"], "ce")[["effect", "p"]].to_numpy().tolist() == [[0, 1]]


@pytest.mark.parametrize("function", [summary, contrasts])
def test_what_a_table_lacks_or_has_twice_is_named(function):
    table = arms(ce=0.1, kd=0.2)
    other = table[table.arm == "ce"].assign(metric="mce")
    with pytest.raises(DataError, match="kd has no mce"):
        function(pd.concat([table, other]), ["bg_gap", "mce"], "ce")
    with pytest.raises(DataError, match="bg_gap of kd, seed 2, stands twice"):
        function(pd.concat([table, table[-1:]]), ["bg_gap"], "ce")


def test_a_bootstrap_needs_little_memory():
    values = np.random.default_rng(0).random(3000)
    tracemalloc.start()
    low, high = bootstrap_interval(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert low < values.mean() < high and peak < 100e6, peak


def test_a_teacher_that_overflows_names_no_class():
    teacher = Teacher(build_unet(8, 3, [16, 32]), build_scheduler(), list("abc"))
    teacher.net.conv_out.bias.data[0] = math.nan
    with pytest.raises(DataError, match="noise at timestep .* is not finite"):
        diffusion_tasks(teacher, list("abc"), {"test": (torch.zeros(2, 3, 8, 8), torch.arange(2))}, 2)[0].run()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_map_has_no_share(value):
    with pytest.raises(DataError, match="of 1 of 1 images is not finite"):
        share_inside(torch.full((1, 4, 4), value), torch.full((1, 4, 4), 255, dtype=torch.uint8))


@pytest.mark.parametrize("labels", [torch.arange(20), torch.tensor([0] * 19 + [1]), torch.zeros(20, dtype=torch.long)])
def test_features_of_too_few_images_are_refused(labels):
    with pytest.raises(DataError, match="several of two classes"):
        feature_tasks(lambda: torch.randn(20, 4), labels)


@pytest.mark.parametrize(("name", "severity"), [("contrast", 0), ("contrast", 6), ("fog2", 3)])
def test_a_corruption_that_there_is_not_is_refused(name, severity):
    with pytest.raises(DataError, match=f"no {name} of severity {severity}"):
        corrupt(np.zeros((16, 16, 3), np.uint8), name, severity, 0)

"""Stage `suite` in a project of untrained networks: the teacher beside a student, and transfer from the baseline."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import copy_of_project, run_all, run_in, run_stages

from clarep.classifiers.networks import SmallCNN, load_student, predict, save_student
from clarep.diffusion.teacher import build_scheduler, build_unet, load_teacher, save_teacher
from clarep.digits import digits_on_photos
from clarep.evaluate.attacks import pgd_linf
from clarep.evaluate.diffusion_classifier import DiffusionClassifier
from clarep.files import load_json
from clarep.images import Images, class_balanced, to_unit
from clarep.report.page import suite_section

SMOKE = ("python", "-m", "clarep.params", "smoke")
ARMS = ["ce", "cadistill"]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """What stage `suite` reads, at random."""
    home = copy_of_project(tmp_path_factory.mktemp("suite"))
    torch.manual_seed(0)
    names = [str(i) for i in range(10)]
    for arm in ARMS:
        network = SmallCNN(10, width=4).eval()
        network.head.weight.data *= 20
        file = home / f"runs/student/{arm}-0/student.safetensors"
        save_student(file, network, model="small-cnn", width=4, class_names=names, image_size=16, arm=arm)
    for variant, rho in (("original", 0.9), ("mixed_rand", 0.0)):
        pixels = digits_on_photos("test", 60, 16, rho=rho, opacity=1.0, clutter=0).images
        data = Images(pixels, predict(network, to_unit(pixels)), names)  # the last student is always right
        data.save(home / f"data/prepared/splits/test-{variant}.safetensors")
    unet = build_unet(16, 10, [16, 32], patch_size=2)
    unet.class_embedding.weight.data *= 8
    save_teacher(home / "runs/teacher/model", unet, build_scheduler(), names, 2)
    return home


def run(home: Path, suites: list[str]) -> dict[str, dict[str, float]]:
    """The numbers of every student."""
    run_stages(home, SMOKE, {"suite": {"suites": suites}}, ["suite"])
    return {arm: load_json(home / f"runs/suite/{arm}-0/metrics.json") for arm in ARMS}


def attacked(model, images: Images, radius: float) -> torch.Tensor:
    """PGD with 20 steps."""
    generator = torch.Generator().manual_seed(0)
    return pgd_linf(model, to_unit(images.images), images.labels, radius, radius / 4, 20, generator)


def test_the_teacher_has_rows_beside_every_student(project):
    metrics = run(project, ["teacher"])
    splits = project / "data/prepared/splits"
    clean, mixed = (
        class_balanced(Images.load(splits / f"test-{v}.safetensors"), 20) for v in ("original", "mixed_rand")
    )
    teacher = DiffusionClassifier(load_teacher(project / "runs/teacher/model"), 4)
    answers = set()
    for arm, values in metrics.items():
        student = load_student(project / f"runs/student/{arm}-0/student.safetensors")[0]
        sets = {"clean": to_unit(clean.images), "mixed_rand": to_unit(mixed.images)}
        sets["pgd20_linf_4"] = attacked(student, clean, 4)
        for name, x in sets.items():
            labels = (mixed if name == "mixed_rand" else clean).labels
            for who, model in (("teacher", teacher), ("student", student)):
                right = (predict(model, x) == labels).double()
                assert values.pop(f"acc_{who}_{name}") == right.mean(), (arm, who, name)
            answers.add((name, tuple(predict(teacher, x).tolist())))
        assert values.pop("evaluations_per_image") == teacher.evaluations and not values
    assert len(answers) == 4  # two sets that all students share, and what attacks each of them
    table = pd.read_csv(project / "runs/suite/ce-0/profile/suite.csv")
    assert (table[(table["class"] == "all") & (table.images > 0)].images == 20).all()
    assert "teacher-accuracy.png" in (project / "runs/suite/ce-0/profile/profile.md").read_text()
    saved = [p.name.split("-")[0] for p in (project / ".scratch/suite-cache").glob("teacher-*/*")]
    assert sorted(saved) == ["teacher_clean", "teacher_mixed_rand", *["teacher_pgd20_linf_4"] * 2]
    section = suite_section(project / "runs", ARMS, [0])
    assert [line.split(" |")[0] for line in section.splitlines() if line.startswith("| `")] == [
        "| `teacher`",
        "| `ce`",
        "| `cadistill`",
    ]


def test_what_is_transferred_comes_from_the_baseline(project):
    metrics = run(project, ["attacks"])
    assert "masking_acc_pgd" in metrics["ce"] and "masking_acc_transfer" not in metrics["ce"]
    images = class_balanced(Images.load(project / "data/prepared/splits/test-original.safetensors"), 20)
    baseline, student = (load_student(project / f"runs/student/{arm}-0/student.safetensors")[0] for arm in ARMS)
    stand = (predict(student, to_unit(images.images)) == images.labels).nonzero().flatten()
    labels = images.labels[stand]
    right = predict(student, attacked(baseline, images[stand], 8)) == labels
    assert 0 < right.sum() < len(stand) and metrics["cadistill"]["masking_acc_transfer"] == right.sum() / 20


def test_a_baseline_that_is_no_arm_is_refused_before_the_suite(project):
    run_all(project, SMOKE)
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("baseline: ce ", "baseline: kd "))
    done = run_in(project, "dvc", "repro", "suite")
    assert done.returncode != 0 and "`compare.baseline`: 'kd' is not among `compare.arms`" in done.stdout + done.stderr

"""The whole pipeline at smoke size: it ends with metrics, runs nothing twice, and reruns what a change touches."""

import gzip
import json
import os
import re
import signal
import struct
import subprocess
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import copy_of_project, run_in

from clarep.pipeline.estimate import chosen, clareps_work, settled, spent
from clarep.images import Images
from clarep.evaluate.representation import OURS
from clarep.files import fingerprint
from clarep.params import load_params
from clarep.pipeline.stage import STAGES

pytestmark = pytest.mark.xdist_group("smoke")  # one worker has the project


def ran(done: subprocess.CompletedProcess) -> set[str]:
    """The stages that a `dvc repro` ran."""
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return set(re.findall(r"Running stage '([^']+)'", done.stdout))


def test_ends_with_a_table_and_a_page(smoke):
    table = pd.read_csv(smoke / "runs/report/results.csv")
    assert table.columns.tolist() == ["stage", "arm", "seed", "metric", "class", "value"]
    tests = table[(table.stage == "evaluate") & (table["class"] == "all") & ~table.metric.isin(["seconds", "stage_seconds"])]
    assert set(tests.metric) == {"acc_clean", "acc_mixed_same", "acc_mixed_rand", "acc_mixed_next", "acc_only_fg", "acc_no_fg", "bg_gap", "acc_pgd20_linf"}
    assert tests.groupby(["arm", "seed"]).size().to_dict() == {(a, s): 8 for a in ("ce", "cadistill") for s in (0, 1)}
    accuracies = table[table.metric.str.startswith("acc_")].value
    assert accuracies.between(0, 1).all() and not table.duplicated(["stage", "arm", "seed", "metric", "class"]).any()
    page = (smoke / "runs/report/index.html").read_text()
    assert "What was found" in page and page.count("data:image/png") == 14 and "://" not in page.replace("data:image", "")


def test_canonical_samples_are_a_tenth_of_every_class(smoke):
    index = json.loads((smoke / "runs/clareps/shards/index.json").read_text())
    assert sum(index["counts"]) == 30 and index["k"] == 8


def test_knobs_that_params_leave_open_are_those_that_were_chosen(smoke):
    index, choice = (json.loads((smoke / f"runs/{f}").read_text()) for f in ("clareps/shards/index.json", "select/choice.json"))
    assert (index["layer"], index["t_e"], index["guidance"]) == (choice["layer"], 100, 3.0) and choice["why"]
    swept = pd.read_csv(smoke / "runs/select/sweep.csv", keep_default_na=False)
    keep = swept[(swept.k > 0) & (swept.class_retained >= 0.85)]
    near = keep[keep.selectivity >= keep.selectivity.max() - 0.05]
    here = near[(near.t_e == choice["t_e"]) & (near.layer == choice["layer"]) & (near.k == choice["k"])]
    assert here.background_retained.item() == near.background_retained.min()


def test_every_stage_notes_its_seconds_and_does_the_work_that_was_counted(smoke):
    p, choice, cost = load_params(smoke / "params.yaml"), *(json.loads((smoke / f"runs/{f}.json").read_text()) for f in ("select/choice", "clareps/cost"))
    took = spent(smoke, p)
    assert set(took.index) == set(STAGES) - {"report"} and (took.seconds > 0).all() and took.runs["student"] == 4 and took.runs["tune"] == 2
    counted = clareps_work(p, settled(p, chosen(p, choice)), 1, 1)["clareps"]
    assert counted.count("evaluation") == cost["teacher_evals"] and cost["jacobian_products"] >= 2 * counted.directions
    report = (smoke / "runs/report/report.md").read_text()
    assert f"| {took.seconds['representation']:,.0f} |" in report and "| student (4 runs) |" in report


def test_every_method_and_control_has_its_rows(smoke):
    table = pd.read_csv(smoke / "runs/report/results.csv")
    part = table[(table.stage == "representation") & (table["class"] == "all")]
    controls = {"unconditional", "output_jacobian", "smallest", "random", "low_frequency", "class_pca", "fresh_noise"}
    for method in {*OURS, *controls}:
        own = part[part.arm == method]
        for metric in ("class_retained", "background_retained", "selectivity"):
            for suffix in ("", "_guided", "_recoloured", "_guided_recoloured"):
                assert len(own[own.metric == metric + suffix]) == 2, (method, metric + suffix)
    difference = part.pivot_table(index=["arm", "seed"], columns="metric", values="value")
    assert (difference.class_retained - difference.background_retained - difference.selectivity).abs().max() < 1e-4


def test_other_objects_go_in_by_params_alone(tmp_path):
    home, rng = copy_of_project(tmp_path), np.random.default_rng(0)
    (home / "data/shapes").mkdir(parents=True)
    for stem in ("train", "t10k"):
        for name, array in (("images-idx3-ubyte", rng.integers(0, 256, (60, 28, 28))), ("labels-idx1-ubyte", np.arange(60) % 3)):
            content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
            (home / "data/shapes" / f"{stem}-{name}.gz").write_bytes(gzip.compress(content))
    assert run_in(home, "python", "-m", "clarep.params", "smoke").returncode == 0
    text = re.sub(r"objects:.*", "objects: data/shapes", (home / "params.yaml").read_text())
    text = re.sub(r"class_names:.*", "class_names: [one, two, three]", text)
    (home / "params.yaml").write_text(text)
    done = run_in(home, "dvc", "repro", "data")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    train = Images.load(home / "data/prepared/splits/train.safetensors")
    assert train.class_names == ["one", "two", "three"] and train.labels.bincount().tolist() == [100, 100, 100]


def test_second_run_runs_nothing(run):
    assert ran(run("dvc", "repro")) == set()


def test_saving_a_stage_notebook_for_its_outputs_reruns_only_the_strip_stage(smoke, run):
    path = smoke / "nbs/stages/teacher.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", text="looked at it\n")]
    nbformat.write(notebook, path)
    assert ran(run("dvc", "repro")) == {"prepare"}


def test_another_k_reruns_clareps_and_what_follows_and_the_way_back_is_free(run):
    there = run("dvc", "exp", "run", "-S", "clareps.k=4", "evaluate@cadistill-0")
    assert ran(there) == {"prepare", "clareps", "auxiliary@cadistill", "tune@cadistill", "student@cadistill-0", "evaluate@cadistill-0"}
    assert ran(run("dvc", "exp", "run", "-S", "clareps.k=8")) <= {"report"}


def test_killed_training_goes_on_and_ends_with_the_same_bytes(smoke):
    straight = fingerprint(smoke / "runs/teacher/model")
    command = [os.fspath(Path(os.sys.executable)), "-m", "clarep.pipeline.stage", "teacher"]
    job = subprocess.Popen(command, cwd=smoke, env={**os.environ, "PYTHONPATH": str(smoke)}, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while not list((smoke / ".scratch").glob("teacher-*/state.safetensors")):
        assert job.poll() is None and time.monotonic() < limit, "no checkpoint appeared"
        time.sleep(0.02)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    assert fingerprint(smoke / "runs/teacher/model") == straight
    done = run_in(smoke, "python", "-m", "clarep.pipeline.stage", "teacher")
    assert done.returncode == 0 and "going on from step" in done.stdout, done.stdout + done.stderr
    assert fingerprint(smoke / "runs/teacher/model") == straight
    assert not list((smoke / ".scratch").glob("teacher-*"))


def test_same_seed_in_a_clean_copy_gives_the_same_metrics(smoke, tmp_path):
    other = copy_of_project(tmp_path)
    for command in (("python", "-m", "clarep.params", "smoke"), ("dvc", "repro", "student@cadistill-0")):
        done = run_in(other, *command)
        assert done.returncode == 0, done.stderr[-3000:]
    for name in ("runs/teacher/metrics.json", "runs/clareps/metrics.json", "runs/tune/cadistill/metrics.json", "runs/student/cadistill-0/metrics.json"):
        assert (other / name).read_bytes() == (smoke / name).read_bytes()
    assert fingerprint(other / "runs/clareps/shards") == fingerprint(smoke / "runs/clareps/shards")
    assert fingerprint(other / "runs/clareps/clareps.ipynb") == fingerprint(smoke / "runs/clareps/clareps.ipynb")

"""The whole pipeline at smoke size: it ends with metrics, runs nothing twice, and reruns what a change touches."""

import gzip
import json
import os
import py_compile
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
from conftest import HOME, copy_of_project, run_all, run_in, run_one_process

from clarep.clarid.select import Rule
from clarep.files import fingerprint
from clarep.images import Images
from clarep.params import load_params
from clarep.pipeline.estimate import measured_seconds
from clarep.pipeline.progress import stages_to_run
from clarep.pipeline.stage import STAGES, recorded_seconds


def ran(done: subprocess.CompletedProcess) -> set[str]:
    """The stages that a `dvc repro` ran."""
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return set(re.findall(r"Running stage '([^']+)'", done.stdout))


TIME_LEFT = re.compile(r"^(\S+): (\d+) of (\d+) stages to run, about (\S+) (s|min|h) left$", re.MULTILINE)


def test_each_stage_says_how_long_the_rest_will_take(smoke):
    """One line a stage, counts down to 1; at last, times that follow from what the stages have taken so far."""
    text = (smoke / ".scratch/repro.log").read_text()
    names = [name for name in re.findall(r"Running stage '([^']+)'", text) if name != "prepare"]
    lines = TIME_LEFT.findall(text)
    assert [(name, int(n), int(total)) for name, n, total, *_ in lines] == [
        (name, len(names) - i, len(names)) for i, name in enumerate(names)
    ]
    expected = [float(number) * {"s": 1, "min": 60, "h": 3600}[unit] for *_, number, unit in lines]
    rows = json.loads((smoke / ".scratch/plan.json").read_text())
    took = [recorded_seconds(smoke / row["folder"]) for row in rows if row["name"] != "report"]
    ended = [(smoke / path).stat().st_mtime for path in (rows[-2]["folder"] + "/cost.json", "runs/report/index.html")]
    took.append(ended[1] - ended[0])
    for i, name in enumerate(names):
        if name.startswith(("student@", "suite@", "report")):
            assert 1 / 3 < expected[i] / sum(took[i:]) < 3, (name, expected[i], sum(took[i:]))
    assert expected[-1] < expected[names.index("student@ce-0")] / 3 and expected[-1] < max(expected) / 6


def curves(plots: str) -> dict[str, list[dict]]:
    """The points of the curves in `live/`, as `dvc plots show --json` prints them; no plot may fail."""
    plots = json.loads(plots)
    assert not plots.get("errors")
    return {
        Path(name).relative_to("live").as_posix(): [point for p in drawn for point in p["content"]["data"]["values"]]
        for name, drawn in plots["data"].items()
        if name.startswith("live/")
    }


def test_dvc_plots_has_the_curves_of_teacher_and_student(smoke, run):
    drawn = curves(run("dvc", "plots", "show", "--json").stdout)
    assert [int(point["step"]) for point in drawn["teacher/plots/metrics/loss.tsv"]] == [25, 50]
    last = re.findall(r"Running stage 'student@([^']+)'", (smoke / ".scratch/repro.log").read_text())[-1]
    history = pd.read_csv(smoke / f"runs/student/{last}/history.csv", index_col="epoch")
    assert {"ce", "acc_clean", "acc_changed"} < {*history}
    assert {*drawn} == {"teacher/plots/metrics/loss.tsv"} | {f"student/plots/metrics/{term}.tsv" for term in history}
    for term in history:
        points = {int(p["step"]): float(p[term]) for p in drawn[f"student/plots/metrics/{term}.tsv"]}
        assert np.allclose(pd.Series(points), history[term].dropna(), rtol=1e-5) and len(points)
    status = run("git", "status", "--porcelain", "--", "live").stdout
    (smoke / "live").rename(smoke / ".scratch/live"), (smoke / "live").mkdir()
    nothing = curves(run("dvc", "plots", "show", "--json").stdout)
    (smoke / "live").rmdir(), (smoke / ".scratch/live").rename(smoke / "live")
    assert status == "" and nothing == {}


def test_ends_with_a_table_and_a_page(smoke):
    table = pd.read_csv(smoke / "runs/report/results.csv")
    assert table.columns.tolist() == ["stage", "arm", "seed", "metric", "class", "value"]
    tests = table[
        (table.stage == "evaluate") & (table["class"] == "all") & ~table.metric.isin(["seconds", "stage_seconds"])
    ]
    assert set(tests.metric) == {
        "acc_clean",
        "acc_mixed_same",
        "acc_mixed_rand",
        "acc_mixed_next",
        "acc_only_fg",
        "acc_no_fg",
        "bg_gap",
        "acc_pgd20_linf",
    }
    assert tests.groupby(["arm", "seed"]).size().to_dict() == {(a, s): 8 for a in ("ce", "cadistill") for s in (0, 1)}
    accuracies = table[table.metric.str.startswith("acc_")].value
    assert accuracies.between(0, 1).all() and not table.duplicated(["stage", "arm", "seed", "metric", "class"]).any()
    page = (smoke / "runs/report/index.html").read_text()
    assert (
        "What was found" in page and page.count("data:image/png") == 14 and "://" not in page.replace("data:image", "")
    )


def test_canonical_samples_are_a_tenth_of_every_class(smoke):
    index = json.loads((smoke / "runs/clareps/shards/index.json").read_text())
    assert sum(index["counts"]) == 30 and index["hyperparameters"]["k"] == 8


def test_hyperparameters_that_params_leave_open_are_those_of_select(smoke):
    index, choice = (
        json.loads((smoke / f"runs/{f}").read_text()) for f in ("clareps/shards/index.json", "select/choice.json")
    )
    used = index["hyperparameters"]
    assert (used["layer"], used["t_e"], used["guidance_scale"]) == (choice["layer"], 100, 3.0) and choice["why"]
    settings = load_params(smoke / "params.yaml").select
    sweep = pd.read_csv(smoke / "runs/select/sweep.csv", keep_default_na=False)
    rule = Rule(settings.min_class_retained, settings.max_overlap, settings.max_flatness)
    rows = rule.candidates(sweep)[0].set_index(["t_e", "layer", "k"])
    best = rows.loc[(rows.selectivity - rows.selectivity_se).idxmax()]
    own = rows.loc[(choice["t_e"], choice["layer"], choice["k"])]
    assert best.selectivity - own.selectivity <= best.selectivity_se + own.selectivity_se


def test_the_stored_clareps_are_read_beside_what_the_selection_promised(smoke):
    metrics = json.loads((smoke / "runs/clareps/metrics.json").read_text())
    for fact in ("class_retained", "background_retained"):
        assert {fact, f"{fact}_difference", f"{fact}_z"} <= set(metrics)
    assert "selection promised" in (smoke / "runs/report/report.md").read_text().replace("\n", " ")


def test_every_stage_records_its_seconds_and_the_report_shows_them(smoke):
    seconds = measured_seconds(smoke, load_params(smoke / "params.yaml"))
    assert set(seconds.index) == set(STAGES) - {"report"} and (seconds.seconds > 0).all()
    assert seconds.runs["student"] == 4 and seconds.runs["tune"] == 2
    report = (smoke / "runs/report/report.md").read_text()
    assert f"{seconds.seconds['representation']:,.0f}" in report


def test_every_method_and_control_has_its_rows(smoke):
    table = pd.read_csv(smoke / "runs/report/results.csv")
    part = table[(table.stage == "representation") & (table["class"] == "all")]
    params = load_params(smoke / "params.yaml")
    for method in params.representation.methods:
        own = part[part.arm == method]
        for metric in ("class_retained", "background_retained", "selectivity"):
            for suffix in ("", "_guided", "_recoloured", "_guided_recoloured"):
                assert len(own[own.metric == metric + suffix]) == params.probes.n, (method, metric + suffix)
    difference = part.pivot_table(index=["arm", "seed"], columns="metric", values="value")
    assert (difference.class_retained - difference.background_retained - difference.selectivity).abs().max() < 1e-4


def test_the_long_table_is_that_of_the_measurements(smoke):
    table = pd.read_csv(smoke / "runs/report/results.csv")
    rows = pd.read_csv(smoke / "runs/representation/measurements.csv", keep_default_na=False)
    assert {"set", "method", "k", "condition", "seed", "metric", "class", "value"} == set(rows.columns)
    assert set(rows.set) == {"photo", "recoloured"} and not rows.metric.str.contains("recoloured|guided|mixture").any()
    one = rows[
        (rows.set == "recoloured")
        & (rows.condition == "guided")
        & (rows.method == "clarid")
        & (rows.k == 8)
        & (rows.metric == "class_retained")
    ].sort_values("seed")
    long = table[(table.arm == "clarid") & (table.metric == "class_retained_guided_recoloured")].sort_values("seed")
    assert len(one) == 2 and np.allclose(one.value, long.value, rtol=1e-5)


def test_other_objects_go_in_by_params_alone(tmp_path):
    home, rng = copy_of_project(tmp_path), np.random.default_rng(0)
    (home / "data/shapes").mkdir(parents=True)
    for stem in ("train", "t10k"):
        for name, array in (
            ("images-idx3-ubyte", rng.integers(0, 256, (60, 28, 28))),
            ("labels-idx1-ubyte", np.arange(60) % 3),
        ):
            content = (
                bytes([0, 0, 8, array.ndim])
                + struct.pack(f">{array.ndim}I", *array.shape)
                + array.astype(np.uint8).tobytes()
            )
            (home / "data/shapes" / f"{stem}-{name}.gz").write_bytes(gzip.compress(content))
    assert run_in(home, "python", "-m", "clarep.params", "smoke").returncode == 0
    text = re.sub(r"objects:.*", "objects: data/shapes", (home / "params.yaml").read_text())
    text = re.sub(r"class_names:.*", "class_names: [one, two, three]", text)
    (home / "params.yaml").write_text(text)
    run_one_process(home, "data")
    train = Images.load(home / "data/prepared/splits/train.safetensors")
    assert train.class_names == ["one", "two", "three"] and train.labels.bincount().tolist() == [100, 100, 100]


def test_second_run_runs_nothing(run):
    assert ran(run("dvc", "repro")) == set()


def test_saving_a_stage_notebook_for_its_outputs_reruns_only_the_first_stage(smoke, run):
    path = smoke / "nbs/stages/teacher.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", text="looked at it\n")]
    nbformat.write(notebook, path)
    assert ran(run("dvc", "repro")) == {"prepare"}


def test_the_plan_has_what_a_change_touches_and_all_that_follows(smoke, run):
    text = (smoke / "params.yaml").read_text()
    plans = []
    for k in (6, 8):
        (smoke / "params.yaml").write_text(text.replace("  k: 8 ", f"  k: {k} "))
        assert run("dvc", "repro", "-q", "prepare").returncode == 0
        plans.append(stages_to_run(smoke))
    assert plans[1] == [] and text == (smoke / "params.yaml").read_text() != text.replace("  k: 8 ", "  k: 6 ")
    assert {name.partition("@")[0] for name in plans[0]} == {*STAGES} - {"data", "teacher", "probes", "select"}
    assert plans[0][0] == "clareps" and plans[0][-1] == "report" and plans[0].count("student@ce-1") == 1


def export(run) -> None:
    """What `make export` does."""
    for command in (
        ("nbdev-export",),
        ("python", "-m", "clarep.pipeline.prepare", "--parameters"),
        ("nbdev-clean",),
        ("dvc", "repro", "-q", "--single-item", "prepare"),
    ):
        done = run(*command)
        assert done.returncode == 0, done.stdout + done.stderr


def out_of_date(run) -> set[str]:
    """The stages that DVC would rerun because a dependency of their own has changed."""
    return {name.partition("@")[0] for name in json.loads(run("dvc", "status", "--json").stdout)}


PROSE = {  # notebook: an edit of a docstring, of a comment
    "02_images": ("Bytes to what networks see.", "Bytes to numbers in [-1, 1]."),
    "diffusion/04_ode": ("# ", "# Differently: "),
    "clarid/01_jacobian": ("# orthonormal", "# orthogonal and of length one"),
}


def edit(path: Path, old: str, new: str) -> None:
    """A text file with one replacement; one that changes nothing is an error."""
    text = path.read_text()
    assert old in text, (path, old)
    path.write_text(text.replace(old, new, 1))


def test_prose_reruns_nothing_and_code_reruns_what_uses_it(smoke, run):
    texts = {smoke / f"nbs/{notebook}.ipynb": (smoke / f"nbs/{notebook}.ipynb").read_text() for notebook in PROSE}
    for notebook, change in PROSE.items():
        edit(smoke / f"nbs/{notebook}.ipynb", *change)
    export(run)
    assert out_of_date(run) == set() and "up to date" in run("dvc", "status").stdout
    edit(smoke / "nbs/02_images.ipynb", "127.5 - 1", "127.0 - 1")
    export(run)
    assert out_of_date(run) >= set(STAGES) - {"report"}
    for path, text in texts.items():
        path.write_text(text)
    export(run)
    assert out_of_date(run) == set()


def test_another_k_reruns_clareps_and_the_way_back_is_free(run):
    there = run("dvc", "exp", "run", "-S", "clareps.k=4", "auxiliary@cadistill")
    assert ran(there) == {"prepare", "clareps", "auxiliary@cadistill"}
    assert ran(run("dvc", "exp", "run", "-S", "clareps.k=8")) <= {"report"}
    assert not TIME_LEFT.search(there.stdout)  # the plan of `make repro` is still there, and is not theirs


def test_killed_training_resumes_and_ends_with_the_same_bytes(smoke):
    straight, curve = fingerprint(smoke / "runs/teacher/model"), smoke / "live/teacher/plots/metrics/loss.tsv"
    points = curve.read_bytes()
    curve.unlink()
    command = [os.sys.executable, "-m", "clarep.pipeline.stage", "teacher"]
    env = {**os.environ, "PYTHONPATH": str(smoke)}
    job = subprocess.Popen(
        command, cwd=smoke, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    limit = time.monotonic() + 120
    while not (curve.is_file() and curve.read_text().count("\n") == 2):  # a checkpoint was written five steps before
        assert job.poll() is None and time.monotonic() < limit, "no curve appeared"
        time.sleep(0.02)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    drawn = curves(run_in(smoke, "dvc", "plots", "show", "--json").stdout)
    assert [p["step"] for p in drawn["teacher/plots/metrics/loss.tsv"]] == ["25"]
    assert list((smoke / ".scratch").glob("teacher-*/state.safetensors"))
    assert fingerprint(smoke / "runs/teacher/model") == straight
    for unrelated in (
        "clarep.evaluate.attacks",
        "clarep.diffusion.tiny_models",
    ):  # compiled anew: another cache beside the code
        module = smoke / (unrelated.replace(".", "/") + ".py")
        py_compile.compile(str(module), cfile=str(module.parent / "__pycache__" / f"{module.stem}.cpython-399.pyc"))
    done = run_in(smoke, "python", "-m", "clarep.pipeline.stage", "teacher")
    assert done.returncode == 0 and "from step" in done.stdout, done.stdout + done.stderr
    assert fingerprint(smoke / "runs/teacher/model") == straight and curve.read_bytes() == points
    assert not list((smoke / ".scratch").glob("teacher-*"))


def test_same_seed_in_a_clean_copy_gives_the_same_metrics(smoke, tmp_path):
    """Also where most of the stages share a process."""
    run_all(other := copy_of_project(tmp_path), ("python", "-m", "clarep.params", "smoke"))
    before, after = ("data", "teacher", "probes", "select"), ("auxiliary", "tune", "student")
    run_one_process(other, *before)
    run_all(other, ("python", "-m", "clarep.pipeline.stage", "clareps"))
    run_one_process(other, *after)
    needed = ran(run_in(other, "dvc", "repro", "--dry", "student@cadistill-0"))
    assert {name.partition("@")[0] for name in needed} == {"prepare", *before, "clareps", *after}
    for name in (
        "runs/teacher/metrics.json",
        "runs/clareps/metrics.json",
        "runs/tune/cadistill/metrics.json",
        "runs/student/cadistill-0/metrics.json",
    ):
        assert (other / name).read_bytes() == (smoke / name).read_bytes()
    assert fingerprint(other / "runs/clareps/shards") == fingerprint(smoke / "runs/clareps/shards")
    assert fingerprint(other / "runs/clareps/clareps.ipynb") == fingerprint(smoke / "runs/clareps/clareps.ipynb")


def test_stages_may_start_at_the_same_moment(tmp_path):
    """Kernels of one project do not take each other's sockets: by default they do, and wait a minute for an answer."""
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(1)")]), tmp_path / "a.ipynb")
    code = "import sys; from clarep.pipeline.stage import execute; execute('a.ipynb', sys.argv[1], {}, '.')"
    env = os.environ | {"PYTHONPATH": str(HOME)}
    each = [
        subprocess.Popen([sys.executable, "-c", code, f"{i}.ipynb"], cwd=tmp_path, env=env, stdout=subprocess.PIPE)
        for i in range(3)
    ]
    assert [process.communicate(timeout=300)[0].decode().strip() for process in each] == ["1"] * 3
    assert not list(tmp_path.glob("*ipc*"))

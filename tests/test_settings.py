"""Settings and machines: what is not possible is refused by its name in one sentence, names are shown as they are."""

import csv
import errno
import html
import io
import json
import math
import os
import random
import re
import resource
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import HOME, run_in
from markdown_it import MarkdownIt
from matplotlib.cbook import is_math_text

from clarep import params
from clarep.evaluate import students
from clarep.evaluate.background import accuracy_by_class, class_key
from clarep.evaluate.statistics import rows, save_metrics
from clarep.files import DataError, atomic_write, load_json, load_tensors, resolve_device, save_json, save_tensors
from clarep.params import Params, ParamsError, load_params, read_yaml
from clarep.pipeline.stage import exit_on_error, link_inputs, run_stage
from clarep.report.comparison import class_map, class_means, in_markdown, markdown_table
from clarep.report.page import load_measurements

DEFAULT = read_yaml(HOME / "presets/default.yaml")
KEYS = [(section, key) for section, values in DEFAULT.items() for key in values]
ODD = [math.inf, -math.inf, math.nan, 1e300, 10**400, -(10**400), 2**31, 2**64, -1, True, False, "", "x", "1e-3", None]
ODD += [[], {}, 1.5, [math.nan], [math.inf, 1.0], [True, False], [None], [[1]], b"x", "\ud800"]


def numbers(value: object) -> list:
    """The numbers in a setting."""
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int | float)]


@pytest.mark.parametrize("section", DEFAULT)
def test_a_setting_is_possible_or_refused_by_its_key(section, monkeypatch):
    """Every key of a section with every odd value: no other error, no number that is infinite, nan or too large."""
    for key in DEFAULT[section]:
        for value in ODD:
            content = DEFAULT | {section: DEFAULT[section] | {key: value}}
            monkeypatch.setattr(params, "read_yaml", lambda path, content=content: content)
            try:
                accepted = getattr(getattr(load_params(), section), key)
            except ParamsError as e:
                assert f"`{section}.{key}" in str(e) and len(str(e)) < 2000, (key, value, e)
                continue
            assert all(abs(n) < 2**31 for n in numbers(accepted)), (key, value, accepted)
            booleans = Params.model_fields[section].annotation.model_fields[key].annotation is bool
            assert booleans or not any(isinstance(n, bool) for n in numbers(value)), (key, value, accepted)


def test_a_seed_with_all_that_stages_add_is_one_for_numpy_sklearn_and_torch():
    seed = 2**31 - 1
    np.random.RandomState(seed + 10**6 + 100), np.random.default_rng([seed, 1])
    for value in (seed * 3 + 2, (seed << 32) + 10**6, seed + 10**6):
        torch.Generator().manual_seed(value)


SMALL = "# é\ncommon:\n  seed: 1\n  name: ü\n"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252"]
)
def test_settings_in_any_encoding_are_read_or_refused_with_file_and_encoding(encoding, end, tmp_path):
    (file := tmp_path / "params.yaml").write_bytes(SMALL.replace("\n", end).encode(encoding))
    if encoding.startswith("utf-8"):
        assert read_yaml(file) == {"common": {"seed": 1, "name": "ü"}}
        return
    with pytest.raises(ParamsError) as e:
        read_yaml(file)
    assert str(file) in str(e.value) and "\n" not in str(e.value)
    if encoding in ("utf-16", "utf-32", "latin-1", "cp1252"):
        assert "save it as UTF-8" in str(e.value)


@pytest.mark.parametrize(
    "text, line", [("a:\n\tb: 1\n", 2), ("a: 1\nb: [1\n", 3), ("a: 1\n\n\na: 2\n", 4), ("a: 1\n---\nb: 1\n", 2)]
)
def test_what_is_not_yaml_is_refused_with_its_line(text, line, tmp_path):
    (file := tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match=f"params.yaml, line {line}, is not YAML"):
        read_yaml(file)


def test_damaged_settings_end_in_no_other_error(tmp_path):
    text, rng, file = (HOME / "presets/smoke.yaml").read_bytes()[:400], random.Random(0), tmp_path / "params.yaml"
    odd = [
        b"a: " + b"9" * 5000,
        b"a: 2001-99-99",
        b"a: " + b"[" * 600,
        b"\0",
        b"",
        b"- a",
        b"a: !!binary '%'",
        b"a: &a [*a]",
    ]
    for i in range(50):
        damaged = bytearray(text)
        for _ in range(rng.randint(1, 6)):
            damaged[rng.randrange(len(text))] = rng.randrange(256)
        file.write_bytes(odd[i] if i < len(odd) else bytes(damaged))
        try:
            assert isinstance(read_yaml(file), dict)
        except ParamsError as e:
            assert "params.yaml" in str(e)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:7", "mps", "xpu", "tpu", "cuda:x"])
def test_a_device_serves_or_is_refused_by_its_key(device, dtype):
    try:
        where, precision = resolve_device(device, dtype)
    except ValueError as e:
        assert device not in ("auto", "cpu") and f"`common.device`: {device!r}" in str(e) and "\n" not in str(e)
    else:
        assert torch.ones(2, device=where, dtype=precision).sum().item() == 2


@contextmanager
def full_disk(size: int):
    """No file may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS = {
    "json": lambda file: save_json(file, ["x" * 10**5]),
    "tensors": lambda file: save_tensors(file, {"x": torch.zeros(10**5)}),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_said_with_its_file_and_changes_nothing(kind, tmp_path):
    (file := tmp_path / "a").write_text("before")
    with full_disk(4096), pytest.raises(DataError, match="could not write .*File too large") as e:
        WRITERS[kind](file)
    assert str(file) in str(e.value) and file.read_text() == "before" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_folder_that_cannot_be_made_is_named(kind, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="could not write .*file/b/a .*Not a directory"):
        WRITERS[kind](tmp_path / "file/b/a")


OTHER = "/home/someone/.local/share/jupyter/runtime"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENOENT, errno.EDQUOT, errno.EMFILE])
def test_an_error_of_the_system_names_its_own_file(number, tmp_path):
    def fail(*file):
        with atomic_write(tmp_path / "data/prepared"):
            raise OSError(number, os.strerror(number), *file)

    for file in ((), (OTHER,)):
        with pytest.raises(DataError, match=os.strerror(number)) as e:
            fail(*file)
        assert all(f in str(e.value) for f in file) and str(tmp_path / "data/prepared") in str(e.value)
        with pytest.raises(SystemExit, match="stage data failed") as e:
            exit_on_error("stage data", fail, *file)
        assert all(f in str(e.value) for f in file)


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"{", b"", b"[", None])
def test_a_damaged_file_is_named(content, tmp_path):
    file = tmp_path / "metrics.json"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(DataError, match=f"{file} is damaged or cannot be read"):
        load_json(file)
    if content is not None:
        with pytest.raises(DataError, match=f"{file} is damaged or cut short"):
            load_tensors(file)


def project(home: Path, **data) -> Path:
    """A project with one stage, whose notebook writes down what lies in the folder of the images."""
    (home / "nbs/stages").mkdir(parents=True), (home / "dvc.yaml").touch()
    content = DEFAULT | {"data": DEFAULT["data"] | data}
    (home / "params.yaml").write_text(json.dumps(content), encoding="utf-8")
    names = [*content["common"], *content["data"], "out"]
    body = (
        "from pathlib import Path\n(Path(out) / 'x.txt').write_text(str(sorted(p.name for p in Path(path).iterdir())))"
    )
    cells = [
        nbformat.v4.new_code_cell("\n".join(f"{n} = None" for n in names), metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(body),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), home / "nbs/stages/data.ipynb")
    return home


def test_a_stage_runs_in_an_odd_place_and_finds_a_relative_path(tmp_path, monkeypatch):
    """A copy as `dvc exp run --temp` makes it, in a folder with an odd name, on a machine without a home."""
    origin = tmp_path / "a b {x} {} é 字 $HOME 'q' %d #1"
    copy = project(origin / ".dvc/tmp/exps/tmp1", name="imagefolder", path="my pictures")
    (origin / "dvc.yaml").touch()
    (origin / "my pictures/cat").mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("HOME", "/dev/null/nobody")
    assert (copy / run_stage("data") / "x.txt").read_text() == "['cat']"


def test_a_terminal_without_the_letters_of_a_name_gets_their_numbers(tmp_path):
    home = project(tmp_path)
    notebook = nbformat.read(file := home / "nbs/stages/data.ipynb", 4)
    notebook.cells[1].source = "print('class \u5b57')"
    nbformat.write(notebook, file)
    command = ["env", "PYTHONIOENCODING=cp1252", "python", "-m", "clarep.pipeline.stage", "data"]
    (home / "clarep").symlink_to(HOME / "clarep")
    done = run_in(home, *command)
    assert done.returncode == 0 and "class \\u5b57" in done.stdout, done.stderr


@pytest.mark.parametrize("key, section", [("path", "data"), ("objects", "data"), ("checkpoint", "teacher")])
@pytest.mark.parametrize("where", ["pictures", "a/b c", "../beside"])
def test_a_relative_path_leads_to_the_project_in_a_copy_of_it(key, section, where, tmp_path):
    home = tmp_path / "home"
    (copy := home / ".dvc/tmp/exps/tmp1").mkdir(parents=True), (home / "dvc.yaml").touch(), (copy / "dvc.yaml").touch()
    (home / where).mkdir(parents=True), (home / where / "x").touch()
    p = Params.model_validate(DEFAULT | {section: DEFAULT[section] | {key: where}})
    for _ in range(2):
        link_inputs(copy, p), link_inputs(home, p)
        assert (copy / where / "x").is_file()
    (copy / where).unlink(), (copy / where).symlink_to("nowhere")
    link_inputs(copy, p)
    assert (copy / where / "x").is_file()
    shutil.rmtree(copy)
    assert (home / where / "x").is_file()


@pytest.mark.skipif(not (HOME / ".git").exists(), reason="an archive is made by git")
def test_an_archive_of_the_project_runs_without_git(tmp_path, monkeypatch):
    archive = subprocess.run(
        ["git", "archive", "HEAD", ".dvc", "dvc.yaml", "params.yaml", "nbs/stages", "clarep"],
        cwd=HOME,
        capture_output=True,
        check=True,
    ).stdout
    subprocess.run(["tar", "x"], cwd=tmp_path, input=archive, check=True)
    assert "no_scm = true" in (tmp_path / ".dvc/config").read_text()
    assert not re.search(r"(?m)^\s*no_scm", (HOME / ".dvc/config").read_text())
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    done = run_in(tmp_path, "dvc", "repro", "--dry", "prepare")
    assert "Running stage 'prepare'" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("git", [True, False])
def test_make_repro_tells_dvc_where_there_is_no_git(git, tmp_path, monkeypatch):
    shutil.copy(HOME / "Makefile", tmp_path)
    (tool := tmp_path / "bin/dvc").parent.mkdir()
    tool.write_text('#!/bin/sh\necho "$@" >> calls\n'), tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (
        monkeypatch.setenv("VIRTUAL_ENV", os.environ.get("VIRTUAL_ENV", "active")),
        monkeypatch.setenv("PYTHONPATH", str(HOME)),
    )
    if git:
        subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["make", "-s", "repro"], cwd=tmp_path, check=True)
    assert (tmp_path / "calls").read_text().split("\n")[:-1] == ["config --local core.no_scm true"] * (not git) + [
        "repro -q prepare",
        "repro --dry --force-downstream",
        "repro",
    ]


NAMES = [
    "|",
    "<i>x</i>",
    "<script>alert(1)</script>",
    "$",
    "$$",
    "$a^2$",
    "$\\frac",
    "_",
    "_x_",
    "__init__",
    "*",
    "**b**",
    "`",
    "``c``",
    "a\nb",
    "\r\n",
    '"',
    "'",
    '","',
    "=1+1",
    "+1",
    "-1",
    "@x",
    "#1",
    "[a](b)",
    "![a](b.png)",
    "&amp;",
    "&",
    "\\",
    "\\|",
    "a.b",
    "a/b",
    "a:b",
    "{x}",
    "%s",
    "~~s~~",
    "http://x.y",
    "NA",
    "nan",
    "null",
    "None",
    "True",
    "1",
    "01",
    "1e3",
    "all",
    "mean",
    "class all",
    "class class all",
    "All",
    "Ünïcode 字",
    " x",
    "x" * 200,
]


def generated(n: int) -> list[str]:
    """Names from letters that mean something somewhere, and from the words of metrics."""
    rng, letters = random.Random(0), [*"|<>$_*`\\\"'=[]()!&;#~{}%,.:/-+@ \n\t", "all", "class ", "mean", "i", "é"]
    return ["".join(rng.choices(letters, k=rng.randint(1, 8))) for _ in range(n)]


def test_no_class_is_taken_for_all_of_them():
    """C-NMC leukaemia has the classes "all" and "hem"."""
    labels = torch.tensor([0] * 10 + [1] * 90)
    accuracy = accuracy_by_class(labels == 0, labels, ["all", "hem"])
    assert accuracy["all"] == pytest.approx(0.1) and accuracy["class all"] == 1.0 and accuracy["hem"] == 0.0
    names = [*dict.fromkeys(NAMES + generated(500))]
    assert len({"all", *map(class_key, names)}) == len(names) + 1
    assert all(class_key(name) == name for name in names if not name.endswith("all"))


def test_class_names_come_back_from_the_tables(tmp_path):
    names = [*dict.fromkeys(NAMES + generated(200))]
    labels = torch.arange(len(names))
    accuracy = accuracy_by_class(labels % 3 == 0, labels, names)
    save_metrics(tmp_path, {"acc_clean": accuracy["all"]}, {"acc_clean": accuracy})
    table = rows("evaluate", "ce", 0, tmp_path)
    assert table[table["class"] == "all"].value.tolist() == [accuracy["all"]]
    (tmp_path / "representation").mkdir()
    table.assign(value=table.value.where(table["class"] != "1")).to_csv(
        file := tmp_path / "representation/measurements.csv", index=False
    )
    back = load_measurements(tmp_path)
    assert back["class"].tolist() == ["all", *sorted({*map(class_key, names)})] and back.value.isna().sum() == 1
    assert [line[4] for line in csv.reader(file.open(newline=""))][1:] == back["class"].tolist()


def test_class_names_stand_in_markdown_and_html_as_they_are():
    names = [name for name in dict.fromkeys(NAMES + generated(300)) if name.strip()]
    text = markdown_table(["class", "x"], [[in_markdown(name), "1"] for name in names])
    page = MarkdownIt("commonmark").enable("table").render(text)
    cells = re.findall(r"<td>(.*?)</td>\s*<td[^>]*>1</td>", page, re.DOTALL)
    assert [html.unescape(cell) for cell in cells] == [" ".join(name.split()) for name in names]
    assert not re.search(r"<(?!/?(table|thead|tbody|tr|td|th)\b)", page)


def test_class_names_are_drawn_letter_by_letter():
    names = [*dict.fromkeys(NAMES + generated(20))]
    for part in (names[i : i + 10] for i in range(0, len(names), 10)):
        accuracy = {class_key(name): 0.5 for name in part}
        table = pd.DataFrame(
            [("evaluate", arm, 0, "acc_clean", name, 0.5) for arm in ("ce", "kd") for name in accuracy],
            columns=["stage", "arm", "seed", "metric", "class", "value"],
        )
        figures = (
            students.tests_figure({"acc_clean": {"all": 0.5} | accuracy}, part, "ce"),
            class_map(class_means(table), "ce"),
        )
        for figure in figures:
            figure.savefig(io.BytesIO(), dpi=20)
            axes = figure.axes[0]
            assert not any(is_math_text(t.get_text()) for t in [*axes.get_xticklabels(), axes.title])
            plt.close(figure)


@pytest.mark.parametrize("content", ["common:\n", "common: 3\n", "common: [seed]\n"])
def test_a_preset_whose_section_holds_no_settings_is_refused(content, tmp_path):
    shutil.copy(HOME / "presets/default.yaml", tmp_path)
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ParamsError, match="a preset of mine gives 'common' as .*, not as settings"):
        params.apply_preset("mine", tmp_path, tmp_path / "params.yaml")

"""The house: rooms from left to right, one place to add a thing, code as a dependency, and a check that can fail."""

import ast
import json
import shutil
import subprocess
import sys

import nbformat
import pytest
from conftest import HOME, copy_of_project, run_in

from clarep.files import code_digest, import_closure, imported_modules
from clarep.pipeline.prepare import NOT_COUNTED, stage_modules
from clarep.pipeline.stage import STAGES

ROOMS = [
    ["params"],
    ["files"],
    ["display"],
    ["images"],
    ["digits", "data", "masks"],
    ["sources"],
    ["diffusion"],
    ["classifiers"],
    ["clarid"],
    ["cadistill"],
    ["evaluate"],
    ["report"],
    ["pipeline"],
]
PLACE = {name: i for i, names in enumerate(ROOMS) for name in names}
MODULES = {
    "clarep." + ".".join(p.relative_to(HOME / "clarep").with_suffix("").parts): p
    for p in (HOME / "clarep").rglob("*.py")
    if p.stem not in ("__init__", "_modidx")
}
IMPORTS = {m: imported_modules(ast.parse(p.read_text()).body, m) for m, p in MODULES.items()}


def test_imports_run_from_left_to_right():
    upward = [
        (m, other)
        for m, others in IMPORTS.items()
        for other in others
        if not m.endswith("__main__")  # the command of a room may go through the whole house
        and PLACE[m.split(".")[1]] < PLACE[other.split(".")[1]]
    ]
    assert not upward and len(MODULES) > 30


def test_no_module_imports_itself_through_others():
    for module in MODULES:
        others = set().union(*(import_closure(m) for m in IMPORTS[module])) if IMPORTS[module] else set()
        assert module not in others


def test_public_names_keep_their_addresses():
    code = """
from clarep.clarid.jacobian import right_singular_vectors
from clarep.clarid.identify import clarid
from clarep.clarid.store import CLAReps
from clarep.diffusion.teacher import Teacher, load_teacher
from clarep.cadistill.losses import CaDistillLoss, cka
from clarep.cadistill.students import build_student, load_student
from clarep.data import Images, digits_on_photos, to_unit
from clarep.params import Params
from clarep.evaluate.statistics import COLUMNS
"""
    done = run_in(HOME, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_the_code_of_a_stage_is_what_its_notebook_imports(stage):
    notebook = nbformat.read(HOME / "nbs/stages" / f"{stage}.ipynb", 4)
    trees = [ast.parse(c.source) for c in notebook.cells if c.cell_type == "code"]
    everywhere = set().union(*(imported_modules(t.body) for t in trees))
    assert stage_modules(notebook) and (stage_modules(notebook) == everywhere or stage in NOT_COUNTED)
    assert {"clarep.images"} <= set(import_closure(*stage_modules(notebook))) or stage == "report"


def test_the_digest_sees_code_and_nothing_else(tmp_path):
    package = shutil.copytree(HOME / "clarep", tmp_path / "clarep")
    before = {
        s: code_digest(*modules, package=package)
        for s in STAGES
        if (modules := stage_modules(nbformat.read(HOME / "nbs/stages" / f"{s}.ipynb", 4)))
    }

    def changed_by(module: str, old: str, new: str) -> set[str]:
        path = package / module
        text = path.read_text()
        assert text.count(old) >= 1, (module, old)
        path.write_text(text.replace(old, new, 1))
        after = {
            s: code_digest(*stage_modules(nbformat.read(HOME / "nbs/stages" / f"{s}.ipynb", 4)), package=package)
            for s in before
        }
        path.write_text(text)
        return {s for s in before if before[s] != after[s]}

    assert changed_by("images.py", '"""', '"""Another title. ') == set()
    assert changed_by("images.py", "# uint8", "# bytes") == set()
    for cache in package.rglob("__pycache__"):
        shutil.rmtree(cache)
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(package / "report")], check=True)
    assert changed_by("images.py", "127.5", "127.0") >= {"teacher", "clareps", "student"}
    assert changed_by("evaluate/attacks.py", ".sign()", ".abs()") == {"tune", "student", "suite"}


def test_a_parameter_is_added_in_two_places(tmp_path):
    home = copy_of_project(tmp_path)
    notebook, default = home / "nbs/00_params.ipynb", home / "presets/default.yaml"
    for path, old, new in (
        (notebook, '"    weight_decay: ', '"    momentum: Fraction\\n",\n    "    weight_decay: '),
        (default, "  weight_decay: ", "  momentum: 0.9                 # of SGD\n  weight_decay: "),
    ):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
    for command in (
        ("nbdev-export",),
        ("python", "-m", "clarep.pipeline.prepare", "--parameters"),
        ("python", "-m", "clarep.params", "smoke"),
    ):
        done = run_in(home, *command)
        assert done.returncode == 0, done.stdout + done.stderr
    cells = [c["source"] for c in json.loads((home / "nbs/stages/student.ipynb").read_text())["cells"]]
    assert (
        any("momentum = 0.9  # of SGD" in "".join(c) for c in cells)
        and "momentum: 0.9" in (home / "params.yaml").read_text()
    )

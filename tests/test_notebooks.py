"""Every library notebook, top to bottom, with its asserts; and what the stage notebooks must have in common."""

from pathlib import Path

import nbformat
import papermill
import pytest
from nbdev.test import test_nb as run_notebook

from clarep.params import SECTION_OF, load_params, stage_settings

HOME = Path(__file__).resolve().parent.parent
LIBRARY = sorted(p for p in (HOME / "nbs").rglob("*.ipynb") if not {"stages", ".ipynb_checkpoints"} & set(p.parts))
GIVEN_BY_THE_RUNNER = {stage: {"arm"} for stage in ("auxiliary", "tune", "student", "evaluate")}


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(HOME / "nbs")))
def test_library_notebook(path):
    passed, _ = run_notebook(path, skip_flags=["notest", "slow"], basepath=HOME)
    assert passed, f"a cell of {path} failed; its traceback is above"


@pytest.mark.parametrize("stage", SECTION_OF)
def test_stage_notebook_has_the_parameters_of_its_section_with_the_default_values(stage):
    path = HOME / "nbs" / "stages" / f"{stage}.ipynb"
    settings = stage_settings(stage, load_params(HOME / "presets" / "default.yaml"))
    found = {k: eval(v["default"], {}) for k, v in papermill.inspect_notebook(str(path)).items()}
    assert set(found) - {"out"} - GIVEN_BY_THE_RUNNER.get(stage, set()) == set(settings)
    assert {k: found[k] for k in settings} == settings


@pytest.mark.parametrize("stage", SECTION_OF)
def test_stage_notebook_is_thin(stage):
    cells = [c for c in nbformat.read(HOME / "nbs" / "stages" / f"{stage}.ipynb", 4).cells if c.cell_type == "code"]
    assert len(cells) <= 12
    assert not any(line.startswith("class ") for c in cells for line in c.source.splitlines())

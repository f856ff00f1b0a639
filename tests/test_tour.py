"""The small teacher that a fresh clone has, and what a person meets first: the five lines and the cards."""

import json

import pytest
from conftest import HOME

from clarep.clarid.identify import clarid, show
from clarep.diffusion.teacher import load_teacher, meta_teacher
from clarep.images import Images, to_unit

SMALL = HOME / "models/small"


def test_the_small_teacher_says_what_it_is():
    facts = json.loads((SMALL / "clarep.json").read_text())
    assert facts["command"] == "make small" and facts["commit"] and facts["date"]
    assert facts["scenes"]["teacher_rho"] < 0.5 and facts["settings"]["train_steps"] > 0
    assert facts["class_recognised"] > 0.9, "its tour would show nothing"
    assert sum(p.stat().st_size for p in SMALL.rglob("*") if p.is_file()) < 3e6


@pytest.mark.skipif(not (HOME / "CITATION.cff").exists(), reason="a project that `make new` made has no recipe of it")
def test_the_small_teacher_is_what_its_recipe_makes():
    facts = json.loads((SMALL / "clarep.json").read_text())
    recipe = json.loads((HOME / "nbs/benchmarks/small_teacher.ipynb").read_text())["cells"]
    parameters = next(c["source"] for c in recipe if "parameters" in c["metadata"].get("tags", []))
    for key in ("channels", "train_steps"):
        assert any(line.startswith(f"{key} = {facts['settings'][key]}") for line in parameters), f"make small: {key}"


def test_a_fresh_clone_shows_what_clarid_removes():
    teacher, data = load_teacher(SMALL), Images.load(SMALL / "images.safetensors")[:5]
    assert teacher.class_names == data.class_names and teacher.image_size == data.images.shape[1]
    how = dict(t_e=750, layer="up_blocks.1", guidance=2.0, steps=10, tol=0.1)
    plain, reps = (clarid(teacher, to_unit(data.images), data.labels, k=k, **how) for k in (0, 10))
    names = [ax.get_ylabel() for ax in show(data, plain, reps).axes]
    assert names == ["image", "nothing removed", "Canonical Sample", "what was removed"]
    changes = [(to_unit(r.samples) - to_unit(data.images)).abs().mean() for r in (plain, reps)]
    assert changes[0] < 0.2 and changes[1] > 1.2 * changes[0], changes
    for thing in (teacher, data, plain, reps):
        card = thing._repr_html_()
        assert "not shown" not in repr(thing) + card and len(repr(thing)) < 600 and len(card) < 60_000


def test_a_card_computes_nothing():
    """On the `meta` device there are no numbers that could be computed with."""
    assert "748,292 weights" in repr(meta_teacher(SMALL)) and "up_blocks.1" in meta_teacher(SMALL)._repr_html_()

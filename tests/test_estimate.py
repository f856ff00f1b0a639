"""The estimate before anything has run: the command names every stage, and a setting changes what it should."""

import pytest
from conftest import HOME, copy_of_project, run_in
from forks import run_in_fork

from clarep.params import apply_preset
from clarep.pipeline.estimate import clareps_work, expected_choice, resolve, untrained_teacher, work
from clarep.pipeline.stage import STAGES


@pytest.fixture(scope="module")
def p(tmp_path_factory):
    return apply_preset("smoke", HOME / "presets", tmp_path_factory.mktemp("params") / "params.yaml")


def changed(p, **changes):
    for key, value in changes.items():
        section, name = key.split("__")
        p = p.model_copy(update={section: getattr(p, section).model_copy(update={name: value})})
    return p


def differing(p, **changes):
    before, after = (work(q, expected_choice(q), untrained_teacher(q, "meta")) for q in (p, changed(p, **changes)))
    return {stage for stage in before if before[stage] != after[stage]}


def test_the_command_estimates_every_stage_before_anything_has_run(tmp_path):
    home = copy_of_project(tmp_path)
    assert run_in(home, "python", "-m", "clarep.params", "smoke").returncode == 0
    done = run_in_fork(home, "-m", "clarep.pipeline.estimate", "--limit", "0.05")
    assert done.returncode == 0, done.stdout[-3000:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "|"]
    table = {row[0]: dict(zip(rows[0], row)) for row in rows}
    assert {*STAGES, "total"} <= set(table) and table["teacher"]["training steps"] == "60"
    assert {"network evaluations", "directions found", "Jacobian products", "TFLOP", "MB written"} <= set(rows[0])
    seconds = {stage: int(table[stage]["expected s"].replace(",", "")) for stage in [*STAGES, "total"]}
    assert all(s > 0 for s in seconds.values())
    assert abs(sum(seconds[s] for s in STAGES) - seconds["total"]) <= len(STAGES)
    assert "Open until stage `select` has run: the layer. conv_in:" in done.stdout and not (home / "runs").exists()


def test_twice_the_fraction_is_twice_the_clareps_and_nothing_else(p):
    assert differing(p, clareps__fraction=0.2) == {"clareps"}
    once, twice = (clareps_work(q, resolve(q, expected_choice(q)), 800) for q in (p, changed(p, clareps__fraction=0.2)))
    assert twice == once + once


@pytest.mark.parametrize(
    "change, stages",
    [
        ({"teacher__train_steps": 120}, {"teacher"}),
        ({"select__num_directions": [2, 4, 8]}, {"select"}),
        ({"representation__n_retrain": 20}, {"representation"}),
        ({"probes__n": 1}, {"probes"}),
        ({"student__epochs": 9}, {"student", "tune"}),
        ({"compare__seeds": [0]}, {"student"}),
        ({"compare__arms": ["ce"]}, {"auxiliary", "tune", "student", "suite"}),
        ({"tune__trials": 1}, {"tune"}),
        ({"student__learning_rate": 1.0}, set()),
    ],
)
def test_a_setting_changes_the_work_of_the_stages_that_it_concerns(p, change, stages):
    assert differing(p, **change) == stages

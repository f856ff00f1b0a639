"""The price before anything has run: the command names every stage, and a setting moves what it should."""

import pytest
from conftest import HOME, copy_of_project, run_in

from clarep.params import apply_preset
from clarep.pipeline.estimate import chosen, clareps_work, settled, teacher_of, work
from clarep.pipeline.stage import STAGES


@pytest.fixture(scope="module")
def p(tmp_path_factory):
    return apply_preset("smoke", HOME / "presets", tmp_path_factory.mktemp("params") / "params.yaml")


def works(p, **changes):
    for key, value in changes.items():
        section, name = key.split("__")
        p = p.model_copy(update={section: getattr(p, section).model_copy(update={name: value})})
    return work(p, chosen(p, None), teacher_of(p, "meta"))


def test_the_command_prices_every_stage_before_anything_has_run(tmp_path):
    home = copy_of_project(tmp_path)
    assert run_in(home, "python", "-m", "clarep.params", "smoke").returncode == 0
    done = run_in(home, "python", "-m", "clarep.pipeline.estimate", "--limit", "0.05")
    assert done.returncode == 0, done.stderr[-3000:]
    lines = {line.split("|")[1].strip(): line for line in done.stdout.splitlines() if line.startswith("|")}
    assert {*STAGES, "total"} <= set(lines) and "| 60 |" in lines["teacher"]
    seconds = {stage: int(lines[stage].split("|")[-2].replace(",", "")) for stage in [*STAGES, "total"]}
    assert all(s > 0 for s in seconds.values()) and abs(sum(seconds[s] for s in STAGES) - seconds["total"]) <= len(STAGES)
    assert "Open until stage `select` has run: the layer. conv_in:" in done.stdout and not (home / "runs").exists()


def test_twice_the_fraction_is_twice_the_clareps_and_nothing_else(p):
    before, after = works(p), works(p, clareps__fraction=0.2)
    assert {s for s in before if before[s] != after[s]} == {"clareps"}
    parts = [clareps_work(q, settled(q, chosen(q, None)), 32, 768)["clareps"] for q in (p, p.model_copy(update={"clareps": p.clareps.model_copy(update={"fraction": 0.2})}))]
    assert parts[1].tasks == (parts[0] * 2).tasks and parts[1].bytes == 2 * parts[0].bytes


@pytest.mark.parametrize("change, stages", [
    ({"teacher__train_steps": 120}, {"teacher", "representation"}),
    ({"select__ks": [2, 4, 8]}, {"select", "representation"}),
    ({"representation__n_seeds": 1}, {"representation"}),
    ({"student__epochs": 9}, {"student"}),
    ({"compare__seeds": [0]}, {"student", "evaluate"}),
    ({"compare__arms": ["ce"]}, {"auxiliary", "tune", "student", "evaluate"}),
    ({"tune__trials": 1, "tune__trial_epochs": 3}, {"tune"}),
    ({"student__learning_rate": 1.0}, set()),
])
def test_a_setting_moves_the_stages_that_read_it(p, change, stages):
    before, after = works(p), works(p, **change)
    assert {s for s in before if before[s] != after[s]} == stages

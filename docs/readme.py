"""Copy the default's table and findings from runs/report into README.md; with --check, fail on a difference."""

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from clarep.evaluate.statistics import interval
from clarep.files import load_json
from clarep.params import load_params
from clarep.report.comparison import read_table

HOME = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- results:.*?-->\n).*?(<!-- /results -->)", re.DOTALL)
ARMS = re.compile(r"<!-- arms -->\n(.*?)\n<!-- /arms -->", re.DOTALL)
COLUMNS = ("arm", "clean", "mixed-rand", "BG-gap", "PGD")


def headline_table(report: str) -> str:
    """Of the report's first table the columns `COLUMNS`, as far as they are there; a wide table has several parts."""
    block = ARMS.search(report)
    if not block:
        sys.exit("error: runs/report/report.md has no table after <!-- arms -->; run `dvc repro report`")
    columns = {}
    for part in block[1].split("\n\n"):
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in part.splitlines()]
        columns |= {head: cells for head, *cells in zip(*rows, strict=True)}
    names = [name for start in COLUMNS for name in columns if name.startswith(start)]
    rows = zip(*([name, *columns[name]] for name in names), strict=True)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


def foundation() -> str:
    """Gains over `ce` on mixed-rand with the teachers of preset `foundation`; intervals are over teachers."""
    table = read_table(HOME / "docs/results/foundation.csv")
    table = table[(table.stage == "student") & (table.metric == "acc_mixed_rand")]
    wide = table.pivot(index=["teacher", "seed"], columns="name", values="value")
    means = wide.sub(wide["ce"], axis=0).groupby("teacher").mean()
    gains = ", ".join(
        f"`{arm}` {signed(*interval(means[arm].to_numpy()))}"
        for arm in ("cadistill", "cadistill-noise", "ce-matched", "ceiling")
    )
    return (
        f"With {len(means)} teachers of [8,000 images with their class's scene in 30 %](nbs/findings/foundation.ipynb),"
        f" gains over `ce` on mixed-rand: {gains}."
    )


def population() -> str:
    """Differences on mixed-rand with several teachers of the default; intervals are nested."""
    table = read_table(HOME / "bench/population.csv")
    own = table[(table.arm == "cadistill") & (table.metric == "acc_mixed_rand")]
    against = ", ".join(f"`{o.reference}` {signed(o.difference, o.half)}" for o in own.itertuples())
    teachers = own.means.iloc[0].count(",") + 1
    return (
        f"With {teachers} [teachers of the default](nbs/findings/teachers.ipynb), on mixed-rand `cadistill` minus "
        f"{against}."
    )


def signed(mean: float, half: float) -> str:
    mark = "" if abs(mean) <= half else " ▲" if mean > 0 else " ▼"
    return f"{np.round(mean, 3):+.3f} ± {half:.3f}{mark}"


def findings(report: str, results: pd.DataFrame) -> str:
    """Lines of numbers that the table does not show."""
    table = report.split("| difference |")[1].split("\n\n")[0].splitlines()
    column = [cell.strip() for cell in table[0].split("|")].index("mixed-rand")
    rows = [re.match(r"\| `cadistill` minus (`.*?`) (\|.*)", line) for line in table]
    against = ", ".join(f"{row[1]} {row[2].split('|')[column + 1].strip()}" for row in filter(None, rows))
    overall = results[results["class"] == "all"]
    flat = overall[overall.metric == "flat"].groupby("arm", sort=False).value.agg(["sum", "count"])
    ends = ", ".join(f"`{arm}` {int(n)}" for arm, (n, _) in flat.iterrows())
    value = overall[overall.stage == "representation"].groupby(["arm", "metric"]).value.mean()
    suite = read_table(HOME / "docs/results/suite.csv")
    select, rule = load_json(HOME / "runs/select/metrics.json"), load_params(HOME / "params.yaml").select
    tried = len(rule.timesteps) * len(rule.layers) * len(rule.num_directions)
    t_e, layer, k = re.search(r"\| chosen \| (\d+) \| (\S+) \| (\d+) \|", report).groups()
    choice = f"`t_e` = {t_e}, `{layer}`, k = {k}"
    generative = suite[suite.arm == "ce"].set_index("metric").value

    def retained(arm: str, suffix: str = "") -> str:
        return f"{value[arm, f'class_retained{suffix}']:.2f} and {value[arm, f'background_retained{suffix}']:.2f}"

    return (
        f"- On mixed-rand, `cadistill` minus {against}.\n"
        f"- Flat at the end (no gain in the last quarter of the epochs), of {flat['count'].iloc[0]} seeds: {ends}.\n"
        f"- {population()} {foundation()}\n"
        f"- [Stage `select`](nbs/clarid/06_select.ipynb) tried {tried} settings of `t_e`, layer and k on "
        f"{rule.n_images} validation images. Of those whose directions differ between images and that may keep "
        f"{rule.min_class_retained:g} of the class it takes the highest selectivity (class minus background retained, "
        f"less one standard error); within one standard error of it the smallest k, then the latest `t_e`: {choice}. "
        f"{100 * select['same_setting']:.0f} % of bootstrap draws of images and probes select all three again.\n"
        f"- Class and background retained, by fixed probes: CLARID {retained('clarid')}, "
        f"random directions {retained('random')}, "
        f"a low-pass (12 directions: 4 waves of 3 colours) {retained('low_frequency, k = 12')}, "
        f"with {k} {retained('low_frequency')}. "
        f"Probes *retrained* on CLARID's samples read {retained('clarid', '_retrained')}, "
        f"on the low-pass's (k = {k}) {retained('low_frequency', '_retrained')}. "
        f"In {100 * value['teacher', 'teacher_own_scene']:.0f} % of guided samples from noise a probe names the "
        "scene that belongs to the class. The teacher "
        f"[as a classifier](nbs/findings/suite.ipynb) is right in {generative['acc_teacher_clean']:.3f} of 200 clean "
        f"images and {generative['acc_teacher_mixed_rand']:.3f} of mixed-rand.\n"
    )


def main() -> None:
    if load_params(HOME / "params.yaml") != load_params(HOME / "presets/default.yaml"):
        print("README.md shows the default experiment; params.yaml is another one, so it stays as it is")
        return
    readme, runs = HOME / "README.md", HOME / "runs/report"
    old, report = readme.read_text(encoding="utf-8"), (runs / "report.md").read_text(encoding="utf-8")
    text = headline_table(report) + "\n" + findings(report, read_table(runs / "results.csv"))
    new = BLOCK.sub(lambda m: m[1] + "\n" + text + m[2], old)
    if "--check" not in sys.argv:
        readme.write_text(new, encoding="utf-8")
    elif new != old:
        sys.exit("error: README.md does not show what runs/report holds; run `make readme`")


if __name__ == "__main__":
    main()

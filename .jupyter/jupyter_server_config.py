"""JupyterLab on this project (`make lab`): opens the tour, and saving a notebook cleans it as `nbdev-clean` does."""

from pathlib import Path

from nbdev.clean import clean_jupyter


def clean(model: dict, path: str, **_) -> None:
    """Drop standard error, what nbdev's hook drops, and all outputs of stage notebooks, which DVC executes."""
    if model["type"] == "notebook":
        for cell in model["content"]["cells"]:
            if outputs := cell.get("outputs"):
                stage = path.startswith("nbs/stages/")
                cell["outputs"] = [o for o in outputs if o.get("name") != "stderr" and not stage]
        clean_jupyter(path, model)


c = get_config()  # noqa: F821
c.ServerApp.root_dir = str(Path(__file__).resolve().parent.parent)
c.LabApp.default_url = "/lab/tree/nbs/index.ipynb"
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
c.ContentsManager.pre_save_hook = clean

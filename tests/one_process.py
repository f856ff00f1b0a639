"""The stages of params.yaml in one process, each without a kernel: what `run_one_process` runs in a fork."""

import sys
from pathlib import Path

from clarep.files import project_root
from clarep.params import load_params
from clarep.pipeline import stage as runner
from clarep.pipeline.estimate import stage_runs
from clarep.pipeline.prepare import prepare


def execute(notebook, executed, parameters, cwd) -> None:
    """What `clarep.pipeline.stage.execute` does, without a kernel."""
    from execnb.shell import CaptureShell, dict2nb, write_nb
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    content = dict2nb(parameterize_notebook(load_notebook_node(str(notebook)), parameters))
    CaptureShell(path=cwd).run_all(content, exc_stop=True)
    Path(executed).parent.mkdir(parents=True, exist_ok=True)
    write_nb(content, executed)


if __name__ == "__main__":
    runner.execute = execute
    prepare()
    for stage in sys.argv[1:]:
        for run in stage_runs(load_params(project_root() / "params.yaml"), stage):
            print(stage, *run, flush=True)
            runner.run_stage(stage, *run)

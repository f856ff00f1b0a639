"""Python commands in forks of one server that has the libraries imported, so that each starts six seconds sooner."""

import gc
import importlib.util
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

LIBRARIES = """
    torch torch._dynamo diffusers.models.autoencoders.autoencoder_kl diffusers.models.unets.unet_2d_condition
    diffusers.pipelines.dit.pipeline_dit transformers.models.clip timm pandas sklearn.metrics scipy.optimize
    skimage.data matplotlib.pyplot nbformat papermill execnb.shell ruamel.yaml pydantic
""".split()  # nothing of the project: a copy of it has its own
HERE = Path(__file__).resolve().parent

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(LIBRARIES)


def _run(folder: str, log: str, env: dict[str, str], arguments: list[str]) -> None:
    """In the fork: run a module or a script where only the folder's own modules are found, and no repository's."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    gc.freeze()  # what the server has imported stays
    os.chdir(folder)
    os.environ.clear(), os.environ.update(env)
    elsewhere = [path for path in sys.path if Path(path).resolve() not in (HERE, HERE.parent)]
    sys.path[:] = [folder, *elsewhere]
    sys.modules.pop(__name__)  # a copy of the project has its own
    packages = [name for name in ("clarep", Path(folder).name) if Path(folder, name, "__init__.py").is_file()]
    assert all(importlib.util.find_spec(name).origin == f"{folder}/{name}/__init__.py" for name in packages)
    assert not {name.partition(".")[0] for name in sys.modules} & {*packages}
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def run_in_fork(folder: Path, *arguments: str, timeout: float = 1500) -> subprocess.CompletedProcess:
    """`python -m MODULE ...` or `python SCRIPT ...` in a folder; what it prints, errors too, is `stdout`.

    Hooks of `atexit` do not run. Variables that a library reads at its import are those of the first fork.
    """
    env = {**os.environ, "PYTHONPATH": str(folder), "DVC_NO_ANALYTICS": "1"}
    with tempfile.NamedTemporaryFile("r") as log:
        process = SERVER.Process(target=_run, args=(str(folder), log.name, env, [*arguments]))
        process.start(), process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(arguments, timeout, log.read())
        return subprocess.CompletedProcess(arguments, process.exitcode, log.read(), "")

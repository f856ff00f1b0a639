"""Python commands in forks of one server that has the libraries imported, so that each starts six seconds sooner."""

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

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(LIBRARIES)


def _run(folder: str, log: str, arguments: list[str]) -> None:
    """In the fork: what `python ARGUMENTS` does in a folder, which comes first among those with modules."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = folder
    sys.path.insert(0, folder)
    assert not [name for name in sys.modules if name.partition(".")[0] == "clarep"]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def run_in_fork(folder: Path, *arguments: str, timeout: float = 1500) -> subprocess.CompletedProcess:
    """`python ARGUMENTS` in a folder, for `-m MODULE` and a script; what it prints, errors too, is `stdout`."""
    with tempfile.NamedTemporaryFile("r") as log:
        process = SERVER.Process(target=_run, args=(str(folder), log.name, [*arguments]))
        process.start(), process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(arguments, timeout)
        return subprocess.CompletedProcess(arguments, process.exitcode, log.read(), "")

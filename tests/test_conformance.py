"""Images of a checkpoint are those of diffusers' own sampler, or the checkpoint is refused by name.

A cell is a kind of network, a scheduler of diffusers and one setting of it. `python tests/test_conformance.py` writes
`bench/conformance.csv` anew: `make fuzz` measures all of it, `make test` some of it.
"""

import contextlib
import copy
import inspect
import io
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import diffusers
import pandas as pd
import pytest
import torch
from conftest import HOME
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel, schedulers

from clarep.diffusion import tiny_models
from clarep.diffusion.models import Teacher
from clarep.diffusion.ode import sample
from clarep.diffusion.schedule import FAMILIES, EDMSchedule, FlowSchedule, Schedule
from clarep.diffusion.teacher import load_teacher, meta_teacher
from clarep.files import DataError

diffusers.utils.logging.set_verbosity_error()
TABLE = HOME / "bench" / "conformance.csv"
NAMES, STEPS, GUIDANCE, SEED = ["a", "b", "c"], 4, 2.0, 5
SCHEDULERS = sorted(name for name in dir(schedulers) if name.endswith("Scheduler"))
EPSILON, V = {}, {"prediction_type": "v_prediction"}
SWITCHES = {  # setting of a scheduler: its values, and what else is set with them
    "prediction_type": (["v_prediction", "sample", "flow_prediction"], EPSILON),
    "clip_sample": ([True, False], EPSILON),
    "thresholding": ([True], EPSILON),
    "set_alpha_to_one": ([True, False], EPSILON),
    "steps_offset": ([1, 3], EPSILON),
    "timestep_spacing": (["leading", "trailing", "linspace"], V),
    "rescale_betas_zero_snr": ([True], EPSILON),
    "rescale_betas_zero_snr, v_prediction": ([True], V),
    "variance_type": (["learned", "learned_range"], EPSILON),
    "beta_schedule": (["scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp", "laplace"], V),
    "use_karras_sigmas": ([True], EPSILON),
    "use_flow_sigmas": ([True], EPSILON),
    "timestep_type": (["continuous"], V),
    "final_sigmas_type": (["sigma_min"], EPSILON),
    "sigma_schedule": (["exponential"], EPSILON),
    "shift": ([3.0], EPSILON),
    "shift_terminal": ([0.1], EPSILON),
    "use_dynamic_shifting": ([True], EPSILON),
    "invert_sigmas": ([True], EPSILON),
    "stochastic_sampling": ([True], EPSILON),
}


def unet(folder: Path, **options) -> None:
    """A UNet of pixels with three classes and null."""
    UNet2DModel(
        sample_size=8, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), num_class_embeds=4,
        block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, add_attention=False, **options,
    ).save_pretrained(folder / "unet")  # fmt: skip


KINDS: dict[str, Callable[[Path], None]] = {
    "unet": unet,
    "unet, learned variance": lambda folder: unet(folder, out_channels=6),
    "dit": lambda folder: tiny_models.TINY["dit"](folder, [str(i) for i in range(1000)], 16),
    "text": lambda folder: tiny_models.TINY["text"](folder, NAMES, 16),
    "flow": lambda folder: tiny_models.TINY["flow"](folder, NAMES, 16),
}
SAMPLERS = {Schedule: DDIMScheduler, EDMSchedule: EDMEulerScheduler, FlowSchedule: FlowMatchEulerDiscreteScheduler}
FAMILIES_OF = {"dit": (Schedule,), "text": (Schedule, EDMSchedule), "flow": (FlowSchedule,)}  # that diffusers runs
DEFAULT = {"flow": "FlowMatchEulerDiscreteScheduler"}  # that a kind opens with, else DDIM


def cells(kinds=KINDS, names=SCHEDULERS) -> Iterator[tuple[str, str, str, dict]]:
    """Kind, scheduler, setting and the scheduler's configuration; other settings than the default where it can run."""
    for kind in kinds:
        for name in names:
            yield kind, name, "default", {}
            runs = FAMILIES.get(name) in FAMILIES_OF.get(kind, (Schedule, EDMSchedule, FlowSchedule))
            runs = runs and (kind != "unet, learned variance" or name == "DDIMScheduler")
            known = inspect.signature(getattr(diffusers, name).__init__).parameters if runs else ()
            for switch, (values, others) in SWITCHES.items():
                key = switch.split(",")[0]
                for value in values if key in known else ():
                    config = {k: v for k, v in others.items() if k in known} | {key: value}
                    yield kind, name, ", ".join(f"{k}={v}" for k, v in config.items()), config


def write_scheduler(folder: Path, name: str, config: dict) -> None:
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": name, **config}))


@cache
def checkpoint(kind: str) -> tuple[Path, Teacher]:
    """A folder in diffusers' format, and the teacher that opens from it."""
    torch.manual_seed(0)
    folder = Path(tempfile.mkdtemp())
    KINDS[kind](folder)
    write_scheduler(folder, DEFAULT.get(kind, "DDIMScheduler"), {})
    names = None if kind.startswith("unet") or kind == "dit" else NAMES
    return folder, load_teacher(folder, class_names=names)


def ours(kind: str) -> torch.Tensor:
    """Latents from the checkpoint as it lies there; opening it again costs less without its weights."""
    folder, teacher = checkpoint(kind)
    teacher = copy.copy(teacher)
    with patch("clarep.diffusion.teacher._run_once"):  # slow, and no matter of the scheduler
        meta = meta_teacher(folder)
    teacher.schedule, teacher.space = meta.schedule, SimpleNamespace(decode=lambda x: x, factor=1)
    with contextlib.redirect_stderr(io.StringIO()):
        return sample(teacher, torch.arange(3), GUIDANCE, STEPS, SEED)


def reference(scheduler):
    """Where a scheduler's sampler is another one: the deterministic one of its family, as users of diffusers put it."""
    config = {k: v for k, v in scheduler.config.items() if k != "_use_default_values"}  # as diffusers saves it
    family = FAMILIES[type(scheduler).__name__]
    if isinstance(scheduler, SAMPLERS[family]):
        return scheduler
    unclipped = {"clip_sample": config.get("clip_sample", False)} if family is Schedule else {}
    try:
        return SAMPLERS[family].from_config(config, **unclipped)
    except NotImplementedError:  # DDIM knows fewer beta schedules
        betas = {"trained_betas": scheduler.betas.tolist(), "rescale_betas_zero_snr": False}
        return SAMPLERS[family].from_config(config, **unclipped, **betas)


@torch.no_grad()
def theirs(kind: str) -> torch.Tensor:
    """Latents by diffusers' own pipeline; a loop over its scheduler for class-conditional UNets, which have none."""
    folder, teacher = checkpoint(kind)
    name = json.loads((folder / "scheduler/scheduler_config.json").read_text())["_class_name"]
    scheduler = getattr(diffusers, name).from_pretrained(folder / "scheduler")
    generator = torch.Generator().manual_seed(SEED)
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "generator": generator}
    net, labels, vae = teacher.net, torch.arange(3), getattr(teacher.space, "vae", None)
    if kind.startswith("unet"):
        scheduler = reference(scheduler)
        scheduler.set_timesteps(STEPS)
        x = torch.randn(3, 3, 8, 8, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            out = [net(scaled, t, class_labels=c).sample[:, :3] for c in (labels, torch.full((3,), 3))]
            x = scheduler.step(out[1] + GUIDANCE * (out[0] - out[1]), t, x).prev_sample
        return x
    if kind == "dit":
        latents, pipe = [], diffusers.DiTPipeline(net, copy.copy(vae), reference(scheduler))
        pipe.vae.decode = lambda z: latents.append(z) or SimpleNamespace(sample=z)
        pipe.set_progress_bar_config(disable=True)
        pipe(class_labels=labels.tolist(), output_type="pt", **options)
        return latents[0] * vae.config.scaling_factor
    pipeline = diffusers.StableDiffusion3Pipeline if kind == "flow" else diffusers.StableDiffusionPipeline
    parts = {"vae": vae, "transformer" if kind == "flow" else "unet": net, "scheduler": scheduler}
    parts |= {"requires_safety_checker": False}
    pipe = pipeline(**{p: parts.get(p) for p in inspect.signature(pipeline).parameters})
    pipe.scheduler = reference(pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    arguments = {"encoder_hidden_states": "prompt_embeds", "pooled_projections": "pooled_prompt_embeds"}
    prompts = {arguments[k]: rows[:3] for k, rows in teacher.prompts.items()}
    prompts |= {f"negative_{arguments[k]}": rows[3:].expand(3, *rows.shape[1:]) for k, rows in teacher.prompts.items()}
    return pipe(**prompts, output_type="latent", **options).images


def result(kind: str, name: str, config: dict) -> str:
    """`equal`, `different`, or why the checkpoint is refused."""
    folder, _ = checkpoint(kind)
    write_scheduler(folder, name, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            x = ours(kind)
        except DataError as e:
            return "refused: " + str(e).replace(str(folder), "CHECKPOINT").split(";")[0]
        y = theirs(kind)
    difference = (x - y).abs().max() / y.abs().max().clamp(min=1)
    return "equal" if difference <= 1e-4 else f"different by {difference:.1e}"


def measure(selection) -> pd.DataFrame:
    rows = [(kind, name, setting, result(kind, name, config)) for kind, name, setting, config in selection]
    return pd.DataFrame(rows, columns=["kind", "scheduler", "setting", "result"])


def check(table: pd.DataFrame) -> None:
    """Each cell is what the committed table says."""
    committed = pd.read_csv(TABLE).set_index(["kind", "scheduler", "setting"]).result
    measured = table.set_index(["kind", "scheduler", "setting"]).result
    changed = measured[measured != committed.reindex(measured.index)]
    assert changed.empty, f"{changed.to_string()}\nif that is right: python tests/test_conformance.py"


def test_the_table_has_every_scheduler_and_no_difference():
    table = pd.read_csv(TABLE)
    assert list(zip(table.kind, table.scheduler, table.setting)) == [cell[:3] for cell in cells()]
    assert len(table) >= 300 and set(table.scheduler) == set(SCHEDULERS) and set(table.kind) == set(KINDS)
    assert ((table.result == "equal") | table.result.str.startswith("refused: ")).all()
    assert (table.result == "equal").sum() >= 300


def test_part_of_the_table():
    part = [*cells(["unet"], ["DDIMScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"])]
    part += [cell for cell in cells(["dit", "text", "flow"]) if cell[2] == "default"][::4]
    check(measure(part))


@pytest.mark.fuzz
def test_whole_table():
    check(measure(cells()))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_euler_itself(spacing, monkeypatch):
    """Euler's steps are those of DDIM, so here the reference may be the checkpoint's own sampler."""
    euler = {"timestep_spacing": spacing, "prediction_type": "v_prediction"}
    monkeypatch.setattr(f"{__name__}.reference", lambda scheduler: scheduler)
    assert result("unet", "EulerDiscreteScheduler", euler) == "equal"


FAULTS = {  # what could be forgotten, and a cell that shows it
    "steps_offset": {"steps_offset": 1},
    "set_alpha_to_one": {"set_alpha_to_one": False},
    "timestep_spacing": {"timestep_spacing": "trailing"},
    "clip_sample": {"clip_sample": False},
    "beta_schedule": {"beta_schedule": "scaled_linear"},
    "prediction_type": {"prediction_type": "v_prediction"},
}


@pytest.mark.parametrize("key", FAULTS)
def test_a_forgotten_setting_is_seen(key, monkeypatch):
    real = Schedule.__init__

    def forgetful(self, scheduler):
        config = {k: v for k, v in scheduler.config.items() if k != key and not k.startswith("_")}
        real(self, type(scheduler)(**config))

    assert result("unet", "DDIMScheduler", FAULTS[key]) == "equal"
    monkeypatch.setattr(Schedule, "__init__", forgetful)
    assert result("unet", "DDIMScheduler", FAULTS[key]).startswith("different")


if __name__ == "__main__":
    measure(cells()).to_csv(TABLE, index=False)

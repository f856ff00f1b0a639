"""Other people's checkpoints: opened as diffusers' own pipeline opens them, or refused with a sentence that helps."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel, UNet2DModel, VQModel
from safetensors.torch import load_file, save_file

from clarep.diffusion.ode import sample
from clarep.diffusion.teacher import describe, load_teacher, point_to
from clarep.diffusion.tiny_models import TINY, UNET
from clarep.files import DataError

diffusers.utils.logging.set_verbosity_error(), transformers.logging.set_verbosity_error()
NAMES = list("abc")


def unet(folder: Path, rows: int = 4, scheduler=None, **options) -> UNet2DModel:
    """A class-conditional UNet of 8 pixels, as diffusers saves it."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    net = UNet2DModel(**{"sample_size": 8, "num_class_embeds": rows, **blocks, **UNET, **options})
    net.save_pretrained(folder / "unet")
    (scheduler or DDIMScheduler(clip_sample=False)).save_pretrained(folder / "scheduler")
    return net


def make(folder: Path, kind: str, **options) -> None:
    unet(folder, **options) if kind == "unet" else TINY[kind](folder, NAMES, 16)


def edit(file: str, **values) -> Callable[[Path], None]:
    """Change keys of a JSON file; a key that is to be ... is removed."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text()) | values
        (folder / file).write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))

    return change


def weights(file: str, change: Callable[[dict], dict]) -> Callable[[Path], None]:
    return lambda folder: save_file(change(load_file(folder / file)), folder / file, metadata={"format": "pt"})


def without_first(tensors: dict) -> dict:
    return dict(sorted(tensors.items())[1:])


def rename(variant: str, file: str = "unet/diffusion_pytorch_model.safetensors") -> Callable[[Path], None]:
    return lambda folder: (folder / file).rename(folder / file.replace(".safetensors", f".{variant}.safetensors"))


def shards(folder: Path) -> None:
    net = UNet2DModel.from_pretrained(folder / "unet")
    shutil.rmtree(folder / "unet")
    net.save_pretrained(folder / "unet", max_shard_size="20KB", variant="fp16")


def wrong_beside(folder: Path) -> None:
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    save_file({k: 0 * v.half() for k, v in load_file(file).items()}, file.with_suffix(".fp16.safetensors"))


def vqvae(folder: Path) -> None:
    VQModel(block_out_channels=(8,), latent_channels=3, norm_num_groups=8).save_pretrained(folder / "vqvae")


def tiny_autoencoder(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    blocks = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).save_pretrained(folder / "vae")


def pickled_checker(folder: Path) -> None:
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker/config.json").write_text('{"auto_map": {}}')
    (folder / "safety_checker/pytorch_model.bin").write_bytes(b"")
    edit("model_index.json", safety_checker=["their_code", "Checker"], feature_extractor=["their_code", "X"])(folder)


def becomes(file: str, content: bytes | None) -> Callable[[Path], None]:
    """Other content of a file; None removes it."""
    return lambda folder: (folder / file).unlink() if content is None else (folder / file).write_bytes(content)


def moved(file: str, to: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).rename(folder / to)


def diverged(tensors: dict) -> dict:
    return tensors | {"conv_in.bias": tensors["conv_in.bias"] / 0}


UNET_CONFIG, VAE_CONFIG, INDEX = "unet/config.json", "vae/config.json", "model_index.json"
SCHEDULER, NET = "scheduler/scheduler_config.json", "unet/diffusion_pytorch_model.safetensors"
WORDS = "tokenizer/tokenizer_config.json"
VAE, ENCODER = "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
REFUSED = {  # what is done to which kind of checkpoint: what the message names
    "missing weight": ("unet", weights(NET, without_first), "lack 1 of UNet2DM"),
    "prefix of DDP": (
        "unet",
        weights(NET, lambda t: {f"module.{k}": v for k, v in t.items()}),
        "it has 'module.",
    ),
    "weight of another size": (
        "unet",
        weights(
            "unet/diffusion_pytorch_model.safetensors", lambda t: t | {"class_embedding.weight": torch.zeros(9, 64)}
        ),
        "class_embedding.weight",
    ),
    "missing in the autoencoder": (
        "dit",
        weights(VAE, without_first),
        "lack 1 of",
    ),
    "missing in the text encoder": ("text", weights(ENCODER, without_first), "lack 1 of CLIP"),
    "autoencoder of another class": ("dit", tiny_autoencoder, "`_class_name` is 'AutoencoderTiny'"),
    "VQ autoencoder": ("unet", vqvae, "part 'vqvae'"),
    "grey autoencoder": ("dit", edit(VAE_CONFIG, out_channels=1), "`out_channels` is 1"),
    "shifted autoencoder": ("dit", edit(VAE_CONFIG, shift_factor=0.1), "`shift_factor` is 0.1"),
    "latents with statistics": ("dit", edit(VAE_CONFIG, latents_mean=[1.0] * 4), "`latents_mean` is [1.0, 1.0,"),
    "weights that are not finite": ("unet", weights(NET, diverged), "are not finite (conv_in.bias)"),
    "null in the table": ("dit", edit(INDEX, id2label=dict(zip("0123", "abc0"))), "its row 3 is the null condition"),
    "no index": ("text", becomes(INDEX, None), "it is missing, or names no pipeline"),
    "size as text": ("unet", edit(UNET_CONFIG, sample_size="8"), "`sample_size` is '8'"),
    "no size": ("unet", edit(UNET_CONFIG, sample_size=None), "`sample_size` is None"),
    "not square": ("unet", edit(UNET_CONFIG, sample_size=[8, 16]), "`sample_size` is [8, 16]"),
    "size that does not fit": ("unet", edit(UNET_CONFIG, sample_size=9), "cannot run this UNet2DModel"),
    "fourier time": ("unet", edit(UNET_CONFIG, time_embedding_type="fourier"), "`time_embedding_type` is 'fourier'"),
    "labels that are no table": ("unet", edit(UNET_CONFIG, class_embed_type="timestep"), "`class_embed_type`"),
    "three channels more": ("unet", edit(UNET_CONFIG, out_channels=4), "`out_channels` is 4"),
    "grey": ("unet", edit(UNET_CONFIG, in_channels=1, out_channels=1), "no models for grey images"),
    "inpainting": ("unet", edit(UNET_CONFIG, in_channels=9), "no models for inpainting"),
    "labels and text": ("text", edit(UNET_CONFIG, num_class_embeds=11), "`num_class_embeds` is 11"),
    "Stable Diffusion XL": ("text", edit(UNET_CONFIG, addition_embed_type="text_time"), "`addition_embed_type`"),
    "latent consistency": ("text", edit(UNET_CONFIG, time_cond_proj_dim=8), "`time_cond_proj_dim` is 8"),
    "images beside text": ("text", edit(UNET_CONFIG, encoder_hid_dim_type="image_proj"), "`encoder_hid_dim_type`"),
    "another text encoder": ("text", edit("text_encoder/config.json", hidden_size=64), "with the other parts"),
    "another pipeline": ("text", edit(INDEX, _class_name="StableDiffusionUpscalePipeline"), "UpscalePipeline is no"),
    "another transformer": (
        "dit",
        edit("transformer/config.json", norm_type="ada_norm_single"),
        "`norm_type` is 'ada_norm_single'",
    ),  # fmt: skip
    "table that starts at 1": ("dit", edit(INDEX, id2label={"1": "a", "2": "b", "3": "c"}), "`id2label` has the id 3"),
    "zero SNR and epsilon": (
        "unet",
        edit(SCHEDULER, rescale_betas_zero_snr=True),
        "`rescale_betas_zero_snr`",
    ),  # fmt: skip
    "unknown betas": ("unet", edit(SCHEDULER, beta_schedule="mine"), "mine is not implemented"),
    "no timesteps": ("unet", edit(SCHEDULER, num_train_timesteps=0), "`num_train_timesteps` is 0"),
    "autoencoder scaled by nothing": ("dit", edit(VAE_CONFIG, scaling_factor=0), "`scaling_factor` is 0"),
    "autoencoder scaled by a text": ("dit", edit(VAE_CONFIG, scaling_factor="0.18"), "`scaling_factor` is '0.18'"),
    "fewer betas than timesteps": ("unet", edit(SCHEDULER, trained_betas=[1e-4, 0.02] * 50), "there are 100 betas"),
    "no betas": ("unet", edit(SCHEDULER, trained_betas=[]), "there are 0 betas"),
    "betas below 0": ("unet", edit(SCHEDULER, beta_start=-0.1), "betas are outside 0 to 1"),
    "betas above 1": ("unet", edit(SCHEDULER, beta_end=2.0), "betas are outside 0 to 1"),
    "clipped to nothing": ("unet", edit(SCHEDULER, clip_sample=True, clip_sample_range=0), "`clip_sample` off"),
    "channels as text": ("dit", edit("transformer/config.json", in_channels="4"), "`in_channels` is '4'"),
    "weights under another name": ("unet", moved(NET, "unet/unet.safetensors"), "its weights as unet.safetensors"),
    "prompts longer than the encoder": ("text", edit(WORDS, model_max_length=77), "`model_max_length` is 77"),
    "prompts without a length": ("text", edit(WORDS, model_max_length=...), "`model_max_length` is 1e+30"),
    "unknown spacing": ("unet", edit(SCHEDULER, timestep_spacing="log"), "log is not supported"),
}
AT_OPENING = {"missing weight", "prefix of DDP", "weight of another size"}
AT_OPENING |= {"weights that are not finite", "weights under another name"}
AT_OPENING |= {name for name in REFUSED if name.startswith("prompts")}
AT_OPENING |= {"weights that are not finite"}  # only the weights themselves show it
AT_OPENING |= {name for name in REFUSED if name.startswith("missing in")}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name, tmp_path):
    kind, change, message = REFUSED[name]
    make(tmp_path, kind)
    change(tmp_path)
    for read in (load_teacher,) if name in AT_OPENING else (load_teacher, describe):
        with pytest.raises(DataError) as error:
            read(tmp_path, class_names=NAMES) if read is load_teacher and kind != "unet" else read(tmp_path)
        assert message in str(error.value) and "\n" not in str(error.value).split("(")[0], error.value
        assert ("download it again" in str(error.value)) == (name == "weight of another size")


OPENED = {  # what makes no difference
    "shards in fp16": ("unet", shards),
    "bf16 only": ("unet", rename("bf16")),
    "fp16 beside": ("unet", wrong_beside),
    "size as a list": ("unet", edit(UNET_CONFIG, sample_size=[8, 8])),
    "text encoder in fp16": ("text", rename("fp16", ENCODER)),
    "a checker of their own": ("text", pickled_checker),
    "clip_sample not named": ("text", edit(SCHEDULER, clip_sample=...)),
    "clip_sample by mistake": ("text", edit(SCHEDULER, clip_sample=True)),
    "lists that are no parts": ("dit", edit(INDEX, crops=[0, 0], mean=[0.0] * 4)),
    "table with several spellings": ("dit", edit(INDEX, id2label={"00": ["a", "ay"], "01": "b", "2": ["c"]})),
}


@pytest.mark.parametrize("name", OPENED)
def test_opened_as_it_is(name, tmp_path):
    kind, change = OPENED[name]
    torch.manual_seed(0)
    make(tmp_path, kind)
    options = {} if kind == "unet" else {"class_names": NAMES}
    expected = sample(load_teacher(tmp_path, **options), torch.arange(3), 2.0, 2)
    change(tmp_path)
    teacher = load_teacher(tmp_path, **options)
    assert torch.equal(sample(teacher, torch.arange(3), 2.0, 2), expected)
    assert teacher.image_size == describe(tmp_path).image_size == expected.shape[-1]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("offset, zero_snr", [(0, False), (1, True)])
def test_any_number_of_steps_is_that_of_diffusers(spacing, offset, zero_snr, tmp_path):
    """Also numbers that do not divide the timesteps."""
    options = {"timestep_spacing": spacing, "steps_offset": offset, "rescale_betas_zero_snr": zero_snr}
    scheduler = DDIMScheduler(prediction_type="v_prediction", **options)
    net, teacher = unet(tmp_path, scheduler=scheduler), load_teacher(tmp_path)
    for steps in (1, 3, 7, 30):
        scheduler.set_timesteps(steps)
        x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(3))
        for t in scheduler.timesteps:
            with torch.no_grad():
                null, c = (net(x, t, class_labels=rows).sample for rows in (torch.full((3,), 3), torch.arange(3)))
            x = scheduler.step(null + 2 * (c - null), t, x).prev_sample
        torch.testing.assert_close(
            sample(teacher, torch.arange(3), 2.0, steps, seed=3), x.clamp(-1, 1), atol=1e-3, rtol=0
        )


@pytest.mark.parametrize("kind", ["unet", "text"])
def test_learned_variance_is_split_off(kind, tmp_path):
    make(tmp_path, kind)
    if kind == "unet":
        net = unet(tmp_path, out_channels=6)
    else:
        net = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(tmp_path / "unet"), out_channels=8)
        net.save_pretrained(tmp_path / "unet")
    teacher = load_teacher(tmp_path, class_names=NAMES if kind == "text" else None)
    x, c = torch.randn(2, *teacher.latent_shape), torch.tensor([0, 1])
    condition = teacher._prompts(c) if kind == "text" else {"class_labels": c}
    with torch.no_grad():
        torch.testing.assert_close(teacher.eps(x, 500, c), net(x, 500, **condition).sample[:, : x.shape[1]])


def test_null_row_of_a_class_table(tmp_path, capsys):
    net = unet(tmp_path)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for ids, null in (([0, 1, 2], 3), ([1, 2, 3, 0], 0)):
            teacher = load_teacher(tmp_path, class_names=NAMES, class_ids=ids)
            torch.testing.assert_close(teacher.eps(x, 9, teacher.null(2)), net(x, 9, torch.full((2,), null)).sample)
    assert "row 0 is the null condition" in capsys.readouterr().out
    with pytest.raises(DataError, match="none is left for the null condition"):
        load_teacher(tmp_path, class_names=list("abcd"))


def test_ids_of_a_table_are_kept(tmp_path):
    make(tmp_path, "dit")
    edit(INDEX, id2label={"1": "a", "2": "b, bee"})(tmp_path)
    teacher = load_teacher(tmp_path)
    assert teacher.class_names == ["a", "b"] and teacher.table.tolist() == [1, 2, 3]
    assert load_teacher(tmp_path, class_names=["bee"]).table.tolist() == [2, 3]


@pytest.mark.parametrize("ids", [[], [0, 1], [0, 1, 2, 2], [-1, 0, 1], [0, 1, 99], [0, 1, 3, 2, 4]])
def test_ids_that_are_no_row_per_class_are_refused(ids, tmp_path):
    unet(tmp_path)
    with pytest.raises((DataError, ValueError), match="class ids?"):
        load_teacher(tmp_path, class_names=NAMES, class_ids=ids)


def test_classes_that_the_teacher_cannot_tell_apart_are_refused(tmp_path):
    make(tmp_path / "dit", "dit")
    edit(INDEX, id2label={"0": "a, ay", "1": "b", "2": "c"})(tmp_path / "dit")
    for options in ({"class_names": ["a", "ay"]}, {"class_names": ["x", "y"], "class_ids": [1, 1]}):
        with pytest.raises(DataError, match=" and (ay|y) have one id"):
            load_teacher(tmp_path / "dit", **options)
    make(tmp_path / "text", "text")
    with pytest.raises(ValueError, match="2 classes have the prompt 'a photo of a crane'"):
        load_teacher(tmp_path / "text", class_names=["crane, bird", "crane, machine", "dog"])


@pytest.mark.parametrize("kind", ["text", "flow"])
def test_images_of_prompts_are_those_of_the_pipeline(kind, tmp_path):
    make(tmp_path, kind)
    absent = {"text_encoder_3": None, "tokenizer_3": None} if kind == "flow" else {}
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True, **absent)
    pipe.set_progress_bar_config(disable=True)
    generator, prompts = torch.Generator().manual_seed(3), [f"a photo of a {name}" for name in NAMES]
    theirs = pipe(prompts, guidance_scale=3.0, num_inference_steps=5, generator=generator, output_type="pt").images
    ours = sample(load_teacher(tmp_path, class_names=NAMES), torch.arange(3), 3.0, 5, seed=3)
    torch.testing.assert_close(ours / 2 + 0.5, theirs, atol=1e-4, rtol=0)


def test_size_of_the_first_stable_diffusion(tmp_path):
    """Its configuration says 32; the pipeline makes 64 of it."""
    make(tmp_path, "text")
    edit(UNET_CONFIG, _diffusers_version="0.8.0")(tmp_path)
    assert describe(tmp_path).latent_shape == (4, 64, 64)
    assert load_teacher(tmp_path, class_names=NAMES).latent_shape == (4, 64, 64)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
DAMAGED = {  # a file: what it holds; None: it is not there
    "dit": {VAE_CONFIG: None, INDEX: POINTER, "transformer/config.json": b'{"_class_name": "DiTTr'},
    "unet": {UNET_CONFIG: b"[]", SCHEDULER: None},
    "text": {INDEX: b"null", "text_encoder/config.json": POINTER, "tokenizer/tokenizer.json": None},
}


@pytest.mark.parametrize("kind, file", [(kind, file) for kind in DAMAGED for file in DAMAGED[kind]])
def test_a_damaged_part_is_to_be_downloaded_again(kind, file, tmp_path):
    """Not to be deleted or made by `dvc repro`; transformers makes an empty vocabulary of a missing one."""
    make(tmp_path, kind)
    becomes(file, DAMAGED[kind][file])(tmp_path)
    with pytest.raises(DataError, match=r"is damaged or incomplete \(.*\); download it again") as error:
        load_teacher(tmp_path, class_names=None if kind == "unet" else NAMES)
    assert Path(file).name in str(error.value)


def test_weights_beside_those_of_the_configuration_are_said(tmp_path, capsys):
    unet(tmp_path, down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    edit(UNET_CONFIG, down_block_types=["DownBlock2D"] * 2, up_block_types=["UpBlock2D"] * 2)(tmp_path)
    load_teacher(tmp_path)
    assert "attentions.0" in (text := capsys.readouterr().out) and "belong to no part of the network" in text


@pytest.mark.parametrize(
    "names, prompt", [(["Turkey", "turkey"], "a {name}"), (NAMES, f"{'in the very best light, ' * 9} a {{name}}")]
)
def test_prompts_that_the_encoder_reads_alike_are_refused(names, prompt, tmp_path):
    """Capitals may not count, nor what stands behind the last token that it reads."""
    make(tmp_path, "text")
    with pytest.raises(ValueError, match=f"{len(names)} classes have the prompt .* up to 48 tokens"):
        load_teacher(tmp_path, class_names=names, prompt=prompt)


def test_other_weights_behind_a_link_are_noticed(tmp_path):
    unet(tmp_path / "store")
    (tmp_path / "own").mkdir()
    for part in ("unet", "scheduler"):
        (tmp_path / "own" / part).symlink_to(tmp_path / "store" / part)
    point_to(tmp_path / "model", str(tmp_path / "own"), NAMES)
    load_teacher(tmp_path / "model")
    weights(NET, lambda tensors: {k: 2 * v for k, v in tensors.items()})(tmp_path / "store")
    with pytest.raises(DataError, match="is not what it was when the teacher stage ran"):
        load_teacher(tmp_path / "model")


@pytest.mark.parametrize(
    "name", ["owner/name/", "https://huggingface.co/owner/name", "owner/name@main", "hf://owner/name"]
)
def test_an_id_of_the_hub_in_another_form_is_corrected(name):
    with pytest.raises(DataError, match="write an id of the hub as `owner/name`; for another revision give its folder"):
        load_teacher(name)


def test_a_name_that_is_too_long_is_no_teacher():
    with pytest.raises(DataError, match="there is no such folder"):
        load_teacher("a" * 300)


def test_other_words_of_a_tokenizer_are_noticed(tmp_path):
    """The prompts depend on them."""
    TINY["text"](tmp_path / "checkpoint", NAMES, 16)
    point_to(tmp_path / "teacher", str(tmp_path / "checkpoint"), NAMES)
    load_teacher(tmp_path / "teacher")
    words = next(
        f for f in (tmp_path / "checkpoint/tokenizer").iterdir() if f.suffix == ".txt" or f.name == "tokenizer.json"
    )
    words.write_text(words.read_text() + "\n")
    with pytest.raises(DataError, match="is not what it was"):
        load_teacher(tmp_path / "teacher")


def test_a_path_beside_the_checkpoint_is_led_to_it(tmp_path, monkeypatch):
    unet(tmp_path / "models--a--b/snapshots/1")
    for path in ("models--a--b/snapshots/1/unet", "models--a--b", "models--a--b/snapshots"):
        with pytest.raises(DataError, match="did you mean .*models--a--b/snapshots/1[?]$"):
            describe(tmp_path / path)
    (tmp_path / "sd.ckpt").touch()
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(DataError, match="is a single file; .* writes one"):
        describe(f"{tmp_path.name}/sd.ckpt")

"""Other people's image folders: every file is used, or counted under a reason; refusals are sentences.

`make fuzz` grows 2,000 random trees and damages 2,000 images; a small part of both runs here. What lies in a tree is
counted by a plain `os.walk` and by the rules of the chapter on sources, never by the code under test.
"""

import io
import os
import re
import shutil
import signal
import stat
import unicodedata
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fastcore.test import test_fail as fails
from PIL import Image

from clarep.files import DataError
from clarep.images import Images
from clarep.sources import Tally, class_folders, images_in, list_files, load_source, show_sets, to_pixels

matplotlib.use("agg")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Pillow about damaged files, of matplotlib about letters
MANY = 10**6
TREES, DAMAGED = (60, 2000), (200, 2200)  # here, and in `make fuzz`


def load(
    folder: Path, tally: Tally | None = None, n: int = MANY, classes: list[str] | None = None
) -> dict[str, Images]:
    return load_source("imagefolder", folder, 16, classes, None, n, n, n, 1.0, 0, tally=tally)


def png(colour: tuple[int, ...], kind: str = "PNG") -> bytes:
    Image.new("RGB", (20, 18), colour).save(file := io.BytesIO(), kind)
    return file.getvalue()


def write(path: Path | str, content: bytes = b"") -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(path).write_bytes(content)


def fill(folder: Path, *names: str, n: int = 10) -> None:
    for name in names:
        for i in range(n):
            write(folder / name / f"{i}.png", png((9 * i, len(name), 5)))


PAIRS = """Train/Test TRAIN/TEST Training/Testing training/testing training_set/test_set train/Test seg_train/seg_test
train/val train/valid Train/Validation train/dev Train/Eval train/evaluation train_data/test_data trainset/testset
training-images/testing-images fruits_Train/fruits_Test train2017/val2017 images_train/images_test 1_train/2_test"""


@pytest.mark.parametrize("pair", PAIRS.split())
def test_splits_by_every_common_name(tmp_path, pair):
    for split in pair.split("/"):
        fill(tmp_path / split, "cat", "dog")
    splits = {split: sorted(classes) for split, classes in class_folders(tmp_path).items()}
    other = "validation" if re.search("(?<!e)val(?!uation)|dev", pair, re.I) else "test"
    assert splits == {"train": ["cat", "dog"], other: ["cat", "dog"]}
    assert {name: len(images) for name, images in load(tmp_path).items()} == {
        "train": 16, "validation-original": 4, "test-original": 20,
    }  # fmt: skip


def test_layouts_of_kaggle(tmp_path, capsys):
    """Intel's scenes: doubled folders and unlabelled images beside; Food-11: evaluation is the test."""
    for split, n in (("train", 8), ("test", 4)):
        fill(tmp_path / f"intel/seg_{split}/seg_{split}", "sea", "street", n=n)
    fill(tmp_path / "intel/seg_pred", "seg_pred", n=3)
    tally = Tally()
    assert len(load(tmp_path / "intel", tally)["test-original"]) == 8
    assert tally["none", "in no class folder"][0] == 3 and "seg_pred" in capsys.readouterr().out
    for split, n in (("training", 8), ("validation", 4), ("evaluation", 3)):
        fill(tmp_path / "wrapped/food" / split, "rice", "soup", n=n)
    sets = load(tmp_path / "wrapped")
    assert [len(sets[name]) for name in ("train", "validation-original", "test-original")] == [16, 8, 6]


def test_a_test_without_labels_is_counted(tmp_path, capsys):
    fill(tmp_path / "train", "cat", "dog")
    fill(tmp_path / "Test", "images", n=3)
    write(tmp_path / "Test/1.jpg", png((1, 2, 3)))
    load(tmp_path, tally := Tally())
    assert tally["test", "in no class folder"][0] == 4 and "in no class folder" in capsys.readouterr().out


REFUSED = {
    "train/a/1.png Train/b/1.png": "may each be the split train; keep one",
    "train/a/1.png train/b/1.png val/a/1.png valid/a/1.png": "val and valid may each be the split validation",
    "train/a/1.png train/b/1.png test/A/1.png test/B/1.png": "give a class the same name in both",
    "test/a/1.png test/b/1.png": "has class folders under test, but none under train",
    "a/train/1.png a/test/1.png b/train/1.png b/test/2.png": "every class folder holds a folder train; move them",
    "caf\u00e9/1.png cafe\u0301/1.png": "would be one class, caf\u00e9; rename one",
    "train/cat.1.jpg train/dog.1.jpg test1/1.jpg": "train and test in",
    "Train/1.png Validation/1.png Test/1.png": "hold no class folders, so nothing tells the class of an image",
    "train/Cat/1.png train/dog/1.png test/cat/1.png test/dog/1.png": "of cat; 'Cat' has some: give the class one name",
    "a/1.png": "one class only (a)",
    "1.png": "images should lie in one folder per class",
}


@pytest.mark.parametrize("files", REFUSED)
def test_what_is_ambiguous_is_refused_in_a_sentence(tmp_path, files):
    for name in files.split():
        write(tmp_path / name, png((1, 2, 3)))
    fails(lambda: load(tmp_path), contains=REFUSED[files], exc=DataError)


def test_whole_numbers_are_in_their_order(tmp_path, capsys):
    fill(tmp_path, *map(str, range(12)))
    assert load(tmp_path)["train"].class_names == [str(i) for i in range(12)]
    assert "class names are whole numbers and in their order: 0, 1, ..., 11" in capsys.readouterr().out
    assert load(tmp_path, classes=["10", "9"])["train"].class_names == ["10", "9"]


def test_names_with_one_prompt_in_common_are_named(tmp_path, capsys):
    fill(tmp_path, "Cat", "cat", "crane", "crane, bird", "a", "b")
    load(tmp_path)
    text = capsys.readouterr().out
    assert "classes 'Cat' and 'cat' have one prompt" in text and "classes 'crane' and 'crane, bird' have" in text
    fails(lambda: load(tmp_path, classes=["a", "b", "a"]), contains="`data.classes` names a twice", exc=DataError)


ODD = [
    "$",
    "$$",
    "$$$",
    "$x_{1",
    "|",
    "<i>",
    "all",
    "NA",
    "null",
    "[a]",
    " ",
    "a b",
    "\U0001f431",
    "x\ny",
    "\udce9",
    "\\$",
]


def test_odd_names_are_printed_and_drawn(tmp_path, capsys):
    fill(tmp_path, *ODD, n=10)
    sets = load(tmp_path)
    names = sets["train"].class_names
    assert set(names) == {"x\\ny", "\\udce9", *ODD} - {"x\ny", "\udce9"}
    capsys.readouterr().out.encode()
    sets["train"].save(tmp_path / "train.safetensors")
    assert Images.load(tmp_path / "train.safetensors").class_names == names
    for part in (names[:8], names[8:], ["$", "$$", "$$$"], ["a$x_{1", "$b"]):
        images = Images(torch.zeros(4, 16, 16, 3, dtype=torch.uint8), torch.zeros(4).long(), part)
        show_sets({"train": images, "test-original": images}).savefig(io.BytesIO())


def test_hidden_files_are_no_images_of_the_class(tmp_path):
    for name in ("1.png", ".ipynb_checkpoints/1-checkpoint.png", ".thumbnails/1.png", "._1.png", "__MACOSX/._1.png"):
        write(tmp_path / name)
    assert [p.name for p in images_in(tmp_path)] == ["1.png"]


def test_what_is_passed_over_is_said(tmp_path, capsys):
    for split in ("train", "eval"):
        fill(tmp_path / split, "a", "b", n=20)
    for i in range(90):
        write(tmp_path / f"train/a/IMG_{i}.HEIC")
    load(tmp_path, tally := Tally())
    text = capsys.readouterr().out
    assert re.search(r"train +ending \.heic +90 +\S+/train/a/IMG_0.HEIC", text) and "/eval/a/" in text
    assert tally.metrics()["images/train/ending .heic"] == 90 and tally.metrics()["images/test/used in test"] == 40


def test_copies_and_folds_are_said(tmp_path, capsys):
    """A test that was copied from train, and classes below numbered folds."""
    fill(tmp_path / "copied/train", "a", "b")
    shutil.copytree(tmp_path / "copied/train", tmp_path / "copied/test")
    load(tmp_path / "copied")
    assert "20 of 20 test images are copies of images in train" in capsys.readouterr().out
    for fold in "123":
        fill(tmp_path / "folds", f"fold{fold}/cat", f"fold{fold}/dog")
    load(tmp_path / "folds")
    assert "classes are fold1, fold2, fold3, and each holds the folders cat, dog" in capsys.readouterr().out


def test_no_image_is_in_two_sets_by_a_link(tmp_path):
    fill(tmp_path / "own/train", "cat", "dog")
    fill(tmp_path / "own/test", "cat", "dog", n=3)
    fill(tmp_path, "pool", "more", n=2)
    train, test = tmp_path / "own/train", tmp_path / "own/test"
    links = {test / "cat/leak.png": train / "cat/1.png", train / "cat/leak.png": test / "cat/1.png",
             train / "cat/loop": train, train / "cat/dogs": train / "dog", train / "dog/broken.png": "nowhere",
             train / "dog/self": "self", train / "dog/new.png": tmp_path / "pool/1.png",
             train / "dog/again.png": tmp_path / "pool/1.png", train / "cat/pool": tmp_path / "pool",
             train / "fox": tmp_path / "more", test / "fox": tmp_path / "more"}  # fmt: skip
    for link, target in links.items():
        link.symlink_to(target)
    files = list_files(tmp_path / "own", tally := Tally())
    names = {name: [Path(f).name for f in own] for name, own in files["train"].items()}
    numbers = [f"{i}.png" for i in range(10)]
    assert sorted(names["cat"]) == sorted([*numbers, "0.png", "1.png"])  # and the pool's, by the linked folder
    assert names["dog"] == numbers and names["fox"] == ["0.png", "1.png"]
    assert files["test"]["fox"] == [] and len(files["test"]["cat"]) == 3
    assert {key: n for key, (n, _) in tally.items()} == {
        ("train", "link to what is there already"): 5,
        ("train", "broken link"): 2,
        ("test", "link to what is there already"): 2,
    }


# Pixels and EXIF

TURNED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x),
}  # what is seen, from what is stored (EXIF 2.3, 4.6.4)
CORNERS = np.zeros((32, 32, 3), np.uint8)
CORNERS[:16, :16], CORNERS[:16, 16:], CORNERS[16:, :16] = (250, 0, 0), (0, 250, 0), (0, 0, 250)


def encoded(kind: str, image: Image.Image, **options) -> bytes:
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if kind in ("JPEG", "WEBP", "MPO", "AVIF") else {}
    pixels = to_pixels(encoded(kind, Image.fromarray(CORNERS), exif=exif, **options), 32)
    inner = np.s_[4:12, 4:12], np.s_[4:12, 20:28], np.s_[20:28, 4:12], np.s_[20:28, 20:28]
    for part in inner:
        assert abs(pixels[part].astype(int) - TURNED[orientation](CORNERS)[part]).max() < 40


def broken_notes() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 1, "x" * 60000
    whole = exif.tobytes()
    notes = {f"cut at {n}": whole[:n] for n in (0, 3, 6, 7, 10, 14, 16, 20, 30)} | {"huge": whole}
    entry = lambda kind, count, value: (  # noqa: E731
        b"Exif\0\0II*\0\x08\0\0\0\x01\0"
        + b"\x12\x01"
        + bytes([kind, 0])
        + count.to_bytes(4, "little")
        + value
        + b"\0" * 4
    )
    notes |= {f"orientation {n}": entry(3, 1, n.to_bytes(4, "little")) for n in (0, 9, 255, 65535)}
    notes |= {f"orientation of type {kind}": entry(kind, 1, b"\x06\0\0\0") for kind in (0, 2, 5, 7, 10, 12, 13, 99)}
    notes |= {f"{n} orientations": entry(3, n, b"\x06\0\x06\0") for n in (0, 2, 3, 2**31)}
    loop = b"Exif\0\0II*\0\x08\0\0\0\0\0\x08\0\0\0"
    return notes | {
        "loop": loop,
        "no tiff": b"Exif\0\0<html>",
        "far": b"Exif\0\0MM\0*\xff\xff\xff\xff",
        "junk": b"\xff" * 99,
    }


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("note", broken_notes())
def test_an_image_with_a_broken_note_is_used_as_it_lies(kind, note):
    image, options = Image.fromarray(CORNERS), {"lossless": True} if kind == "WEBP" else {}
    pixels = to_pixels(encoded(kind, image, exif=broken_notes()[note], **options), 32)
    stored = to_pixels(encoded(kind, image, **options), 32)
    upright = [stored] if "type" not in note and "orientations" not in note else [stored, np.rot90(stored, -1)]
    assert any((pixels == x).all() for x in upright)


def test_values_of_8_and_16_bits_keep_their_meaning():
    """In integers of 32 bits what fits a byte is a byte; what says 16 bits is scaled; other numbers are refused."""
    grey = lambda data: to_pixels(data, 16)[8, 8].tolist()  # noqa: E731
    whole = lambda value, kind: Image.fromarray(np.full((16, 16), value, kind))  # noqa: E731
    assert grey(encoded("TIFF", whole(200, np.int32))) == [200] * 3
    assert grey(encoded("TIFF", whole(200 * 257, np.int32))) == [200] * 3
    for kind in ("PNG", "TIFF", "PPM", "JPEG2000"):
        options = {"irreversible": False} if kind == "JPEG2000" else {}
        assert grey(encoded(kind, whole(200 * 257, np.uint16), **options)) == [200] * 3, kind
        assert grey(encoded(kind, whole(100, np.uint16), **options)) == [0] * 3, kind
    for value in (-1, 70000):
        fails(
            lambda value=value: grey(encoded("TIFF", whole(value, np.int32))),
            contains="no agreed range",
            exc=ValueError,
        )
    fails(lambda: grey(encoded("TIFF", whole(200, np.float32))), contains="save it with 8 bits", exc=ValueError)


@pytest.mark.parametrize("brightest, dark", [(255, 40), (4095, 40), (65535, 0)])
def test_values_that_leave_a_file_of_16_bits_dark_are_said(brightest, dark, tmp_path, capsys):
    ramp = np.linspace(0, brightest, 400).astype(np.uint16).reshape(20, 20)
    for name in "ab":
        for i in range(20):
            Image.fromarray(ramp + i % 7).save(file := io.BytesIO(), "PNG")
            write(tmp_path / name / f"{i}.png", file.getvalue())
    load(tmp_path)
    assert ("images are nearly black" in (out := capsys.readouterr().out)) == bool(dark)
    assert not dark or f"{dark} of 40 images" in out


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "TGA", "ICO", "DDS"])
def test_a_picture_that_is_transparent_all_over_is_refused(kind):
    """Programs leave such an alpha by mistake; on white nothing of the picture would remain."""
    for alpha, lost in ((0, True), (1, False)):
        Image.new("RGBA", (32, 32), (200, 30, 40, alpha)).save(file := io.BytesIO(), kind, lossless=True)
        if lost:
            fails(
                lambda: to_pixels(file.getvalue(), 16),
                contains="every pixel is transparent",
                exc=ValueError,
            )
        else:
            assert to_pixels(file.getvalue(), 16).min() > 250


def test_modes_and_transparency():
    red, clear = Image.new("RGB", (16, 16), (200, 10, 10)), Image.new("RGBA", (16, 16), (200, 10, 10, 0))
    grey = Image.new("LA", (16, 16), (7, 0))
    clear.putpixel((0, 0), (200, 10, 10, 255)), grey.putpixel((0, 0), (7, 255))
    pixel = lambda data: to_pixels(data, 16)[8, 8].tolist()  # noqa: E731
    palette = red.convert("P", palette=Image.Palette.ADAPTIVE)
    index = palette.getpixel((0, 0))
    assert pixel(encoded("PNG", palette)) == [200, 10, 10]
    palette.putpixel((0, 0), index + 1)
    assert pixel(encoded("PNG", palette, transparency=index)) == [255] * 3 == pixel(encoded("PNG", clear))
    assert pixel(encoded("GIF", palette, transparency=index)) == [255] * 3
    assert pixel(encoded("PNG", Image.new("LA", (16, 16), (7, 255)))) == [7] * 3
    assert pixel(encoded("PNG", grey)) == [255] * 3
    assert pixel(encoded("PNG", Image.fromarray(np.full((16, 16), 500, np.uint16)), transparency=500)) == [255] * 3
    assert pixel(encoded("TIFF", Image.new("1", (16, 16), 1))) == [255] * 3
    assert pixel(encoded("TIFF", Image.new("CMYK", (16, 16), (0, 255, 255, 0)))) == [255, 0, 0]
    assert np.ptp(pixel(encoded("JPEG", Image.new("CMYK", (16, 16), (0, 255, 255, 0))))) > 200
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((200, 10, 10), (0, 0, 200))]
    for kind, options in (
        ("GIF", {}),
        ("WEBP", {"lossless": True}),
        ("PNG", {}),
        ("TIFF", {}),
        ("MPO", {"quality": 100}),
    ):
        first = pixel(encoded(kind, frames[0], save_all=True, append_images=frames[1:], **options))
        assert first[0] > 190 and first[2] < 20, kind


# Random trees

NAMES = "0 1 2 10 -3 007 all NA null None $ $$ a|b <i> [x] Cat cat \U0001f431 \u00e9 \u00fc crane x.jpg *? %s"
NAMES = [
    *NAMES.split(" "),
    *"{name} C:\\d a::b zip:".split(),
    *"\u200f\u05d0 - ~ # train_station \udcff\udce9".split(" "),
    "two words",
    " ",
    "CAT ",
    "crane, b",
    "a\nb",
]
LOSSLESS = {
    "png": "PNG",
    "PNG": "PNG",
    "bmp": "BMP",
    "tif": "TIFF",
    "ppm": "PPM",
    "tga": "TGA",
    "jpg": "PNG",
    "webp": "PNG",
}
JUNK = "notes.txt x.HEIC m.mp4 v.svg no_ending a.b.c. data.parquet 1.0001 odd.\u00e9 x.pdf".split()
HIDDEN = [
    ".x.png",
    "._1.jpg",
    ".ipynb_checkpoints/1.png",
    "__MACOSX/._1.png",
    "@eaDir/1.jpg/t.jpg",
    ".thumbnails/a/1.png",
]
BROKEN = [
    b"",
    b"<html>no</html>",
    png((1, 2, 3))[:40],
    b"\x89PNG\r\n\x1a\n",
    b"\0" * 500,
    b"GIF89a",
    b"BM" + b"\xff" * 60,
]
PICTURES = {".png", ".bmp", ".tif", ".ppm", ".tga", ".jpg", ".webp"}
SPLITS = """train/test Train/Test training_set/test_set TRAIN/Val/TEST seg_train/seg_test train/valid train/eval/test
my-train/my-val"""
SPLITS = [names.split("/") for names in SPLITS.split()]


class Tree:
    """A random folder of class folders, and what lies in it."""

    def __init__(self, home: Path, seed: int):
        self.rng, self.home, self.root = np.random.default_rng(seed), home, home / "root"
        self.classes: dict[Path, tuple[str, str]] = {}  # class folder: its split, its class
        self.broken, self.n, self.linked = set(), 0, {}
        self.tame = self.rng.random() < 0.7
        least = 10 if self.tame else 0
        names = [str(n) for n in self.rng.choice(NAMES, self.rng.integers(2, 6), replace=False)]
        tops = [self.root / part for part in self.splits()]
        for i, top in enumerate(tops):
            for name in names:
                if self.tame or self.rng.random() < 0.9:
                    self.grow(top / name, ["train", "other", "last"][i], name, least)
            self.clutter(top)
        if not self.tame and self.rng.random() < 0.2:
            self.grow(tops[0] / self.pick(["e\u0301", "u\u0308", "Dog", "eval_", "test"]), "train", "?", 3)
        self.clutter(self.root)

    def pick(self, options):
        return options[int(self.rng.integers(len(options)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def splits(self) -> list[str]:
        if self.chance(0.3):
            return [""]
        splits = self.pick(SPLITS)
        if self.chance(0.2):
            splits = [f"{s}/{s}" for s in splits]
        if not self.tame and self.chance(0.2):
            splits = [self.pick(["train", "test", "Val", "val", "x"]) for _ in splits]
        outer = "wrapped/" if self.chance(0.1) else ""
        return [outer + s for s in splits]

    def write(self, path: Path, content: bytes) -> None:
        if not os.path.lexists(path):
            write(path, content)

    def colour(self, name: str) -> tuple[int, int, int]:
        """One that no other image has, its red the class's."""
        self.n += 1
        return (NAMES.index(name) * 6 if name in NAMES else 255, self.n // 256, self.n % 256)

    def grow(self, folder: Path, split: str, name: str, least: int) -> None:
        self.classes[folder] = split, name
        folder.mkdir(parents=True, exist_ok=True)
        for _ in range(int(self.rng.integers(least, least + 8))):
            ending = self.pick([*LOSSLESS])
            below = folder / self.pick(["", "", "", "deep/er", "x.png"])
            self.write(below / f"{self.n}.{ending}", png(self.colour(name), LOSSLESS[ending]))
        for _ in range(int(self.rng.integers(0, 3))):
            path = folder / f"b{self.n}_{self.rng.integers(99)}{self.pick(sorted(PICTURES))}"
            self.write(path, self.pick(BROKEN))
            self.broken.add(path)
        self.clutter(folder)
        if self.chance(0.3):
            self.link(folder, name)

    def clutter(self, folder: Path) -> None:
        for _ in range(int(self.rng.integers(0, 3))):
            self.write(folder / self.pick(JUNK), b"x")
        for _ in range(int(self.rng.integers(0, 3))):
            self.write(folder / self.pick(HIDDEN), png((1, 1, 1)))
        if self.chance(0.1) and folder in (self.root, *(p.parent for p in self.classes)):
            self.write(folder / f"beside{self.rng.integers(9)}.png", png((2, 2, 2)))
        if self.chance(0.1):
            os.path.lexists(fifo := folder / "pipe.jpg") or os.mkfifo(fifo)

    def link(self, folder: Path, name: str) -> None:
        kind = self.pick(["broken", "file", "folder", "up", "self", "twice"])
        link = folder / f"link{self.n}{self.pick(['.png', '', '.jpg'])}"
        if os.path.lexists(link):
            return
        if kind == "broken":
            link.symlink_to("nowhere/at all.png")
        elif kind == "self":
            link.symlink_to(link.name)
        elif kind == "up":
            link.symlink_to(self.pick([folder, folder.parent, self.root]), target_is_directory=True)
        elif kind == "folder":
            pool = self.home / f"pool/{self.n}"
            for i in range(2):
                write(pool / f"{i}.png", png(self.colour(name)))
            link.symlink_to(pool, target_is_directory=True)
            self.linked[link] = 2
        else:
            write(pool := self.home / f"pool/{self.n}.png", png(self.colour(name)))
            link = link.with_suffix(".png")
            os.path.lexists(link) or link.symlink_to(pool)
            if kind == "twice":
                os.path.lexists(other := folder / f"z{self.n}.png") or other.symlink_to(pool)

    def count(self) -> tuple[Counter, Counter]:
        """What lies there, by walking: reasons, and images of each class folder that are candidates."""
        reasons, images, targets = Counter(), Counter(), set()
        for base, folders, names in os.walk(self.root):
            folders.sort()
            for name in sorted(names + [f for f in folders if os.path.islink(os.path.join(base, f))]):
                path = Path(base, name)
                owner = next((p for p in [path, *path.parents] if p in self.classes), None)
                reason, n = self.reason(path, owner, targets)
                reasons[reason] += n
                images[owner] += n * (reason == "image")
        return reasons, images

    def reason(self, path: Path, owner: Path | None, targets: set) -> tuple[str, int]:
        parts = path.relative_to(self.root).parts
        if any(part.startswith(".") or part in ("__MACOSX", "@eaDir") for part in parts):
            return "hidden", 1
        if path.is_symlink():
            try:
                target = path.resolve(strict=True)
            except (OSError, RuntimeError):
                return "broken link", 1
            if target.is_dir():
                return ("image", self.linked[path]) if path in self.linked else ("repeated", 1)
            if target in targets:
                return "repeated", 1
            targets.add(target)
        elif stat.S_ISFIFO(path.lstat().st_mode):
            return "not a file", 1
        if path.suffix.lower() not in PICTURES:
            return "ending", 1
        return ("image" if owner else "outside"), 1


SHORT = {
    "hidden or of a program": "hidden",
    "link to what is there already": "repeated",
    "in no class folder": "outside",
}


def check_tree(home: Path, seed: int, capsys) -> str:
    """What became of a random tree: refused, or read; in both cases without a loss and without a raw error."""
    tree = Tree(home, seed)
    try:
        files = list_files(tree.root, tally := Tally())
    except DataError as e:
        return check_refusal(e, tree)
    reasons, images = tree.count()
    outcomes = Counter()
    for (_, outcome), (n, example) in tally.items():
        assert os.path.lexists(os.fsencode(example)) or "\\" in example
        short = SHORT.get(outcome, "ending" if "ending" in outcome else outcome)
        outcomes[short] += n
    candidates = sum(len(own) for classes in files.values() for own in classes.values())
    expected = Counter({reason: n for reason, n in reasons.items() if reason != "image"})
    unlabelled = reasons["image"] - candidates
    assert (
        outcomes - Counter(outside=max(unlabelled, 0)) == expected
        or not tree.tame
        and (outcomes.total() + candidates == reasons.total())
    ), (seed, outcomes, expected)
    if tree.tame:
        assert unlabelled == 0, seed
        sizes = Counter({(s, name): len(own) for s, classes in files.items() for name, own in classes.items()})
        assert sorted(n for n in sizes.values() if n) == sorted(n for n in images.values() if n), seed
    tally, n = Tally(), int(tree.rng.choice([MANY, 25]))
    try:
        sets = load(tree.root, tally, n)
    except DataError as e:
        return check_refusal(e, tree)
    finally:
        capsys.readouterr().out.encode()
    used = Counter(outcome.split()[0] for (_, outcome), (n, _) in tally.items() for _ in range(n))
    assert sum(row[0] for row in tally.values()) == reasons.total(), seed
    assert used["used"] == sum(map(len, sets.values()))
    if n == MANY and tree.tame:
        assert used["over"] == 0 and used["cannot"] == len(tree.broken), (seed, used, tree.broken)
    check_pixels(sets, seed)
    if seed % 20 == 0:
        show_sets(sets).savefig(io.BytesIO())
        matplotlib.pyplot.close("all")
    return "read"


def check_refusal(e: DataError, tree: Tree) -> str:
    text = str(e)
    text.encode()
    assert "\n" not in text and len(text) < 700 and re.search("[;,:(]", text), text
    assert not tree.tame or tree.broken and re.match("(fewer than two|no) .* images of", text), (text, tree.classes)
    return "refused"


def check_pixels(sets: dict[str, Images], seed: int) -> None:
    """Each image has its class's red, and none is there twice."""
    reds = {unicodedata.normalize("NFC", n.encode("utf-8", "backslashreplace").decode()).replace("\n", "\\n"): 6 * i
            for i, n in enumerate(NAMES)}  # fmt: skip
    colours = [tuple(x[8, 8].tolist()) for images in sets.values() for x in images.images]
    assert len(set(colours)) == len(colours), (seed, Counter(colours).most_common(2))
    for images in sets.values():
        for x, label in zip(images.images, images.labels):
            assert x[8, 8, 0] == reds.get(images.class_names[label], 255), seed


def run_trees(home: Path, seeds: range, capsys) -> Counter:
    outcomes = Counter()
    for seed in seeds:
        outcomes[check_tree(home / str(seed), seed, capsys)] += 1
    return outcomes


def test_random_trees(tmp_path, capsys):
    outcomes = run_trees(tmp_path, range(TREES[0]), capsys)
    assert outcomes["read"] > 0.6 * TREES[0] and outcomes["refused"] > 0.05 * TREES[0]


@pytest.mark.fuzz
def test_many_random_trees(tmp_path, capsys):
    outcomes = run_trees(tmp_path, range(1000, 1000 + TREES[1]), capsys)
    with capsys.disabled():
        print(f"\nrandom trees: {outcomes['read']} read, {outcomes['refused']} refused in a sentence, no image lost")


# Damaged images

FORMATS = """AVIF RGB | BLP P | BMP RGB L P 1 | DDS RGB RGBA L | DIB RGB | GIF P L | ICNS RGBA | ICO RGBA |
IM RGB L I F | JPEG RGB L CMYK | JPEG2000 RGB L | MPO RGB | MSP 1 | PCX RGB P 1 | PNG RGB RGBA LA P I;16 1 |
PPM RGB L 1 F | QOI RGB RGBA | SGI RGB L | SPIDER F | TGA RGB RGBA P | TIFF RGB CMYK LA I F I;16 P 1 LAB |
WEBP RGB RGBA | XBM 1"""
FORMATS = {words.split()[0]: words.split()[1:] for words in FORMATS.split("|")}  # and the modes of each


def whole_file(kind: str, mode: str, rng: np.random.Generator) -> bytes:
    noise = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).resize((64, 64))
    sixteen = Image.fromarray(np.asarray(noise.convert("L")).astype(np.uint16) * 257)
    image = sixteen if mode == "I;16" else noise.convert(mode)
    compression = str(rng.choice(["raw", "tiff_lzw", "tiff_deflate", "packbits"]))
    options = {"compression": compression} if kind == "TIFF" else {}
    if kind in ("TIFF", "GIF", "WEBP", "MPO") and mode in ("RGB", "P") and rng.random() < 0.3:
        options |= {"save_all": True, "append_images": [image]}
    return encoded(kind, image, **options)


def damage(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """A file as it comes from a bad disk, a cut download or a careless program."""
    kind = str(rng.choice(["cut", "bits", "header", "zeros", "swap", "twice", "junk", "sizes", "page"]))
    data, n = bytearray(data), len(data)
    place = int(rng.integers(0, n))
    if kind == "cut":
        return kind, bytes(data[:place])
    if kind == "bits":
        for i in rng.integers(0, n, rng.integers(1, 20)):
            data[i] ^= 1 << int(rng.integers(8))
    elif kind == "header":
        for i in rng.integers(0, min(n, 64), 3):
            data[i] = int(rng.integers(256))
    elif kind == "sizes":  # four bytes of a header become large
        i = int(rng.integers(0, min(n, 40)))
        data[i : i + 4] = bytes([255, 255, 255, int(rng.integers(256))])
    elif kind == "zeros":
        data[place : place + 512] = bytes(len(data[place : place + 512]))
    elif kind == "swap":
        data = data[place:] + data[:place]
    elif kind == "twice":
        data = data[:place] + data[place // 2 :]
    elif kind == "junk":
        data[place:place] = rng.integers(0, 256, 100, np.uint8).tobytes()
    else:
        data = bytearray(
            rng.choice([b"", b"<!DOCTYPE html><html>404</html>", b"version https://git-lfs.github.com/spec/v1"])
        )
    return kind, bytes(data)


def damaged_folder(home: Path, n: int, seed: int) -> Counter:
    """How many of n damaged images of every format still decode; all others are named by stage `data`."""
    rng, names, outcomes = np.random.default_rng(seed), [], Counter()
    fill(home, "cat", "dog", n=20)
    kinds = [(kind, mode) for kind, modes in FORMATS.items() for mode in modes]
    for i in range(n):
        kind, mode = kinds[i % len(kinds)]
        how, data = damage(whole_file(kind, mode, rng), rng)
        write(home / f"{'cat' if i % 2 else 'dog'}/{i}_{kind}.png", data)
        try:
            signal.alarm(60)
            assert to_pixels(data, 16).shape == (16, 16, 3)
            outcomes[kind, "decoded"] += 1
        except ValueError as e:
            assert str(e) and "\n" not in str(e)
            outcomes[kind, "named"] += 1
            names.append(f"{i}_{kind}.png")
        finally:
            signal.alarm(0)
    sets = load(home, tally := Tally())
    counts = Counter(outcome.split()[0] for (_, outcome), (m, _) in tally.items() for _ in range(m))
    assert counts["cannot"] == len(names) and counts["used"] == sum(map(len, sets.values())) == 40 + n - len(names)
    return outcomes


def test_every_format_is_read_whole(tmp_path):
    rng = np.random.default_rng(0)
    for kind, modes in FORMATS.items():
        for mode in modes:
            data = whole_file(kind, mode, rng)
            if mode == "F":
                fails(lambda data=data: to_pixels(data, 16), contains="no agreed range", exc=ValueError)
            else:
                assert np.ptp(to_pixels(data, 16)) > 60, (kind, mode)


def test_damaged_images(tmp_path, capsys):
    outcomes = damaged_folder(tmp_path, DAMAGED[0], 0)
    assert {kind for kind, _ in outcomes} == set(FORMATS) and len(FORMATS) >= 15


def test_a_bomb_is_named(tmp_path):
    data = bytearray(encoded("BMP", Image.new("RGB", (4, 4))))
    data[18:26] = (60000).to_bytes(4, "little") * 2
    fails(lambda: to_pixels(bytes(data), 16), contains="decompression bomb", exc=ValueError)


@pytest.mark.fuzz
def test_many_damaged_images(tmp_path, capsys):
    outcomes = damaged_folder(tmp_path, DAMAGED[1], 1)
    with capsys.disabled():
        print(
            f"\n{DAMAGED[1]} damaged images of {len(FORMATS)} formats, named (still decoded):",
            ", ".join(f"{kind} {outcomes[kind, 'named']} ({outcomes[kind, 'decoded']})" for kind in FORMATS),
        )


# Parquet

PICTURE_ROWS = [png((i, 1, 7)) for i in range(40)]
CAT_OR_DOG = ["cat", "dog"] * 20


def parquet(folder: Path, name: str, image, label) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": image, "label": label}), folder / f"{name}.parquet")
    return folder


def load_parquet(folder: Path, tally: Tally | None = None) -> dict[str, Images]:
    return load_source("parquet", folder, 16, None, None, MANY, MANY, MANY, 0.1, 0, "label", tally)


@pytest.mark.parametrize("pair", ["Train/Test", "trainset/testset", "Training-00000-of-00001/Testing-00000-of-00001"])
def test_a_test_is_not_read_as_train(pair, tmp_path):
    """`datasets` knows some names only, and takes all files for train where it knows none."""
    for name in pair.split("/"):
        parquet(tmp_path, name, PICTURE_ROWS, CAT_OR_DOG)
    fails(lambda: load_parquet(tmp_path), contains="would be read as train", exc=DataError)


def test_parquet_of_polars_and_pandas(tmp_path):
    columns = {
        "large": (pa.array(PICTURE_ROWS, pa.large_binary()), pa.array(CAT_OR_DOG, pa.large_string())),
        "categories": (pa.array(PICTURE_ROWS), pa.array(CAT_OR_DOG).dictionary_encode()),
        "view": (pa.array(PICTURE_ROWS, pa.binary_view()), pa.array([0, 1] * 20, pa.uint8())),
    }
    for name, (image, label) in columns.items():
        assert len(load_parquet(parquet(tmp_path / name, "train", image, label))["train"].class_names) == 2


@pytest.mark.parametrize("missing", [None, float("nan"), ""])
def test_rows_without_a_label_are_counted(missing, tmp_path, capsys):
    labels = ([0.0, 1.0] if isinstance(missing, float) else ["cat", "dog"]) * 15 + [missing] * 10
    sets = load_parquet(parquet(tmp_path, "train", PICTURE_ROWS, labels), tally := Tally())
    assert tally["train", "no label"] == [10, "row 30"] and sum(map(len, sets.values())) == 30
    assert re.search("train +no label +10 +row 30", capsys.readouterr().out)


def test_a_class_of_test_alone_is_counted_or_refused(tmp_path, capsys):
    parquet(tmp_path / "rows", "train", PICTURE_ROWS, CAT_OR_DOG)
    parquet(tmp_path / "rows", "test", PICTURE_ROWS, CAT_OR_DOG[:-10] + ["fox"] * 10)
    load_parquet(tmp_path / "rows")
    assert re.search(r"test +of a class without images in train +10 ", capsys.readouterr().out)
    fill(tmp_path / "files/train", "cat", "dog"), fill(tmp_path / "files/test", "cat", "dog", "fox")
    fails(lambda: load(tmp_path / "files"), contains="no training images of fox; add some, or let", exc=DataError)


def test_images_that_their_paths_do_not_lead_to_are_named(tmp_path):
    (good := tmp_path / "good.png").write_bytes(PICTURE_ROWS[0])
    paths = [{"bytes": None, "path": str(good)}] * 37 + [{"bytes": b"", "path": p} for p in ("gone/1.png", None, "")]
    load_parquet(parquet(tmp_path / "pq", "train", paths, CAT_OR_DOG), tally := Tally())
    assert tally["train", "cannot be read"][0] == 3


def test_what_is_no_folder_of_parquet_is_named(tmp_path):
    file = parquet(tmp_path, "train", PICTURE_ROWS, [[0], [0, 1]] * 20) / "train.parquet"
    fails(lambda: load_parquet(file), contains="is a file; give the folder that it lies in", exc=DataError)
    fails(lambda: load(file), contains="is a file; unpack it", exc=DataError)
    fails(lambda: load_parquet(tmp_path), contains="`data.label`: the column label holds List", exc=DataError)


def test_spellings_of_one_class_are_named(tmp_path, capsys):
    load_parquet(parquet(tmp_path, "train", PICTURE_ROWS, ["caf\u00e9", "cafe\u0301"] * 20))
    assert "have one prompt in common" in capsys.readouterr().out

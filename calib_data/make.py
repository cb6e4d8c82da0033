"""Makes `digits/` and `photos/` from what two packages bundle, and draws `scenes/`.

The packages are scikit-learn and scikit-image.

    python calib_data/make.py [FOLDER]

Nothing is downloaded. The same Pillow writes the same bytes; SHA256SUMS in each set says what
they are. FOLDER is where the sets go; without it, beside this script.
"""

import hashlib
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

EVAL_PER_DIGIT = 50
CALIB_PER_DIGIT = 30
JPEG_QUALITY = 90
SCENE_SEEDS = {"calib": 2, "eval": 3}  # sam-scenes was trained on pictures of seed 1
SCENES = {"calib": 32, "eval": 24}
SCENE_SIDES = (96, 128)  # pixels: shortest and longest edge
LEAST_OBJECT_PIXELS = 60

SOURCES = {  # name: SHA-256 of the file as the two packages bundle it
    "astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    "brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    "camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    "chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "china.jpg": "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
    "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "flower.jpg": "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
    "grass.png": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    "gravel.png": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
    "hubble_deep_field.jpg": "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    "retina.jpg": "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
    "rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
}


class Crop(NamedTuple):
    """A part of a photograph, in its pixels; shrunk until its long edge is at most 384."""

    source: str
    left: int
    top: int
    right: int
    bottom: int


# No pixel is in both splits: chelsea, rocket, camera and gravel are held out whole, and the
# crops of the others keep to their own side of a vertical (retina: and horizontal) line.
CALIB = (
    Crop("astronaut.png", 0, 0, 512, 512),
    Crop("astronaut.png", 96, 0, 352, 256),
    Crop("astronaut.png", 256, 0, 512, 256),
    Crop("astronaut.png", 0, 128, 256, 384),
    Crop("astronaut.png", 0, 256, 256, 512),
    Crop("astronaut.png", 200, 200, 512, 512),
    Crop("brick.png", 0, 0, 256, 256),
    Crop("brick.png", 128, 128, 512, 512),
    Crop("brick.png", 256, 256, 512, 512),
    Crop("china.jpg", 0, 0, 384, 384),
    Crop("china.jpg", 128, 0, 384, 256),
    Crop("china.jpg", 0, 43, 256, 299),
    Crop("china.jpg", 100, 143, 384, 427),
    Crop("china.jpg", 64, 107, 384, 427),
    Crop("coffee.png", 0, 0, 344, 344),
    Crop("coffee.png", 60, 72, 316, 328),
    Crop("coffee.png", 0, 100, 300, 400),
    Crop("coffee.png", 88, 0, 344, 256),
    Crop("flower.jpg", 0, 0, 384, 384),
    Crop("flower.jpg", 100, 60, 384, 344),
    Crop("flower.jpg", 0, 150, 277, 427),
    Crop("flower.jpg", 128, 171, 384, 427),
    Crop("grass.png", 0, 0, 256, 256),
    Crop("grass.png", 128, 128, 512, 512),
    Crop("grass.png", 0, 0, 512, 512),
    Crop("hubble_deep_field.jpg", 0, 0, 384, 384),
    Crop("hubble_deep_field.jpg", 0, 400, 472, 872),
    Crop("hubble_deep_field.jpg", 296, 0, 680, 384),
    Crop("retina.jpg", 0, 0, 740, 740),
    Crop("retina.jpg", 0, 671, 740, 1411),
    Crop("retina.jpg", 671, 0, 1411, 740),
    Crop("retina.jpg", 400, 300, 740, 640),
)
EVAL = (
    Crop("camera.png", 0, 0, 512, 512),
    Crop("chelsea.png", 0, 0, 300, 300),
    Crop("chelsea.png", 60, 0, 360, 300),
    Crop("chelsea.png", 171, 20, 451, 300),
    Crop("china.jpg", 384, 0, 640, 384),
    Crop("coffee.png", 344, 72, 600, 328),
    Crop("flower.jpg", 384, 20, 640, 404),
    Crop("gravel.png", 0, 0, 384, 384),
    Crop("hubble_deep_field.jpg", 680, 0, 1000, 320),
    Crop("retina.jpg", 760, 760, 1411, 1411),
    Crop("rocket.jpg", 0, 43, 384, 427),
    Crop("rocket.jpg", 256, 0, 640, 384),
)


def main() -> None:
    """Write the sets and their hash lists."""
    home = Path(sys.argv[1] if len(sys.argv) > 1 else __file__).resolve()
    home = home if len(sys.argv) > 1 else home.parent
    make_digits(home / "digits")
    make_photos(home / "photos")
    make_scenes(home / "scenes")


def make_digits(folder: Path) -> None:
    """Write calib/<digit>/<index>.png and eval/<digit>/<index>.png, 8x8 grey.

    `index` is that of `sklearn.datasets.load_digits`; its pixels 0..16 become
    round(value * 255 / 16), so round(pixel * 16 / 255) gives them back.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    calib, held_out = split_digits(digits.images, digits.target)
    for split, indices in (("calib", calib), ("eval", held_out)):
        _clear(folder / split)
        for index in indices:
            pixels = np.round(digits.images[index] * 255 / 16).astype(np.uint8)
            path = folder / split / str(digits.target[index]) / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, optimize=True)
    _write_hashes(folder)


def split_digits(images: np.ndarray, labels: np.ndarray) -> tuple[list[int], list[int]]:
    """Return the (calib, eval) indices: as many of each digit, drawn by the hash of the pixels.

    All the other images, and calib too, are there to train on; eval is held out.
    """
    calib: list[int] = []
    held_out: list[int] = []
    for digit in range(10):
        indices = [int(index) for index in np.flatnonzero(labels == digit)]
        indices.sort(key=lambda i: hashlib.sha256(images[i].astype(np.uint8).tobytes()).digest())
        held_out += sorted(indices[:EVAL_PER_DIGIT])
        calib += sorted(indices[EVAL_PER_DIGIT : EVAL_PER_DIGIT + CALIB_PER_DIGIT])
    return calib, held_out


def make_photos(folder: Path) -> None:
    """Write calib/*.jpg and eval/*.jpg, long edge 256 to 384 pixels."""
    for split, crops in (("calib", CALIB), ("eval", EVAL)):
        _clear(folder / split)
        (folder / split).mkdir(parents=True)
        number: dict[str, int] = {}
        for crop in crops:
            with Image.open(_source(crop.source)) as opened:
                image = opened.crop((crop.left, crop.top, crop.right, crop.bottom))
            image.info = {}  # the source's own comments do not belong to the crop
            image.thumbnail((384, 384), Image.Resampling.LANCZOS)
            stem = Path(crop.source).stem
            number[stem] = number.get(stem, 0) + 1
            path = folder / split / f"{stem}_{number[stem]}.jpg"
            image.save(path, quality=JPEG_QUALITY, optimize=True, subsampling="4:2:0")
    _write_hashes(folder)


def make_scenes(folder: Path) -> None:
    """Write calib/NN.jpg and eval/NN.jpg, and beside them what is seen of each object.

    masks/<split>/NN.png is 8 bits grey: 0 is no object, k object k. An object of which fewer than
    `LEAST_OBJECT_PIXELS` are seen is none.
    """
    from vitdeploy.data.pictures import Picture, render_with_masks

    for split, seed in SCENE_SEEDS.items():
        rng = np.random.default_rng(seed)
        for part in (folder / split, folder / "masks" / split):
            _clear(part)
            part.mkdir(parents=True)
        made = drawn = 0
        while made < SCENES[split]:
            height, width = (int(v) for v in rng.integers(SCENE_SIDES[0], SCENE_SIDES[1] + 1, 2))
            image, masks = render_with_masks(Picture(seed, drawn, height, width))
            drawn += 1
            seen = masks[masks.sum((1, 2)) >= LEAST_OBJECT_PIXELS]
            if not len(seen):
                continue
            numbers = (seen * np.arange(1, len(seen) + 1)[:, None, None]).sum(0).astype(np.uint8)
            image.save(folder / split / f"{made:02d}.jpg", quality=JPEG_QUALITY, optimize=True)
            path = folder / "masks" / split / f"{made:02d}.png"
            Image.fromarray(numbers).save(path, optimize=True)
            made += 1
    _write_hashes(folder)


def _source(name: str) -> Path:
    """Return where the installed packages keep the photograph, once its hash is right."""
    import skimage
    import sklearn

    homes = (
        Path(skimage.__file__).parent / "data",
        Path(sklearn.__file__).parent / "datasets" / "images",
    )
    for home in homes:
        path = home / name
        if path.exists():
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if found != SOURCES[name]:
                sys.exit(f"{name} has SHA-256 {found}, not {SOURCES[name]}; see photos/README.md")
            return path
    sys.exit(f"{name} is bundled by neither scikit-image nor scikit-learn here; pip install both")


def _clear(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _write_hashes(folder: Path) -> None:
    """Write SHA256SUMS in the format `sha256sum --check` reads."""
    images = sorted(path for path in folder.glob("*/**/*") if path.is_file())
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in images
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


if __name__ == "__main__":
    main()

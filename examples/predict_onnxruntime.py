"""A bundle's classifier on one picture; needs onnxruntime and numpy, nothing else.

    python predict_onnxruntime.py BUNDLE PICTURE.npy

PICTURE.npy is an array (height, width, 3) uint8, red first: of any size where the bundle was
exported with --bake-preprocessing, else in the size that the model reads. The bundle's `preprocess`
in manifest.json says how larger pictures are then to be resized and cropped.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def pixels_from_picture(picture, preprocess):
    """Return (1, 3, height, width) float32, normalised."""
    height, width = preprocess["size"]
    if picture.shape != (height, width, 3) or picture.dtype != np.uint8:
        sys.exit(
            f"the picture is {picture.shape} {picture.dtype}, the model reads "
            f"{(height, width, 3)} uint8: resize it as `preprocess` in manifest.json says."
        )
    mean = np.array(preprocess["mean"], np.float32)
    std = np.array(preprocess["std"], np.float32)
    pixels = (picture.astype(np.float32) / 255 - mean) / std
    return pixels.transpose(2, 0, 1)[None]


def main(bundle, picture):
    """Print the five likeliest classes."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    part = next(part for part in manifest["parts"] if part["target"] == "onnx")
    session = ort.InferenceSession(bundle / part["path"], providers=["CPUExecutionProvider"])
    pixels = np.load(picture)[None]
    if part["inputs"][0]["dtype"] != "uint8":  # the graph does not prepare pictures itself
        pixels = pixels_from_picture(pixels[0], manifest["preprocess"])
    (logits,) = session.run(["logits"], {part["inputs"][0]["name"]: pixels})
    shares = np.exp(logits[0] - logits[0].max())
    shares /= shares.sum()
    for index in np.argsort(-shares)[:5]:
        names = manifest["label_names"]
        print(f"{names[index] if names else index}: {100 * shares[index]:.1f} %")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Time of the first prompt on a picture and of the ones after it, on every target of a bundle.

    python benchmarks/second_prompt.py BUNDLE [IMAGE] [--repeats 5] [--threads N]

The first one pays for the image encoder, the others for the mask decoder alone. Prints medians and
their ratio. Without an image it is a rendered one of 1024 x 768 pixels.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from PIL import Image

import vitdeploy
from vitdeploy.bundle import load_bundle
from vitdeploy.data import open_image
from vitdeploy.data.pictures import Picture, render

RENDERED = Picture(seed=0, index=0, height=768, width=1024)


def main() -> None:
    """Print one line a target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument("image", nargs="?")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    image = open_image(options.image) if options.image else render(RENDERED)
    artifacts = load_bundle(options.bundle).artifacts(part="mask_decoder")
    print(f"{'target':10}{'first ms':>12}{'later ms':>12}{'ratio':>9}")
    for target in [artifact.target for artifact in artifacts]:
        with vitdeploy.MaskPredictor(options.bundle, target, options.threads) as predictor:
            first, later = times_ms(predictor, image, options.repeats)
        print(f"{target:10}{first:12.1f}{later:12.1f}{later / first:9.3f}", flush=True)


def times_ms(
    predictor: vitdeploy.MaskPredictor, image: Image.Image, repeats: int
) -> tuple[float, float]:
    """Return the median time of a first prompt, picture included, and of a later one."""
    middle = (image.width / 2, image.height / 2)
    predictor.set_image(image).predict([middle])  # engines prepare themselves in their first run
    first, later = [], []
    for _ in range(repeats):
        first.append(elapsed_ms(lambda: predictor.set_image(image).predict([middle])))
        later.append(elapsed_ms(lambda: predictor.predict([(middle[0] / 2, middle[1])])))
    return statistics.median(first), statistics.median(later)


def elapsed_ms(work: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()

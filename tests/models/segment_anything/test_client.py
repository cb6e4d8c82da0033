"""A client written for segment-anything's reference ONNX decoder, unchanged."""

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torchvision.transforms.functional import resize

from tests.models.segment_anything.publisher import image_encoder, mask_decoder
from tests.models.segment_anything.tiny import SIZE, write_onnx, write_publisher
from vitdeploy.data import prepare
from vitdeploy.models import LoadOptions, load


class Client:
    """What the publisher's notebook does: resize to the longest side, prompt, threshold."""

    def __init__(self, encoder: str, decoder: str, side: int) -> None:
        self.encoder = onnxruntime.InferenceSession(encoder)
        self.decoder = onnxruntime.InferenceSession(decoder)
        self.side = side

    def set_image(self, image: np.ndarray) -> None:
        self.size = image.shape[:2]
        scale = self.side / max(self.size)
        self.resized = tuple(int(length * scale + 0.5) for length in self.size)
        pixels = np.array(resize(Image.fromarray(image), list(self.resized))).astype(np.float32)
        pixels = (pixels - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
        square = np.zeros((1, 3, self.side, self.side), np.float32)
        square[0, :, : self.resized[0], : self.resized[1]] = pixels.transpose(2, 0, 1)
        (self.embedding,) = self.encoder.run(None, {"pixel_values": square})

    def predict(self, points, labels, mask=None):
        coords = np.concatenate([points, np.array([[0.0, 0.0]])])[None].astype(np.float32)
        kinds = np.concatenate([labels, np.array([-1])])[None].astype(np.float32)
        coords[..., 0] *= self.resized[1] / self.size[1]
        coords[..., 1] *= self.resized[0] / self.size[0]
        inputs = {
            "image_embeddings": self.embedding,
            "point_coords": coords,
            "point_labels": kinds,
            "mask_input": np.zeros((1, 1, 32, 32), np.float32) if mask is None else mask,
            "has_mask_input": np.full(1, mask is not None, dtype=np.float32),
            "orig_im_size": np.array(self.size, dtype=np.float32),
        }
        return inputs, self.decoder.run(["masks", "iou_predictions", "low_res_masks"], inputs)


def test_a_client_of_the_reference_decoder_works_unchanged(tmp_path):
    folder, checkpoint, weights = write_publisher(tmp_path / "tiny")
    loaded = load(LoadOptions(str(folder), checkpoint=checkpoint))
    files = [str(write_onnx(part, tmp_path, SIZE.image)) for part in loaded.parts]
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (9, 13, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(noise).resize((211, 140), Image.Resampling.BICUBIC))
    client = Client(*files, SIZE.image)
    client.set_image(picture)

    inputs, (masks, quality, low) = client.predict(np.array([[50, 37.5]]), np.array([1]))
    assert masks.shape == (1, 4, 140, 211)
    best = int(quality[0].argmax())
    refined_inputs, refined = client.predict(
        np.array([[50, 37.5], [150, 90]]), np.array([1, 0]), mask=low[:, best : best + 1]
    )
    # the picture gets in as the package itself prepares it
    pixels = torch.from_numpy(prepare(Image.fromarray(picture), loaded.spec.preprocess))
    embedding = image_encoder(weights, SIZE, pixels.unsqueeze(0))
    # embeddings are of size 1; the client's float64 normalisation differs in the last bits
    np.testing.assert_allclose(client.embedding, embedding.numpy(), atol=1e-4)
    for fed, seen in ((inputs, (masks, quality, low)), (refined_inputs, refined)):
        tensors = {name: torch.from_numpy(value) for name, value in fed.items()}
        expected = mask_decoder(weights, SIZE, tensors)
        for value, wanted in zip(seen, expected, strict=True):
            np.testing.assert_allclose(value, wanted.numpy(), atol=1e-4)
    assert np.abs(refined[2] - low).max() > 0.1

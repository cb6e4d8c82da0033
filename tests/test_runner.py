"""The FP32 reference behind the contract that every engine keeps."""

import numpy as np
import pytest
import torch

from tests.small_models import SMALL_VIT, part_from_module, timm_part
from vitdeploy.models.spec import ExportPart, TensorSpec
from vitdeploy.runner import TorchRunner

PIXELS = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)


class TwoOutputs(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return pixels.flatten(2), pixels.mean((2, 3))


@pytest.fixture
def two() -> ExportPart:
    return ExportPart(
        "model",
        TwoOutputs(),
        (TensorSpec("pixel_values", ("batch", 3, 32, 32)),),
        (
            TensorSpec("last_hidden_state", ("batch", 3, 1024)),
            TensorSpec("pooler_output", ("batch", 3)),
        ),
    )


def test_it_gives_what_the_module_gives():
    part = timm_part("vit_tiny_patch16_224", **SMALL_VIT)
    with torch.no_grad():
        expected = part.module(torch.from_numpy(PIXELS)).numpy()
    with TorchRunner(part) as runner:
        outputs = runner({"pixel_values": PIXELS})
    assert list(outputs) == ["logits"]
    assert outputs["logits"].dtype == np.float32
    np.testing.assert_array_equal(outputs["logits"], expected)


def test_outputs_have_the_names_of_the_part_in_its_order(two: ExportPart):
    outputs = TorchRunner(two)({"pixel_values": PIXELS})
    assert list(outputs) == ["last_hidden_state", "pooler_output"]
    np.testing.assert_allclose(outputs["pooler_output"], PIXELS.mean((2, 3)), atol=1e-6)


def test_a_part_that_promises_other_outputs_is_a_bug(two: ExportPart):
    wrong = ExportPart(two.name, two.module, two.inputs, two.outputs[:1])
    with pytest.raises(ValueError, match="longer"):
        TorchRunner(wrong)({"pixel_values": PIXELS})


def test_arrays_that_are_no_block_of_memory_are_taken(two: ExportPart):
    turned = np.ascontiguousarray(PIXELS.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not turned.flags.c_contiguous
    np.testing.assert_array_equal(
        TorchRunner(two)({"pixel_values": turned})["pooler_output"],
        TorchRunner(two)({"pixel_values": PIXELS})["pooler_output"],
    )


def test_nothing_is_recorded_for_gradients():
    part = part_from_module(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 5)))
    TorchRunner(part)({"pixel_values": PIXELS})
    assert all(parameter.grad is None for parameter in part.module.parameters())


def test_who_runs_it_is_told(two: ExportPart):
    runner = TorchRunner(two, threads=3)
    assert runner.threads == 3
    assert runner.engine == f"torch {torch.__version__.split('+')[0]}"
    assert TorchRunner(two).threads == torch.get_num_threads()

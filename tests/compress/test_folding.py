"""What the calibration images did in a graph is measured once, for all targets."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph.exactness import canonical
from vitdeploy.compress.budget import Budget
from vitdeploy.compress.folding import Memory, measure_activations
from vitdeploy.compress.int8 import quantize_int8
from vitdeploy.graph.gemm import matmul_from_gemm_
from vitdeploy.graph.pointwise import matmul_from_pointwise_conv_
from vitdeploy.graph.qdq import QuantScheme
from vitdeploy.graph.sites import find_weight_sites
from vitdeploy.recipe import Int8Section

AMPLE = 1e9
IMAGES = 12
SCHEMES = (QuantScheme(), QuantScheme(pointwise_convs_as_matmul=True, quantizes_conv_outputs=True))
CHEAP = Int8Section(placement="all", folds="off", rounding="nearest", clip="minmax")


class Passes:
    """Batches of one image, and how many were read."""

    def __init__(self, model: ir.Model) -> None:
        size = [int(dim) for dim in list(model.graph.inputs[0].shape)[1:]]
        self.images = np.random.default_rng(0).standard_normal((IMAGES, *size)).astype(np.float32)
        self.read = 0

    def __call__(self) -> Iterator[dict[str, np.ndarray]]:
        for number in range(IMAGES):
            self.read += 1
            yield {"pixel_values": self.images[number : number + 1]}


@pytest.mark.parametrize("family", ["vit", "fastvit"])
def test_a_second_target_reads_no_image_for_its_statistics(family: str):
    model = canonical(family)
    memory, batches = Memory(), Passes(model)
    results = []
    for scheme in SCHEMES:
        batches.read = 0
        results.append(quantize_int8(model, scheme, batches, CHEAP, memory=memory))
        reads = batches.read
    assert reads == 0
    alone = quantize_int8(model, SCHEMES[1], batches, CHEAP)
    assert batches.read == IMAGES
    one, other = (
        ir.to_proto(r.model).SerializeToString(deterministic=True) for r in (results[1], alone)
    )
    assert one == other


def test_what_a_rewritten_graph_reads_is_what_the_shared_graph_reads_transposed():
    model = canonical("fastvit")
    batches = Passes(model)
    prepared = model.clone()
    matmul_from_gemm_(prepared)
    assert matmul_from_pointwise_conv_(prepared)
    shared = Memory().activations((), [model, prepared], batches, Budget(AMPLE))
    own = measure_activations(prepared, batches, Budget(AMPLE))
    names = {str(site.activation.name) for site in find_weight_sites(prepared)}
    assert names <= set(shared)
    for name in names:
        # The same values, summed in another order.
        np.testing.assert_allclose(shared[name].low, own[name].low, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(shared[name].mean, own[name].mean, rtol=1e-3, atol=1e-5)
        assert shared[name].positions == own[name].positions


def test_the_budget_is_told_what_an_image_takes_also_when_it_is_remembered():
    model = canonical("vit")
    memory, batches = Memory(), Passes(model)
    first, second = Budget(AMPLE), Budget(AMPLE)
    memory.activations((), [model], batches, first)
    memory.activations((), [model], batches, second)
    assert first.image_seconds == second.image_seconds > 0
    assert second.batch_images == 1


def test_rotated_values_are_not_taken_for_unrotated_ones():
    model = canonical("vit")
    memory, batches = Memory(), Passes(model)
    memory.activations((), [model], batches, Budget(AMPLE))
    batches.read = 0
    memory.activations(("norm", 1), [model], batches, Budget(AMPLE))
    assert batches.read == IMAGES


def test_a_retry_with_more_in_float_rounds_no_weight_again(monkeypatch: pytest.MonkeyPatch):
    model, options = canonical("vit"), Int8Section(placement="all", search_seconds=AMPLE)
    memory, batches = Memory(), Passes(model)
    first = quantize_int8(model, QuantScheme(), batches, options, memory=memory)
    assert len(first.choices.rounded) > 1
    kept = first.choices.model_copy(update={"kept_float": (first.choices.rounded[0],)})
    anew = quantize_int8(model, QuantScheme(), batches, options, pinned=kept)

    def refuse(*_: object) -> None:
        raise AssertionError("nothing is to be rounded")

    monkeypatch.setattr("vitdeploy.compress.int8.round_weights", refuse)
    again = quantize_int8(model, QuantScheme(), batches, options, memory=memory, pinned=kept)
    one, two = (ir.to_proto(r.model).SerializeToString(deterministic=True) for r in (anew, again))
    assert one == two
    assert anew.choices == again.choices
    other = first.choices.model_copy(update={"strengths": {}})
    with pytest.raises(AssertionError, match="nothing is to be rounded"):
        quantize_int8(model, QuantScheme(), batches, options, memory=memory, pinned=other)

"""The exported graph computes what torch does at any batch, is tidy, and else is refused."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from tests.small_models import SMALL_SWIN, SMALL_VIT, part_from_module, timm_part
from vitdeploy import onnx_export
from vitdeploy.errors import ExportError
from vitdeploy.graph.attention import recognise_attention
from vitdeploy.graph.save import save_model
from vitdeploy.models.spec import ExportPart, TensorSpec
from vitdeploy.onnx_export import check_parity, free_module_, onnx_from_part, parity_batches
from vitdeploy.targets.onnx import OrtRunner, runner_from_model

OPSET = 20
BLOCKS = {"vit": 2, "swin": 4}
# norm1 and norm2 of each block, and the final one; Swin's patch embedding and merging have two more
LAYER_NORMS = {"vit": 2 * 2 + 1, "swin": 2 * 4 + 3}


def small_part(name: str) -> ExportPart:
    if name == "vit":
        return timm_part("vit_tiny_patch16_224", **SMALL_VIT)
    return timm_part("swin_tiny_patch4_window7_224", **SMALL_SWIN)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module", params=["vit", "swin"])
def exported(
    request: pytest.FixtureRequest, images: np.ndarray
) -> tuple[str, ExportPart, ir.Model]:
    part = small_part(request.param)
    return request.param, part, onnx_from_part(part, images, "dynamic", OPSET)


@pytest.fixture(scope="module")
def vit(images: np.ndarray) -> tuple[ExportPart, ir.Model]:
    part = small_part("vit")
    return part, onnx_from_part(part, images, "dynamic", OPSET)


def test_parity_holds_at_two_batches(
    exported: tuple[str, ExportPart, ir.Model], images: np.ndarray
):
    _, part, model = exported
    batches = parity_batches(part, "dynamic")
    assert len(set(batches)) == 2
    with runner_from_model(model) as runner:
        rows = check_parity(part, runner, images, [*batches, 1, 7])
    assert [row.batch for row in rows] == [*batches, 1, 7]
    for row in rows:
        assert row.passed
        # float32 sums in another order; two blocks give about 1e-6
        assert row.max_relative < 2e-5


def test_layernorm_and_gelu_are_single_nodes(exported: tuple[str, ExportPart, ir.Model]):
    name, _, model = exported
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("Gelu") == BLOCKS[name]
    assert kinds.count("LayerNormalization") == LAYER_NORMS[name]
    assert kinds.count("Softmax") == BLOCKS[name]
    assert not {"Erf", "Pow", "Sqrt", "Identity", "Constant"} & set(kinds)
    # the class token is repeated for each image, so the batch must be asked for once
    assert kinds.count("Shape") <= 1


def test_no_constant_is_stored_twice(exported: tuple[str, ExportPart, ir.Model]):
    _, _, model = exported
    contents = [
        (str(value.dtype), tuple(value.const_value.shape.numpy()), value.const_value.tobytes())
        for value in model.graph.initializers.values()
        if value.const_value is not None
    ]
    assert len(contents) == len(set(contents))


def test_weights_are_stored_once(exported: tuple[str, ExportPart, ir.Model], tmp_path: Path):
    """Swin's bias tables become one bias per block; everything else is as large as in torch."""
    name, part, model = exported
    (path,) = save_model(model, tmp_path / "model.onnx")
    weights = 4 * sum(parameter.numel() for parameter in part.module.parameters())
    tables = {"vit": 0, "swin": 4 * (2 * 2 + 2 * 4) * 16 * 16 + 2 * 4 * 16 * 16 * 16}[name]
    # 200 bytes a node for names and attributes
    assert path.stat().st_size < weights + tables + 200 * len(model.graph) + 4096


def test_nothing_of_this_machine_is_in_the_file(
    exported: tuple[str, ExportPart, ir.Model], tmp_path: Path
):
    _, _, model = exported
    save_model(model, tmp_path / "model.onnx")
    data = (tmp_path / "model.onnx").read_bytes()
    for text in (str(Path(torch.__file__).parents[1]), str(Path.cwd()), "site-packages", "File "):
        assert text.encode() not in data
    proto = onnx.load(tmp_path / "model.onnx")
    assert not proto.metadata_props
    assert not any(node.doc_string or node.metadata_props for node in proto.graph.node)
    onnx.checker.check_model(proto, full_check=True)


def test_interface(exported: tuple[str, ExportPart, ir.Model], tmp_path: Path):
    _, _, model = exported
    save_model(model, tmp_path / "model.onnx")
    with OrtRunner(tmp_path / "model.onnx") as runner:
        assert [(t.name, t.shape, t.dtype) for t in runner.inputs] == [
            ("pixel_values", ("batch", 3, 32, 32), "float32")
        ]
    assert [value.name for value in model.graph.outputs] == ["logits"]
    assert model.opset_imports[""] == OPSET


def test_two_exports_give_the_same_bytes(vit: tuple[ExportPart, ir.Model], images: np.ndarray):
    part, model = vit
    again = onnx_from_part(part, images, "dynamic", OPSET)
    assert ir.to_proto(again).SerializeToString() == ir.to_proto(model).SerializeToString()


def test_a_fixed_batch(images: np.ndarray):
    part = small_part("vit")
    model = onnx_from_part(part, images, 2, OPSET)
    assert [d if isinstance(d, int) else str(d) for d in model.graph.inputs[0].shape or ()] == [
        *(2, 3, 32, 32)
    ]
    assert parity_batches(part, 2) == [2]
    with runner_from_model(model) as runner:
        assert check_parity(part, runner, images, [2])[0].passed


def test_an_older_opset_has_layernorm_and_no_gelu(images: np.ndarray):
    part = small_part("vit")
    model = onnx_from_part(part, images, "dynamic", 18)
    assert model.opset_imports[""] == 18
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("LayerNormalization") == LAYER_NORMS["vit"]
    assert "Gelu" not in kinds
    with runner_from_model(model) as runner:
        assert all(row.passed for row in check_parity(part, runner, images, [2, 3]))


def test_changed_weights_are_refused(vit: tuple[ExportPart, ir.Model], images: np.ndarray):
    part, model = vit
    changed = ir.from_proto(ir.to_proto(model))
    value = next(v for v in changed.graph.initializers.values() if len(v.shape or ()) == 2)
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.01), name=value.name)
    with runner_from_model(changed) as runner, pytest.raises(ExportError, match="differs from"):
        check_parity(part, runner, images, [2])


class Answering:
    """A runner that answers what it is told to."""

    engine = "none"
    threads = 1

    def __init__(self, answer) -> None:
        self.answer = answer

    def __call__(self, feeds):
        return {"logits": self.answer(len(feeds["pixel_values"]))}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda batch: np.full((batch, 5), np.nan, np.float32), "NaN or infinity at batch 2"),
        (lambda batch: np.full((batch, 5), np.inf, np.float32), "NaN or infinity"),
        (lambda batch: np.zeros((2 * batch, 5), np.float32), r"shape \(4, 5\) at batch 2"),
        (lambda batch: np.zeros((batch, 5), np.float32), "differs from torch at batch 2"),
    ],
    ids=["nan", "inf", "shape", "zeros"],
)
def test_wrong_outputs_are_refused(
    answer, text: str, vit: tuple[ExportPart, ir.Model], images: np.ndarray
):
    with pytest.raises(ExportError, match=text):
        check_parity(vit[0], Answering(answer), images, [2])


def test_a_reference_of_nan_is_refused(images: np.ndarray):
    part = small_part("vit")
    with torch.no_grad():
        part.module.head.bias[0] = torch.nan
    runner = Answering(lambda batch: np.zeros((batch, 5), np.float32))
    with pytest.raises(ExportError, match="the model is damaged or overflows"):
        check_parity(part, runner, images, [2])


class Cancelling(torch.nn.Module):
    """Returns the mean of each channel, rounded as numbers of 1000 are in float32."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3)) + 1000 - 1000


@pytest.mark.parametrize(("times", "passes"), [(1, True), (20, False)])
def test_torchs_own_rounding_is_allowed_for(images: np.ndarray, times: int, passes: bool):
    part = part_from_module(Cancelling(), classes=3)
    exact = images[:2].astype(np.float64).mean((2, 3))
    rounded = part.module(torch.from_numpy(images[:2])).numpy()
    assert np.abs(rounded - exact).max() > 1e-4 * np.sqrt(np.square(exact).mean())
    runner = Answering(lambda _: (rounded + times * (exact - rounded)).astype(np.float32))
    if passes:
        (row,) = check_parity(part, runner, images, [2])
        assert row.passed
        assert row.tolerance > onnx_export.PARITY_TOLERANCE
    else:
        with pytest.raises(ExportError, match="differs from torch at batch 2"):
            check_parity(part, runner, images, [2])


class Branching(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        pooled = pixels.mean((2, 3))
        return pooled if pooled.sum() > 0 else -pooled


def test_a_module_that_cannot_be_traced_is_refused(images: np.ndarray):
    part = part_from_module(Branching(), classes=3)
    with pytest.raises(
        ExportError, match=r"cannot export part 'model'.*Could not guard.*Try --batch 1"
    ):
        onnx_from_part(part, images, "dynamic", OPSET)


class Undecided(torch.nn.Module):
    """Drops what it reads at random, as a masked autoencoder does."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3)) * torch.rand(3)


def test_a_module_that_draws_random_numbers_is_refused(images: np.ndarray):
    part = part_from_module(Undecided(), classes=3)
    model = onnx_from_part(part, images, "dynamic", OPSET)
    with (
        runner_from_model(model) as runner,
        pytest.raises(ExportError, match=r"part 'model' gives other outputs each time it runs"),
    ):
        check_parity(part, runner, images, [2])


class Separate(torch.nn.Module):
    """Attention as transformers writes it: three layers, one each for query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value, self.proj = (torch.nn.Linear(12, 12) for _ in range(4))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens = pixels.unfold(2, 8, 8).unfold(3, 8, 8).mean((4, 5)).flatten(2).transpose(1, 2)
        tokens = tokens.repeat(1, 1, 4)
        shape = (*tokens.shape[:-1], -1, 6)
        query, key, value = (
            layer(tokens).view(shape).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = (query @ key.transpose(2, 3) * 6**-0.5).softmax(-1)
        return self.proj((scores @ value).transpose(1, 2).reshape(tokens.shape)).mean(1)


def test_query_key_and_value_stay_three_layers(images: np.ndarray):
    """onnxsim's fuse_qkv would leave their biases behind a Split, which nothing recognises."""
    model = onnx_from_part(part_from_module(Separate(), classes=12), images, "dynamic", OPSET)
    sites, refused = recognise_attention(model)
    assert not refused
    assert not sites[0].packed


def test_a_simplifier_that_changes_outputs_is_refused(
    vit: tuple[ExportPart, ir.Model], monkeypatch: pytest.MonkeyPatch
):
    import onnxsim

    monkeypatch.setattr(onnxsim, "simplify", lambda model, **_: (model, False))
    with pytest.raises(ExportError, match="onnxsim changed"):
        onnx_export.simplified(vit[1])


def test_large_parts_are_compared_on_one_image(monkeypatch: pytest.MonkeyPatch):
    part = small_part("vit")
    monkeypatch.setattr(onnx_export, "ONE_IMAGE_ABOVE_BYTES", 1000)
    assert parity_batches(part, "dynamic") == [1]


class Weigher(torch.nn.Module):
    """A part of two inputs: rows of points, weighed by what another part made of the picture."""

    def forward(self, features: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        return (points @ features).softmax(-1)


def weigher_part(example=None) -> ExportPart:
    def draw(count):
        rng = np.random.default_rng(count)
        shapes = {"features": (1, 4, 6), "points": (count, count + 1, 4)}
        return {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}

    return ExportPart(
        "weigher",
        Weigher().eval(),
        (TensorSpec("features", (1, 4, 6)), TensorSpec("points", ("prompts", "points", 4))),
        (TensorSpec("weights", ("prompts", "points", 6)),),
        example=example or draw,
    )


@pytest.mark.parametrize("batch", ["dynamic", 1])
def test_a_part_of_several_inputs_keeps_its_own_axes_dynamic(tmp_path, batch):
    part, images = weigher_part(), np.zeros((1, 3, 8, 8), np.float32)
    model = onnx_from_part(part, images, batch, 20)
    shapes = {
        v.name: [str(d) for d in v.shape] for v in (*model.graph.inputs, *model.graph.outputs)
    }
    assert shapes == {
        "features": ["1", "4", "6"],
        "points": ["prompts", "points", "4"],
        "weights": ["prompts", "points", "6"],
    }
    save_model(model, tmp_path / "weigher.onnx")
    with OrtRunner(tmp_path / "weigher.onnx") as runner:
        rows = check_parity(part, runner, images, parity_batches(part, batch))
        assert [row.batch for row in rows] == [2, 3]
        assert runner(part.example(5))["weights"].shape == (5, 6, 6)


def test_a_part_of_several_inputs_is_held_to_its_reference(tmp_path):
    part, images = weigher_part(), np.zeros((1, 3, 8, 8), np.float32)
    save_model(onnx_from_part(part, images, "dynamic", 20), tmp_path / "weigher.onnx")
    part.module.forward = lambda features, points: (points @ features).sigmoid()
    with (
        OrtRunner(tmp_path / "weigher.onnx") as runner,
        pytest.raises(ExportError, match="exported graph of 'weigher' differs from torch"),
    ):
        check_parity(part, runner, images, [2])


def test_what_is_left_of_a_module_holds_no_weights(images: np.ndarray):
    part = small_part("vit")
    before = part.module(torch.from_numpy(images)).detach().numpy()
    model = onnx_from_part(part, images, "dynamic", 20)
    free_module_(part)
    assert all(tensor.numel() == 0 for tensor in part.module.parameters())
    with runner_from_model(model) as runner:
        (after,) = runner({part.inputs[0].name: images}).values()
    np.testing.assert_allclose(after, before, atol=1e-5)

"""Importance against what it claims to be, computed another way."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.prunable_models import noise, outputs_of, prunable
from vitdeploy.compress.prune.gates import gradients, masked, recorded_gates
from vitdeploy.compress.prune.importance import Question, find_importance, objective
from vitdeploy.compress.prune.units import Kept, find_sites

LABELS = np.array([0, 1, 4, 2])


def importance_of(loaded, criterion, labels=None):
    images = noise(loaded)
    asked = Question(criterion, lambda: [(images, labels)], 0, loaded.class_output is not None)
    return find_importance(loaded.parts[0].module, find_sites(loaded), asked)


def energy(module: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    outputs = module(images)
    tensors = outputs if isinstance(outputs, tuple) else (outputs,)
    return sum(tensor.square().sum() for tensor in tensors)


@pytest.mark.parametrize("name", ["vit", "swinv2", "fastvit", "dinov2-swiglu", "sam"])
def test_the_gradient_at_a_gate_is_the_slope_of_the_loss(name):
    loaded = prunable(name)
    module = copy.deepcopy(loaded.parts[0].module).double()
    sites = find_sites(loaded)
    images = torch.from_numpy(noise(loaded, 2)).double()
    with recorded_gates(module, sites) as record:
        found = gradients(energy(module, images), record.gates, 2)
    assert {len(rows) for rows in found.values()} == {2}
    site, mlp = sites.attention[-1], sites.mlp[0]
    step = 1e-5  # central difference in float64: errors of step^2 and of 1e-16 / step
    for path, layer, unit, width in (
        (site.path, site.proj, site.num_heads - 1, site.head_dim),
        (mlp.path, mlp.output, 3, 1),
    ):
        # a gate is a factor on the columns that read its unit
        columns = module.get_submodule(layer).weight.detach()[:, unit * width : (unit + 1) * width]
        whole = columns.clone()
        slope = 0.0
        with torch.no_grad():
            for sign in (1, -1):
                columns.copy_(whole * (1 + sign * step))
                slope += sign * float(energy(module, images)) / (2 * step)
            columns.copy_(whole)
        assert found[path][:, unit].sum() == pytest.approx(slope, rel=1e-4)


def test_rows_of_windows_are_added_up_by_image():
    loaded = prunable("swin")
    module, sites = loaded.parts[0].module.double(), find_sites(loaded)
    images = torch.from_numpy(noise(loaded, 2)).double()
    with recorded_gates(module, sites) as record:
        both = gradients(energy(module, images), record.gates, 2)
        alone = gradients(energy(module, images[1:]), record.gates, 1)
    for path, rows in both.items():
        np.testing.assert_allclose(rows[1], alone[path][0], rtol=1e-9, atol=1e-12)


def test_taylor_sums_weight_times_gradient_over_the_group():
    loaded = prunable("vit")
    module = loaded.parts[0].module
    found = importance_of(loaded, "taylor", LABELS)
    module.zero_grad()
    cross_entropy(module(torch.from_numpy(noise(loaded))), torch.from_numpy(LABELS)).backward()
    head, dim, width = 2, 8, 32
    taylor = {id(p): (p * p.grad).detach() for p in module.parameters()}
    attention, mlp = module.blocks[1].attn, module.blocks[1].mlp
    expected = 0.0
    for part in range(3):
        rows = slice(part * width + head * dim, part * width + (head + 1) * dim)
        for weight in (attention.qkv.weight, attention.qkv.bias):
            expected += float(taylor[id(weight)][rows].abs().sum())
    expected += float(
        taylor[id(attention.proj.weight)][:, head * dim : (head + 1) * dim].abs().sum()
    )
    assert found.heads["blocks.1.attn"][head] == pytest.approx(expected, rel=1e-5)
    channel = 17
    expected = sum(
        float(taylor[id(weight)][channel].abs().sum()) for weight in (mlp.fc1.weight, mlp.fc1.bias)
    ) + float(taylor[id(mlp.fc2.weight)][:, channel].abs().sum())
    assert found.channels["blocks.1.mlp"][channel] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("criterion", ["taylor", "gate"])
def test_frozen_weights_are_ranked_alike_and_stay_frozen(criterion):
    loaded = prunable("vit")
    free = importance_of(loaded, criterion, LABELS)
    loaded.parts[0].module.requires_grad_(False)
    frozen = importance_of(loaded, criterion, LABELS)
    for path, scores in free.heads.items():
        np.testing.assert_array_equal(scores, frozen.heads[path])
    assert not any(p.requires_grad for p in loaded.parts[0].module.parameters())


def test_magnitude_is_the_rms_of_the_group():
    loaded = prunable("dinov2-swiglu")
    found = importance_of(loaded, "magnitude")
    mlp = loaded.parts[0].module.model.blocks[0].mlp
    width = mlp.fc2.in_features
    rows = [5, width + 5]  # gate and value
    group = torch.cat(
        [mlp.fc1.weight[rows].flatten(), mlp.fc1.bias[rows], mlp.fc2.weight[:, 5].flatten()]
    )
    expected = float(group.detach().double().square().mean().sqrt())
    assert found.channels["model.blocks.0.mlp"][5] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("criterion", ["taylor", "gate"])
def test_labels_count_where_there_are_any(criterion):
    loaded = prunable("vit")
    own, labelled = importance_of(loaded, criterion), importance_of(loaded, criterion, LABELS)
    assert not np.allclose(own.heads["blocks.0.attn"], labelled.heads["blocks.0.attn"])


@pytest.mark.parametrize("criterion", ["taylor", "gate"])
@pytest.mark.parametrize("name", ["vit", "dinov3"])
def test_what_changes_no_output_has_no_importance(criterion, name):
    loaded = prunable(name)
    site = find_sites(loaded).attention[1]
    layer = loaded.parts[0].module.get_submodule(site.path)
    with torch.no_grad():
        layer.proj.weight[:, : site.head_dim] = 0  # nothing reads the first head
    scores = importance_of(loaded, criterion).heads[site.path]
    assert scores[0] == 0
    assert scores[1:].min() > 0


def test_the_least_important_head_changes_the_outputs_least():
    loaded = prunable("vit")
    module, sites = loaded.parts[0].module, find_sites(loaded)
    images = noise(loaded, 8)
    with torch.no_grad():  # heads that differ widely, as trained ones do
        for block in module.blocks:
            for head in range(4):
                block.attn.proj.weight[:, head * 8 : head * 8 + 8] *= 4.0 ** (head - 2)
    whole = outputs_of(module, images)[0]
    scores = importance_of(loaded, "gate").heads
    change = {}
    for path, values in scores.items():
        for head in range(len(values)):
            rest = tuple(h for h in range(4) if h != head)
            with masked(module, sites, Kept({path: rest})):
                change[path, head] = float((outputs_of(module, images)[0] - whole).norm())
    ranked = sorted(change, key=lambda unit: scores[unit[0]][unit[1]])
    assert sum(change[u] for u in ranked[:4]) < 0.2 * sum(change[u] for u in ranked[-4:])


def test_without_labels_the_model_is_its_own_target():
    logits = torch.tensor([[9.0, 0.0, 0.0]] * 64, requires_grad=True)
    sure = objective(logits, None, True, torch.Generator().manual_seed(0))
    assert float(sure.detach()) < 1.0  # its own class is drawn nearly always
    features = torch.randn(4, 6, requires_grad=True)
    loss = objective((features, 10 * features), None, False, torch.Generator().manual_seed(0))
    (slope,) = torch.autograd.grad(loss, features)
    assert float(slope.abs().min()) > 0

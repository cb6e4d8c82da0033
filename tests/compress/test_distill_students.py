"""Students from scratch, and students cut out of a teacher."""

import pytest
import torch

from tests.model_folders import write_vit_folder
from vitdeploy.compress.distill.students import (
    Surroundings,
    evenly_selected,
    new_student,
    select_from_teacher_,
)
from vitdeploy.data import Preprocess
from vitdeploy.errors import CompressionError, ModelError, UnsupportedError
from vitdeploy.models import LoadOptions, load
from vitdeploy.recipe import StudentSection

AROUND = Surroundings(3, ("red", "green", "blue"), Preprocess((32, 32), (0.5,) * 3, (0.25,) * 3))


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_vit_folder(tmp_path_factory.mktemp("students") / "teacher"))


def student(source: str, seed: int = 0, **arguments):
    section = StudentSection(source=source, arguments=arguments, initialise="scratch")
    return new_student(section, AROUND, seed)


def test_a_new_student_has_the_arguments_and_the_classes():
    made = student("timm:vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, embed_dim=48)
    model = made.parts[0].module
    assert (len(model.blocks), model.num_classes, model.embed_dim) == (3, 3, 48)
    assert made.spec.label_names == AROUND.label_names
    assert made.spec.preprocess == AROUND.preprocess
    again = student("timm:vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, embed_dim=48)
    assert torch.equal(model.head.weight, again.parts[0].module.head.weight)
    other = student("vit-tiny", 1, img_size=32, patch_size=8, depth=3, embed_dim=48)
    assert not torch.equal(model.pos_embed, other.parts[0].module.pos_embed)


def test_a_folders_architecture_can_be_changed(teacher_folder):
    made = student(teacher_folder, depth=1)
    assert len(made.parts[0].module.blocks) == 1
    assert made.rebuild is not None
    assert made.rebuild.arguments["embed_dim"] == 48


@pytest.mark.parametrize(
    ("source", "arguments", "error", "message"),
    [
        ("timm:vit_tiny_patch16_224", {"depht": 3}, ModelError, "depht=3"),
        ("hf:facebook/dinov2-small", {}, UnsupportedError, "not built by timm"),
        ("timm:vit_tinny", {}, ModelError, "has no model"),
    ],
)
def test_what_cannot_be_built(source, arguments, error, message):
    with pytest.raises(error, match=message):
        student(source, **arguments)


def test_selection_keeps_q_k_and_v_apart():
    packed = torch.arange(3)[:, None] * 100 + torch.arange(8)  # q, k and v of width 8
    chosen = evenly_selected(packed.reshape(24, 1), torch.Size((12, 1))).reshape(3, 4)
    assert chosen.tolist() == [[0, 2, 4, 6], [100, 102, 104, 106], [200, 202, 204, 206]]


def test_a_student_of_the_teachers_size_is_the_teacher(teacher_folder):
    teacher = load(LoadOptions(teacher_folder))
    made = student(teacher_folder)
    assert select_from_teacher_(made, teacher) == 1.0
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(made.parts[0].module(pixels), teacher.parts[0].module(pixels))


def test_layers_and_channels_are_selected(teacher_folder):
    teacher = load(LoadOptions(teacher_folder)).parts[0].module
    made = student(teacher_folder, depth=1, embed_dim=24, num_heads=3)
    share = select_from_teacher_(made, load(LoadOptions(teacher_folder)))
    model = made.parts[0].module
    assert share == 1.0
    assert torch.equal(model.blocks[0].mlp.fc1.weight, teacher.blocks[0].mlp.fc1.weight[::2, ::2])
    assert torch.equal(model.pos_embed, teacher.pos_embed[:, :, ::2])


def test_strangers_are_refused(teacher_folder):
    teacher = load(LoadOptions(teacher_folder))
    with pytest.raises(CompressionError, match=r"only .* % of the student's parameters"):
        select_from_teacher_(student(teacher_folder, depth=6), teacher)
    with pytest.raises(CompressionError, match="needs one architecture in two sizes"):
        select_from_teacher_(student("timm:resnet10t"), teacher)

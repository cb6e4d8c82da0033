"""The loss against timm's own tasks on whole models, and against formulas written out."""

import numpy as np
import pytest
import timm
import torch
from timm.task import LogitDistillationTask, TokenDistillationTask

from tests.model_folders import shake_
from tests.small_models import SMALL_VIT
from vitdeploy.compress.distill.answers import TimmAnswers, patches_from_tokens
from vitdeploy.compress.distill.objective import Aims, Objective, Pupil, feature_loss, projections
from vitdeploy.compress.distill.teachers import Teacher


def model(architecture: str = "vit_tiny_patch16_224", seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    made = timm.create_model(architecture, num_classes=5, **SMALL_VIT)
    shake_(made, seed)
    return made


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, 32, 32, generator=generator), torch.tensor([0, 1, 2, 3, 4, 0])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_soft_is_timms_logit_distillation(batch, alpha):
    pixels, labels = batch
    student, teacher = model(seed=1).train(), model(seed=2).eval()
    task = LogitDistillationTask(
        student,
        teacher,
        criterion_kwargs={"smoothing": 0.1},
        task_loss_weight=1 - alpha,
        distill_loss_weight=alpha,
        temperature=3.0,
        verbose=False,
    )
    wanted = task(pixels, labels)
    aims = Aims("soft", alpha, 3.0, 0.0, has_labels=True, smoothing=0.1)
    seen = Objective(aims, [2.0])(
        {"logits": student(pixels)}, [{"logits": teacher(pixels)}], labels
    )
    torch.testing.assert_close(seen["loss"], wanted["loss"])  # the same sums: FP32 rounding
    torch.testing.assert_close(seen["distill_loss"], wanted["kd_loss"])


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_token_is_taught_as_timm_teaches_it(batch, kind):
    pixels, labels = batch
    student = model("deit_tiny_distilled_patch16_224", 1).train()
    teacher = model(seed=2).eval()
    teacher.pretrained_cfg = student.pretrained_cfg  # or timm would normalise anew for it
    task = TokenDistillationTask(
        student, teacher, distill_type=kind, task_loss_weight=0.5, temperature=2.0, verbose=False
    )
    wanted = task(pixels, labels)
    answers = TimmAnswers(student, frozenset({"logits"}))(pixels)
    aims = Aims(kind, 0.5, 2.0, 0.0, has_labels=True)
    seen = Objective(aims, [1.0])(answers, [{"logits": teacher(pixels)}], labels)
    torch.testing.assert_close(seen["loss"], wanted["loss"])
    main_alone = {"logits": answers["logits"]}
    other = Objective(aims, [1.0])(main_alone, [{"logits": teacher(pixels)}], labels)
    assert not torch.allclose(other["distill_loss"], seen["distill_loss"])


def test_teachers_count_by_their_weights(batch):
    logits = {"logits": torch.randn(6, 5)}
    teachers = [{"logits": torch.randn(6, 5)} for _ in range(2)]
    aims = Aims("soft", 1.0, 1.0, 0.0, has_labels=False)
    both = Objective(aims, [3.0, 1.0])(logits, teachers, batch[1])["loss"]
    alone = [Objective(aims, [1.0])(logits, [t], batch[1])["loss"] for t in teachers]
    torch.testing.assert_close(both, 0.75 * alone[0] + 0.25 * alone[1])


def test_mixed_labels_are_distributions(batch):
    logits = torch.randn(6, 5)
    mixed = torch.softmax(torch.randn(6, 5), -1)
    aims = Aims("none", 0.5, 1.0, 0.0, has_labels=True, mixes=True)
    seen = Objective(aims, [])({"logits": logits}, [], mixed)["loss"]
    torch.testing.assert_close(seen, -(mixed * logits.log_softmax(-1)).sum(-1).mean())
    both = Aims("hard", 0.5, 1.0, 0.0, has_labels=True, mixes=True)
    teacher = {"logits": torch.randn(6, 5)}
    parts = Objective(both, [1.0])({"logits": logits}, [teacher], mixed)
    decided = torch.nn.functional.cross_entropy(logits, teacher["logits"].argmax(-1))
    torch.testing.assert_close(parts["distill_loss"], decided)


def test_features_are_matched_by_angle_and_size():
    rng = np.random.default_rng(0)
    own, wanted = rng.normal(size=(2, 2, 4, 4, 8)).astype(np.float32)
    cosine = (own * wanted).sum(-1) / np.linalg.norm(own, axis=-1) / np.linalg.norm(wanted, axis=-1)
    gap = np.abs(own - wanted)
    smooth = np.where(gap < 1, gap**2 / 2, gap - 0.5).mean()
    expected = 0.9 * (1 - cosine).mean() + 0.1 * smooth
    seen = feature_loss(torch.from_numpy(own), torch.from_numpy(wanted))
    assert float(seen) == pytest.approx(float(expected), rel=1e-5)  # FP32 sums of 256 terms
    assert float(feature_loss(torch.from_numpy(own), torch.from_numpy(own))) < 1e-6


def test_a_teachers_grid_is_resampled_to_the_students():
    ramp = torch.linspace(0, 1, 8)[None, :, None, None].expand(1, 8, 8, 3).contiguous()
    small = torch.nn.functional.avg_pool2d(ramp.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    # Resampling a ramp gives a ramp but at its ends, where it is flat for half a cell.
    assert float(feature_loss(ramp[:, 2:6], small[:, 1:3])) < 0.1
    assert float(feature_loss(ramp, small)) < float(feature_loss(ramp, small.flip(1)))


def test_patches_are_what_follows_the_prefix():
    tokens = torch.arange(2 * 21 * 3.0).reshape(2, 21, 3)  # class token, 4 registers, 4 x 4
    patches = patches_from_tokens(tokens)
    assert patches.shape == (2, 4, 4, 3)
    assert torch.equal(patches.flatten(1, 2), tokens[:, 5:])


def test_each_teacher_has_its_own_projection(batch):
    student = model(seed=1)
    shapes = [{"summary": (48,), "patches": (2, 2, 48)}, {"patches": (4, 4, 16)}]
    teachers = [Teacher("t", "", 1.0, lambda p: {}, shape) for shape in shapes]
    own = {"summary": (32,), "patches": (4, 4, 32)}
    asked = TimmAnswers(student, frozenset({"summary", "patches", "logits"}))
    pupil = Pupil(student, asked, projections(own, teachers, 0))
    outputs = pupil(batch[0])
    widths = {key: value.shape[-1] for key, value in outputs.items()}
    assert widths == {"logits": 5, "0_summary": 48, "0_patches": 48, "1_patches": 16}
    aims = Aims("none", 0.5, 1.0, 1.0, has_labels=False)
    said = [
        {"summary": torch.randn(6, 48), "patches": torch.randn(6, 2, 2, 48)},
        {"patches": torch.randn(6, 4, 4, 16)},
    ]
    Objective(aims, [1.0, 1.0])(outputs, said, batch[1])["loss"].backward()
    gradients = [p.grad for p in pupil.projection.parameters()]
    assert all(g is not None and float(g.abs().max()) > 0 for g in gradients)

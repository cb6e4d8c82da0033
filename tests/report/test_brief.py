"""The lines for a pipeline's own page: Markdown that names no HTML and hides nothing."""

from tests.report.samples import failing_sample, sample
from vitdeploy.report import WRITERS, Limits, brief, diff, regressions


def test_it_leads_with_the_verdict_and_has_the_key_figures():
    text = WRITERS["brief"].render(sample())
    assert text.startswith("## ✅ Ship it: vit-digits, int8\n\nPassed: all 3 gates")
    assert "| ONNX Runtime (INT8) | 97.78 % (Top-1) | 1.21 ms → 0.74 ms | 1.64× faster |" in text
    assert "`calibration: generic`" in text
    assert "| `min_speedup:openvino` | 1.5 | 2.51 | passed |" in text


def test_failures_are_named_and_escaped():
    text = WRITERS["brief"].render(failing_sample())
    assert text.startswith("## ❌ Do not ship")
    assert "- Speed-up on ONNX Runtime" in text
    assert "<script" not in text.replace("\\<", "")


def test_a_diff_names_what_got_worse():
    after = sample(size_bytes={"reference": 1_262_550, "onnx": 600_000, "openvino": 602_114})
    changes = diff(sample(), after)
    found = regressions(sample(), after, Limits(5))
    text = brief.render_diff((sample(), after), changes, found)
    assert text.startswith("## ❌ 1 figure(s) got worse: vit-digits\n")
    assert "| `onnx` | 421,337 | 600,000 | bytes | 42.4 % larger, 5 % allowed |" in text
    calm = brief.render_diff((sample(), sample()), (), ())
    assert calm == "## ✅ Nothing got worse than allowed: vit-digits\n\nThe figures are the same.\n"

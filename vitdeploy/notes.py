"""What a report says in words: how artefacts were quantised, and what to think of their speed."""

from collections.abc import Mapping, Sequence

from vitdeploy.compress.int8 import Int8Result
from vitdeploy.findings import Compressed
from vitdeploy.recipe import Recipe

SLOWER_BELOW = 0.97
"""A ratio below this is slower; between it and 1 is noise."""


def placement_notes(compressed: Sequence[Compressed]) -> list[str]:
    """Return what the INT8 search chose, one line a target."""
    notes = []
    for item in compressed:
        found = item.quantized
        if found is None:
            continue
        target = item.artifact.target
        line = f"INT8 on {target}: {found.int8_macs_percent:.1f} % of the MACs with weights; "
        line += _search_note(found)
        if found.choices.kept_float:
            total = sum(found.noise.values())
            noise = sum(found.noise.get(name, 0.0) for name in found.choices.kept_float)
            share = f" ({100 * noise / total:.0f} % of the noise)" if total else ""
            line += f"; too noisy for INT8 and kept in float{share}: "
            line += ", ".join(found.choices.kept_float[:5])
            more = len(found.choices.kept_float) - 5
            line += f" and {more} more" if more > 0 else ""
        if found.attention.ceilings:
            line += f"; {len(found.attention.ceilings)} attention layer(s) in INT8 throughout"
        if item.restored:
            line += f"; back in float to keep max_drop_points: {', '.join(item.restored)}"
        if found.placement_reason:
            line += f"; sites not measured: {found.placement_reason}"
        notes.append(line + ".")
    return notes


def int4_notes(compressed: Sequence[Compressed]) -> list[str]:
    """Return what has INT4 weights and what was computed on, one line a target."""
    notes = []
    for item in compressed:
        found, seen = item.int4, item.activations
        if found is None or seen is None:
            continue
        line = (
            f"INT4 on {item.artifact.target}: {found.int4_weights_percent:.1f} % of the weights of "
            f"products, in blocks of {', '.join(map(str, sorted(set(found.blocks.values()))))}; "
            f"they compute on activations in {seen.text}"
        )
        version = item.artifact.settings.get("trt_version")
        line += f"; needs TensorRT {version} or newer" if version else ""
        if found.choices.kept_int8:
            kept = found.choices.kept_int8
            more = f" and {len(kept) - 5} more" if len(kept) > 5 else ""
            line += f"; too noisy for INT4 and kept in INT8: {', '.join(kept[:5])}{more}"
        if found.skipped:
            line += f"; int4.search_seconds did not allow: {', '.join(found.skipped)}"
        notes.append(line + ".")
    return notes


def _search_note(found: Int8Result) -> str:
    """Return what the search did, what it cost, and what its budget did not allow."""
    folded = sum(fold.strength not in ("off", "refused") for fold in found.folds)
    note = (
        f"{folded} exact folds, chosen from {found.search.candidates} candidates measured in "
        f"{found.search.seconds:.0f} s; GPTQ rounded {len(found.choices.rounded)} products"
    )
    if found.search.skipped:
        note += f"; int8.search_seconds did not allow: {', '.join(found.search.skipped)}"
    return note


def advice(recipe: Recipe, speedup: Mapping[str, float | None]) -> list[str]:
    """Return a line on each target that is slower than FP32."""
    notes = []
    for name, ratio in speedup.items():
        if recipe.precision != "fp32" and ratio is not None and ratio < SLOWER_BELOW:
            notes.append(
                f"{recipe.precision} on {name} is {1 / ratio:.1f}x slower than FP32 on ONNX "
                "Runtime here; use it for its size only."
            )
    return notes

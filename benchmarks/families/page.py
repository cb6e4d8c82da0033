"""docs/families.md, from the results of the matrix; nothing is run here."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.families.rows import ROWS, Row
from vitdeploy.onnx_export import ROUNDING_FACTOR

Results = Mapping[str, Mapping[str, Any]]
"""By the key of a row."""

WORST_PARITY = 1e-4
LEAST_COSINE = 0.99
FIRST_SEARCH_SECONDS = 3.0
LONGER_SEARCH_SECONDS = 120.0
"""Where the first ends below LEAST_COSINE."""
_TARGETS = ("onnx", "openvino", "trt-rtx", "int4")
_HEADER = """\
# Encoders that are known to work

This page is written by `python -m benchmarks.families` from `families.json` beside it; do not edit
it. Every row is a small member of its family, with the patch, head size, window, position encoding
and pooling of the original and less width and depth. Its weights are random and shaken
(`--random-weights`), so the figures say that the path is right, not what a trained model keeps.

* **parity**: largest difference of the FP32 ONNX from torch over the RMS of torch's output, at two
  batch sizes and at every image size shown; at most 1e-4.
* **onnx, openvino, trt-rtx**: INT8 on that target, as cosine of the outputs centred over the images
  (mean over 16 photographs, worst output) and SQNR in dB; at least 0.99. What TensorRT would
  compute is run by ONNX Runtime on the very graph, where no card is. **INT4**: weights only. The
  search has 3 s; where that ends below 0.99 it is made again with 120 s (240 s in the rows whose
  JSON says so), marked `*`.
* **lint**: errors and warnings for TensorRT 10.3 and TensorRT for RTX. **RTX**: whether its builder
  makes an engine of the graph.
* **nodes** of the FP32 graph; **MB** of the FP32 weights and of the `onnx` INT8 file.
* **prunes**: attention layers and MLPs whose heads and channels can be removed; a third of both was
  removed, and the rest exported.
* **s** and **GB**: of the whole row, in a process of its own, on a machine shared with others.
"""
_CAUSES = """\
## What the exporters cannot take, and where it is solved

| cause | seen in | solved in |
|---|---|---|
| The fused attention operator's result has other strides than its decomposition's, so that a \
traced view fails ([pytorch#141107](https://github.com/pytorch/pytorch/issues/141107)) | BEiT, \
BEiT v2 | `models/plain_attention.py` |
| The fused attention operator is translated for four axes only \
([onnxscript#2558](https://github.com/microsoft/onnxscript/pull/2558)) | Hiera | \
`models/plain_attention.py` |
| Patches are put together by Col2Im, which TensorRT does not read \
([onnx-tensorrt#934](https://github.com/onnx/onnx-tensorrt/issues/934)) and OpenVINO does not \
compile in every graph | transformers' MobileViT v2, VOLO | `models/plain_folds.py` |
| onnxsim joins the products of query, key and value and leaves their biases behind a Split | \
transformers' ViTs, EVA-02-CLIP | `onnx_export.py` (`fuse_qkv` is left out) |
| A masked autoencoder hides patches at random, so that no two runs agree | ViTMAE of transformers \
| `models/picture_input.py` |
| A NaFlex tower reads patches and their grid instead of a picture | SigLIP 2 NaFlex of \
transformers | `models/picture_input.py` |
"""


def page_from_results(results: Results) -> str:
    """Return the page; rows without a result are shown as not run."""
    parts = [_HEADER, "\n".join(_figures(results)) + "\n"]
    for rank in ("first", "second"):
        rows = [row for row in ROWS if row.rank == rank]
        parts.append(f"## {rank.capitalize()} rank\n\n" + "\n".join(_table(rows, results)) + "\n")
    parts.append(_CAUSES)
    for title, lines in (
        ("What fails", _failures(results)),
        ("Parity above 1e-4", _rounding(results)),
        ("INT8 below 0.99, by layer", _noisy(results)),
        ("What was not recognised", _unrecognised(results)),
        ("Layers that keep all heads", _unpruned(results)),
        ("One image size only", _fixed()),
    ):
        listed = "\n".join(lines)
        parts.append(f"## {title}\n\n{listed or 'Nothing.'}\n")
    return "\n".join(parts)


def works(result: Mapping[str, Any]) -> bool:
    """Return whether every stage of a row ran, and kept what it must keep."""
    return (
        not result["failures"]
        and bool(result.get("sizes"))
        and {item["target"] for item in result.get("quantised", ())} == set(_TARGETS)
        and bool(result.get("prunable"))
        and all(size["parity"] <= WORST_PARITY for size in result["sizes"])
        and all(item["cosine"] >= LEAST_COSINE for item in _int8(result))
        and not any(item["lint_errors"] for item in result["quantised"])
    )


def _int8(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [item for item in result.get("quantised", ()) if item["target"] != "int4"]


def _figures(results: Results) -> Iterator[str]:
    """Yield the figures of the matrix as a whole."""
    for rank in ("first", "second"):
        rows = [row for row in ROWS if row.rank == rank]
        done = [results[row.key] for row in rows if row.key in results]
        yield (
            f"* {rank.capitalize()} rank: {sum(map(works, done))} rows work of {len(rows)} named"
            f"{'' if len(done) == len(rows) else f' ({len(done)} were run)'}."
        )
    names = {row.key: row.name for row in ROWS}
    parities = [(s["parity"], k) for k, r in results.items() for s in r.get("sizes", ())]
    cosines = [(i["cosine"], i["target"], k) for k, r in results.items() for i in _int8(r)]
    if parities:
        worst, key = max(parities)
        yield f"* Worst parity: {worst:.1e} ({names[key]})."
    if cosines:
        least, target, key = min(cosines)
        yield f"* Worst centred INT8 cosine: {least:.4f} ({names[key]}, {target})."
    seconds = sum(result.get("seconds", 0) for result in results.values())
    yield f"* The whole matrix took {seconds:.0f} s, one row after the other."


def _table(rows: Sequence[Row], results: Results) -> Iterator[str]:
    columns = ("encoder", "from", "pixels", "parity", "onnx", "openvino", "trt-rtx", "INT4")
    columns += ("lint", "RTX", "nodes", "MB", "prunes", "s", "GB")
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for row in rows:
        cells = _cells(row, results.get(row.key))
        yield f"| {' | '.join(cells)} |"


def _cells(row: Row, result: Mapping[str, Any] | None) -> tuple[str, ...]:
    source = f"`{row.library}:{row.architecture}`"
    if result is None:
        return (row.name, source, *("not run", *[""] * 12))
    sizes = result.get("sizes", ())
    found = {item["target"]: item for item in result.get("quantised", ())}
    rtx = found.get("trt-rtx")
    first = sizes[0] if sizes else None
    prunable = result.get("prunable")
    return (
        row.name,
        source,
        ", ".join(str(size["pixels"]) for size in sizes),
        f"{max(size['parity'] for size in sizes):.0e}" if sizes else "fails",
        *(_fidelity(found.get(target)) for target in _TARGETS),
        f"{rtx['lint_errors']}, {rtx['lint_warnings']}" if rtx else "",
        "builds" if rtx else "",
        str(first["nodes"]) if first else "",
        f"{first['bytes'] / 1e6:.1f}, {found['onnx']['bytes'] / 1e6:.1f}"
        if first and "onnx" in found
        else "",
        f"{prunable['heads']}, {prunable['mlps']}" if prunable else "",
        f"{result.get('seconds', 0):.0f}",
        f"{result.get('peak_bytes', 0) / 1e9:.1f}",
    )


def _fidelity(item: Mapping[str, Any] | None) -> str:
    if item is None:
        return ""
    longer = "*" if item["search_seconds"] > FIRST_SEARCH_SECONDS else ""
    return f"{item['cosine']:.4f}, {item['sqnr_db']:.0f} dB{longer}"


def _each(results: Results, lines: Callable[[Mapping[str, Any]], Iterator[str]]) -> Iterator[str]:
    """Yield `* row: line` for the lines of every row."""
    for row in ROWS:
        if row.key in results:
            for line in lines(results[row.key]):
                yield f"* {row.name} (`{row.library}:{row.architecture}`): {line}"


def _failures(results: Results) -> Iterator[str]:
    return _each(
        results, lambda result: (f"{stage}: {why}" for stage, why in result["failures"].items())
    )


def _rounding(results: Results) -> Iterator[str]:
    def lines(result: Mapping[str, Any]) -> Iterator[str]:
        for size in result.get("sizes") or ():
            if size["parity"] > WORST_PARITY:
                own = size["tolerance"] / ROUNDING_FACTOR
                yield (
                    f"{size['parity']:.1e} at {size['pixels']} pixels: torch itself, in float32, "
                    f"is {own:.1e} from what it computes in float64"
                )

    return _each(results, lines)


def _noisy(results: Results) -> Iterator[str]:
    def lines(result: Mapping[str, Any]) -> Iterator[str]:
        for item in _int8(result):
            if item["cosine"] < LEAST_COSINE:
                worst = ", ".join(f"`{name}` {noise:.1e}" for name, noise in item["noisiest"])
                yield (
                    f"{item['target']} {item['cosine']:.4f}; noise over signal of the worst "
                    f"layers alone: {worst or 'not measured'}"
                )

    return _each(results, lines)


def _unrecognised(results: Results) -> Iterator[str]:
    def lines(result: Mapping[str, Any]) -> Iterator[str]:
        found: dict[str, list[str]] = {}
        for node, reason in (result.get("sizes") or ({"unrecognised": ()},))[0]["unrecognised"]:
            # names of single nodes have numbers in them
            found.setdefault(re.sub(r"\S*\d\S*", "...", reason), []).append(node)
        for reason, nodes in found.items():
            yield f"{len(nodes)} of them, such as `{nodes[0]}`: {reason}"

    return _each(results, lines)


def _unpruned(results: Results) -> Iterator[str]:
    def lines(result: Mapping[str, Any]) -> Iterator[str]:
        prunable, sizes = result.get("prunable"), result.get("sizes")
        if not prunable or not sizes:
            return
        yield from prunable["notes"]
        seen, known = sizes[0]["torch_attention"], sizes[0]["graph_attention"]
        if seen < known:
            yield (
                f"of {known} attentions in the graph {seen} have linear layers of their own for "
                "query, key, value and output, which the pruner needs"
            )

    return _each(results, lines)


def _fixed() -> Iterator[str]:
    for row in ROWS:
        if row.second_size is None:
            yield f"* {row.name} (`{row.library}:{row.architecture}`): {row.fixed}"

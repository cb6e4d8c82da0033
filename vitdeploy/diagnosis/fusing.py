"""What the builders of a part's engines made of it: from the target, or from the device's report.

Which kernels are products or attention is told by `targets.fusion_report` and, on the device, by
`device.onboard.inspector`; here it is put into rows.
"""

from collections.abc import Mapping
from typing import Any

from vitdeploy.bundle import Artifact, Bundle
from vitdeploy.device import read_device_report
from vitdeploy.diagnosis.schema import FallbackRow, FusionRow
from vitdeploy.errors import UnsupportedError
from vitdeploy.targets import load_target
from vitdeploy.targets.fusion_report import FusionReport

_UNKNOWN = "the device's report does not say"


def fusion_rows(bundle: Bundle, part: str) -> tuple[tuple[FusionRow, ...], tuple[str, ...]]:
    """Return what is known of a part's engines, and a note on each of which nothing is.

    Raises:
        ExportError: the builder that is here refuses a graph.
        DataError: a report in the bundle is damaged.
    """
    rows, notes = [], []
    for artifact in bundle.artifacts(part=part):
        target = load_target(artifact.target)
        built = _row_of_device(bundle, artifact) if target.IS_PACKAGED else None
        if built is not None:
            rows.append(built)
        try:
            report = target.fusion(artifact)
        except UnsupportedError as error:
            notes.append(f"{artifact.target}: what its builder fuses is not known: {error}")
            continue
        if report is not None:
            rows.append(_row_of_report(artifact, report, is_forecast=target.IS_PACKAGED))
    return tuple(rows), tuple(notes)


def chosen_candidate(report: Mapping[str, Any], part: str) -> Mapping[str, Any] | None:
    """Return what a device's report says of the engine that was kept for a part."""
    for item in report["parts"]:
        if item["part"] == part:
            kept = [row for row in item["candidates"] if row["precision"] == item["chosen"]]
            return next((row for row in kept if row["status"] == "faithful"), None)
    return None


def _row_of_report(artifact: Artifact, report: FusionReport, *, is_forecast: bool) -> FusionRow:
    return FusionRow(
        target=artifact.target,
        builder=report.builder,
        is_forecast=is_forecast,
        kernels=report.kernels,
        products=report.products,
        quantized_products=report.quantized_products,
        int8_products=report.int8_products,
        attention=report.attention,
        fused_attention=report.fused_attention,
        int8_attention=report.int8_attention,
        fallbacks=tuple(
            FallbackRow(name=item.name, reason=item.reason) for item in report.fallbacks
        ),
    )


def _row_of_device(bundle: Bundle, artifact: Artifact) -> FusionRow | None:
    """Return what a build on the device found; None where there was none, or it could not tell."""
    report = read_device_report(bundle.path)
    kept = None if report is None else chosen_candidate(report, artifact.part)
    if report is None or kept is None or "products" not in kept:
        return None
    return FusionRow(
        target=artifact.target,
        builder=f"TensorRT {report['device']['tensorrt']} on the device",
        is_forecast=False,
        kernels=len(kept["layers"]),
        products=kept["products"],
        quantized_products_reason=_UNKNOWN,
        int8_products=kept["int8_products"],
        attention_reason=_UNKNOWN,
        fused_attention=kept["fused_attention"],
        int8_attention=kept["int8_attention"],
    )

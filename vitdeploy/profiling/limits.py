"""The roofline of what was profiled: which parts can be counted, and their work."""

from collections.abc import Sequence
from pathlib import Path

from vitdeploy.profiling.options import ProfileOptions
from vitdeploy.profiling.subjects import Source
from vitdeploy.report.profile import RooflineResult, TimingRow
from vitdeploy.roofline.ceilings import ceilings_of_machine, ceilings_path
from vitdeploy.roofline.layers import LayerCount
from vitdeploy.roofline.utilisation import Ran, beaten, work_of


def roofline_of(
    sources: Sequence[Source],
    timings: Sequence[TimingRow],
    options: ProfileOptions,
    folder: Path | None = None,
) -> tuple[RooflineResult, list[str]]:
    """Return how far each part is from this machine's ceilings, and what to tell of it.

    Args:
        sources: what was profiled.
        timings: of them; those of one stream at the first batch count.
        options: threads and device.
        folder: of the ceilings' file; the user's cache by default.
    """
    threads = options.threads or max(row.threads or 1 for row in timings)
    ceilings = ceilings_of_machine(threads, folder)
    works = []
    skipped: dict[str, str] = {}
    for source in sources:
        rows = [
            row
            for row in timings
            if (row.name, row.part, row.streams) == (source.name, source.part, 1)
        ]
        key = f"{source.name}/{source.part}"
        reason = _no_count_reason(source, options)
        if reason is None and not rows:
            reason = "it was not run with one stream"
        if reason is not None:
            skipped[key] = reason
            continue
        row = rows[0]
        feeds = source.feeds_at(row.batch)
        ran = Ran(source.name, source.part, source.precision, row.batch, feeds, row.p50_ms)
        works.append(work_of(ran, _layers(source, ran, options.threads), ceilings))
    notes = []
    if names := beaten(works):
        notes.append(
            f"{', '.join(names)} ran faster than the ceilings allow, which were measured on a "
            f"busier machine; delete '{ceilings_path(threads, folder).name}' from the cache folder."
        )
    return RooflineResult(ceilings=ceilings, artefacts=tuple(works), skipped=skipped), notes


def _no_count_reason(source: Source, options: ProfileOptions) -> str | None:
    if options.device != "cpu":
        return f"the ceilings are those of the CPU, and it ran on {options.device}"
    if source.engine == "torch":
        return "PyTorch's kernels are not counted; its ONNX file is"
    if source.engine == "target":
        return "its engine does not tell what its layers compute"
    return None


def _layers(source: Source, ran: Ran, threads: int | None) -> tuple[LayerCount, ...]:
    assert source.path is not None
    if source.engine == "openvino":
        from vitdeploy.roofline.openvino_layers import openvino_layers

        return openvino_layers(source.path, source.settings, ran.feeds, threads)
    from vitdeploy.roofline.ort_layers import ort_layers

    return ort_layers(source.path, source.settings, ran.feeds, threads)

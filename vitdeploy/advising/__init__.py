"""What to ship: precisions, targets and pruned variants tried within a time budget.

`request` is what is asked, `candidates` what there is to try and in which order, `workshop` makes
what all candidates share, `trial` tries one, `energy_use` measures what it takes, `search` is the
loop, `deadline` ends it, `cache` keeps what was found, `front` chooses, `schema` is the result as
data, `html` as a page, `files` the folder they are written to.
"""

import tempfile
from pathlib import Path

from vitdeploy.advising.cache import Records, default_work_folder
from vitdeploy.advising.deadline import Deadline, seconds_from_duration
from vitdeploy.advising.energy_use import require_energy_source
from vitdeploy.advising.files import require_own_folder, write_files
from vitdeploy.advising.request import Request
from vitdeploy.advising.schema import OBJECTIVES, Advice, AdviceRow, Objective
from vitdeploy.advising.search import Search, with_calibration
from vitdeploy.advising.workshop import Workshop
from vitdeploy.progress import Progress, SilentProgress

__all__ = [
    "OBJECTIVES",
    "Advice",
    "AdviceRow",
    "Objective",
    "Request",
    "advise",
    "seconds_from_duration",
]


def advise(
    request: Request, output: str | Path, *, progress: Progress | None = None
) -> tuple[Advice, bool]:
    """Try candidates until all are known or time is up; write the advice into a folder.

    Returns:
        The advice, and whether Ctrl-C ended the work; what was known is written all the same.

    Raises:
        UsageError: `output` is something else than an earlier advice, or options do not fit.
        UnsupportedError: energy is asked for where the platform does not tell it.
        VitdeployError: the model, a variant or the images cannot be loaded.
    """
    output = Path(output)
    require_own_folder(output)
    if request.objective == "energy":
        require_energy_source()
    deadline = Deadline(progress or SilentProgress(), request.budget_seconds)
    records = Records(request.work or default_work_folder())
    with tempfile.TemporaryDirectory(prefix="advise-", dir=records.folder) as folder:
        recipe = with_calibration(request.recipe)
        workshop = Workshop(recipe, request.variants, Path(folder), deadline)
        search = Search(request, workshop, records, deadline)
        was_stopped = False
        try:
            search.run()
        except KeyboardInterrupt:
            was_stopped = True
            if not search.found:
                raise
    advice = search.advice(output)
    write_files(advice, search.recommended_recipe(), output)
    return advice, was_stopped

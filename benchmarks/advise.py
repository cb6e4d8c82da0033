"""What `vitdeploy advise` finds within a budget, and what further runs cost.

    python benchmarks/advise.py vit-base --max-drop 1 --budget 10m

Every option is passed on; results are kept in a new folder, so that the first run starts from
nothing. The same command line is run again until all candidates are known, and once more then.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vitdeploy.advising.html import table_cells
from vitdeploy.advising.schema import Advice

_MOST_RUNS = 5


def advised(arguments: list[str], folder: Path) -> tuple[Advice, float]:
    """Return the advice of one run in a process of its own, and its seconds."""
    places = ["--work", str(folder / "work"), "--output", str(folder / "advice")]
    command = [sys.executable, "-m", "vitdeploy", "advise", *arguments, *places, "--json"]
    start = time.perf_counter()
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - start
    return Advice.model_validate_json(result.stdout), seconds


def main() -> None:
    """Run until nothing is new; print what each run found and cost."""
    arguments = sys.argv[1:] or ["vit-digits", "--max-drop", "1"]
    was_complete = False
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, _MOST_RUNS + 1):
            advice, seconds = advised(arguments, Path(folder))
            known = sum(row.is_from_cache for row in advice.rows)
            tried = sum(row.status != "waiting" for row in advice.rows)
            print(f"run {number}: {seconds:.1f} s, {known} candidates known from before, ", end="")
            print(f"{tried} of {len(advice.rows)} after it; the front:", flush=True)
            for name in advice.front:
                print("  " + "  ".join(table_cells(advice.row(name), advice.objective)))
            print(f"  recommended: {advice.recommended_reason}", flush=True)
            if was_complete:
                return
            was_complete = advice.is_complete


if __name__ == "__main__":
    main()

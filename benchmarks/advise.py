"""What `vitdeploy advise` finds within a budget, and what a second run costs.

    python benchmarks/advise.py vit-base --max-drop 1 --budget 10m

Every option is passed on; results are kept in a new folder, so that the first run starts from
nothing. The second run is the same command line.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vitdeploy.advising.html import table_cells
from vitdeploy.advising.schema import Advice


def advised(arguments: list[str], folder: Path) -> tuple[Advice, float]:
    """Return the advice of one run in a process of its own, and its seconds."""
    places = ["--work", str(folder / "work"), "--output", str(folder / "advice")]
    command = [sys.executable, "-m", "vitdeploy", "advise", *arguments, *places, "--json"]
    start = time.perf_counter()
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - start
    return Advice.model_validate_json(result.stdout), seconds


def main() -> None:
    """Run twice; print the front and both costs."""
    arguments = sys.argv[1:] or ["vit-digits", "--max-drop", "1"]
    with tempfile.TemporaryDirectory() as folder:
        first, first_seconds = advised(arguments, Path(folder))
        again, again_seconds = advised(arguments, Path(folder))
    print("the front:")
    for name in first.front:
        print("  " + "  ".join(table_cells(first.row(name), first.objective)))
    done = sum(row.status == "done" for row in first.rows)
    print(f"recommended: {first.recommended_reason}")
    print(f"first run: {first_seconds:.0f} s, {done} of {len(first.rows)} candidates done")
    known = sum(row.is_from_cache for row in again.rows)
    print(f"second run: {again_seconds:.1f} s, {known} of them known from before")


if __name__ == "__main__":
    main()

"""Every encoder of the lineage, small, with random weights, through everything vitdeploy does.

    python -m benchmarks.families [--only NAME ...] [--rank first|second] [--stages export,...]
    python -m benchmarks.families --page

Each row runs in a process of its own, within a limit of time and memory, and adds a line to
--results; rows that stand there already are not run again. At the end, or alone with --page,
docs/families.md and docs/families.json are written from those lines.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.families.page import page_from_results
from benchmarks.families.rows import ROWS, Row

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "scratch" / "families.jsonl"


def main() -> None:
    """Parse the arguments; run the rows that are asked for and write the page."""
    options = parsed()
    if options.one:
        print_result(options.one, options)
        return
    done = results_in(options.results)
    if not options.page:
        for row in asked(options):
            if row.key in done:
                continue
            done[row.key] = measured(row, options)
            options.results.parent.mkdir(parents=True, exist_ok=True)
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[row.key]) + "\n")
            print(line_of(row, done[row.key]), flush=True)
    if options.page or not options.only:
        results = {row.key: done[row.key] for row in ROWS if row.key in done}
        rows = ",\n".join(json.dumps(result) for result in results.values())
        (ROOT / "docs/families.json").write_text(f"[\n{rows}\n]\n", encoding="utf-8")
        (ROOT / "docs/families.md").write_text(page_from_results(results), encoding="utf-8")


def parsed() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", help="keys of rows, such as timm:vit_tiny_patch16_224")
    parser.add_argument("--rank", choices=("first", "second"))
    parser.add_argument("--stages", help="with commas: export, second size, int8, int4, prune")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines, added to")
    parser.add_argument("--page", action="store_true", help="write the documents, run nothing")
    parser.add_argument("--seconds", type=int, default=1800, help="a row may take")
    parser.add_argument("--gigabytes", type=int, default=8, help="of memory a row may take")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def asked(options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of --only and --rank, in order."""
    unknown = set(options.only or ()) - {row.key for row in ROWS}
    if unknown:
        sys.exit(f"no such rows: {', '.join(sorted(unknown))}. Keys are library:architecture.")
    for row in ROWS:
        if (not options.only or row.key in options.only) and options.rank in (None, row.rank):
            yield row


def results_in(path: Path) -> dict[str, dict[str, Any]]:
    """Return the results that stand in `path` by key; the last of a row counts."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return {result["key"]: result for result in map(json.loads, lines)}


def measured(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """Return the result of a row, run in a child within its limits."""
    command = [sys.executable, "-m", "benchmarks.families", "--one", row.key]
    command += ["--gigabytes", str(options.gigabytes)]
    command += ["--stages", options.stages] if options.stages else []
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=options.seconds, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        return {"key": row.key, "failures": {"limit": f"took more than {options.seconds} s"}}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"key": row.key, "failures": {"process": last[:600]}}
    return dict(json.loads(lines[-1]))


def print_result(key: str, options: argparse.Namespace) -> None:
    """Print one row's result as a line of JSON."""
    from benchmarks.families.measuring import STAGES, Effort, measure

    limit = options.gigabytes * 2**30
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    row = next(row for row in ROWS if row.key == key)
    stages = tuple(options.stages.split(",")) if options.stages else STAGES
    print(json.dumps(measure(row, Effort(stages)).to_dict()))


def line_of(row: Row, result: dict[str, Any]) -> str:
    """Return what is shown of a row when it is done."""
    sizes: Sequence[dict[str, Any]] = result.get("sizes", ())
    targets: Sequence[dict[str, Any]] = result.get("quantised", ())
    parity = max((size["parity"] for size in sizes), default=float("nan"))
    cosines = " ".join(f"{item['target']} {item['cosine']:.4f}" for item in targets)
    failures = "; ".join(f"{stage}: {why[:160]}" for stage, why in result["failures"].items())
    seconds = result.get("seconds", 0)
    return f"{row.name:44}{parity:9.1e} {cosines:60}{seconds:6.0f} s {failures}"


if __name__ == "__main__":
    main()

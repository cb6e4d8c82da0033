"""What `profile --device ssh://` takes besides measuring: the first time, and with files in place.

    python benchmarks/ssh_overhead.py [MEGABYTES]

Starts an OpenSSH server on the loopback, makes a bundle of one product of matrices with weights of
that size (90 by default), and profiles it three times through `vitdeploy.remote`. Overhead is the
whole less the seconds of timing; starting Python, copying, loading, warming up and the comparison
with the golden outputs are in it.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.remote.bundles import WIDTH, make_bundle
from tests.remote.loopback import MISSING, loopback
from vitdeploy.profiling import ProfileOptions
from vitdeploy.remote import RemoteOptions, address_from_url, profile_over_ssh

SECONDS = 2.0


def main() -> None:
    """Profile one bundle three times and print what each took."""
    if MISSING:
        sys.exit(MISSING)
    megabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 90.0
    with tempfile.TemporaryDirectory(prefix="vd-") as place, loopback(Path(place)) as device:
        os.environ["PATH"] = f"{device.folder}/client:{os.environ['PATH']}"
        bundle = make_bundle(Path(place) / "bundle", classes=int(megabytes * 1e6 / 4 / WIDTH))
        for turn in ("first", "second", "third"):
            start = time.perf_counter()
            report = profile_over_ssh(
                [bundle],
                address_from_url(device.url),
                ProfileOptions(seconds=SECONDS),
                RemoteOptions(sys.executable),
            )
            whole = time.perf_counter() - start
            measured = report.profile.seconds
            print(f"{turn}: {whole - measured:.1f} s besides {measured:.1f} s of timing; "
                  f"{report.notes[-1]}")  # fmt: skip


if __name__ == "__main__":
    main()

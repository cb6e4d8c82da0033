import subprocess
import sys

PROGRAM = """
import signal, sys
from vitdeploy.openvino_core import openvino_core
from vitdeploy.targets.openvino import OpenVinoRunner
import openvino as ov
from openvino import opset13 as op
from pathlib import Path

told = []
signal.signal(signal.SIGINT, lambda number, frame: told.append(number))
place = op.parameter([1, 4], ov.Type.f32)
path = Path(sys.argv[1]) / "model.xml"
ov.save_model(ov.Model([op.relu(place)], [place], "m"), path)
first, second = OpenVinoRunner(path), OpenVinoRunner(path)
for runner in (first, second):  # as they came: not in reverse
    runner.__exit__(None, None, None)
del first, second, runner
signal.raise_signal(signal.SIGINT)
assert told == [signal.SIGINT]
assert openvino_core() is openvino_core()
"""


def test_a_signal_after_engines_went_in_any_order_finds_its_stack(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

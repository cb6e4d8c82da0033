"""What a report says of the machine: enough to repeat a figure, nothing that names it."""

import getpass
import platform
import socket
from importlib import metadata

import pytest

from vitdeploy import environment
from vitdeploy.environment import describe_environment, package_versions


def test_it_tells_what_a_figure_was_measured_with():
    entries = describe_environment()
    for name in ("cpu", "cpu_features", "cores", "memory_gib", "system", "python"):
        assert entries[name]
    assert int(entries["cores"]) >= 1
    assert float(entries["memory_gib"]) > 0
    assert all(isinstance(value, str) for value in entries.values())


def test_nothing_names_the_machine_or_its_user():
    text = " ".join(describe_environment().values())
    assert socket.gethostname() not in text
    assert platform.node() not in text
    # a user called `x86` or `4` would be in it by chance
    assert len(getpass.getuser()) < 4 or getpass.getuser() not in text


def test_features_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment, "cpu_has", lambda name: name == "amx")
    assert describe_environment()["cpu_features"] == "amx"
    monkeypatch.setattr(environment, "cpu_has", lambda name: False)
    assert describe_environment()["cpu_features"].startswith("none of")


def test_versions_are_the_installed_ones(monkeypatch: pytest.MonkeyPatch):
    versions = package_versions()
    assert versions["onnx"] == metadata.version("onnx")
    assert versions["vitdeploy"] == environment.__version__
    monkeypatch.setattr(environment, "PACKAGES", ("no-such-package",))
    assert package_versions()["no-such-package"] == "not installed"

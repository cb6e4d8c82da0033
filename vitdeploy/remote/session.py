"""One ssh connection to a device, with our own small server at its end.

The system's `ssh` connects, so that keys, jump hosts and host names are as the user set them up.
What runs there is the package `onboard`, sent as text; what is asked of it is the callers' matter.
"""

import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from vitdeploy.errors import (
    DataError,
    ExportError,
    UnsupportedError,
    UsageError,
    VitdeployError,
)
from vitdeploy.remote.address import SshAddress
from vitdeploy.remote.onboard.frames import read_frame, write_frame

_GREETING = b"vitdeploy onboard 1\n"
_MODULES = (
    "vitdeploy.energy",
    "vitdeploy.openvino_core",
    "vitdeploy.device.onboard.board",
    "vitdeploy.remote.onboard.cache",
    "vitdeploy.remote.onboard.frames",
    "vitdeploy.remote.onboard.engines",
    "vitdeploy.remote.onboard.machine",
    "vitdeploy.remote.onboard.timing",
    "vitdeploy.remote.onboard.server",
)
"""Each imports only what stands before it."""
_BOOT = "import sys;exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"
_PROGRAM = """
import sys, types
if sys.version_info < (3, 8):
    sys.exit("Python %d.%d is too old: 3.8 is needed" % sys.version_info[:2])
for package in {packages!r}:
    sys.modules[package] = types.ModuleType(package)
    sys.modules[package].__path__ = []
for name, text in {sources!r}:
    module = types.ModuleType(name)
    module.__package__ = name.rpartition(".")[0]
    sys.modules[name] = module
    exec(compile(text, name, "exec"), module.__dict__)
sys.modules["vitdeploy.remote.onboard.server"].main()
"""
_OPTIONS = ("ConnectTimeout=15", "ServerAliveInterval=5", "ServerAliveCountMax=3")
_ERRORS: Mapping[str, type[VitdeployError]] = {
    "missing": UnsupportedError,
    "disk": DataError,
    "data": DataError,
    "engine": ExportError,
}
_MOST_CHATTER_BYTES = 1 << 16
"""What login scripts may print before our greeting."""
_END_SECONDS = 20.0
"""What the far side gets to clean up."""


@dataclass(frozen=True)
class Answer:
    """What the device answered."""

    values: dict[str, Any]
    arrays: dict[str, np.ndarray]


@dataclass
class _Said:
    """What ssh and the far side wrote for people; the last lines are kept."""

    lines: list[str] = field(default_factory=list)

    def read(self, stream: IO[bytes]) -> None:
        for line in stream:
            text = line.decode("utf-8", "replace").strip()
            if text:
                self.lines = [*self.lines[-19:], text]

    @property
    def last(self) -> str:
        return self.lines[-1] if self.lines else "it said nothing"


class RemoteSession:
    """A context manager; inside it the device answers, after it nothing of ours runs there."""

    def __init__(self, address: SshAddress, python: str = "python3") -> None:
        """Name the device; nothing is connected yet.

        Args:
            address: of the device.
            python: what runs there, Python 3.8 or newer.

        Raises:
            UsageError: `python` is no path of a program.
        """
        if not python or any(char in python for char in "'\n\0"):
            raise UsageError(f"--remote-python '{python}': give the path of a Python there.")
        self.address = address
        self._python = python
        self._said = _Said()

    def __enter__(self) -> "RemoteSession":
        """Connect.

        Raises:
            UnsupportedError: there is no `ssh` here, or no Python there.
            DataError: the device cannot be reached.
        """
        try:
            self._process = subprocess.Popen(
                _command(self.address, self._python),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except FileNotFoundError as error:
            raise UnsupportedError(
                "--device ssh://... needs the program 'ssh', which is not here. Install OpenSSH's "
                "client: apt install openssh-client."
            ) from error
        if not (self._process.stdin and self._process.stdout and self._process.stderr):
            raise AssertionError("ssh was started with pipes")
        self._to, self._back = self._process.stdin, self._process.stdout
        self._listener = threading.Thread(
            target=self._said.read, args=(self._process.stderr,), daemon=True
        )
        self._listener.start()
        try:
            program = _program().encode()
            with suppress(BrokenPipeError):  # then there is no greeting either
                self._to.write(b"%d\n" % len(program) + program)
                self._to.flush()
            self._await_greeting()
            self._receive()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the far side, which cleans up, and wait for it."""
        with suppress(OSError, ValueError):
            if error is None:
                write_frame(self._to, {"do": "end"})
        with suppress(OSError):
            self._to.close()
        # An answer that nobody reads any more would keep the far side from seeing the end.
        rest = threading.Thread(target=self._back.read, daemon=True)
        rest.start()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        rest.join()
        self._listener.join()
        self._back.close()

    def ask(
        self,
        what: str,
        *,
        arrays: Mapping[str, np.ndarray] | None = None,
        **values: Any,
    ) -> Answer:
        """Return what the device answers to one request.

        Args:
            what: the request's name, see `onboard.server`.
            arrays: that go with it.
            values: of the request.

        Raises:
            UnsupportedError: something is missing there.
            DataError: the connection broke, or the disk there is full.
            ExportError: an engine there refuses an artefact.
        """
        self._send({"do": what, **values}, arrays)
        return self._receive()

    @property
    def last_words(self) -> str:
        """What the device said last for people."""
        return self._said.last

    def store(self, path: Path, sha256: str, size: int) -> None:
        """Copy a file to the device's files by hash.

        Raises:
            DataError: the connection broke, the disk there is full, or the file has changed.
        """
        self._send({"do": "store", "sha256": sha256, "size": size}, None)
        sent = 0
        try:
            for chunk in _chunks(path):
                sent += len(chunk)
                self._to.write(chunk)
            self._to.flush()
        except OSError as error:
            raise self._broken() from error
        if sent != size:
            raise DataError(f"'{path}' changed while it was copied; try again.")
        self._receive()

    def _send(self, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None) -> None:
        try:
            write_frame(self._to, message, arrays)
        except OSError as error:
            raise self._broken() from error

    def _receive(self) -> Answer:
        try:
            frame = read_frame(self._back)
        except ValueError as error:
            raise DataError(f"{self.address} answered nonsense: {error}.") from error
        if frame is None:
            raise self._broken()
        message, arrays = frame
        if "error" in message:
            self._raise(message)
        return Answer(message, arrays)

    def _raise(self, message: Mapping[str, Any]) -> None:
        kind = _ERRORS.get(message["kind"])
        if kind is None:
            raise RuntimeError(f"on {self.address}:\n{message['error']}")
        raise kind(f"{self.address}: {message['error']}")

    def _await_greeting(self) -> None:
        """Read past what login scripts print."""
        read = 0
        while (line := self._back.readline(_MOST_CHATTER_BYTES)) != _GREETING:
            read += len(line)
            if not line or read > _MOST_CHATTER_BYTES:
                raise self._unanswered()

    def _unanswered(self) -> VitdeployError:
        """Return the error of a connection on which our server never spoke."""
        with suppress(OSError):
            self._to.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self._listener.join(1.0)
        code, said = self._process.returncode, self._said.last
        if code == 255:
            return DataError(
                f"cannot connect to {self.address}: {said}. Try `ssh` with the same host; it must "
                "connect without a question where there is no terminal."
            )
        if code in (126, 127):
            return UnsupportedError(
                f"{self.address} has no Python as '{self._python}': {said}. Install Python 3.8 or "
                "newer there (sudo apt install python3), or name it with --remote-python."
            )
        return UnsupportedError(
            f"'{self._python}' on {self.address} does not run vitdeploy's server: {said}. It must "
            "be Python 3.8 or newer; name another with --remote-python."
        )

    def _broken(self) -> DataError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)
        self._listener.join(1.0)
        return DataError(
            f"the connection to {self.address} broke: {self._said.last}. The device removes what "
            "the job left there; try again."
        )


def _command(address: SshAddress, python: str) -> list[str]:
    options = list(_OPTIONS)
    if not sys.stdin.isatty():
        options.append("BatchMode=yes")  # nobody is there to type a password
    words = ["ssh", "-T"]
    for option in options:
        words += ["-o", option]
    if address.port:
        words += ["-p", str(address.port)]
    if address.user:
        words += ["-l", address.user]
    return [*words, "--", address.host, f"exec '{python}' -u -c '{_BOOT}'"]


def _program() -> str:
    """Return the Python text that makes our modules on the device, in memory, and runs them."""
    packages: dict[str, None] = {}
    sources = []
    for module in _MODULES:
        package, _, name = module.rpartition(".")
        parts = package.split(".")
        packages |= {".".join(parts[: n + 1]): None for n in range(len(parts))}
        text = files(package).joinpath(f"{name}.py").read_text(encoding="utf-8")
        sources.append((module, text))
    return _PROGRAM.format(packages=list(packages), sources=sources)


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                yield chunk
    except FileNotFoundError as error:
        raise DataError(f"'{path}' is gone; export the bundle again.") from error

"""A real OpenSSH server on this machine's loopback, with keys and a configuration of its own.

`HOME`-independent: the "device" has a cache folder and a PATH of its own, which tests fill with
stand-ins for tools that only a Jetson has.
"""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
MISSING = None if SSHD and shutil.which("ssh") else "no OpenSSH server here (openssh-server)"


@dataclass(frozen=True)
class Loopback:
    """A server that runs; `url` is what `--device` takes."""

    url: str
    folder: Path
    process: subprocess.Popen

    @property
    def cache(self) -> Path:
        return self.folder / "device-cache" / "vitdeploy"

    @property
    def tools(self) -> Path:
        """First in the device's PATH."""
        return self.folder / "device-tools"

    def jobs(self) -> list[Path]:
        return sorted((self.cache / "jobs").glob("*"))

    def add_tool(self, name: str, text: str) -> None:
        path = self.tools / name
        path.write_text(text)
        path.chmod(0o755)


@contextlib.contextmanager
def loopback(folder: Path, *, file_limit_blocks: int | None = None) -> Iterator[Loopback]:
    """Start sshd on a free port; PATH gets an `ssh` that knows its key.

    Args:
        folder: short, for nothing but this.
        file_limit_blocks: how large a file the device may write, in blocks of 1024 bytes.
    """
    for name in ("device-tools", "device-cache", "client"):
        (folder / name).mkdir()
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True
        )
    port = _free_port()
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    path = f"{folder}/device-tools:/usr/local/bin:/usr/bin:/bin"
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
        f'SetEnv XDG_CACHE_HOME={folder}/device-cache "PATH={path}"\n'
    )
    host_key = (folder / "host.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key[0]} {host_key[1]}\n")
    (folder / "ssh_config").write_text(
        f"IdentityFile {folder}/user\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known_hosts\n"
        "GlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\n"
    )
    client = folder / "client" / "ssh"
    client.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    client.chmod(0o755)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # a root's sshd does not start without it
    limit = f"ulimit -f {file_limit_blocks}; " if file_limit_blocks else ""
    command = f"{limit}exec {SSHD} -D -e -f {folder}/sshd_config 2>{folder}/sshd.log"
    process = subprocess.Popen(["bash", "-c", command])
    try:
        _await_port(port, process, folder / "sshd.log")
        yield Loopback(f"ssh://{getpass.getuser()}@127.0.0.1:{port}", folder, process)
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _await_port(port: int, process: subprocess.Popen, log: Path) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(f"sshd does not listen: {log.read_text()}")

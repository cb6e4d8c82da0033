"""`ssh://user@host[:port]`: where a device is. Connecting to it is `session`'s matter."""

import re
from dataclasses import dataclass

from vitdeploy.errors import UsageError

SCHEME = "ssh://"
_ADDRESS = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?"
    r"(?P<host>[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?\])"
    r"(?::(?P<port>[0-9]{1,5}))?/?"
)


@dataclass(frozen=True)
class SshAddress:
    """A host as the system's `ssh` knows it: a name of its configuration is one, too."""

    host: str
    user: str | None = None
    """As in ssh's configuration where None."""
    port: int | None = None

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{SCHEME}{user}{host}" + (f":{self.port}" if self.port else "")


def address_from_url(url: str) -> SshAddress:
    """Return the address that `ssh://user@host[:port]` names; user and port may be left out.

    Raises:
        UsageError: it is something else.
    """
    match = _ADDRESS.fullmatch(url)
    port = int(match["port"]) if match and match["port"] else None
    if match is None or (port is not None and not 1 <= port <= 65535):
        raise UsageError(
            f"'{url}' is no device. Give ssh://user@host or ssh://user@host:port, with a port "
            "from 1 to 65535; keys and passwords are ssh's own matter."
        )
    return SshAddress(match["host"].strip("[]"), match["user"], port)

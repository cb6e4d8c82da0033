"""Profiling on a device over ssh, with nothing installed there but Python and an engine.

`session` connects and asks, `onboard` is what answers on the device, `copying` brings files by
hash, `runner` stands for an engine there, `profiling` is the whole. Timing on this machine is
`profiling` outside of this package.
"""

from vitdeploy.remote.address import SCHEME, SshAddress, address_from_url
from vitdeploy.remote.profiling import RemoteOptions, profile_over_ssh
from vitdeploy.remote.session import RemoteSession

__all__ = [
    "SCHEME",
    "RemoteOptions",
    "RemoteSession",
    "SshAddress",
    "address_from_url",
    "profile_over_ssh",
]

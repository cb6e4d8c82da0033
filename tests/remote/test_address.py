"""What `--device ssh://...` may be; nothing of it may become an option of ssh."""

import pytest

from vitdeploy.errors import UsageError
from vitdeploy.remote import SshAddress, address_from_url
from vitdeploy.remote.session import _command


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("ssh://jetson", SshAddress("jetson")),
        ("ssh://user@jetson.local", SshAddress("jetson.local", "user")),
        ("ssh://user@10.0.0.7:2222", SshAddress("10.0.0.7", "user", 2222)),
        ("ssh://user@[fe80::1%eth0]:22", SshAddress("fe80::1%eth0", "user", 22)),
        ("ssh://jetson/", SshAddress("jetson")),
    ],
)
def test_addresses(url, address):
    assert address_from_url(url) == address
    assert str(address) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "ssh://",
        "jetson",
        "ssh://user@",
        "ssh://-oProxyCommand=touch",
        "ssh://-oX@host",
        "ssh://host:0",
        "ssh://host:70000",
        "ssh://host:ssh",
        "ssh://user:password@host",
        "ssh://host/folder",
        "ssh://ho st",
        "ssh://host;reboot",
    ],
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(UsageError, match="ssh://user@host:port"):
        address_from_url(url)


def test_the_host_comes_after_the_options():
    words = _command(SshAddress("jetson", "user", 22), "python3")
    assert words[words.index("--") + 1] == "jetson"
    assert words[words.index("-l") + 1] == "user"
    assert words[-1].startswith("exec 'python3' ")

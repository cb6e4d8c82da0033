"""Access to model hubs: one quick look whether they can be reached, and errors with ways out.

Downloading itself is left to timm, transformers and huggingface_hub.
"""

import errno
import logging
import socket
import sys
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from vitdeploy.errors import DataError, ModelError

_CONNECT_SECONDS = 5.0
_HTTP_CLIENTS = ("httpx", "httpx2")
_LOGGERS = ("timm", "transformers", "huggingface_hub")


@contextmanager
def hub_access(source: str) -> Iterator[None]:
    """Let the hub libraries download or use their cache; turn what they raise into one error.

    Where the hub cannot be reached, the libraries are told so: they would retry each file for
    half a minute (huggingface_hub 2.4: five retries), and still use what is in the cache.

    Raises:
        ModelError: the files are neither in the cache nor can be downloaded.
        DataError: the disk is full.
    """
    from huggingface_hub import constants

    reachable = constants.HF_HUB_OFFLINE or _is_reachable(constants.ENDPOINT)
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not reachable
    try:
        with quiet_libraries():
            yield
    except _hub_errors() as e:
        if getattr(e, "errno", None) == errno.ENOSPC:
            raise DataError(
                f"the disk is full: no room for the weights of '{source}'. Free some, or set "
                "HF_HOME to a folder on another disk."
            ) from e
        raise ModelError(
            f"the weights of '{source}' are not in the cache and could not be downloaded "
            f"({_reason(e, reachable=reachable and not before)}). {WAYS_OUT}"
        ) from e
    finally:
        constants.HF_HUB_OFFLINE = before


WAYS_OUT = (
    "Ways out: connect to the network and try again; --checkpoint FILE with weights you have; "
    "a model folder (config.json and weights) instead of the name; or --random-weights to try "
    "everything but accuracy."
)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence logs and warnings of timm and transformers; what matters of them is checked here."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _is_reachable(endpoint: str) -> bool:
    """Return False where one connection to the hub fails at once; a proxy is given the benefit."""
    parts = urlsplit(endpoint)
    if parts.hostname is None or parts.scheme in urllib.request.getproxies():
        return True
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _hub_errors() -> tuple[type[Exception], ...]:
    # OSError covers huggingface_hub's LocalEntryNotFoundError, transformers' "can't load",
    # urllib and requests; the HTTP client of huggingface_hub >= 1 has its own root.
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    clients = [sys.modules[name] for name in _HTTP_CLIENTS if name in sys.modules]
    return (OSError, HfHubHTTPError, HFValidationError, *(client.HTTPError for client in clients))


def _reason(error: Exception, *, reachable: bool) -> str:
    if not reachable:
        return "the hub cannot be reached"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

"""The hub: quickly found unreachable, nothing left changed."""

import errno
import logging

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError

from vitdeploy.errors import DataError, ModelError
from vitdeploy.models import hub


def test_offline_is_told_to_the_libraries_and_undone(empty_hub):
    with hub.hub_access("x"):
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("error", "reason"),
    [(OSError("no\nroute"), "hub cannot be reached"), (HFValidationError("bad id"), "cannot be")],
)
def test_errors_of_the_libraries_become_one(empty_hub, error, reason):
    with pytest.raises(ModelError, match=reason) as refusal, hub.hub_access("hf:x"):
        raise error
    assert refusal.value.exit_code == 3
    assert not constants.HF_HUB_OFFLINE


def test_the_reason_is_kept_where_the_hub_answers(empty_hub, monkeypatch):
    monkeypatch.setattr(hub, "_is_reachable", lambda endpoint: True)
    with pytest.raises(ModelError, match="404 not found"), hub.hub_access("hf:x"):
        raise OSError("404 not found\nmore")


def test_a_full_disk_is_no_fault_of_the_model(empty_hub):
    with pytest.raises(DataError, match="disk is full"), hub.hub_access("hf:x"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_reachability_is_one_connection(monkeypatch):
    def refuse(address, timeout):
        raise OSError("refused")

    monkeypatch.setattr(hub.socket, "create_connection", refuse)
    monkeypatch.setattr(hub.urllib.request, "getproxies", dict)
    assert not hub._is_reachable("https://hub.example")
    monkeypatch.setattr(hub.urllib.request, "getproxies", lambda: {"https": "http://proxy"})
    assert hub._is_reachable("https://hub.example")


def test_log_levels_are_restored():
    logger = logging.getLogger("timm")
    before = logger.level
    with hub.quiet_libraries():
        assert logger.level == logging.ERROR
    assert logger.level == before

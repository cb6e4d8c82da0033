import pytest

from vitdeploy.advising.deadline import Deadline, OutOfTimeError, seconds_from_duration
from vitdeploy.errors import UsageError
from vitdeploy.progress import SilentProgress


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), (" 2 M ", 120)]
)
def test_durations(text: str, seconds: float):
    assert seconds_from_duration(text) == seconds


@pytest.mark.parametrize("text", ["10", "", "m", "0s", "-5m", "10 days", "1e3s", "nan s"])
def test_no_duration_is_refused(text: str):
    with pytest.raises(UsageError, match=r"allowed: a number above 0 and a unit"):
        seconds_from_duration(text)


def test_work_ends_at_its_next_word_once_time_is_up():
    deadline = Deadline(SilentProgress(), seconds=0.0)
    deadline.stage("before there is a result")
    deadline.step(1, 2)
    deadline.is_enforced = True
    assert deadline.is_over
    with pytest.raises(OutOfTimeError):
        deadline.step(2, 2)
    with pytest.raises(OutOfTimeError):
        deadline.stage("another")


def test_work_goes_on_while_there_is_time():
    deadline = Deadline(SilentProgress(), seconds=3600)
    deadline.is_enforced = True
    deadline.stage("work")
    deadline.step(1, 1)
    assert not deadline.is_over

"""The budget counts what the search spends and nothing else."""

from vitdeploy.compress.budget import Budget


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_is_left_and_what_is_skipped():
    clock = Clock()
    budget = Budget(10.0, clock)
    assert budget.affords(9.0, "a")
    clock.now += 4.0
    assert (budget.spent, budget.left) == (4.0, 6.0)
    assert not budget.affords(7.0, "b")
    clock.now += 100.0
    assert budget.left == 0.0
    assert not budget.affords(0.0, "c")
    assert budget.skipped == ["b", "c"]


def test_a_share_is_of_what_is_left_when_it_is_asked_for():
    clock = Clock()
    budget = Budget(10.0, clock)
    clock.now += 2.0
    is_over = budget.until(0.5)
    clock.now += 1.0
    assert not is_over()
    clock.now += 1.5
    assert not is_over()
    # 1 s of the 4 is left, and a unit of work took 1.5 s.
    clock.now += 0.5
    assert is_over()


def test_a_part_has_its_own_limit_and_notes_what_it_skips_with_the_whole():
    clock = Clock()
    budget = Budget(10.0, clock)
    budget.image_seconds, budget.batch_images = 0.5, 4
    clock.now += 4.0
    part = budget.part(0.5)
    assert (part.left, part.image_seconds, part.batch_images) == (3.0, 0.5, 4)
    clock.now += 2.0
    assert (part.left, budget.left) == (1.0, 4.0)
    assert not part.affords(2.0, "a")
    assert budget.skipped == ["a"]


def test_what_is_reserved_is_not_left():
    budget = Budget(10.0, Clock())
    budget.reserved = 0.3
    assert budget.left == 7.0
    budget.reserved = 0.0
    assert budget.left == 10.0


def test_pauses_do_not_count():
    clock = Clock()
    budget = Budget(10.0, clock)
    with budget.paused():
        clock.now += 50.0
    assert budget.spent == 0.0


def test_without_seconds_nothing_is_affordable():
    assert not Budget(0.0).affords(0.0, "all")
    assert Budget(float("inf")).affords(1e9, "all")

import pytest
import torch

from vitdeploy.models.segment_anything.windows import map_from_windows, windows_from_map


@pytest.mark.parametrize(("grid", "window"), [((8, 8), 4), ((8, 8), 3), ((5, 7), 4), ((2, 2), 3)])
def test_windows_are_cut_row_by_row_and_put_back(grid, window):
    tokens = torch.randn(2, *grid, 3)
    windows = windows_from_map(tokens, window)
    rows, columns = -(-grid[0] // window), -(-grid[1] // window)
    assert windows.shape == (2 * rows * columns, window * window, 3)
    first = torch.zeros(window, window, 3)
    cut = tokens[1, :window, :window]
    first[: cut.shape[0], : cut.shape[1]] = cut
    assert torch.equal(windows[rows * columns], first.reshape(-1, 3))
    assert torch.equal(map_from_windows(windows, window, grid), tokens)


def test_what_lies_outside_the_map_is_zero():
    windows = windows_from_map(torch.ones(1, 2, 2, 1), 3)
    assert windows.sum() == 4

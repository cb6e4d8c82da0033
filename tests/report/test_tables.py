"""Tables are rectangular, and a missing figure points to its reason."""

import pytest

from tests.report.samples import failing_sample, sample, two_part_sample
from vitdeploy.report import tables

BUILDERS = [
    tables.gates_table,
    tables.fidelity_table,
    tables.latency_table,
    tables.artifacts_table,
    tables.parity_table,
    tables.stages_table,
    tables.images_table,
    tables.environment_table,
]


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("make", [sample, failing_sample, two_part_sample])
def test_rows_have_their_columns_and_notes_exist(build, make):
    table = build(make())
    for row in table.rows:
        assert len(row) == len(table.columns)
        assert all(cell.note is None or 1 <= cell.note <= len(table.notes) for cell in row)


def test_equal_reasons_share_a_note():
    table = tables.latency_table(failing_sample())
    assert table.notes == ("the engine cannot run on this machine",)
    assert [cell.note for cell in table.rows[2]].count(1) == 6


def test_a_metric_of_one_target_only_is_no_zero_for_the_other():
    rows = [row.model_dump() for row in sample().fidelity]
    table = tables.fidelity_table(sample(fidelity=[*rows[:7], *rows[8:]]))
    assert table.rows[0][3].text == "\N{EM DASH}"
    assert table.notes[table.rows[0][3].note - 1] == "does not apply to this target"


def test_parts_are_named_where_there_are_several():
    assert tables.fidelity_table(sample()).rows[0][0].detail == ""
    assert tables.fidelity_table(two_part_sample()).rows[1][0].detail == "mask_decoder"
    assert tables.latency_table(two_part_sample()).rows[1][0].detail == "mask_decoder"


def test_the_share_of_int8_is_shown_only_where_there_is_some():
    assert "#MACs in INT8" in tables.artifacts_table(sample()).columns
    rows = [
        {**row.model_dump(), "int8_macs_percent": None, "int8_macs_percent_reason": "fp16"}
        for row in sample().artifacts
    ]
    assert "#MACs in INT8" not in tables.artifacts_table(sample(artifacts=rows)).columns

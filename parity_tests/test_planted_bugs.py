"""Every planted bug is caught, and named; the healthy net passes the same check."""

import pytest

from parity_tests import planted


@pytest.mark.parametrize("name", planted.BUGS)
def test_planted_bug_is_caught_and_named_as_the_table_says(request, name):
    bug = planted.BUGS[name]
    if bug.catcher == planted.FLOAT32:
        request.getfixturevalue("optimised")
    assert planted.healthy(bug.config, bug.catcher, bug.train), "the healthy net does not pass"
    with planted.planted(name):
        line, fault = planted.row(name)
    assert "NOT CAUGHT" not in line
    assert fault is not None
    assert fault.module == bug.module
    assert line in planted.TABLE.read_text(), "python -m parity_tests.planted writes the table"


def test_the_catalogue_is_as_large_as_it_says():
    assert len(planted.BUGS) >= 40

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from amorsize_executor.decisions.terms import Deadlines


def test_deadlines_come_due_in_their_order() -> None:
    deadlines = Deadlines()
    assert deadlines.add(1, 3.0)
    assert deadlines.add(2, 1.0)
    assert not deadlines.add(3, 2.0)
    assert deadlines.next() == 1.0
    assert deadlines.take_due(2.0) == [2, 3]
    assert deadlines.take_due(2.0) == []
    assert deadlines.next() == 3.0


def test_tasks_that_are_done_have_no_deadline_any_more() -> None:
    deadlines = Deadlines()
    deadlines.add(1, 1.0)
    deadlines.discard(1)
    deadlines.discard(1)
    assert deadlines.next() is None
    assert len(deadlines) == 0


@example([(True, 0, 0.0), (True, 1, 0.0), (False, 1, 0.0), (True, 1, 51.0)])  # again, with a later deadline
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 300), st.floats(0, 100)), max_size=400))
def test_deadlines_are_those_of_a_plain_table(steps: list[tuple[bool, int, float]]) -> None:
    deadlines, table = Deadlines(), dict[int, float]()
    for adds, task_id, until in steps:
        if adds and task_id not in table:
            deadlines.add(task_id, until)
            table[task_id] = until
        elif not adds:
            deadlines.discard(task_id)
            table.pop(task_id, None)
        assert deadlines.next() == min(table.values(), default=None)
    assert sorted(deadlines.take_due(50.0)) == sorted(i for i, until in table.items() if until <= 50.0)

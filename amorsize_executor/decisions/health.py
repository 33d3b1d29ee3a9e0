"""Whether a worker is stuck, by how long it has been at what it does.

Nothing is ended for that: only a time limit says how long a task may take. It is told, so that people look.

* A start is stuck after 20 times as long as starts take here, but not before 30 s.
* A task is stuck after 20 times as long as its function takes, but not before 60 s. Of a function that has never come
  to an end nobody knows what is long: then it is stuck when its worker has waited for 60 s, without using a CPU or
  having a child that might (an import that hangs, a lock that nobody gives back).

Pure: time is an argument.
"""

from __future__ import annotations

from typing import Literal

#: No start is stuck before this, in seconds.
START_S = 30.0
#: No task is stuck before this, in seconds.
TASK_S = 60.0
#: So many times what it takes otherwise is too long.
_FACTOR = 20.0


def is_stuck(phase: Literal["start", "task"], elapsed_s: float, expected_s: float | None, waited_s: float) -> bool:
    """Whether somebody should look after a worker.

    Parameters
    ----------
    phase
        "start": it has not answered yet. "task": it has work.
    elapsed_s
        For how long, in seconds.
    expected_s
        How long that takes otherwise, in seconds; None: nobody knows.
    waited_s
        How long it has used no CPU, nor has a child, in seconds.

    Examples
    --------
    >>> is_stuck("task", 100.0, 1.0, 0.0), is_stuck("task", 100.0, 60.0, 0.0), is_stuck("task", 1e6, None, 5.0)
    (True, False, False)
    """
    if phase == "start":
        return elapsed_s > max(START_S, _FACTOR * (expected_s or 0.0))
    return waited_s > TASK_S if expected_s is None else elapsed_s > max(TASK_S, _FACTOR * expected_s)

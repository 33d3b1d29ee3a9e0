"""joblib's own tests of its backend for processes, run on this one: it stands where `loky` stands, the default.

    python -m pytest tests/integrations/test_joblib_suite.py -s

Not run are those of other backends, those that look at the inside of joblib's own, and those that want a thing refused
that works here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

joblib = pytest.importorskip("joblib")

LIMIT_S = 400
#: By name, without parameters where all are meant.
NOT_RUN = {
    "test_auto_memmap_on_arrays_from_generator": "arrays are shared in another way than by files that are mapped",
    "test_memmapping_leaks": "the same",
    "test_error_capture": "looks for the pool inside the backend",
    "test_backend_context_manager": "compares the backend's class with joblib's",
    "test_nested_parallelism_limit": "compares the backend's name with joblib's; the levels are the same",
    "test_nested_parallel_warnings[loky-multiprocessing-True]": "a pool of multiprocessing works in a worker",
    "test_nested_parallel_warnings[threading-loky-True]": "loops in threads work",
    "test_nested_parallel_warnings[multiprocessing-loky-True]": "warns in other words",
    "test_multiple_generator_call_separated_gc": "a loop that is given up does no harm to the next",
    "test_backend_hinting_and_constraints": "compares the backend's class with joblib's",
    "test_parallel_pickling": "what pickling raises is raised, and not wrapped",
    "test_nested_loop[back_compat_backend-amorsize]": "joblib's own workers have not imported the backend",
}
#: In names of tests of other backends.
OTHERS = ("multiprocessing", "threading", "sequential", "spawn")

RUN = """
import sys
import types
import joblib.parallel
import pytest
from amorsize_executor.integrations.joblib_backend import AmorsizeBackend, shutdown_executors

joblib.parallel.BACKENDS["loky"] = AmorsizeBackend
shared = types.SimpleNamespace(shutdown=shutdown_executors)
joblib.externals.loky.get_reusable_executor = lambda reuse: shared
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 20)
def test_the_tests_of_joblib_pass(tmp_path: Path) -> None:
    suite = Path(joblib.__file__).parent / "test" / "test_parallel.py"
    if not suite.exists():
        pytest.skip("this joblib was installed without its tests")
    without = [f"--deselect=test_parallel.py::{name}" for name in NOT_RUN if "[" in name]
    names = " or ".join(name for name in NOT_RUN if "[" not in name)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "-W", "ignore", "-o", "addopts=", "--timeout=60"]
    kept = f"(loky or not ({' or '.join(OTHERS)})) and not ({names})"
    done = subprocess.run(
        [sys.executable, "-c", RUN, *options, f"--rootdir={suite.parent}", *without, "-k", kept, os.fspath(suite)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.fspath(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    print(done.stdout.splitlines()[-1])

"""What a function costs, learned from every task that was measured.

For each function the model keeps recency-weighted estimates of the time of one item, its spread, the share of
that time spent on the CPU, what carrying an item to a worker and back costs the parent, how items slow each other
down (`scaling`), and whether their size tells their time (`sizes`). For the machine it keeps how long a worker takes
to start, and what a chunk costs beyond its items. Nothing here reads a clock: times come in as arguments, so the
estimators run in tests and in simulations with virtual time.

Not thread-safe by itself except where said: each method is a handful of float operations under ``_lock``, so that
several executors in one process may share a model.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import NamedTuple

from .scaling import Scaling
from .sizes import SizeFit

#: What every observation leaves of the weight of those before it. With 0.8 the newest of equal chunks counts for a
#: fifth: a tenfold drift is followed to within 10 % in about ten chunks, and single items after a chunk of
#: hundreds do not outweigh it.
_KEPT = 0.8
#: Weight of a function's very first call beside the second: it pays for imports and cold caches, often ten times over.
_FIRST_WEIGHT = 0.2
#: An observation counts for at most this many times the present mean: one stall of the machine does not spoil the
#: estimate. Each that was cut lets the next one count for so many times more: a real drift passes within a few chunks.
#: Nothing makes a machine too fast, so there is no lower bound: a slow first call (imports, cold caches) is soon
#: forgotten.
_CLIP = 4.0
#: ... and of whole maps, the latest map leaves this much.
_KEPT_MAPS = 0.5
#: CPU time over elapsed time from which on a function keeps several CPUs busy; below, it is noise.
SEVERAL_CPUS = 1.3
#: A map counts for one level of parallelism if this share of its items ran there.
_ONE_LEVEL = 0.9
#: ... and if its items took at least this long in all, in seconds.
_LEAST_MAP_S = 1e-3
#: So many short maps count together, if each takes about what was expected: within this share of it.
_TINY_MAPS, _USUAL = 8, 0.5
#: Bounds of the measured overhead of a chunk, over what is expected before it is measured.
_OVERHEADS_RANGE = (0.25, 25.0)
#: Names of exported times of an item by how many ran at once.
_LEVEL = "item_s_at_once_"
#: Functions remembered; the least recently used goes first. About 300 bytes each.
_MAX_FUNCTIONS = 4096


class FunctionCost(NamedTuple):
    """What is known about one function (a snapshot).

    Attributes
    ----------
    mean_s
        Time of one item that runs alone, in seconds: over the latest maps, or within the present one.
    std_s
        Standard deviation of the time of one item, in seconds.
    cpu_share
        CPU time over elapsed time while it runs; 1 when not measured yet. Above 1 for one that keeps several CPUs busy.
    carry_s
        What the parent spends to encode one item's arguments and decode its result, in seconds.
    nbytes
        Size of one item's pickled arguments, in bytes.
    n_items
        Items measured in all.
    scaling
        How items slow each other down.
    try_alone_s
        Time of one item in the caller, in seconds, if a few of them were so fast there that a serial map is worth a
        trial; else None.
    return_s
        What a worker spends on an item beyond running it, above all to send its result, in seconds; None when not
        measured yet.
    inline_s
        What the caller spends on an item that it runs beyond running it, above all on copies, in seconds.
    """

    mean_s: float
    std_s: float
    cpu_share: float
    carry_s: float
    nbytes: float
    n_items: int
    scaling: Scaling = Scaling()
    try_alone_s: float | None = None
    return_s: float | None = None
    inline_s: float = 0.0


class _Mean:
    """Average over items, in which the latest weigh more; 0 before the first."""

    __slots__ = ("value", "weight")

    def __init__(self) -> None:
        self.value = 0.0
        self.weight = 0.0

    def observe(self, n_items: int, x: float) -> None:
        """Take in that it was x on average over so many items."""
        self.value += n_items / (self.weight + n_items) * (x - self.value)
        self.weight = _KEPT * (self.weight + n_items)


class _Function:
    """Running estimates of one function; see `CostModel.observe` for the formulas."""

    __slots__ = (
        "alone_s", "clocked_s", "cpu_s", "cpu_share", "inline_s", "load_s", "map_s", "map_var_s2", "map_weight",
        "mean_s", "n_clipped", "n_items", "n_tiny", "nbytes", "receive_s", "return_s", "scaling", "send_s", "size_fit",
        "tiny_items", "tiny_s", "total_s", "var_s2", "weight",
    )  # fmt: skip

    def __init__(self) -> None:
        self.mean_s = 0.0
        self.total_s = 0.0  # of all items ever measured
        self.var_s2 = 0.0
        self.weight = 0.0
        self.n_items = 0
        self.n_clipped = 0  # latest observations in a row that counted for less than they were
        self.cpu_share = 1.0
        self.cpu_s = self.clocked_s = 0.0  # of the latest items: a ratio of sums, as the kernel's clock may be late
        self.send_s, self.receive_s = _Mean(), _Mean()  # what carrying an item takes the parent
        self.nbytes = _Mean()
        self.inline_s = _Mean()
        self.return_s = _Mean()
        self.map_s = 0.0  # mean time of one item in whole maps
        self.map_var_s2 = 0.0
        self.map_weight = 0.0
        self.n_tiny = self.tiny_items = 0  # maps, and their items, that were not taken in yet
        self.tiny_s = 0.0
        self.alone_s: float | None = None  # of the few items of a parallel map that ran before its workers did
        self.load_s: float | None = None
        self.scaling = Scaling()
        self.size_fit = SizeFit()


class CostModel:
    """Online cost model of functions and of this machine's workers.

    One model may serve several executors; by default all executors of a process share one, so that a function
    measured by one is known to the next.

    Parameters
    ----------
    max_functions
        How many functions are remembered; the least recently used is forgotten first.
    worker_start_s, chunk_overhead_s
        What the start of a worker, and a chunk beyond its items, take in seconds until they are measured. None: as on
        this machine.

    Notes
    -----
    The mean is an exponentially weighted average in which a chunk of n items that took T seconds counts as an
    observation x = T / n of weight n::

        x'   = min(x, 4^(1 + c) mean)                 (winsorised: Tukey 1962; c before it were, in a row)
        a    = n / (W + n),  W <- 0.8 (W + n)         (West 1979, with forgetting)
        mean <- mean + a (x' - mean)
        var  <- (1 - a) (var + a n (x' - mean)^2)

    The factor n turns the variance of a mean of n items into the variance of one item. Times that were measured while k
    items ran at once are divided by the slow-down at k (`scaling`). What a new map is expected to take comes from whole
    maps, the latest weighing most: the end of a map tells little about the next one's beginning, and in
    parallel the longest items are done last.

    The share of a CPU is the ratio of two sums of the latest observations, of CPU time and of elapsed time, in which
    each counts 0.8 times as much as the one behind it.

    Examples
    --------
    >>> model = CostModel()
    >>> model.observe("f", n_items=10, elapsed_s=0.5)
    >>> model.lookup("f").mean_s
    0.05
    """

    #: What an item costs the parent beyond its own work while nothing was measured, and at least, in seconds: of a
    #: map of numbers, in which parent and worker spend 0.1 us on each.
    PRIOR_CARRY_S = 0.1e-6
    #: What an item costs a worker beyond running it while nothing was measured, at least, in seconds: a result is put
    #: down where it outlives its worker, and sent.
    PRIOR_RETURN_S = 0.15e-6
    #: What an item costs the caller beyond its own time while nothing was measured, in seconds: numbers, in batches.
    PRIOR_INLINE_S = 0.06e-6
    #: From the decision to start a first worker until it is ready, in seconds, before one was measured:
    #: an interpreter, loky's and our imports on both sides (benchmarks/dispatch.py, cold start).
    PRIOR_WORKER_START_S = 0.04
    #: What a chunk costs beyond its items (two messages, two wake-ups), in seconds, before it was measured.
    CHUNK_OVERHEAD_S = 80e-6

    def __init__(
        self,
        *,
        max_functions: int = _MAX_FUNCTIONS,
        worker_start_s: float | None = None,
        chunk_overhead_s: float | None = None,
    ) -> None:
        if max_functions < 1:
            raise ValueError(f"max_functions must be at least 1, got {max_functions!r}")
        self._max_functions = max_functions
        # Guards every attribute below; held for arithmetic only.
        self._lock = threading.Lock()
        self._functions: OrderedDict[Hashable, _Function] = OrderedDict()
        self._worker_start_s = self.PRIOR_WORKER_START_S if worker_start_s is None else worker_start_s
        self._starts_measured = 0
        self._chunk_overhead_s = self.CHUNK_OVERHEAD_S if chunk_overhead_s is None else chunk_overhead_s
        least, most = _OVERHEADS_RANGE
        self._overheads_s = self._chunk_overhead_s * least, self._chunk_overhead_s * most

    def renew_lock(self) -> None:
        """In the child of a fork, before any other call: a thread that the child has not may have held the lock."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._functions)

    @property
    def worker_start_s(self) -> float:
        """Seconds from the decision to start a worker until it is ready, its initializer included."""
        return self._worker_start_s

    @property
    def chunk_overhead_s(self) -> float:
        """What a chunk costs beyond its items, in seconds: two messages and two wake-ups, as measured."""
        return self._chunk_overhead_s

    def lookup(self, key: Hashable, *, in_map: bool = False) -> FunctionCost | None:
        """What is known about a function; None when none of its items was measured.

        Parameters
        ----------
        key
            The function.
        in_map
            Whether the question is about the rest of a map that runs, for which its latest items speak.

        Returns
        -------
        FunctionCost or None
            A snapshot, with all times in seconds.
        """
        with self._lock:
            found = self._functions.get(key)
            if found is None or found.n_items == 0:
                return None
            by_maps = found.map_weight > 0 and not in_map
            return FunctionCost(
                mean_s=found.map_s if by_maps else found.mean_s,
                std_s=(found.map_var_s2 if by_maps else found.var_s2) ** 0.5,
                cpu_share=found.cpu_share,
                carry_s=max(found.send_s.value + found.receive_s.value, self.PRIOR_CARRY_S),
                nbytes=found.nbytes.value,
                n_items=found.n_items,
                scaling=found.scaling,
                try_alone_s=found.alone_s,
                return_s=max(found.return_s.value, 0.0) if found.return_s.weight else None,
                inline_s=found.inline_s.value if found.inline_s.weight else self.PRIOR_INLINE_S,
            )

    def mean_s(self, key: Hashable) -> float | None:
        """Expected time of one item in seconds; None when the function is unknown."""
        found = self._functions.get(key)
        return found.mean_s if found is not None and found.n_items else None

    def map_item_s(self, key: Hashable) -> float | None:
        """Expected time of one item of a map that is to begin, in seconds; None when the function is unknown."""
        found = self._functions.get(key)
        if found is None or not found.n_items:
            return None
        return found.map_s if found.map_weight > 0 else found.mean_s

    def load_s(self, key: Hashable) -> float | None:
        """What a worker takes to load a function, above all its imports, in seconds; None when none was measured."""
        found = self._functions.get(key)
        return found.load_s if found is not None else None

    def next_items(self, key: Hashable, *, is_confirmed: bool) -> tuple[float | None, float]:
        """What the next items of a map are expected to take.

        Parameters
        ----------
        key
            The function.
        is_confirmed
            Whether items of this map were measured. If not, the latest ones tell little: inputs are often sorted, so
            the last items of one map can be a thousand times shorter than the first ones of the next. Then the mean is
            at least that of all items ever measured.

        Returns
        -------
        tuple
            Mean time of an item in seconds (None for an unknown function), and its standard deviation over the mean.
        """
        found = self._functions.get(key)
        if found is None or not found.n_items:
            return None, 1.0
        mean_s = found.mean_s if is_confirmed else max(found.mean_s, found.total_s / found.n_items)
        return mean_s, found.var_s2**0.5 / mean_s if mean_s > 0 else 1.0

    def size_line(self, key: Hashable) -> tuple[float, float] | None:
        """(intercept, slope) of an item's time over its size, in seconds; None while size does not explain time."""
        with self._lock:
            found = self._functions.get(key)
            return found.size_fit.line() if found is not None else None

    def observe(
        self,
        key: Hashable,
        n_items: int,
        elapsed_s: float,
        cpu_s: float | None = None,
        *,
        at_once: int = 1,
        size: float | None = None,
    ) -> None:
        """Take in that `n_items` items of a function took `elapsed_s` seconds in all.

        Parameters
        ----------
        key
            The function.
        n_items
            Items that ran, one after another; at least 1.
        elapsed_s, cpu_s
            Wall-clock and CPU time of all of them together, in seconds; the latter may be of several CPUs.
        at_once
            How many items ran at the same time.
        size
            Sizes of all of them together, as from `sizes.item_sizes`; None where they have none.
        """
        x = elapsed_s / n_items
        with self._lock:
            f = self._entry(key)
            if size is not None:
                f.size_fit.observe(n_items, elapsed_s, size)
            x /= f.scaling.slowdown(at_once)
            if f.n_items == 0:
                f.mean_s = x
            elif f.mean_s > 0:
                most_s = f.mean_s * _CLIP ** (1 + f.n_clipped)
                f.n_clipped = f.n_clipped + 1 if x > most_s else 0
                x = min(x, most_s)
            a = n_items / (f.weight + n_items)
            delta = x - f.mean_s
            f.mean_s += a * delta
            f.var_s2 = (1 - a) * (f.var_s2 + a * n_items * delta * delta)
            is_first_call = not f.n_items and n_items == 1
            f.weight = _FIRST_WEIGHT if is_first_call else _KEPT * (f.weight + n_items)
            f.n_items += n_items
            f.total_s += elapsed_s
            if cpu_s is not None and elapsed_s > 1e-3:
                f.cpu_s = _KEPT * f.cpu_s + cpu_s
                f.clocked_s = _KEPT * f.clocked_s + elapsed_s
                share = f.cpu_s / f.clocked_s
                f.cpu_share = share if share > SEVERAL_CPUS else min(share, 1.0)

    def observe_map(self, key: Hashable, items: dict[int, tuple[int, float]], most_alone_s: float = 0.0) -> None:
        """Take in a whole map.

        Parameters
        ----------
        key
            The function.
        items
            By how many ran at once (1: the caller alone, or one worker): number of items, and their time in seconds.
        most_alone_s
            Largest mean time of some in a row that ran alone, in seconds: where they differ so much, it was not for
            being alone that others were fast.
        """
        n_items, total_s = (sum(part) for part in zip(*items.values(), strict=True))
        with self._lock:
            f = self._functions.get(key)
            if f is None or not n_items:
                return
            at_once = max(items, key=lambda level: items[level][0])
            n_most, most_s = items[at_once]
            if n_most >= _ONE_LEVEL * n_items and total_s >= _LEAST_MAP_S:
                f.scaling.observe(at_once, most_s / n_most)
                if at_once == 1:
                    f.alone_s = None
            elif at_once > 1 and 1 in items and f.scaling.item_s(1) is None:
                f.alone_s = max(items[1][1] / items[1][0], most_alone_s)
            mean_s = sum(s / f.scaling.slowdown(level) for level, (_, s) in items.items()) / n_items
            f.map_weight = _KEPT_MAPS * f.map_weight + n_items
            f.map_s += n_items / f.map_weight * (mean_s - f.map_s)
            f.map_var_s2 += n_items / f.map_weight * (f.var_s2 - f.map_var_s2)

    def observe_tiny_map(self, key: Hashable, n_items: int, elapsed_s: float) -> None:
        """Take in a whole map of a known function that ran alone in its caller, and took next to no time.

        To take in one takes longer than some such maps. So as long as they last about as long as expected, a few count
        together, as one map.
        """
        with self._lock:
            f = self._functions.get(key)
            if f is None:
                return
            is_usual = abs(elapsed_s - n_items * f.map_s) <= _USUAL * n_items * f.map_s
            n_before, before_s = f.tiny_items, f.tiny_s
            f.n_tiny += 1
            f.tiny_items, f.tiny_s = n_before + n_items, before_s + elapsed_s
            if is_usual and f.n_tiny < _TINY_MAPS:
                return
            f.n_tiny = f.tiny_items = 0
            f.tiny_s = 0.0
        if is_usual:
            n_items, elapsed_s = n_before + n_items, before_s + elapsed_s
        elif n_before:
            self._observe_alone(key, n_before, before_s)
        self._observe_alone(key, n_items, elapsed_s)

    def _observe_alone(self, key: Hashable, n_items: int, elapsed_s: float) -> None:
        self.observe(key, n_items, elapsed_s)
        self.observe_map(key, {1: (n_items, elapsed_s)})

    def observe_overhead(self, elapsed_s: float) -> None:
        """Take in what a chunk took beyond its items, from its sending until its last result came."""
        with self._lock:
            least_s, most_s = self._overheads_s
            x = min(max(elapsed_s, least_s), most_s, _CLIP * self._chunk_overhead_s)
            self._chunk_overhead_s += 0.05 * (x - self._chunk_overhead_s)

    def observe_carriage(self, key: Hashable, n_items: int, cpu_s: float, nbytes: int) -> None:
        """Take in what the parent spent to encode and send a chunk.

        Parameters
        ----------
        key
            The function.
        n_items
            Items of the chunk.
        cpu_s
            CPU time of the sending thread, in seconds. What a chunk costs whatever its size is taken off; the rest is
            averaged over items like their times, so chunks of one hardly count.
        nbytes
            Size of the frame and what it refers to, in bytes.
        """
        x = max(cpu_s - 0.5 * self.CHUNK_OVERHEAD_S, 0.0) / n_items
        with self._lock:
            f = self._entry(key)
            f.send_s.observe(n_items, x)
            f.nbytes.observe(n_items, nbytes / n_items)

    def observe_receipt(self, key: Hashable, n_items: int, cpu_s: float) -> None:
        """Take in what the parent spent to decode results: CPU time of the thread that received them, in seconds."""
        with self._lock:
            self._entry(key).receive_s.observe(n_items, cpu_s / n_items)

    def observe_inline(self, key: Hashable, n_items: int, beyond_s: float) -> None:
        """Take in what the caller took for a batch of items beyond running them, in seconds.

        What a batch costs whatever its size is taken off.
        """
        x = max(beyond_s - self.CHUNK_OVERHEAD_S, 0.0) / n_items
        with self._lock:
            self._entry(key).inline_s.observe(n_items, x)

    def observe_return(self, key: Hashable, n_items: int, beyond_s: float) -> None:
        """Take in what a worker took for items beyond running them, from the results before them until theirs came.

        Parameters
        ----------
        key
            The function.
        n_items
            Items whose results came together.
        beyond_s
            The time for all of them, in seconds. Averaged over items like their times; it may be negative, when the
            results before them came late.
        """
        with self._lock:
            self._entry(key).return_s.observe(n_items, beyond_s / n_items)

    def observe_load(self, key: Hashable, elapsed_s: float) -> None:
        """Take in what a worker took for a function that it had not run before, beyond the items, in seconds.

        A worker that has imported the same modules for another function takes far less: so a smaller value counts for
        a quarter, and a larger one at once.
        """
        with self._lock:
            f = self._entry(key)
            if f.load_s is None or elapsed_s > f.load_s:
                f.load_s = elapsed_s
            else:
                f.load_s += 0.25 * (elapsed_s - f.load_s)

    def observe_worker_start(self, elapsed_s: float) -> None:
        """Take in how long a worker took from the decision to start it until it was ready."""
        with self._lock:
            self._starts_measured += 1
            a = max(1.0 / self._starts_measured, 0.2)
            self._worker_start_s += a * (elapsed_s - self._worker_start_s)

    def export(self, key: Hashable) -> dict[str, float | int | str | None] | None:
        """What is known about a function as plain numbers for `restore`; None when nothing is."""
        cost = self.lookup(key)
        if cost is None:
            return None
        found: dict[str, float | int | str | None] = {
            "mean_s": cost.mean_s,
            "std_s": cost.std_s,
            "cpu_share": cost.cpu_share,
            "carry_s": cost.carry_s,
            "nbytes": cost.nbytes,
            "n_items": cost.n_items,
            "load_s": self.load_s(key),
        }
        found.update((f"{_LEVEL}{n}", item_s) for n, item_s in cost.scaling.levels().items())
        return found

    def restore(self, key: Hashable, found: Mapping[str, float | int | str | None]) -> None:
        """Begin with what another process knew about a function; it weighs as much as one item.

        Numbers that make no sense are ignored.
        """
        numbers = {name: float(x) for name, x in found.items() if isinstance(x, (int, float)) and 0 <= x < math.inf}
        if numbers.get("mean_s", 0.0) <= 0 or self.lookup(key) is not None:
            return
        with self._lock:
            f = self._entry(key)
            f.mean_s = f.map_s = f.total_s = numbers["mean_s"]
            f.var_s2 = f.map_var_s2 = numbers.get("std_s", 0.0) ** 2
            f.weight = f.map_weight = f.send_s.weight = f.nbytes.weight = 1.0
            f.n_items = 1
            f.cpu_share = min(numbers.get("cpu_share", 1.0), 1.0)
            f.send_s.value = numbers.get("carry_s", 0.0)
            f.nbytes.value = numbers.get("nbytes", 0.0)
            f.load_s = numbers.get("load_s")
            for name, x in numbers.items():
                level = name[len(_LEVEL) :]
                if name.startswith(_LEVEL) and level.isdigit() and int(level) > 0 and x > 0:
                    f.scaling.observe(int(level), x)

    def export_machine(self) -> dict[str, float | int | str | None]:
        """What is known about this machine's workers as plain numbers for `restore_machine`."""
        return {"worker_start_s": self._worker_start_s, "chunk_overhead_s": self._chunk_overhead_s}

    def restore_machine(self, found: Mapping[str, float | int | str | None]) -> None:
        """Begin with what another process knew about this machine's workers, until something is measured."""
        start_s, overhead_s = found.get("worker_start_s"), found.get("chunk_overhead_s")
        with self._lock:
            if isinstance(start_s, (int, float)) and 0 < start_s < math.inf and not self._starts_measured:
                self._worker_start_s = float(start_s)
            least_s, most_s = self._overheads_s
            if isinstance(overhead_s, (int, float)) and least_s <= overhead_s <= most_s:
                self._chunk_overhead_s = float(overhead_s)

    def _entry(self, key: Hashable) -> _Function:
        found = self._functions.get(key)
        if found is None:
            found = self._functions[key] = _Function()
            if len(self._functions) > self._max_functions:
                self._functions.popitem(last=False)
        else:
            self._functions.move_to_end(key)
        return found

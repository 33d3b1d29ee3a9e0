"""Whether a task may begin, given what tasks need and what is free; and who goes when that was too little.

What a task needs is how far its worker's memory grows while it runs, beyond what the worker had before. Workers
measure that for each task that takes long enough to need much (`told`), and whoever owns them looks at all of them
while some run (`measured`). Nothing is asked or held back while much more is free than tasks have needed (`is_tight`),
so ordinary pools pay nothing for this.

Where memory is short, a task begins if what is free, less what those that run may still take, is enough for it:

* Of a function that has run, tasks are expected to need about the most that they have needed lately.
* Of one that has not, nobody knows. Where there is room for 1 GiB each, its tasks begin at once. Else one begins; as
  long as that grows, no other does; when it has stood still for a while, one more may begin for each that stands still
  (1, 2, 4, ...), and is expected to need a little more than those did.
* When nobody else runs what needs memory, a task begins whatever it needs: so work goes on, one task at a time
  if it has to be.

When memory is nearly used up all the same, idle workers go first. Then the task goes that has grown most beyond the
others, or, among equals, the one that began last, since the least is lost with it. It runs again, with nobody beside it
that needs memory. If it was alone in taking it, or does it again, it has failed: it takes more than there is.

Pure: the scheduler owns all of this.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from .cost_model import CostModel

#: Where so much is free for each worker, in bytes, tasks of a function that has never run begin at once.
PLENTY_NBYTES = 1 << 30
#: Growth that does not matter, in bytes. A task needs about 10 ms to touch so much.
SMALL_NBYTES = 8 << 20
_SHORT_S = 10e-3
#: How fast a task can take memory, in bytes a second: the kernel clears pages at about half of that.
_RATE = 2e9
#: It is looked often enough to see this many steps from what is free to nothing; and at most, and at least, this often,
#: in seconds. A look at eight workers takes 0.2 ms.
_STEPS = 4
_LEAST_PERIOD_S = 4e-3
_MOST_PERIOD_S = 0.25
_HELD_PERIOD_S = 10e-3
#: A task whose worker has not grown for so long, in seconds, and for this share of its time, has what it needs. The
#: time for which it has waited for a CPU does not count.
_STEADY_S = 0.03
_STEADY_SHARE = 0.5
#: By less than this share of what it has taken it has not grown.
_NOISE = 1 / 16
#: A task of a known function is expected to need so many times what others have needed.
_MARGIN = 1.1
#: Memory that stays free for what was not foreseen: a share of the limit, and at most so many bytes.
_RESERVE_SHARE, _RESERVE_NBYTES = 0.05, 256 << 20
#: Where less than this is left, something goes.
_LAST_SHARE, _LAST_NBYTES = 0.02, 64 << 20
#: An unknown function's tasks are expected to need at least this, in bytes, where others are known.
_GUESS_NBYTES = 64 << 20
#: A worker takes at least this, in bytes.
_BARE_NBYTES = 12 << 20
#: An idle worker that has kept more than this beyond others, in bytes, makes room for tasks by leaving.
_FAT_NBYTES = 32 << 20
#: What others have taken beside it is less than this share of what one has taken: it was alone in that.
_ALONE_SHARE = 0.1
#: Tasks are ended only if they take this share of what is missing: what this process itself takes is not their fault.
_FAULT_SHARE = 0.5
#: What is remembered for functions, at most.
_MOST_KEYS = 4096


class Room(NamedTuple):
    """What there is.

    Attributes
    ----------
    limit_nbytes
        Memory for this process and all workers, in bytes.
    free_nbytes
        What is left of that, or of the machine if that has less, in bytes.
    last_nbytes
        The same where the machine's swap counts as memory: with less than nothing somebody is killed.
    """

    limit_nbytes: int
    free_nbytes: int
    last_nbytes: int


class Running(NamedTuple):
    """A worker that has work: of which function, and since when, in seconds."""

    worker_id: int
    key: Hashable
    since: float


class Excess(NamedTuple):
    """Somebody must go.

    Attributes
    ----------
    worker_id
        Who.
    used_nbytes
        What that worker uses, in bytes.
    limit_nbytes
        What all may use, in bytes.
    how
        "idle": it has no work. "alone": its task needs more than there is. "beside": there is too little for it beside
        others.
    """

    worker_id: int
    used_nbytes: int
    limit_nbytes: int
    how: Literal["idle", "alone", "beside"]


class Sample(NamedTuple):
    """A worker's private memory in bytes, and how long it has waited for a CPU in its life, in seconds."""

    nbytes: int
    waited_s: float = 0.0


class _Use:
    """Private memory of a worker, in bytes."""

    __slots__ = ("base", "nbytes", "rose_at", "rose_waited_s", "top", "waited_s")

    def __init__(self, nbytes: int, now: float) -> None:
        self.nbytes = self.base = self.top = nbytes  # now; when its task began; at most since then
        self.rose_at = now  # when `top` last rose by more than noise
        self.waited_s = self.rose_waited_s = 0.0  # for a CPU, in its life; until then

    @property
    def grown(self) -> int:
        return max(self.nbytes - self.base, 0)

    def settle(self, nbytes: int, now: float) -> None:
        self.nbytes = self.base = self.top = nbytes
        self.rose_at, self.rose_waited_s = now, self.waited_s

    def see(self, sample: Sample, now: float) -> None:
        if not self.waited_s:
            self.rose_waited_s = sample.waited_s
        self.nbytes, self.waited_s = sample
        if self.nbytes > self.top + max(SMALL_NBYTES // 4, _NOISE * max(self.top - self.base, 0)):
            self.top, self.rose_at, self.rose_waited_s = self.nbytes, now, self.waited_s

    def steady_s(self, since: float, now: float) -> float:
        """How long it has not grown though it could have, since its task began."""
        return now - max(self.rose_at, since) - (self.waited_s - self.rose_waited_s)


class _Need:
    """What tasks of a function need, in bytes."""

    __slots__ = ("by_worker", "first", "last")

    def __init__(self) -> None:
        self.first = 0.0  # the first task in a worker, which has to import, load and fill caches
        self.by_worker: dict[int, float] = {}  # later ones, as the workers have told that have run some
        self.last = 0.0  # what was told by the latest worker that has ended

    @property
    def most(self) -> float:
        return max(self.first, self.later)

    @property
    def later(self) -> float:
        return max(self.by_worker.values(), default=self.last)


class MemoryGate:
    """What is known of memory, and what follows from it.

    Parameters
    ----------
    cost_model
        Tells how long tasks take: short ones cannot need much.

    Attributes
    ----------
    is_tight
        Whether `admits` is to be asked before a task begins.
    room
        What there was at the latest look; None before the first.
    """

    def __init__(self, cost_model: CostModel) -> None:
        self._cost_model = cost_model
        self.is_tight = False
        self.room: Room | None = None
        self._free = 0.0  # beyond the reserve, as far as is known
        self._n_most = 1
        self._needs: dict[Hashable, _Need] = {}  # by function, the latest at the end
        self._uses: dict[int, _Use] = {}

    # ------------------------------------------------------------------ what is seen

    def measured(
        self, room: Room, uses: Mapping[int, Sample], resting: Collection[int], n_most: int, now: float
    ) -> None:
        """Somebody has looked: what there is, what workers use, which of them have no work, and how many may be."""
        self.room, self._n_most = room, n_most
        self._free = room.free_nbytes - reserve_nbytes(room.limit_nbytes)
        for worker_id, sample in uses.items():
            use = self._uses.get(worker_id)
            if use is None:
                use = self._uses[worker_id] = _Use(sample.nbytes, now)
            use.see(sample, now)
            if worker_id in resting:
                use.settle(sample.nbytes, now)
        self._judge()

    def told(self, worker_id: int, key: Hashable, growth_nbytes: int, use_nbytes: int, now: float) -> None:
        """A worker has measured how far tasks of a function let it grow, and what it uses now that one has ended."""
        need = self._need(key)
        if worker_id not in need.by_worker:
            need.first = max(float(growth_nbytes), (need.first + growth_nbytes) / 2)
        need.by_worker[worker_id] = float(growth_nbytes)
        use = self._uses.get(worker_id)
        if use is None:
            self._uses[worker_id] = _Use(use_nbytes, now)
        else:
            self._free += use.nbytes - use_nbytes
            use.settle(use_nbytes, now)
        self._judge()

    def needed(self, key: Hashable, nbytes: float) -> None:
        """A task of a function was ended when it had taken so much."""
        need = self._need(key)
        need.first, need.last = max(need.first, nbytes), max(need.last, nbytes)
        self._judge()

    def _need(self, key: Hashable) -> _Need:
        need = self._needs[key] = self._needs.pop(key) if key in self._needs else _Need()
        if len(self._needs) > _MOST_KEYS:
            del self._needs[next(iter(self._needs))]
        return need

    def forget_worker(self, worker_id: int) -> None:
        """A worker has ended."""
        use = self._uses.pop(worker_id, None)
        if use is not None:
            self._free += use.nbytes
        for need in self._needs.values():
            if worker_id in need.by_worker:
                need.last = need.by_worker.pop(worker_id)

    def _judge(self) -> None:
        most = max([need.most for need in self._needs.values()], default=0.0)
        self.is_tight = self.room is not None and self._free < self._n_most * max(PLENTY_NBYTES, _MARGIN * most)

    # ------------------------------------------------------------------ what follows

    def need_nbytes(self, key: Hashable, worker_id: int | None = None) -> float | None:
        """How far a task of a function lets this worker grow, or any, in bytes; None if it has never run."""
        need = self._needs.get(key)
        if need is None:
            mean_s = self._cost_model.mean_s(key)
            return 0.0 if mean_s is not None and mean_s < _SHORT_S else None
        return _MARGIN * (need.later if worker_id in need.by_worker else need.most)

    def is_small(self, key: Hashable) -> bool:
        """Whether tasks of a function are known to need next to nothing."""
        need = self.need_nbytes(key)
        return need is not None and need <= SMALL_NBYTES

    def at_once(self, key: Hashable) -> int | None:
        """How many tasks of a function fit if nobody else has any; None if that is not known, or does not matter."""
        need = self.need_nbytes(key) if self.is_tight else None
        if need is None or need <= SMALL_NBYTES:
            return None
        return max(int((self._free + sum([use.grown for use in self._uses.values()])) / need), 1)

    def admits(self, key: Hashable, worker_id: int, others: Sequence[Running], now: float) -> bool:
        """Whether a worker may begin a task beside those that run."""
        need = self.need_nbytes(key, worker_id)
        others = [each for each in others if not self.is_small(each.key)]
        if not others or (need is not None and need <= SMALL_NBYTES):
            return True
        spare, unknown = self._spare(others)
        if need is None:
            return self._admits_unknown(spare, unknown, now)
        return spare - sum([max(need - self._grown(each), 0.0) for each in unknown]) >= need

    def _admits_unknown(self, spare: float, unknown: Sequence[Running], now: float) -> bool:
        if spare >= (len(unknown) + 1) * PLENTY_NBYTES:
            return True
        if not unknown:
            return spare >= max([need.later for need in self._needs.values()] + [_GUESS_NBYTES])
        steady = [each for each in unknown if self._is_steady(each, now)]
        n_young = len(unknown) - len(steady)
        if n_young >= len(steady):
            return False
        need = max([self._grown(each) for each in steady]) * 1.25 + SMALL_NBYTES
        taken = sum([max(need - self._grown(each), 0.0) for each in unknown])
        return spare - taken >= need

    def _spare(self, running: Iterable[Running]) -> tuple[float, list[Running]]:
        """What is free when all known tasks have what they need; and the tasks of unknown functions."""
        spare, unknown = self._free, []
        for each in running:
            need = self.need_nbytes(each.key, each.worker_id)
            if need is None:
                unknown.append(each)
            else:
                spare -= max(need - self._grown(each), 0.0)
        return spare, unknown

    def used_nbytes(self, worker_id: int) -> int:
        """What a worker used at the latest look, in bytes; 0 if nobody has looked."""
        use = self._uses.get(worker_id)
        return use.nbytes if use is not None else 0

    def grown_nbytes(self, worker_id: int) -> int:
        """By how many bytes a worker had grown at the latest look, since its task began."""
        use = self._uses.get(worker_id)
        return use.grown if use is not None else 0

    def _grown(self, each: Running) -> int:
        return self.grown_nbytes(each.worker_id)

    def _is_steady(self, each: Running, now: float) -> bool:
        use = self._uses.get(each.worker_id)
        if use is None:
            return False
        return use.steady_s(each.since, now) >= max(_STEADY_S, _STEADY_SHARE * (now - each.since))

    def n_more_workers(self, running: Sequence[Running], n_starting: int) -> int | None:
        """How many workers may be added, beside those that are starting; fewer than none: some should leave.

        None: it does not matter.
        """
        if not self.is_tight:
            return None
        spare, _ = self._spare(running)
        return int((spare - n_starting * self._bare()) // self._bare())

    def _bare(self) -> int:
        """What a worker takes that has no work and has kept nothing."""
        return max(min([use.base for use in self._uses.values()], default=0), _BARE_NBYTES)

    def fattest(self, worker_ids: Iterable[int]) -> int | None:
        """The worker that has kept most between tasks, if that is much."""
        kept = {i: self._uses[i].base for i in worker_ids if i in self._uses}
        worker_id = max(kept, key=lambda i: kept[i], default=None)
        return worker_id if worker_id is not None and kept[worker_id] > self._bare() + _FAT_NBYTES else None

    def next_look_s(self, n_running: int, *, is_held: bool) -> float:
        """Seconds until somebody should look again; `is_held`: a task waits for that."""
        if self.room is None:
            return 0.0
        period_s = self.room.free_nbytes / (_STEPS * _RATE * max(n_running, 1))
        if is_held:
            period_s = min(period_s, _HELD_PERIOD_S)
        return min(max(period_s, _LEAST_PERIOD_S), _MOST_PERIOD_S)

    def excess(self, running: Sequence[Running], idle: Collection[int]) -> Excess | None:
        """Who must go so that the limit holds; None while it does."""
        room = self.room
        if room is None:
            return None
        missing = min(_LAST_SHARE * room.limit_nbytes, _LAST_NBYTES) - room.last_nbytes
        if missing <= 0:
            return None
        fattest = self.fattest(idle)
        if fattest is not None:
            return Excess(fattest, self._uses[fattest].nbytes, room.limit_nbytes, "idle")
        growers = sorted([each for each in running if self._grown(each)], key=self._grown, reverse=True)
        if not growers or self._grown(growers[0]) <= SMALL_NBYTES:
            return None
        if sum(map(self._grown, growers)) < _FAULT_SHARE * missing:
            return None  # it is not tasks that take it
        first, others = growers[0], [self._grown(each) for each in growers[1:]]
        most = self._grown(first)
        is_alone = sum(others) <= _ALONE_SHARE * most
        if not is_alone and most < 2 * others[0]:
            first = max([each for each in growers if 2 * self._grown(each) >= most], key=lambda each: each.since)
        used = self._uses[first.worker_id].nbytes
        return Excess(first.worker_id, used, room.limit_nbytes, "alone" if is_alone else "beside")


def reserve_nbytes(limit_nbytes: int) -> float:
    """What stays free of a limit for what was not foreseen, in bytes."""
    return min(_RESERVE_SHARE * limit_nbytes, _RESERVE_NBYTES)

"""A crew of several workers, each with a model of its own, in processes that Ray starts.

This process is one of them: it measures from the first moment, while the others load the model,
and whatever is lost it can measure itself. The others are actors, each on its GPU. They join when
they are ready, and may leave at any time:

- One that is lost (killed, out of memory, gone with its host) or takes much longer than others is
  given up, what it had to do goes to another, and a new one is started in its place.
- One whose full-precision predictions on the first window are not those of this process is
  refused, and so is one whose task raises an error.
- What raised an error there, or was lost twice, is measured here: that tells whose fault it is.

A task has one outcome: what comes from a worker that was given up is not listened to.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from fp4scope.design import Run
from fp4scope.errors import Fp4ScopeError
from fp4scope.study import Place
from fp4scope.sweep.check import allowed_difference, apart, witness
from fp4scope.sweep.cluster import connected
from fp4scope.sweep.crew import Crew, Outcome, attempt
from fp4scope.sweep.station import Answer, Card, Station, card_of, rows_of
from fp4scope.sweep.worker import Task, Worker

_TICK_S = 0.2
_LOOK_FOR_MORE_S = 10.0
_MOST_LOSSES = 2
"""Of one task, before it is measured here."""
_MOST_IN_A_ROW = 8
"""Workers that are lost without a task done in between, before no more are started."""


@dataclass
class Patience:
    """How long a task may take: so many times as long as the slowest so far, for its size.

    Attributes:
        factor: So many times.
        floor_s: And never less. Kernels are compiled in a worker's first task.
    """

    factor: float = 10.0
    floor_s: float = 300.0
    _slowest: float | None = None

    def learn(self, task: Task, seconds: float) -> None:
        """One that took so long was all right."""
        self._slowest = max(self._slowest or 0.0, seconds / _size(task))

    def is_over(self, task: Task, seconds: float) -> bool:
        """Whether nobody waits for it any more."""
        if self._slowest is None:
            return False
        return seconds > max(self.floor_s, self.factor * self._slowest * _size(task))


def _size(task: Task) -> int:
    return len(task.windows) * len(task.runs)


class _Stopped(BaseException):
    """No error: nobody wants the task any more."""


@dataclass(eq=False)
class _Member:
    """A worker elsewhere: `future` is what it was asked last, `task` what it measures.

    `runs` are those that it knows.
    """

    actor: Any
    number: int
    future: Future[Any] | None
    asked: str
    card: Card | None = None
    task: Task | None = None
    runs: Sequence[Run] = ()
    since: float = field(default_factory=time.monotonic)

    @property
    def is_free(self) -> bool:
        return self.asked == "execute" and self.future is None

    @property
    def name(self) -> str:
        where = "" if self.card is None else f" ({self.card.device} on {self.card.host})"
        return f"worker {self.number}{where}"


class Remote(Crew):
    """This process and others.

    Args:
        place: Where the others are.
        build: Makes a worker like `home` in another process; it is pickled.
        home: The worker of this process.
        patience: With tasks elsewhere.

    Attributes:
        measured: Windows by who measured them; 0 is this process.

    Raises:
        StudyError: Ray is not installed, or does not start.
    """

    def __init__(
        self,
        place: Place,
        build: Callable[[], Worker],
        home: Worker,
        patience: Patience | None = None,
    ) -> None:
        self._place, self._home = place, home
        self._patience = patience or Patience()
        device = home.loaded.device
        self._on_gpus = device.type == "cuda"
        self._card = card_of(str(device))
        self._witness = witness(home.loaded, home.ids)
        self.measured: Counter[int] = Counter()
        self._members: list[_Member] = []
        self._started = self._lost_in_a_row = 0
        self._lost: deque[Task] = deque()
        self._losses: dict[Task, int] = {}
        self._at_home: tuple[Task, Future[Outcome], float] | None = None
        self._stopped = False
        self._lines: deque[str] = deque()
        self._looked = time.monotonic()
        self._opened = ExitStack()
        self._thread = ThreadPoolExecutor(1)
        try:
            self._ray = self._opened.enter_context(connected(place, gpus=self._on_gpus))
            arguments = (build, device.type, torch.get_num_threads())
            self._arguments = [self._ray.put(argument) for argument in arguments]
            self._recruit()
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """As many as are asked for, or there is room for."""
        return self._place.count or max(2, self._room())

    @property
    def ready(self) -> int:
        """How many can measure by now, this process among them."""
        return 1 + sum(member.asked == "execute" for member in self._members)

    @property
    def shares(self) -> str:
        """Who measured how many windows, in a line."""
        if not (others := len(self.measured.keys() - {0})):
            return "this process measured all windows: no other worker was ready in time"
        who = "1 other worker" if others == 1 else f"{others} other workers"
        here = self.measured[0]
        return f"this process measured {here} windows, {who} {self.measured.total() - here}"

    @property
    def takes_more(self) -> bool:
        # What waits for this process keeps nobody else from working.
        here = sum(map(self._is_for_here, self._lost))
        free = sum(member.is_free for member in self._members)
        free += self._at_home is None and not here
        return free > len(self._lost) - here

    def hand(self, task: Task) -> None:
        self._lost.append(task)
        self._hand_on()

    def wait(self, tell: Callable[[str | None], None]) -> Outcome | None:
        futures: list[Future[Any]] = [m.future for m in self._members if m.future is not None]
        if self._at_home is not None:
            futures.append(self._at_home[1])
        wait(futures, _TICK_S, FIRST_COMPLETED)
        outcome = self._from_home()
        for member in list(self._members):
            if outcome is not None:
                break
            outcome = self._heard_from(member)
        self._recruit()
        self._hand_on()
        while self._lines:
            tell(self._lines.popleft())
        if outcome is None:
            tell(None)
        return outcome

    def close(self) -> None:
        self._stopped = True
        self._thread.shutdown(wait=True, cancel_futures=True)
        for member in self._members:
            self._kill(member)
        self._members.clear()
        self._opened.close()

    # Tasks.

    def _hand_on(self) -> None:
        """Give what waits to whoever is free; what was lost too often waits for this process."""
        for task in list(self._lost):
            here = self._is_for_here(task)
            free = next((m for m in self._members if m.is_free and not here), None)
            if self._at_home is None and (here or free is None):
                self._lost.remove(task)
                future = self._thread.submit(self._execute, task)
                self._at_home = task, future, time.monotonic()
            elif free is not None:
                self._lost.remove(task)
                free.task = task
                if free.runs is not task.runs:
                    free.runs = task.runs
                    free.actor.learn.remote(list(task.runs))  # calls keep their order
                self._ask(free, "execute", list(task.windows), task.shape)

    def _is_for_here(self, task: Task) -> bool:
        return self._losses.get(task, 0) >= _MOST_LOSSES

    def _execute(self, task: Task) -> Outcome:
        def advance(share: float) -> None:
            if self._stopped:
                raise _Stopped
            self.under_way += share

        return attempt(self._home, task, advance)

    def _from_home(self) -> Outcome | None:
        if self._at_home is None or not self._at_home[1].done():
            return None
        task, future, since = self._at_home
        self._at_home, self.under_way = None, 0.0
        outcome = future.result()
        self.measured[0] += len(task.windows)
        self._patience.learn(task, time.monotonic() - since)
        return outcome

    # Workers.

    def _recruit(self) -> None:
        """As many as are wanted, if they do not all end at once."""
        if self._lost_in_a_row >= _MOST_IN_A_ROW:
            return
        while len(self._members) < self._wanted():
            self._started += 1
            options: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0}
            options |= {"num_gpus": 1 if self._on_gpus else 0}
            options |= {"num_cpus": 0 if self._on_gpus or self._place.address is None else 1}
            actor = self._ray.remote(Station).options(**options).remote(*self._arguments)
            member = _Member(actor, self._started, None, "")
            self._members.append(member)
            self._ask(member, "card")

    def _wanted(self) -> int:
        """Actors. One of those on GPUs has the card of this process, and keeps it free."""
        if self._place.count is not None:
            return self._place.count - (not self._on_gpus)
        return self._room()

    def _room(self) -> int:
        """How many a cluster has room for; looked for now and then, since it may grow."""
        now = time.monotonic()
        if not hasattr(self, "_found") or now - self._looked > _LOOK_FOR_MORE_S:
            self._looked = now
            if self._on_gpus:
                self._found = int(self._ray.cluster_resources().get("GPU", 0))
            else:
                self._found = sum(node["Alive"] for node in self._ray.nodes())
        return self._found

    def _ask(self, member: _Member, what: str, *arguments: Any) -> None:  # noqa: ANN401
        member.asked, member.since = what, time.monotonic()
        try:
            member.future = getattr(member.actor, what).remote(*arguments).future()
        except self._ray.exceptions.RayError as error:
            member.future = Future()
            member.future.set_exception(error)

    def _heard_from(self, member: _Member) -> Outcome | None:
        """What a member has answered, if it has."""
        if member.future is None:
            return None
        seconds = time.monotonic() - member.since
        if not member.future.done():
            if member.task is not None and self._patience.is_over(member.task, seconds):
                self._lose(member, f"it has not answered for {seconds:.0f} seconds")
            return None
        future, member.future = member.future, None
        try:
            found = future.result()
        except self._ray.exceptions.RayError as error:
            self._lose(member, _said(error))
            return None
        if member.asked == "card":
            self._place_of(member, found)
        elif member.asked == "open":
            self._opened_by(member, found)
        else:
            return self._answered(member, found, seconds)
        return None

    def _place_of(self, member: _Member, card: Card) -> None:
        member.card = card
        if card.uuid is not None and (card.host, card.uuid) == (self._card.host, self._card.uuid):
            member.asked = "nothing: this process computes there"
        elif self._is_one_too_many(member):
            self._kill(member)
            member.asked = "nothing: there are enough"
        elif card.numerics != self._card.numerics:
            self._refuse(member, "its fp4scope is of another version")
        else:
            self._ask(member, "open")

    def _is_one_too_many(self, member: _Member) -> bool:
        """None of those on GPUs had the card of this process."""
        others = sum(m.asked in ("open", "execute") for m in self._members if m is not member)
        return self._place.count is not None and others >= self._place.count - 1

    def _opened_by(self, member: _Member, found: Any) -> None:  # noqa: ANN401
        if isinstance(found, Fp4ScopeError):
            self._refuse(member, str(found))
            return
        loaded = self._home.loaded
        difference = apart(torch.from_numpy(found.copy()), self._witness)
        allowed = allowed_difference(loaded.dtype)
        if self._home.check is not None:
            allowed = max(allowed, self._home.check.allowed)
        if not difference <= allowed:
            self._refuse(
                member,
                f"its full-precision logits differ from those of this process by {difference:.3g} "
                f"of themselves, where the rounding of {loaded.dtype_name} explains {allowed:.3g}",
            )
            return
        member.asked = "execute"
        assert member.card is not None
        same = (member.card.device, member.card.libraries)
        if same != (ours := (self._card.device, self._card.libraries)):
            self._lines.append(
                f"warning: {member.name} has {', '.join(same)}, this process {', '.join(ours)}: "
                "W4A4 results of both are compared with each other"
            )

    def _answered(self, member: _Member, answer: Answer, seconds: float) -> Outcome | None:
        task, member.task = member.task, None
        assert task is not None
        if answer.error is not None:
            self._refuse(member, f"{answer.error}; that is measured again by this process")
            self._losses[task] = _MOST_LOSSES
            self._lost.appendleft(task)
            return None
        self._lost_in_a_row = 0
        if answer.values is None:
            return Outcome(task, None, answer.reason)
        self.measured[member.number] += len(task.windows)
        self._patience.learn(task, seconds)
        return Outcome(task, rows_of(task, answer))

    def _lose(self, member: _Member, why: str) -> None:
        """Give one up, and what it had to do to another."""
        self._kill(member)
        self._members.remove(member)
        self._lost_in_a_row += 1
        task, then = member.task, ""
        if task is not None:
            self._lost.appendleft(task)
            self._losses[task] = losses = self._losses.get(task, 0) + 1
            where = "this process" if losses >= _MOST_LOSSES else "another"
            count = len(task.windows)
            then = f"; its {count} windows go" if count > 1 else "; its window goes"
            then += f" to {where}"
        self._lines.append(f"{member.name} is lost: {why}{then}")
        if self._lost_in_a_row == _MOST_IN_A_ROW:
            self._lines.append(
                f"warning: {_MOST_IN_A_ROW} workers were lost in a row, so no more are started"
            )

    def _refuse(self, member: _Member, why: str) -> None:
        self._kill(member)
        member.asked = "nothing: it was refused"
        self._lines.append(f"warning: {member.name} is refused: {why}")

    def _kill(self, member: _Member) -> None:
        member.future = None
        with suppress(Exception):
            self._ray.kill(member.actor, no_restart=True)


def _said(error: BaseException) -> str:
    """An error of Ray's in one line."""
    known = {
        "OutOfMemoryError": "its host ran out of memory",
        "ActorDiedError": "its process has ended",
        "WorkerCrashedError": "its process has ended",
        "NodeDiedError": "its host is gone",
        "ActorUnavailableError": "it cannot be reached",
        "ActorUnschedulableError": "no host has room for it",
    }
    for kind in type(error).__mro__:
        if kind.__name__ in known and "creation task" not in str(error):
            return known[kind.__name__]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]

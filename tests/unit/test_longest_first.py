"""Which of equal tasks goes first where lengths are known, and that nothing waits for ever for what is longer."""

from __future__ import annotations

import random

import pytest

from exex.manager import longest
from exex.manager.ready import ReadyQueue
from exex.manager.task import App, Task
from exex.protocol.messages import AppSpec


class Queue:
    """A queue of ready tasks of several apps, by name."""

    def __init__(self) -> None:
        self.ready = ReadyQueue()
        self.apps: dict[str, App] = {}
        self.now_s = 0.0
        self.number = 0

    def app(self, name: str, mean_s: float = -1.0, **options: object) -> App:
        spec = AppSpec(app=len(self.apps), name=name, function=b"d", **options)  # type: ignore[arg-type]
        app = self.apps[name] = App(spec, b"")
        app.mean_s = mean_s
        app.size = longest.size_of(app, ReadyQueue())
        return app

    def push(self, *names: str, depth: int = 0) -> None:
        for name in names:
            task = Task(self.number, self.apps[name], b"")
            task.depth = depth
            self.number += 1
            self.ready.push(task)

    def sort(self) -> None:
        self.now_s = max(self.now_s, self.ready.next_sort_s)
        longest.sort(self.ready, self.apps.values(), self.now_s)

    def order(self, most: int = 1) -> list[str]:
        names: list[str] = []
        while taken := self.ready.take(most):
            names += [task.app.spec.name for task in taken]  # type: ignore[union-attr]
        assert self.ready.count == 0
        return names


@pytest.fixture
def no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter tasks have no share of the time: only the order is looked at."""
    monkeypatch.setattr(longest, "SHARE", 1e12)


@pytest.mark.usefixtures("no_share")
def test_longer_tasks_go_first_and_equal_ones_as_they_came() -> None:
    queue = Queue()
    queue.app("short", 0.01)
    queue.app("second", 1.1)
    queue.app("other second", 1.0)
    queue.app("minute", 60.0)
    queue.push("second", "short", "other second", "minute", "second", "minute")
    assert queue.order(10) == ["minute", "minute", "second", "other second", "second", "short"]


@pytest.mark.parametrize("lengths", [(0.001, 0.09), (2.0, 3.0), (-1.0, 0.05)])
def test_small_differences_do_not_matter(lengths: tuple[float, float]) -> None:
    queue = Queue()
    queue.app("a", lengths[0])
    queue.app("b", lengths[1])
    queue.push(*"abab")
    assert queue.order() == list("abab")


@pytest.mark.usefixtures("no_share")
def test_walltime_counts_until_more_is_known() -> None:
    queue = Queue()
    queue.app("unknown")
    hour = queue.app("hour", walltime_s=3600.0)
    assert hour.size > queue.app("minute", walltime_s=60.0).size > 0
    queue.push("unknown", "minute", "hour")
    hour.mean_s = 0.5  # it is never as long as it may be
    queue.sort()
    assert queue.order() == ["minute", "hour", "unknown"]


@pytest.mark.usefixtures("no_share")
def test_priority_and_depth_come_before_length() -> None:
    queue = Queue()
    queue.app("short", 0.01)
    queue.app("long", 100.0)
    queue.app("urgent", 0.01, priority=-1)
    queue.push("long", "urgent")
    queue.push("short", depth=3)
    assert queue.order() == ["urgent", "short", "long"]


@pytest.mark.usefixtures("no_share")
def test_what_waits_is_sorted_anew_when_lengths_become_known() -> None:
    queue = Queue()
    queue.app("a")
    queue.app("b")
    queue.push(*"aabb")
    queue.apps["b"].mean_s = 30.0
    queue.sort()
    assert queue.order() == list("bbaa")


@pytest.mark.usefixtures("no_share")
def test_more_than_some_are_not_sorted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(longest, "SORTED_AT_MOST", 3)
    queue = Queue()
    queue.app("a")
    queue.app("b")
    queue.push(*"aabb")
    queue.apps["b"].mean_s = 30.0
    queue.sort()
    assert [task.app.spec.name for task in queue.ready.take(1)] == ["a"]  # type: ignore[union-attr]
    queue.sort()
    assert queue.order() == list("bba"), "now they are few enough"


def test_a_mean_that_wavers_at_a_border_changes_nothing() -> None:
    queue = Queue()
    app = queue.app("a", 0.41)
    sizes = set()
    for mean_s in (0.39, 0.42, 0.38, 0.44):
        app.mean_s = mean_s
        app.size = longest.size_of(app, ReadyQueue())
        sizes.add(app.size)
    assert len(sizes) == 1
    app.mean_s = 3.0
    assert longest.size_of(app, ReadyQueue()) > app.size


def test_a_stream_of_long_tasks_holds_up_no_short_one_for_ever() -> None:
    queue = Queue()
    queue.app("no-op", 1e-5)
    queue.app("second", 1.0)
    queue.app("hour", 3600.0)
    queue.push(*["hour"] * 100, *["no-op"] * 1000, *["second"] * 1000)
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for number in range(1000):
        queue.push("hour")
        for task in queue.ready.take(100):
            name = task.app.spec.name  # type: ignore[union-attr]
            first.setdefault(name, number)
            last[name] = number
            assert task.status == task.status.READY
    assert first["hour"] == 0 and first["no-op"] < 10 and first["second"] < 10
    assert last["no-op"] < 20, "there is little of it, so it is over soon"


def test_shorter_tasks_get_a_sixteenth_of_the_time() -> None:
    queue = Queue()
    queue.app("second", 1.0)
    queue.app("minute", 60.0)
    queue.push(*["second"] * 10_000, *["minute"] * 1000)
    took_s = {"second": 0.0, "minute": 0.0}
    for _ in range(1600):
        for task in queue.ready.take(1):
            app = task.app
            assert app is not None
            took_s[app.spec.name] += app.mean_s
    assert took_s["second"] / took_s["minute"] == pytest.approx(1 / longest.SHARE, rel=0.02)


@pytest.mark.parametrize("seed", range(20))
def test_every_task_is_taken_once_whatever_happens_meanwhile(seed: int) -> None:
    rng = random.Random(seed)
    queue = Queue()
    for name in "abcdef":
        queue.app(name, rng.choice([-1.0, 1e-5, 0.3, 5.0, 700.0]), priority=rng.choice([0, 0, 1]))
    taken: list[Task] = []
    for _ in range(300):
        queue.push(rng.choice("abcdef"), depth=rng.choice([0, 0, 1]))
        if rng.random() < 0.2:
            queue.apps[rng.choice("abcdef")].mean_s = rng.choice([1e-5, 0.3, 5.0, 700.0])
        if rng.random() < 0.1:
            queue.sort()
        if rng.random() < 0.3:
            most = rng.choice([1, 3])
            some = queue.ready.take(most) if rng.random() < 0.5 else queue.ready.take_short(most, 10.0, 1e-5)
            assert len(some) <= most
            if some and rng.random() < 0.3:
                queue.ready.put_back([some.pop()])
            taken += some
    while some := queue.ready.take(7):
        taken += some
    assert sorted(task.id for task in taken) == list(range(300))
    assert queue.ready.count == 0


def test_beside_big_tasks_first_come_goes_first() -> None:
    queue = Queue()
    queue.app("a", 0.01), queue.app("b", 20.0)
    queue.push(*"aba")
    queue.ready.line.in_use = True
    queue.sort()
    assert {app.size for app in queue.apps.values()} == {0}
    queue.push(*"ba")
    assert queue.order()[-2:] == list("ba")

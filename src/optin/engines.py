"""Where independent pieces of work are done: in this process, or by Ray on many machines.

An engine takes a function and the arguments of each call, and gives the results in the order of the calls, so that
sums over them are the same to the bit wherever they were computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from .errors import DependencyError, InputError, first_line, unknown
from .modules import device_of

T = TypeVar("T")
ENGINES = ("local", "ray")
AHEAD = 2  # calls that each worker has been given and has not answered


class Engine(Protocol):
    """Results of `work(*arguments)` in the order of the calls."""

    def __call__(self, work: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> Iterator[T]: ...


def engine(name: str, address: str | None = None) -> Engine:
    """An engine by name.

    Args:
        address: of a Ray cluster ("auto" for the one of this machine, "HOST:PORT"); without one, Ray is started here.

    Raises:
        InputError: no such engine, or an address for work that is done here.
    """
    if name not in ENGINES:
        raise InputError(unknown("engine", name, ENGINES))
    if name == "ray":
        return Ray(address)
    if address is not None:
        raise InputError("an address is that of a Ray cluster: say --engine ray.")
    return local


def local(work: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> Iterator[T]:
    """One after the other, here."""
    for arguments in calls:
        yield work(*arguments)


@dataclass(frozen=True)
class Ray:
    """Spread over actors of Ray, which hold what the work needs once each.

    As many actors as the cluster has room for, each on as many threads as torch uses here, and with a GPU each if the
    work is on one. An actor whose process dies is started anew, and does again what it had not answered.
    """

    address: str | None = None

    def __call__(self, work: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> Iterator[T]:
        ray = _ray()
        own = not ray.is_initialized()
        if own:
            self._connect(ray)
        actors: list[Any] = []
        try:
            threads, gpus = torch.get_num_threads(), int(_on_gpu(work))
            kind = ray.remote(num_cpus=threads, num_gpus=gpus, max_restarts=-1, max_task_retries=-1)(_Actor)
            room = ray.cluster_resources()
            places = room.get("GPU", 0) // gpus if gpus else room.get("CPU", 1) // threads
            shared = ray.put(work)
            actors += [kind.remote(shared, threads) for _ in range(max(1, min(int(places), len(calls))))]
            yield from in_order(ray, actors, calls)
        finally:
            for actor in actors:
                ray.kill(actor)
            if own:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        try:
            ray.init(address=self.address, log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"no Ray cluster answers at {self.address!r} ({first_line(error)}). Start one: ray start --head"
            ) from None


class _Actor:
    """One worker: a process of Ray."""

    def __init__(self, work: Callable[..., Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self.work = work

    def do(self, *arguments: Any) -> Any:
        return self.work(*arguments)


def _on_gpu(work: Callable[..., Any]) -> bool:
    """Whether it has a network that is on one."""
    model = getattr(work, "model", None)
    return isinstance(model, torch.nn.Module) and device_of(model).type == "cuda"


def in_order(ray: Any, actors: Sequence[Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Give each actor a call when it has answered one; give out answers in the order of the calls."""
    free = [actor for actor in actors for _ in range(AHEAD)]
    running: dict[Any, tuple[int, Any]] = {}
    answers: dict[int, Any] = {}
    given = 0
    for place in range(len(calls)):
        while place not in answers:
            while free and given < len(calls):
                actor = free.pop(0)
                running[actor.do.remote(*calls[given])] = (given, actor)
                given += 1
            (done,), _ = ray.wait(list(running), num_returns=1)
            number, actor = running.pop(done)
            answers[number] = ray.get(done)
            free.append(actor)
        yield answers.pop(place)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise DependencyError("this needs the package 'ray': pip install 'optin[ray]'") from None
    return ray

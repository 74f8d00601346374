"""Where independent pieces of work are done: in this process, or by Ray on many machines.

An engine takes a function and the arguments of each call, and gives the results in the order of the calls, so that
sums over them are the same to the bit wherever they were computed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

import torch

from ..errors import DependencyError, InputError, first_line, unknown
from ..running.modules import device_of
from ..support.untyped import Foreign
from ..support.versions import build

T = TypeVar("T")
ENGINES = ("local", "ray")
TIMEOUT = 10.0  # seconds that a cluster has to answer
AHEAD = 2  # calls that each worker has been given and has not answered


class Engine(Protocol):
    """Results of `work(*arguments)` in the order of the calls."""

    def __call__(self, work: Callable[..., T], calls: Sequence[tuple[object, ...]]) -> Iterator[T]: ...


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


def local(work: Callable[..., T], calls: Sequence[tuple[object, ...]]) -> Iterator[T]:
    """One after the other, here."""
    for arguments in calls:
        yield work(*arguments)


@dataclass(frozen=True)
class Ray:
    """Spread over actors of Ray, which hold what the work needs once each.

    As many actors as the cluster has room for, each on as many threads as torch uses here, and with a GPU each if the
    work is on one. An actor whose process dies is started anew, and does again what it had not answered.

    Without an address a cluster of this machine alone is started: it listens on the loopback address, and asks for
    Ray's token where Ray has one. Whoever can reach the address of another cluster can run code on all its machines.
    """

    address: str | None = None

    def __call__(self, work: Callable[..., T], calls: Sequence[tuple[object, ...]]) -> Iterator[T]:
        if self.address is None:
            _stay_on_loopback()
        ray = _ray()
        own = not ray.is_initialized()
        if own:
            self._connect(ray)
        actors: list[object] = []
        try:
            threads, gpus = torch.get_num_threads(), int(_on_gpu(work))
            kind = ray.remote(num_cpus=threads, num_gpus=gpus, max_restarts=-1, max_task_retries=-1)(_Actor)
            room = ray.cluster_resources()
            places = room.get("GPU", 0) // gpus if gpus else room.get("CPU", 1) // threads
            shared = [ray.put(work)]  # in a list, so that no worker unpacks it before its version is known
            actors += [kind.remote(shared, threads) for _ in range(max(1, min(int(places), len(calls))))]
            _check_builds(ray, actors)
            yield from in_order(ray, actors, calls)
        finally:
            for actor in actors:
                ray.kill(actor)
            if own:
                ray.shutdown()

    def _connect(self, ray: Foreign) -> None:
        try:
            if self.address is None:
                ray.init(
                    address="local",
                    _node_ip_address="127.0.0.1",
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="error",
                )
                if (found := ray.util.get_node_ip_address()) != "127.0.0.1":
                    ray.shutdown()
                    raise InputError(
                        f"Ray was imported before, and would listen at {found}. Start a cluster of your own and say "
                        "its address."
                    )
                return
            check_address(self.address)
            ray.init(address=self.address, log_to_driver=False, logging_level="error")
        except (OSError, ValueError, RuntimeError) as error:
            raise _no_cluster(self.address, first_line(error)) from error


def _no_cluster(address: str | None, reason: str) -> InputError:
    return InputError(f"no Ray cluster answers at {address!r} ({reason}). Start one: ray start --head")


def _stay_on_loopback() -> None:
    """Have a cluster that is started here be reached from here alone; read by Ray when it is imported."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # else Ray listens on all interfaces
    os.environ.setdefault("RAY_AUTH_MODE", "token")


def check_address(address: str) -> None:
    """Try the address of a cluster, with a time limit: Ray itself tries for minutes, and hears no signal meanwhile.

    Args:
        address: "auto", "HOST:PORT" or "ray://HOST:PORT".

    Raises:
        InputError: not an address, or nothing listens there that is a Ray cluster.
    """
    where = _auto_address() if address == "auto" else address
    if where is None:
        raise _no_cluster(address, "none runs on this machine")
    said = f"{address!r:.80} is no address of a Ray cluster: write HOST:PORT, ray://HOST:PORT or auto."
    try:
        parsed = urlsplit(where if "://" in where else f"//{where}")
        host, port = parsed.hostname, parsed.port
    except ValueError as error:
        raise InputError(said) from error
    if not host or not port or parsed.scheme not in ("", "ray") or parsed.path or parsed.username:
        raise InputError(said)
    try:
        socket.create_connection((host, port), TIMEOUT).close()
    except OSError as error:
        raise _no_cluster(address, f"{host}:{port}: {first_line(error)}") from error
    if not parsed.scheme:
        _check_health(address, where)


def _check_health(address: str, where: str) -> None:
    """Ask what listens there whether it is a cluster, in a process that can be ended."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", where]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=3 * TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise _no_cluster(address, "what listens there does not answer as Ray does") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["what listens there is no cluster of Ray"]
        raise _no_cluster(address, lines[-1][:200])


def _auto_address() -> str | None:
    """Of the cluster that runs on this machine, as `ray start` leaves it."""
    file = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return os.environ.get("RAY_ADDRESS") or file.read_text().strip() or None
    return os.environ.get("RAY_ADDRESS")


class _Actor:
    """One worker: a process of Ray."""

    def __init__(self, shared: Sequence[object], threads: int) -> None:
        torch.set_num_threads(threads)
        self.shared = shared
        self.work: Callable[..., object] | None = None

    def build(self) -> dict[str, str]:
        return build()

    def do(self, *arguments: object) -> object:
        if self.work is None:
            self.work = _ray().get(self.shared[0])
        return self.work(*arguments)


def _check_builds(ray: Foreign, actors: Sequence[Foreign]) -> None:
    """Refuse workers that compute with another version than this process.

    Raises:
        InputError: says which, or that a worker has no optin.
    """
    here = build()
    try:
        found = ray.get([actor.build.remote() for actor in actors])
    except (ImportError, ray.exceptions.RayError) as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise InputError(f"a worker of the cluster cannot compute: {reason}. Install optin there.") from error
    for there in found:
        differing = [name for name in here if there.get(name) != here[name]]
        if differing:
            name = differing[0]
            raise InputError(
                f"a worker of the cluster has {name} {there.get(name)} and this machine {here[name]}: their results "
                "would be mixed. Install the same version everywhere."
            )


def _on_gpu(work: Callable[..., object]) -> bool:
    """Whether it has a network that is on one."""
    model = getattr(work, "model", None)
    return isinstance(model, torch.nn.Module) and device_of(model).type == "cuda"


def in_order(ray: Foreign, actors: Sequence[Foreign], calls: Sequence[tuple[object, ...]]) -> Iterator[Foreign]:
    """Give each actor a call when it has answered one; give out answers in the order of the calls."""
    free = [actor for actor in actors for _ in range(AHEAD)]
    running: dict[object, tuple[int, object]] = {}
    answers: dict[int, object] = {}
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


def _ray() -> Foreign:
    try:
        import ray
    except ImportError:
        raise DependencyError("this needs the package 'ray': pip install 'optin[ray]'") from None
    return ray

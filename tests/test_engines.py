"""Scoring spread over workers; with Ray installed, on a real cluster, one of whose workers is killed on the way."""

from __future__ import annotations

import ast
import functools
import os
import pickle
import signal
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import optin
from optin.describing import describe
from optin.errors import CheckpointError, DependencyError, InputError
from optin.recipe import Recipe
from optin.running.batches import Batches
from optin.running.twins import twinned
from optin.scoring import engines
from optin.scoring import resume as partial_sums
from optin.scoring.compensated import Sensitivities
from optin.scoring.criteria import Scoring
from optin.scoring.draws import summed
from optin.scoring.engines import _Actor, check_address, engine, local
from optin.scoring.resume import forget
from optin.support.versions import build
from tests.networks import build as network
from tests.networks import inputs

RECIPE = Recipe().override(criterion="exact", trajectory__rows=12, trajectory__draws=4, trajectory__stack=4)


@pytest.fixture(scope="module")
def cluster():
    """The address of a head and two more nodes on loopback, with one place each."""
    pytest.importorskip("ray")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = str(Path(sys.executable).with_name("ray"))
    options = ("--num-cpus=1", "--disable-usage-stats", "--node-ip-address=127.0.0.1")
    head = ("--head", f"--port={address.partition(':')[2]}", "--include-dashboard=false")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # on loopback, for the time of the test
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent), prepend=os.pathsep)
        try:
            for place in (head, (f"--address={address}",), (f"--address={address}",)):
                subprocess.run([command, "start", *place, *options], check=True, capture_output=True)
            yield address
        finally:
            subprocess.run([command, "stop", "--force"], capture_output=True, check=False)


def workers() -> list[int]:
    """Processes of actors."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if entry.read_bytes().startswith(b"ray::_Actor"):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.filterwarnings("ignore")  # of Ray and its processes
@pytest.mark.parametrize("criterion", ["exact", "compensated"])
def test_many_machines_give_the_same(criterion, bert, batches, cluster, tmp_path):
    recipe = RECIPE.override(criterion=criterion)
    expected = optin.score(bert, batches, recipe=recipe)
    killed = []

    def kill_one(items, description, total):
        for number, item in enumerate(items):
            if number == 3 and not killed:
                killed.append(workers()[0])
                os.kill(killed[0], signal.SIGKILL)
            yield item

    got = optin.score(
        bert, batches, recipe=recipe, engine="ray", address=cluster, track=kill_one, resume=tmp_path / "partial"
    )
    assert killed and (tmp_path / "partial").exists()
    for name, curve in expected.curves.items():
        assert torch.equal(got.curves[name].order, curve.order)
        if criterion == "exact":
            assert torch.equal(got.curves[name].cost, curve.cost)
        else:
            torch.testing.assert_close(got.curves[name].cost, curve.cost, rtol=1e-4, atol=0)


def elsewhere(work, calls):
    """An engine whose worker is sent everything."""
    sent = pickle.loads(pickle.dumps(work))
    for arguments in calls:
        yield sent(*arguments)


def scoring(model, batches, recipe, **options) -> Scoring:
    return Scoring(model, describe(model), Batches.of(batches, torch.device("cpu")), recipe, **options)


def test_sums_of_batches_are_those_of_one_process(architecture):
    """Two passes over batches of several lengths, the last of them smaller."""
    model = network(architecture)
    batches = [inputs(model, batch=size, seed=size) for size in (5, 6, 3)]
    recipe = Recipe().override(trajectory__rows=12, trajectory__draws=20)
    here, there = scoring(model, batches, recipe), scoring(model, batches, recipe, engine=elsewhere)
    empty = functools.partial(Sensitivities, model, here.space, recipe)
    with twinned(model):
        (expected, weights), (got, others) = summed(here, empty, "score"), summed(there, empty, "score")
    assert expected.units.draws == got.units.draws == 28
    for name, value in expected.tensors().items():
        torch.testing.assert_close(got.tensors()[name], value, rtol=1e-5, atol=1e-5 * float(value.abs().max()))
    for index in range(len(batches)):
        for name in weights.consumers:
            for value, same in zip(weights(index, name), others(index, name), strict=True):
                assert torch.equal(value, same)


def test_sums_of_batches_go_on_after_a_kill(bert, batches, tmp_path):
    recipe, file = RECIPE.override(criterion="compensated"), tmp_path / "partial"
    expected = optin.score(bert, batches, recipe=recipe, engine=elsewhere)
    asked = []

    def killed(work, calls):
        for number, result in enumerate(elsewhere(work, calls)):
            if number == 5:
                raise KeyboardInterrupt
            yield result

    def counted(work, calls):
        asked.append(len(calls))
        yield from elsewhere(work, calls)

    with pytest.raises(KeyboardInterrupt):
        optin.score(bert, batches, recipe=recipe, engine=killed, resume=file)
    got = optin.score(bert, batches, recipe=recipe, engine=counted, resume=file)
    assert 3 <= asked[0] < 8
    for name, curve in expected.curves.items():
        assert torch.equal(got.curves[name].order, curve.order) and torch.equal(got.curves[name].cost, curve.cost)
    with pytest.raises(CheckpointError, match="another run"):
        optin.score(bert, batches[:2], recipe=recipe, engine=elsewhere, resume=file)


@pytest.mark.parametrize("criterion", ["compensated", "sketch"])
def test_sums_of_this_process_go_on_after_a_kill_to_the_same_bits(criterion, bert, tmp_path, monkeypatch):
    """With rows of activations that wait to be multiplied, and in the second pass over the batches."""
    monkeypatch.setattr(partial_sums, "SHARE", 1e9)  # written after every batch
    batches = [inputs(bert, batch=size, seed=size) for size in (5, 6, 3)]
    recipe = Recipe().override(criterion=criterion, trajectory__rows=12, trajectory__draws=20)
    expected = optin.score(bert, batches, recipe=recipe)
    for number in (7, 13, 20):
        file = tmp_path / f"partial-{number}"

        def killed(items, description, total, number=number):
            for place, item in enumerate(items):
                if place == number:
                    raise KeyboardInterrupt
                yield item

        with pytest.raises(KeyboardInterrupt):
            optin.score(bert, batches, recipe=recipe, resume=file, track=killed)
        assert file.exists()
        got = optin.score(bert, batches, recipe=recipe, resume=file)
        for name, curve in expected.curves.items():
            assert torch.equal(got.curves[name].order, curve.order) and torch.equal(got.curves[name].cost, curve.cost)
        for index in range(len(batches)):
            for name in expected.weights.consumers:
                assert torch.equal(torch.stack(got.weights(index, name)), torch.stack(expected.weights(index, name)))


def test_fisher_goes_on_after_a_kill(bert, batches, tmp_path, monkeypatch):
    monkeypatch.setattr(partial_sums, "SHARE", 1e9)
    labelled = [{**batch, "labels": torch.tensor([0, 1, 2, 0])} for batch in batches]
    recipe, file = Recipe().override(criterion="fisher", rearrange=True), tmp_path / "partial"
    expected = optin.score(bert, labelled, recipe=recipe)
    with pytest.raises(KeyboardInterrupt):
        optin.score(bert, labelled, recipe=recipe, resume=file, track=killed_at("fisher", 3))
    optin.score(bert, labelled, recipe=recipe, resume=file)
    got = optin.score(bert, labelled, recipe=recipe, resume=file)  # all is there: nothing is added again
    for name, curve in expected.curves.items():
        assert torch.equal(got.curves[name].cost, curve.cost)
        assert torch.equal(got.gradients[name], expected.gradients[name])
    for batch in labelled:
        batch["labels"] = batch["labels"].flip(0)
    with pytest.raises(CheckpointError, match="another run"):
        optin.score(bert, labelled, recipe=recipe, resume=file)


def killed_at(stage: str, number: int):
    """Progress that is interrupted before the item of this number in one stage."""

    def track(items, description, total):
        for place, item in enumerate(items):
            if description == stage and place == number:
                raise KeyboardInterrupt
            yield item

    return track


def test_token_costs_go_on_after_a_kill_without_scoring_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(partial_sums, "SHARE", 1e9)
    model, file = network("vit"), tmp_path / "partial"
    batches = [inputs(model, batch=8, seed=seed) for seed in range(3)]
    recipe = RECIPE.override(criterion="compensated", tokens__merge="search", tokens__examples=24)
    expected = optin.score(model, batches, recipe=recipe)
    with pytest.raises(KeyboardInterrupt):
        optin.score(model, batches, recipe=recipe, resume=file, track=killed_at("token costs", 2))
    monkeypatch.setattr("optin.scoring.draws.differentiate", None)  # no draw is made again
    got = optin.score(model, batches, recipe=recipe, resume=file)
    assert torch.equal(got.tokens, expected.tokens)
    forget(file)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("criterion", ["compensated", "sketch", "exact"])
def test_partial_sums_of_other_weights_are_refused(criterion, bert, batches, tmp_path):
    recipe, file = RECIPE.override(criterion=criterion), tmp_path / "partial"
    optin.score(bert, batches, recipe=recipe, resume=file)
    with torch.no_grad():
        bert.bert.encoder.layer[0].output.dense.weight[0, 0] += 1
    with pytest.raises(CheckpointError, match="another run"):
        optin.score(bert, batches, recipe=recipe, resume=file)


class StandIn:
    """What the engine asks of Ray, answered here: the call given last is done first."""

    util = types.SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1")
    exceptions = types.SimpleNamespace(RayError=ConnectionError)

    def __init__(self, resources: dict[str, float]) -> None:
        self.resources = resources
        self.actors: list[object] = []
        self.killed: list[object] = []
        self.stopped = False

    def is_initialized(self):
        return False

    def init(self, **options):
        assert options["address"] == "local" and options["_node_ip_address"] == "127.0.0.1"

    def cluster_resources(self):
        return self.resources

    def put(self, value):
        return functools.partial(pickle.loads, pickle.dumps(value))

    def remote(self, **options):
        assert options["max_restarts"] == options["max_task_retries"] == -1

        def of(kind):
            def make(*arguments):
                actor = kind(*arguments)
                for name in ("do", "build"):
                    method = functools.partial(functools.partial, getattr(actor, name))
                    setattr(actor, name, types.SimpleNamespace(remote=method))
                self.actors.append(actor)
                return actor

            return types.SimpleNamespace(remote=make)

        return of

    def wait(self, running, num_returns):
        return [running[-1]], running[:-1]

    def get(self, call):
        return [one() for one in call] if isinstance(call, list) else call()

    def kill(self, actor):
        self.killed.append(actor)

    def shutdown(self):
        self.stopped = True


def test_answers_come_in_order_from_as_many_workers_as_there_is_room_for(bert, batches, monkeypatch):
    expected = optin.score(bert, batches, recipe=RECIPE)
    stand_in = StandIn({"CPU": 3.0})
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    got = optin.score(bert, batches, recipe=RECIPE, engine="ray")
    assert len(stand_in.actors) == 3 and stand_in.killed == stand_in.actors and stand_in.stopped
    for name, curve in expected.curves.items():
        assert torch.equal(got.curves[name].cost, curve.cost)


@pytest.fixture
def stand_in(monkeypatch):
    one = StandIn({"CPU": 2.0})
    monkeypatch.setitem(sys.modules, "ray", one)
    return one


def test_a_cluster_that_does_not_start_is_said(bert, batches, stand_in):
    stand_in.init = lambda **_: (_ for _ in ()).throw(ConnectionError("nothing there"))
    with pytest.raises(InputError, match="ray start --head") as caught:
        optin.score(bert, batches, recipe=RECIPE, engine="ray")
    assert isinstance(caught.value.__cause__, ConnectionError)


@pytest.mark.parametrize("name", ["optin", "torch", "source"])
def test_workers_of_another_version_are_refused(name, bert, batches, stand_in, monkeypatch):
    monkeypatch.setattr(_Actor, "build", lambda self: {**build(), name: "0.0.1"})
    with pytest.raises(InputError, match=rf"has {name} 0\.0\.1 and this machine"):
        optin.score(bert, batches, recipe=RECIPE, engine="ray")
    assert stand_in.stopped


def test_workers_without_the_package_are_refused(bert, batches, stand_in, monkeypatch):
    def missing(self):
        raise ModuleNotFoundError("No module named 'optin'")

    monkeypatch.setattr(_Actor, "build", missing)
    with pytest.raises(InputError, match="No module named 'optin'. Install optin there"):
        optin.score(bert, batches, recipe=RECIPE, engine="ray")


ADDRESSES = ("", "here", "10.0.0.1", ":6379", "host:port", "host:99999999", "http://host:1", "ray://", "ray://a")


@pytest.mark.parametrize("address", [*ADDRESSES, "a b:1", "user:secret@host:1", "[::1", "127.0.0.1:0", "x" * 10_000])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(InputError, match="is no address of a Ray cluster|no Ray cluster answers"):
        check_address(address)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_is_refused_at_once(scheme, bert, batches, stand_in):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(InputError, match="no Ray cluster answers"):
            optin.score(bert, batches, recipe=RECIPE, engine="ray", address=address)


def test_an_address_where_something_else_listens_is_refused(bert, batches, stand_in, monkeypatch):
    monkeypatch.setattr(engines, "TIMEOUT", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match="no Ray cluster answers"):
            optin.score(bert, batches, recipe=RECIPE, engine="ray", address=address)


def test_no_cluster_of_this_machine_is_said(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(InputError, match="none runs on this machine"):
        check_address("auto")


@pytest.mark.filterwarnings("ignore")  # of Ray and its processes
def test_a_cluster_that_is_started_here_is_reached_from_here_alone(tmp_path):
    """Every port that Ray opens is on the loopback address, and asks for a token."""
    pytest.importorskip("ray")
    program = (
        "import torch\n"
        "from optin.scoring.engines import Ray\n"
        "torch.set_num_threads(1)\n"
        "def listening():\n"
        "    rows = [line.split() for name in ('tcp', 'tcp6') for line in open(f'/proc/net/{name}')]\n"
        "    return {(row[1].rpartition(':')[0], row[9]) for row in rows if row[3] == '0A'}\n"
        "before = listening()\n"
        "class Work:\n"
        "    def __call__(self):\n"
        "        return listening()\n"
        "(found,) = Ray()(Work(), [()])\n"
        "print({address for address, _ in found - before})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    assert ast.literal_eval(done.stdout.strip().splitlines()[-1]) <= loopback


def test_engines_that_cannot_be_had(bert, batches, monkeypatch):
    assert engine("local") is local
    with pytest.raises(InputError, match="unknown engine 'rai'. Known: local, ray"):
        engine("rai")
    with pytest.raises(InputError, match="--engine ray"):
        engine("local", "auto")
    with pytest.raises(InputError, match="no work for many machines"):
        optin.score(bert, batches, recipe=Recipe(criterion="magnitude"), engine="ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DependencyError, match=r"optin\[ray\]"):
        optin.score(bert, batches, recipe=RECIPE, engine="ray")

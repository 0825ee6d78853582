"""The Flower app: in one process, through a Grid of our own. Simulation and deployment: tests/test_flower_live.py."""

import itertools
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.object_ref import validate
from flwr.supercore.task_identity import TaskIdentity
from typer.testing import CliRunner

import tiny
from federation import recorded
from program import Program
from scalarfl import InputError, Ledger, Replica, replay
from scalarfl.cli.commands import app as commands
from scalarfl.experiment import recipe as recipes, run as runs
from scalarfl.experiment.prepare import prepare
from scalarfl.ledger.codec import claims
from scalarfl.protocol import rounds
from scalarfl.protocol.messages import SAY_HELLO, Failed
from scalarfl.transports.flower import clientapp, envelope, grid as grids, project, resident, serverapp, worker
from support import command

DIGITS = [
    "model.name=mlp", "task.name=digits", "federation.clients=4", "federation.sampled=2", "federation.rounds=12",
    "method.lr=1e-2",
]  # fmt: skip
Lose = Callable[[int, str], str]
"""(number of the message, its kind) -> what becomes of it: "", "lost", "twice", "late" or "error"."""


class OwnGrid(Grid):
    """Nodes in this process. Every reply is there at the next pull, unless ``lose`` says otherwise."""

    def __init__(self, nodes: dict[int, Context], lose: Lose = lambda _number, _kind: "") -> None:
        self.nodes = nodes
        self.lose = lose
        self.sent = 0
        self.kinds: list[str] = []
        self._held: dict[str, list[Message]] = {}
        self._late: dict[str, float] = {}

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *_args: Any, **_more: Any) -> Message:
        raise NotImplementedError  # deprecated: messages are made by their class

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        self.sent += 1
        self.kinds.append(message.metadata.message_type)
        identifier = str(self.sent)
        message.metadata.__dict__["_message_id"] = identifier
        assert message.metadata.ttl > 0
        fate = self.lose(self.sent, message.metadata.message_type)
        if fate == "error":
            self._held[identifier] = [Message(Error(code=0, reason="the ClientApp crashed"), reply_to=message)]
        elif fate != "lost" and message.metadata.dst_node_id in self.nodes:
            context = self.nodes[message.metadata.dst_node_id]
            answers = [clientapp.app(message, context) for _ in range(2 if fate == "twice" else 1)]
            assert len({envelope.content(answer) for answer in answers}) == 1, "the same message, the same answer"
            self._held[identifier] = answers[:1]
            if fate == "late":
                self._late[identifier] = time.monotonic() + 3
        return identifier

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        now = time.monotonic()
        here = [one for one in message_ids if self._late.get(one, now) <= now]
        return list(itertools.chain.from_iterable(self._held.pop(one, []) for one in here))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(grids, "PAUSE", 0.0)
    monkeypatch.setattr(grids, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(resident, "_alone", None)
    for what in ("_run_id", "_node_id", "_task_id"):  # Flower's processes know who they are
        monkeypatch.setattr(TaskIdentity, what, 1)
    log, silent = logging.getLogger("scalarfl"), logging.NullHandler()
    log.addHandler(silent)  # so that the apps leave the log to pytest
    yield
    log.removeHandler(silent)


def config(tmp_path: Path, overrides: list[str] = DIGITS, **own: Any) -> dict[str, Any]:
    """The run config of an app that ``init`` writes."""
    made = tmp_path / "app"
    if not made.exists():
        project.write(made, recipes.load(None, overrides), "digits")
    tables = tomllib.loads((made / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    flat = {f"{section}.{key}": value for section, table in tables.items() for key, value in table.items()}
    return flat | {"flower.out": str(tmp_path / "out")} | {f"flower.{key}": value for key, value in own.items()}


def context(run_config: dict[str, Any], node: dict[str, Any], run: int = 7) -> Context:
    return Context(run, 1, node, RecordDict(), run_config)


def grid(tmp_path: Path, run_config: dict[str, Any], lose: Lose = lambda _number, _kind: "", run: int = 7) -> OwnGrid:
    home = str(tmp_path / "home")
    nodes = {
        100 + index: context(run_config, {"partition-id": index, "folder": home}, run)
        for index in range(int(run_config["federation.clients"]))
    }
    return OwnGrid(nodes, lose)


def serve(made: Grid, run_config: dict[str, Any]) -> None:
    serverapp.app(made, context(run_config, {}))


def ended(tmp_path: Path, overrides: list[str]) -> tuple[str, bytes]:
    """Digest and trail of the replica that the ledger rebuilds."""
    recipe = recipes.load(None, overrides)
    prepared = prepare(recipe)
    replica = Replica(prepared.model, recipe.method.scalar_only, prepared.trainable, noise=recipe.config.generator)
    with Ledger.open(tmp_path / "out" / "ledger.sqlite") as ledger:
        assert ledger.rounds == recipe.federation.rounds
        replica.begin(ledger.header.digest())
        replay(replica, ledger)
        assert replica.trail == ledger.trail
    return replica.digest(), replica.trail


def simulated(overrides: list[str]) -> tuple[str, bytes]:
    """The same of the same recipe in simulation."""
    found = runs.start(prepare(recipes.load(None, overrides)))
    return found.digest, found.replica.trail


def test_200_rounds_end_with_the_simulation_s_digest(tmp_path: Path) -> None:
    own = [*DIGITS, "federation.rounds=200"]
    made = config(tmp_path, own)
    through = grid(tmp_path, made)
    serve(through, made)
    assert ended(tmp_path, own) == simulated(own)
    assert through.kinds == ["query"] * 4 + ["train"] * 400  # a message a client and round


@pytest.mark.parametrize(
    "extra",
    [
        ["method.directions=per-client", "federation.local_steps=2"],
        ["method.name=decomfl", "method.directions=per-example"],
        ["method.name=hizoo"],
    ],
)
def test_other_recipes_too(tmp_path: Path, extra: list[str]) -> None:
    made = config(tmp_path, [*DIGITS, *extra])
    serve(grid(tmp_path, made), made)
    assert ended(tmp_path, [*DIGITS, *extra]) == simulated([*DIGITS, *extra])


def test_a_language_model_with_lora(tmp_path: Path, tiny_models: dict[str, Path], sst2: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(tiny.recipe(tiny_models["opt"], sst2, federation_rounds=3, model_trainable="lora"))
    project.write(tmp_path / "app", recipes.load(file), "language")
    made = config(tmp_path)
    serve(grid(tmp_path, made), made)
    assert ended(tmp_path, project.overrides(made)) == simulated(project.overrides(made))


def test_lost_repeated_and_failed_messages_change_nothing(tmp_path: Path) -> None:
    fates = {3: "lost", 5: "error", 6: "twice", 9: "lost", 12: "error", 14: "lost", 15: "twice", 17: "lost"}
    made = config(tmp_path, again=0.05)
    through = grid(tmp_path, made, lambda number, _kind: fates.get(number, ""))
    serve(through, made)
    assert ended(tmp_path, DIGITS) == simulated(DIGITS)
    assert through.sent == 4 + 24 + 6  # six were pushed again


def test_a_reply_that_comes_late_stands_for_no_other(tmp_path: Path) -> None:
    own = [*DIGITS, "federation.rounds=60"]
    made = config(tmp_path, own, deadline=2.0, again=60.0)
    through = grid(tmp_path, made, lambda number, _kind: "late" if number in (8, 13) else "")
    serve(through, made)
    with Ledger.open(tmp_path / "out" / "ledger.sqlite") as ledger:
        short = [round_ for round_, audit in ledger.audits("round") if len(audit.participants) < 2]
        assert not [audit.rejected for _, audit in ledger.audits("round") if audit.rejected]
    assert {1, 4} <= set(short)
    assert ended(tmp_path, own)


def test_clients_measure(tmp_path: Path) -> None:
    own = [*DIGITS, "evaluation.by=clients", "evaluation.every=6"]
    made = config(tmp_path, own)
    through = grid(tmp_path, made)
    serve(through, made)
    found = runs.start(prepare(recipes.load(None, own)))
    with Ledger.open(tmp_path / "out" / "ledger.sqlite") as ledger:
        assert [(e.round, e.accuracy, e.digest) for e in ledger.evaluations()] == [
            (e.round, e.accuracy, e.digest) for e in found.evaluations
        ]
    assert through.kinds.count("evaluate") == 3 * 4
    exported = CliRunner().invoke(commands, ["export", str(tmp_path / "out"), str(tmp_path / "model")])
    assert exported.exit_code == 0, exported.output
    assert list((tmp_path / "model").iterdir())


def test_started_again_it_goes_on_where_the_ledger_ends(tmp_path: Path) -> None:
    made = config(tmp_path, [*DIGITS, "federation.rounds=5"])
    serve(grid(tmp_path, made), made)
    more = made | {"federation.rounds": 12}
    again = grid(tmp_path, more, run=8)
    serve(again, more)
    assert ended(tmp_path, DIGITS) == simulated(DIGITS)
    assert again.kinds.count("train") == 2 * 7
    finished = grid(tmp_path, more, run=9)
    serve(finished, more)
    assert finished.sent == 0
    with pytest.raises(InputError, match=r"cannot resume: method.mu is 0.5 now, the run on record has 0.001"):
        serve(finished, more | {"method.mu": 0.5})


def test_a_ledger_begun_anew_takes_clients_that_applied_another(tmp_path: Path) -> None:
    """They are told to begin afresh, and end where everybody ends."""
    made = config(tmp_path)
    serve(grid(tmp_path, made), made)
    other = made | {"method.lr": 3e-2, "flower.out": str(tmp_path / "other")}
    serve(grid(tmp_path, other, run=8), other)
    (tmp_path / "out").rename(tmp_path / "first")
    (tmp_path / "other").rename(tmp_path / "out")
    assert ended(tmp_path, [*DIGITS, "method.lr=3e-2"]) == simulated([*DIGITS, "method.lr=3e-2"])


def test_a_client_without_its_snapshot_is_sent_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = config(tmp_path)
    through = grid(tmp_path, made)

    def lose(number: int, _kind: str) -> str:
        if number in (10, 11, 20):  # whoever is asked next has lost everything
            for file in (tmp_path / "home").rglob("*.safetensors"):
                file.unlink()
            monkeypatch.setattr(resident, "_alone", None)
        return ""

    through.lose = lose
    serve(through, made)
    assert ended(tmp_path, DIGITS) == simulated(DIGITS)
    assert through.kinds.count("train") > 24


def test_a_diverged_federation_ends_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = [*DIGITS, "method.name=decomfl", "method.lr=1e29", "federation.rounds=100"]
    made = config(tmp_path, own, deadline=60.0)
    with caplog.at_level("WARNING", "scalarfl"):
        serve(grid(tmp_path, made), made)
    assert "the run diverged: no client had a finite loss any more" in caplog.text
    assert recorded(tmp_path / "out" / "ledger.sqlite") == runs.start(prepare(recipes.load(None, own))).rounds < 20


def test_who_is_gone_is_waited_for_once_and_who_comes_back_takes_part(tmp_path: Path) -> None:
    own = [*DIGITS, "federation.rounds=30"]
    made = config(tmp_path, own, deadline=2.0, again=0.2)
    through = grid(tmp_path, made)
    gone = {}

    def lose(_number: int, _kind: str) -> str:
        done = recorded(tmp_path / "out" / "ledger.sqlite")
        if done == 3 and 101 in through.nodes:
            gone[101] = through.nodes.pop(101)
        if done == 12 and gone:
            through.nodes[201] = gone.pop(101)  # another node with the same client
        return ""

    through.lose = lose
    began = time.monotonic()
    serve(through, made)
    assert time.monotonic() - began < 60  # of nine rounds without it, one waited
    with Ledger.open(tmp_path / "out" / "ledger.sqlite") as ledger:
        asked = [round_ for round_, audit in ledger.audits("round") if "client-0001" in audit.cohort]
        told = [round_ for round_, audit in ledger.audits("round") if len(audit.participants) == len(audit.cohort)]
    assert ended(tmp_path, own)
    assert not [round_ for round_ in asked if 4 <= round_ < 12]
    assert [round_ for round_ in asked if round_ > 12]
    assert len(told) >= 20


def test_too_few_clients_are_waited_for_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rounds, "SAY_AFTER", 0.2)
    made = config(tmp_path, deadline=60.0)

    class Late(OwnGrid):
        def get_node_ids(self) -> list[int]:
            return list(self.nodes)[: None if "waiting for clients: 1 of 4" in caplog.text else 1]

    through = Late(grid(tmp_path, made).nodes)
    with caplog.at_level("INFO", "scalarfl"):
        serve(through, made)
    assert "waiting for 4 clients (a simulation of Flower's has as many as --federation-config num-super" in caplog.text
    assert ended(tmp_path, DIGITS) == simulated(DIGITS)


def test_nobody_may_take_a_connected_client_s_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = config(tmp_path)
    through = grid(tmp_path, made)
    through.nodes[105] = through.nodes[100]
    with caplog.at_level("WARNING", "scalarfl"):
        serve(through, made)
    assert "node 105: refused: it says that it is 'client-0000', who is at node 100" in caplog.text
    assert ended(tmp_path, DIGITS) == simulated(DIGITS)


def test_records_that_are_not_ours_are_named_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = config(tmp_path, again=0.05)

    class Strange(OwnGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            found = super().pull_messages(message_ids)
            for message in found:
                if self.sent == 8:
                    message.content = RecordDict({"other": ConfigRecord({"a": 1})})
            return found

    plain = grid(tmp_path, made)
    with caplog.at_level("WARNING", "scalarfl"):
        serve(Strange(plain.nodes), made)
    assert "a message without the record 'scalarfl'" in caplog.text
    assert ended(tmp_path, DIGITS) == simulated(DIGITS)


def test_a_worker_answers_and_a_killed_one_is_replaced(tmp_path: Path) -> None:
    """Real workers: one is killed and started again; its client goes on, with one digest in the end."""
    own = [*DIGITS, "federation.clients=2", "federation.rounds=8"]
    made = config(tmp_path, own, again=0.5)
    through = grid(tmp_path, made)
    home = Path(tempfile.mkdtemp(prefix="flower-"))  # a socket's name must be short
    for node in through.nodes.values():
        node.node_config["folder"] = str(home)
    workers = [begin_worker(home, f"client-{index:04d}") for index in range(2)]

    def lose(_number: int, _kind: str) -> str:
        if recorded(tmp_path / "out" / "ledger.sqlite") == 4 and len(workers) == 2:
            workers[0].kill()
            workers[0].communicate()
            workers.append(begin_worker(home, "client-0000"))
        return ""

    through.lose = lose
    try:
        serve(through, made)
        assert resident._alone is None  # nobody was answered in this process
        second = command("flower", "worker", "client-0001", "--folder", str(home))
        assert (second.returncode, "another worker for 'client-0001' is running" in second.stderr) == (2, True)
    finally:
        for one in workers:
            one.terminate()
            one.communicate(timeout=30)
    assert ended(tmp_path, own) == simulated(own)
    assert not (envelope.client_folder(str(home), "client-0001") / envelope.SOCKET).exists()
    shutil.rmtree(home)


def begin_worker(home: Path, client: str) -> Program:
    started = Program("flower", "worker", client, "--folder", str(home))
    while started.poll() is None:
        if started.error.exists() and "listens at" in started.error.read_text():
            return started
        time.sleep(0.02)
    raise AssertionError(f"the worker of {client} did not start: {started.communicate()}")


def test_the_client_app_and_the_server_app_need_no_model() -> None:
    for module in ("clientapp", "serverapp"):
        code = (
            f"import sys, scalarfl.transports.flower.{module}; "
            "print([m for m in ('torch', 'transformers') if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout.strip() == "[]"


def test_flower_accepts_the_app(tmp_path: Path) -> None:
    from flwr.cli.config_utils import load_and_validate

    done = CliRunner().invoke(commands, ["flower", "init", str(tmp_path / "digits-app")])
    assert done.exit_code == 0, done.output
    found, warnings = load_and_validate(tmp_path / "digits-app" / "pyproject.toml")
    assert not warnings
    for component in found["tool"]["flwr"]["app"]["components"].values():
        assert validate(component, project_dir=tmp_path) == (True, None)
    assert "--federation-config num-supernodes=10" in done.output
    again = CliRunner().invoke(commands, ["flower", "init", str(tmp_path / "digits-app")])
    assert isinstance(again.exception, InputError)
    assert "already exists" in str(again.exception)


def test_flower_installs_the_app_without_an_index(tmp_path: Path) -> None:
    """As SuperLink and SuperNodes do before each run, with Flower's own function; they end with 608 where it fails."""
    project.write(tmp_path / "app", recipes.load(None, DIGITS), "app")
    code = (
        "from flwr.supercore.superexec.dependency_installer import install_app_dependencies as install\n"
        f"import scalarfl; before = scalarfl.__file__; install({str(tmp_path / 'app')!r})\n"
        "import importlib; assert importlib.reload(scalarfl).__file__ == before"
    )
    offline = {"UV_OFFLINE": "1", "FLWR_HOME": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_system_without_unix_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(InputError, match="without one"):
        worker.work(resident.Resident("a", tmp_path))


@pytest.mark.parametrize(
    "overrides",
    [
        DIGITS,
        [*DIGITS, "model.hidden=[64, 32]", "model.trainable=['0.*']"],
        [*DIGITS, 'model.trainable={ sparse = 0.5, of = "largest" }', "method.name=hiso-scalar", "method.floor=0"],
        ["model.name=roberta-base", "task.name=sst2", "model.trainable=lora", "task.data_dir=/data with space"],
    ],
)
def test_a_recipe_survives_the_run_config(tmp_path: Path, overrides: list[str]) -> None:
    recipe = recipes.load(None, overrides)
    assert recipes.load(None, project.overrides(config(tmp_path, overrides))) == recipe


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"flower.deadlin": 3.0}, "run config flower.deadlin: no such key; did you mean 'deadline'?"),
        ({"flower.deadline": "soon"}, "run config flower.deadline = 'soon': it should be a float"),
        ({"flower.again": 0}, "run config flower.again = 0: it should be more than 0"),
        ({"flower.name": "../../elsewhere"}, "run config flower.name = '../../elsewhere': accepted are"),
        ({"method.name": "hizo"}, "did you mean 'hizoo'?"),
    ],
)
def test_a_wrong_run_config_is_refused(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    made = config(tmp_path) | changed
    with pytest.raises(InputError) as error:
        serve(grid(tmp_path, made), made)
    assert says in str(error.value)


def test_the_page_names_every_key() -> None:
    page = (Path(__file__).parent.parent / "docs" / "flower.md").read_text()
    for key in project.settings({}):
        assert f"`flower.{key}`" in page
    for option in ("client", "folder", "data", "partition-id"):
        assert f"`{option}`" in page


def test_wrong_nodes_are_refused(tmp_path: Path) -> None:
    made = config(tmp_path)
    message = Message(envelope.packed(SAY_HELLO), 1, "query")
    with pytest.raises(InputError, match="this SuperNode has no name"):
        clientapp.app(message, context(made, {}))
    with pytest.raises(InputError, match="too long for a Unix socket"):
        worker.work(resident.Resident("a", tmp_path / ("x" * 100)))
    with pytest.raises(InputError, match="accepted are lower-case letters"):
        project.write(tmp_path / "new", recipes.load(None, DIGITS), "My App")
    stranger = clientapp.app(message, context(made, {"client": "nobody", "folder": str(tmp_path)}))
    assert claims(envelope.content(stranger), Failed)

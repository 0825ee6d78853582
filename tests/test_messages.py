"""What crosses the wire: sizes that do not depend on the model, and nothing malformed accepted."""

import contextlib

import msgspec
import numpy as np
import pytest
from hypothesis import given, strategies as st
from torch import nn

from scalarfl import Ledger, Probe, ProtocolError, Replica, Server, make_method
from scalarfl.ledger.codec import MAX_BYTES, decode, encode
from scalarfl.ledger.update import Update
from scalarfl.protocol.client import Client
from scalarfl.protocol.messages import Hello, HelloOtherwise, RoundReply, RoundTask, Welcome
from support import Office, cross_entropy, header, network, shards, updates

KINDS = [Update, Hello, HelloOtherwise, Welcome, RoundTask, RoundReply]


def wire(model: nn.Module, rounds: int = 3, **changes: int) -> tuple[list[int], list[int], int]:
    """Serialized sizes of all tasks and replies of a small federation, and the payload of one reply."""
    replica = Replica(model, make_method("hiso"))
    head = header(replica, **changes)
    ledger = Ledger.create(None, head)
    replica.begin(head.digest())
    server, probe = Server(ledger, lr=1e-2, sampled=2), Probe(replica, cross_entropy)
    clients = {f"c{i}": Client(f"c{i}", data, probe, head, 8) for i, data in enumerate(shards(3))}
    sizes = [len(client.hello()) for client in clients.values()]
    for client in clients.values():
        server.admit(client.hello())
    down, payload = [], 0
    for _ in range(rounds):
        tasks = server.open_round(list(clients))
        replies = {name: clients[name].answer(task) for name, task in tasks.items()}
        down += [len(task) for task in tasks.values()]
        sizes += [len(reply) for reply in replies.values()]
        payload = len(decode(next(iter(replies.values())), RoundReply).scalars)
        replica.apply([server.close_round(replies.items())])
    return down, sizes, payload


@pytest.mark.parametrize(("local_steps", "perturbations"), [(1, 5), (3, 4)])
def test_messages_of_two_models_of_very_different_size_are_equally_long(local_steps: int, perturbations: int) -> None:
    small, large = (
        wire(network(width=width), local_steps=local_steps, perturbations=perturbations) for width in (3, 3000)
    )
    assert small == large
    assert small[2] == 4 * local_steps * perturbations


def test_a_client_round_at_p_5_takes_few_bytes() -> None:
    down, up, payload = wire(network(), perturbations=5)
    assert payload == 20
    assert max(up) < 100
    assert max(down) < 250


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.binary(max_size=200))
def test_noise_is_refused_with_a_sentence(kind: type[msgspec.Struct], data: bytes) -> None:
    try:
        message = decode(data, kind)
    except ProtocolError as error:
        text = str(error)
    else:
        text = f"not a valid guess: {encode(message)!r}"  # a lucky one
    assert text.startswith("not a valid")


@given(st.integers(0, 200), st.integers(0, 7))
def test_a_flipped_bit_in_an_update_is_refused_or_gives_another_update(place: int, bit: int) -> None:
    update = updates(1)[0]
    data = bytearray(encode(update))
    data[place % len(data)] ^= 1 << bit
    with contextlib.suppress(ProtocolError):
        assert decode(bytes(data), Update) != update


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(encode(Welcome(1, 3)), id="another kind"),
        pytest.param(encode(updates(1)[0])[:-1], id="cut short"),
        pytest.param(encode(updates(1)[0]) + b"\0", id="something behind"),
        pytest.param(msgspec.msgpack.encode([1, 0, 1, 0.1, 1, [0], b"\0" * 5]), id="not whole float32 values"),
        pytest.param(msgspec.msgpack.encode([1, 0, 1, 0.1, 2, [0], b"\0" * 4]), id="scalars do not fit the steps"),
        pytest.param(msgspec.msgpack.encode([1, 0, 1, 0.1, 1, [0, 0], b"\0" * 8]), id="a slot twice"),
        pytest.param(msgspec.msgpack.encode([1, 0, 1, 0.1, 1, [], b"\0" * 4]), id="scalars without slots"),
        pytest.param(msgspec.msgpack.encode([1, 0, 1, 0.1, 1, [0], b""]), id="slots without scalars"),
        pytest.param(msgspec.msgpack.encode([1, -1, 1, 0.1, 1, [0], b"\0" * 4]), id="a negative round"),
        pytest.param(msgspec.msgpack.encode([1, 0, 1, float("nan"), 1, [0], b"\0" * 4]), id="lr NaN"),
        pytest.param(
            msgspec.msgpack.encode([1, 0, 1, 0.1, 1, [0], np.array([np.inf], np.float32).tobytes()]),
            id="a scalar infinite",
        ),
        pytest.param(b"\0" * (MAX_BYTES + 1), id="too long"),
    ],
)
def test_wrong_updates_are_refused(wrong: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(wrong, Update)


def test_an_update_round_trips() -> None:
    for update in updates(4, local_steps=2, slots=(0, 2)):
        again = decode(encode(update), Update)
        assert again == update
        assert again.coefficients == update.coefficients
        assert again.perturbations == update.perturbations
    assert updates(1, slots=(0, 2))[0].perturbations == (0, 1, 2, 6, 7, 8)
    assert updates(1)[0].payload == 4 * 3 + 8


def test_the_trail_is_what_every_replica_computes() -> None:
    office = Office()
    office.greet()
    for _ in range(3):
        office.round()
    replica = office.replicas[0]
    replica.apply(list(office.ledger.updates(replica.position)))
    assert replica.trail == office.ledger.trail == office.ledger.trail_at(3)

"""A contract that every method keeps, and each method's own equations."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
import torch

from scalarfl import (
    METHODS,
    DeComFL,
    HiSo,
    HiSoScalar,
    InputError,
    LocalStep,
    Method,
    Probe,
    Replica,
    make_method,
    simulate,
)
from scalarfl.ledger.codec import pack, unpack
from scalarfl.methods import FeedSign, Fzoo, HiSoFrozen, HiZOO, Meazo, Momentum, State, square_root
from scalarfl.model.probe import LossQuery
from scalarfl.noise import directions
from scalarfl.noise.kernels import REFERENCE, Kernels, best
from scalarfl.noise.seeds import derive
from scalarfl.testing.methods import contract, moves
from support import Office, cross_entropy, examples, network, score, shards, updates


class HiSoFzoo(Fzoo, HiSo):
    """HiSo's directions, FZOO's step: two parents and a name."""

    name: ClassVar[str] = "hiso-fzoo"


class HiSoMomentum(HiSo, Momentum):
    """HiSo's directions, momentum's step, in the other order."""

    name: ClassVar[str] = "hiso-momentum"
    vectors: ClassVar[int] = 2


KINDS: list[type[Method]] = [*METHODS.values(), HiSoFzoo, HiSoMomentum]
every_method = pytest.mark.parametrize("method", [pytest.param(kind(), id=kind.name) for kind in KINDS])
TestEveryMethod = contract(*(kind() for kind in KINDS))


class Point(torch.nn.Module):
    """Three coordinates."""

    def __init__(self) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))


def quadratic(model: torch.nn.Module, _batch: object) -> torch.Tensor:
    x = next(model.parameters()).detach().double()
    return (x * x * torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)).sum() / 2


POINTLESS = [torch.utils.data.TensorDataset(torch.zeros(4))]
"""Data that the quadratic does not look at."""


def test_momentum_by_hand() -> None:
    method = Momentum(beta=0.75)
    state = method.init(torch.zeros(2))
    for dx, expected in (([4.0, 8.0], [1.0, 2.0]), ([0.0, -8.0], [0.75, -0.5])):
        move = LocalStep(torch.tensor(dx), (1.0,), 0, 1)
        state = method.learn(state, move)
        assert method.step(state, move).tolist() == expected


def test_meazo_by_hand() -> None:
    """Scalars 3 and 5, then 1 and 1: mean squares 17 and 1, corrected for the start as Adam's are."""
    method = Meazo(beta=0.5, eps=0.0)
    state = method.init(torch.zeros(1))
    for scalars, mean in (((3.0, 5.0), 17.0), ((1.0, 1.0), (0.25 * 17 + 0.5) / 0.75)):
        move = LocalStep(torch.tensor([2.0]), [g / 2 for g in scalars], 0, 1)
        state = method.learn(state, move)
        assert method.step(state, move).item() == pytest.approx(2 / mean**0.5, rel=1e-6)


def test_fzoo_by_hand() -> None:
    """Scalars 1, 2, 6: mean 3, unbiased deviation sqrt((4 + 1 + 9) / 2); the same whatever the losses' scale."""
    for factor in (1.0, 100.0):
        move = LocalStep(torch.tensor([3.0 * factor]), [g * factor / 3 for g in (1, 2, 6)], 0, 1)
        assert Fzoo().step({}, move).item() == pytest.approx(3 / 7**0.5, rel=1e-6)
    assert Fzoo().step({}, LocalStep(torch.ones(1), [0.5, 0.5], 0, 1)).item() == 0
    with pytest.raises(InputError, match="'fzoo' needs at least 2 directions"):
        simulate(network(), shards(), cross_entropy, method="fzoo", perturbations=1, rounds=1)


def test_feedsign_by_hand() -> None:
    """Whatever the scalars' size: two directions up, one down, one undecided."""
    assert FeedSign().weights([1e-9, 3.0, -0.5, 0.0]) == (0.25, 0.25, -0.25, 0.0)


@pytest.mark.parametrize("local_steps", [1, 2])
def test_a_rule_that_weighs_moves_as_the_same_rule_on_weighed_scalars(local_steps: int) -> None:
    """By every way of replay, and in mid-round."""

    class Signs(HiSo):
        def weigh(self, coefficients: Sequence[float]) -> Sequence[float]:
            return FeedSign().weigh(coefficients)

    for own, plain in ((FeedSign(), DeComFL()), (Signs(), HiSo())):
        rounds = updates(5, local_steps=local_steps, directions=4)
        signs = [msgspec.structs.replace(u, scalars=pack(np.sign(unpack(u.scalars)))) for u in rounds]
        for kernels in (None, REFERENCE):
            weighed, expected = (Replica(network(), method, kernels=kernels) for method in (own, plain))
            weighed.apply(rounds)
            expected.apply(signs)
            assert weighed.digest() == expected.digest()
            walks = [((0.5, -2.0, 1.0, 0.0),) * local_steps, ((0.25, -0.25, 0.25, 0.0),) * local_steps]
            losses = [
                Probe(replica, cross_entropy).losses(
                    [LossQuery(3, 0.1, 1e-3, walk, range(4), examples(8).batch(range(8)))]
                )
                for replica, walk in zip((weighed, expected), walks, strict=True)
            ]
            assert losses[0] == losses[1]


def test_a_preconditioner_and_a_step_rule_compose() -> None:
    """H learns as HiSo's does, the step is FZOO's; the kernel for HiSo's displacement stays in use."""
    method = HiSoFzoo(nu=0.1)
    assert (method.kernel("displace"), method.kernel("carry")) == ("displace_hessian", None)
    assert (method.vectors, method.directions, method.plain) == (1, 2, False)
    coefficients = (0.5, -0.25, 0.125)
    state = method.init(torch.zeros(3))
    move = LocalStep(torch.tensor([1.0, -2.0, 0.5]), coefficients, 0, 1)
    after = method.learn(state, move)
    assert torch.equal(after["hessian"], HiSo(nu=0.1).learn(state, move)["hessian"])
    assert torch.equal(method.step(after, move), Fzoo().step({}, move))


def test_a_setting_of_two_parents_must_be_declared_anew() -> None:
    with pytest.raises(InputError, match="Both: 'eps' is a setting of Meazo and of HiSo; declare it in Both"):

        class Both(Meazo, HiSo):
            name: ClassVar[str] = "both"

    class Said(Meazo, HiSo):
        name: ClassVar[str] = "said"
        eps: float = 1e-6

    assert Said().model_dump().keys() == {"nu", "eps", "hessian_update", "floor", "beta"}


def test_hiso_frozen_is_hiso_and_then_keeps_its_hessian() -> None:
    def hessian(method: Method, rounds: int) -> torch.Tensor:
        run = simulate(network(), shards(), cross_entropy, method=method, rounds=rounds)
        return torch.cat([state["hessian"].view(-1) for state in run.replica.state])

    frozen = HiSoFrozen(warmup=4)
    assert torch.equal(hessian(frozen, 4), hessian(HiSo(), 4))
    assert torch.equal(hessian(frozen, 9), hessian(HiSo(), 4))
    first = simulate(network(), shards(), cross_entropy, method=HiSoFrozen(warmup=0), rounds=5)
    plain = simulate(network(), shards(), cross_entropy, method="decomfl", rounds=5)
    assert all(torch.equal(a, b) for a, b in zip(first.replica.tensors, plain.replica.tensors, strict=True))


def test_hizoo_follows_its_equations_on_a_quadratic() -> None:
    """There slope and second difference are known: z'Ax and z'Az."""
    curvatures, start = torch.tensor([1.0, 10.0, 100.0]), torch.tensor([1.0, -2.0, 3.0])
    method = HiZOO(alpha=0.1)
    run = simulate(Point(), POINTLESS, quadratic, method=method, mu=0.5, lr=1e-4, rounds=2, perturbations=2)
    assert run.forward_passes == 2 * 5
    x, h = start.double(), torch.ones(3, dtype=torch.float64)
    for round_ in range(2):
        seed = derive(0, "directions", round_)
        u = torch.stack([directions.noise(seed, 0, p, 0, 3) for p in range(2)]).double()
        z = u / h.sqrt()
        x = x - 1e-4 * ((z @ (curvatures * x))[:, None] * z).mean(0)
        bend = (((z * z) @ curvatures.double())[:, None] * u * u).mean(0)
        h = 0.9 * h + 0.1 * bend.abs() * h / 2
    assert torch.allclose(run.replica.tensors[0].double(), x, rtol=1e-5)
    assert torch.allclose(run.replica.state[0]["hessian"].double(), h, rtol=1e-5)
    with pytest.raises(InputError, match="'hizoo' learns from second differences; leave the key out"):
        simulate(Point(), POINTLESS, quadratic, method="hizoo", difference="central", rounds=1)


def test_hizoo_keeps_h_between_its_bounds() -> None:
    method = HiZOO(alpha=1.0, floor=0.5, ceiling=8.0)
    for bend, expected in ((0.0, 0.5), (1e30, 8.0), (-3.0, 1.5)):
        move = LocalStep(torch.zeros(1), (0.0,), 0, 1, torch.tensor([bend]))
        assert method.learn(method.init(torch.zeros(1)), move)["hessian"].item() == expected


def test_second_differences_ride_along_with_any_rule() -> None:
    """DeComFL asked for them moves as it does by central differences, and its replies are twice as long."""
    runs = [
        simulate(network(), shards(), cross_entropy, method="decomfl", difference=difference, rounds=5)
        for difference in ("central", "second")
    ]
    assert all(torch.equal(a, b) for a, b in zip(*(run.replica.tensors for run in runs), strict=True))


def test_hiso_learns_from_the_steps_it_is_told_to() -> None:
    like = torch.zeros(3)
    found = {}
    for which in ("first", "last", "all"):
        method = HiSo(hessian_update=which)
        state = method.init(like)
        seen = [
            not torch.equal((after := method.learn(state, move))["hessian"], state["hessian"])
            for move in moves(like, 3)
        ]
        found[which] = seen
        assert after is not None
    assert found == {"first": [True, False, False], "last": [False, False, True], "all": [True, True, True]}


@every_method
def test_contract_initial_direction_is_the_noise(method: Method) -> None:
    scale = method.scale(method.init(torch.zeros(5)))
    assert scale is None or bool((scale == 1).all())


@every_method
@pytest.mark.parametrize("directions", ["shared", "per-client"])
@pytest.mark.parametrize("local_steps", [1, 3])
def test_contract_replicas_agree_after_rounds(method: Method, directions: str, local_steps: int) -> None:
    """Three clients with replicas of their own, each round probing for itself, end with one digest."""
    office = Office(method=method, directions=directions, local_steps=local_steps, sampled=2)
    office.greet()
    for _ in range(5):
        office.round()
    for replica in office.replicas:
        replica.apply(list(office.ledger.updates(replica.position)))
    assert len({replica.digest() for replica in office.replicas}) == 1
    assert office.replicas[0].digest() != Replica(network(), method).digest()


@every_method
def test_contract_it_learns(method: Method) -> None:
    run = simulate(
        network(), shards(), cross_entropy, method=method, lr=3e-2, rounds=300, evaluate=score, evaluate_every=300
    )
    assert run.evaluations[-1].loss < 0.95 * run.evaluations[0].loss


@pytest.mark.parametrize("twin", [HiSo(nu=0), HiSoScalar(nu=0)])
def test_hiso_with_h_held_at_one_is_decomfl_bit_for_bit(twin: Method) -> None:
    tensors = []
    for method in (twin, make_method("decomfl")):
        model = network()
        run = simulate(model, shards(), cross_entropy, method=method, lr=1e-2, rounds=40, local_steps=2, sampled=2)
        tensors.append(run.replica.tensors)
    assert all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


class Renamed(HiSo):
    """Changes nothing but what it is called."""

    name: ClassVar[str] = "renamed"


class Warm(HiSo):
    """Begins elsewhere, with another default: its rule is HiSo's."""

    nu: float = 0.2

    def init(self, like: torch.Tensor) -> State:
        return {"hessian": torch.full_like(like, 0.04)}


class Wider(HiSo):
    """Another direction."""

    def scale(self, state: State) -> torch.Tensor | None:
        return 2.0 / square_root(state["hessian"])


class Slower(HiSo):
    """Another estimate."""

    def learn(self, state: State, move: LocalStep) -> State:
        return {"hessian": super().learn(state, move)["hessian"] + 0.5}


class Doubled(HiSo):
    """Another step."""

    def step(self, state: State, move: LocalStep) -> torch.Tensor:  # noqa: ARG002
        return move.dx * 2.0


class Bystander:
    """Overrides from beside the line of descent."""

    def learn(self, state: State, _move: LocalStep) -> State:
        return state


class Mixed(Bystander, HiSo):
    """HiSo that never learns."""


@pytest.mark.parametrize(
    ("method", "displace", "carry"),
    [
        (HiSo(), True, True),
        (Renamed(), True, True),
        (Warm(), True, True),
        (HiSo(hessian_update="last"), True, True),
        (HiSo(hessian_update="all"), True, False),
        (HiSoFrozen(), True, False),
        (Slower(), True, False),
        (Mixed(), True, False),
        (Doubled(), True, False),
        (Wider(), False, False),
        (HiZOO(), True, False),
        (Momentum(), False, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Method) else str(value)[0],
)
def test_a_subclass_keeps_the_kernels_whose_functions_it_leaves_alone(
    method: Method, displace: bool, carry: bool
) -> None:
    """And with or without them its bits are those of its own functions, on the reference."""
    used: set[str] = set()

    def watched(name: str, kernel: Callable[..., Any]) -> Any:
        def call(*arguments: object, **more: object) -> Any:
            used.add(name)
            return kernel(*arguments, **more)

        return call

    fast = best(torch.device("cpu"))
    kernels = Kernels(*(watched(name, kernel) for name, kernel in zip(fast._fields, fast, strict=True) if kernel))
    outcomes = []
    for chosen in (kernels, REFERENCE):
        replica = Replica(network(), method, kernels=chosen)
        replica.apply(updates(5, local_steps=2, method=method))
        out = torch.empty(7)
        replica.displace(1, out, replica.tensors[1], 0, 5, 1, 0, 0.1)
        outcomes.append((replica.digest(), out.tolist()))
    assert outcomes[0] == outcomes[1]
    assert ("displace_hessian" in used, "carry_hessian" in used) == (displace, carry)


def test_hiso_follows_its_equations() -> None:
    """Against the equations in plain NumPy, float32, one operation at a time."""
    method, model = HiSo(nu=0.1, eps=1e-4), network()
    replica = Replica(model, method)
    x = [tensor.numpy().copy().ravel() for tensor in replica.tensors]
    h = [np.ones_like(part) for part in x]
    from scalarfl.noise.directions import noise

    for update in updates(6, local_steps=2):
        for part, hessian, address in zip(x, h, replica.layout.addresses, strict=True):
            if not update.slots:
                continue
            scale = np.float32(1) / np.sqrt(hessian)
            for step, row in enumerate(update.coefficients):
                combined = np.zeros_like(part)
                for q, c in zip(update.perturbations, row, strict=True):
                    combined += np.float32(c) * noise(update.seed, step, q, address, part.size).numpy()
                dx = combined * scale
                part -= dx * np.float32(update.lr)
                if step == 0:
                    newest = dx * dx + np.float32(1e-4)
                    learnt = hessian * np.float32(1 - 0.1) + newest * np.float32(0.1)
            hessian[:] = np.maximum(learnt, np.float32(method.floor))
    replica.apply(updates(6, local_steps=2))
    for tensor, expected in zip(replica.tensors, x, strict=True):
        assert tensor.numpy().ravel().tobytes() == expected.tobytes()
    for state, expected in zip(replica.state, h, strict=True):
        assert state["hessian"].numpy().ravel().tobytes() == expected.tobytes()


def test_the_square_root_is_correctly_rounded() -> None:
    bits = np.random.default_rng(0).integers(0x00800000, 0x7F800000, 200_000, dtype=np.uint32)
    x = np.concatenate([bits.view(np.float32), np.array([0, 1, 4, 1e-30], np.float32)])
    assert square_root(torch.from_numpy(x)).numpy().tobytes() == np.sqrt(x).tobytes()


@pytest.mark.parametrize("method", [HiSo, HiSoScalar])
def test_the_hessian_learns_from_the_chosen_local_step(method: type[HiSo] | type[HiSoScalar]) -> None:
    first, last = (method(hessian_update=which) for which in ("first", "last"))
    steps = moves(torch.zeros(4), 3)
    for chosen, index in ((first, 0), (last, 2)):
        state = chosen.init(torch.zeros(4))
        for move in steps:
            state = chosen.learn(state, move)
        alone = chosen.learn(chosen.init(torch.zeros(4)), steps[index])
        assert torch.equal(state["hessian"], alone["hessian"])
    digests = set()
    for chosen in (first, last):
        replica = Replica(network(), chosen)
        replica.apply(updates(4, local_steps=2))
        digests.add(replica.digest())
    assert len(digests) == 2


def test_the_scalar_twin_learns_the_mean_of_dx_squared() -> None:
    """Its closed form against the mean over 200,000 coordinates: within sampling error."""
    model = torch.nn.Linear(2000, 100, bias=False)
    torch.nn.init.zeros_(model.weight)
    scalar, exact = Replica(model, HiSoScalar(floor=0)), 1.0
    x = [scalar.tensors[0].clone()]
    for update in updates(8):
        scalar.apply([update])
        x.append(scalar.tensors[0].clone())
        if update.slots:
            dx = (x[-2] - x[-1]).double() / 1e-2
            exact = 0.95 * exact + 0.05 * (float((dx**2).mean()) + 1e-8)
    assert float(scalar.state[0]["hessian"]) == pytest.approx(exact, rel=0.01)


def test_the_floor_holds_through_400_rounds_of_zeros_and_training_goes_on() -> None:
    silent = [update for update in updates(400) if update]
    zeros = [type(update)(u.round, u.seed, u.lr, 1, [0], b"\0" * 12) for update, u in zip(silent, silent, strict=True)]
    for kind in (HiSo, HiSoScalar):
        with_floor, without = Replica(network(), kind()), Replica(network(), kind(floor=0))
        before = with_floor.digest()
        for replica in (with_floor, without):
            replica.apply(zeros)
        lowest = min(float(state["hessian"].min()) for state in with_floor.state)
        assert lowest == pytest.approx(with_floor.method.model_dump()["floor"])
        assert max(float(state["hessian"].max()) for state in without.state) < 1e-7
        assert 1e-3 / lowest**0.5 < 0.04  # mu / sqrt(H): the true perturbation
        assert with_floor.digest() != before  # H moved, the weights did not
        assert torch.equal(with_floor.tensors[0], network().get_parameter("0.weight"))


def test_the_floor_is_inert_in_an_ordinary_run() -> None:
    runs = [
        simulate(network(), shards(), cross_entropy, method=HiSo(floor=floor), lr=1e-2, rounds=200)
        for floor in (0, 1e-3)
    ]
    assert runs[0].replica.digest() == runs[1].replica.digest()


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("hizo", {}, "did you mean 'hizoo'?"),
        ("hiso", {"nuu": 0.1}, "did you mean 'nu'?"),
        ("hiso", {"nu": 2}, "less than or equal to 1"),
        ("hiso", {"nu": "0.1"}, "valid number"),
        ("hiso", {"hessian_update": "middle"}, "'first', 'last' or 'all'"),
        ("decomfl", {"nu": 0.1}, "it has no settings"),
    ],
)
def test_wrong_methods_and_settings_are_refused(name: str, settings: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match="method") as error:
        make_method(name, settings)
    assert says in str(error.value)


def test_central_differences_cancel_the_curvature() -> None:
    """On a quadratic a forward difference is off by mu/2 z'Hz; a central one is exact, and takes 2 P losses."""

    found = {}
    for difference in ("forward", "central"):
        run = simulate(
            Point(), POINTLESS, quadratic, method="decomfl", difference=difference, mu=0.5, lr=1e-3, rounds=1
        )
        assert run.forward_passes == {"forward": 6, "central": 10}[difference]
        found[difference] = run.replica.tensors[0] - torch.tensor([1.0, -2.0, 3.0])
    again = simulate(Point(), POINTLESS, quadratic, method="mezo", mu=0.5, lr=1e-3, rounds=1)
    assert torch.equal(again.replica.tensors[0] - torch.tensor([1.0, -2.0, 3.0]), found["central"])
    seed = derive(0, "directions", 0)
    u = torch.stack([directions.noise(seed, 0, p, 0, 3) for p in range(5)])
    expected = -1e-3 * ((u @ torch.tensor([1.0, -20.0, 300.0]))[:, None] * u).mean(0)
    assert torch.allclose(found["central"], expected, atol=1e-5)
    assert not torch.allclose(found["forward"], expected, atol=1e-2)

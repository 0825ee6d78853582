"""A replica: a model's trainable parameters, a method's state, and how far along the ledger they are."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scalarfl.errors import InputError, ProtocolError
from scalarfl.ledger.chain import link
from scalarfl.ledger.codec import encode
from scalarfl.ledger.update import CurvedUpdate, Update
from scalarfl.methods import LocalStep, Method, State
from scalarfl.model.digest import base_digest, digest_tensors
from scalarfl.model.selection import Trainable, select
from scalarfl.noise.directions import Layout
from scalarfl.noise.kernels import Kernels, chosen, for_each_block
from scalarfl.noise.table import Kind


class Replica:
    """Holds the only copy of the weights: the model's own tensors, which only ``apply`` changes.

    kernels: the generator's implementation; by default the fastest for the model's device. All give the same bits.
    Raises InputError for an unsupported model: nothing to train, or an unsupported type or layer.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        trainable: Trainable = "all",
        kernels: Kernels | None = None,
        noise: Kind = "normal",
    ) -> None:
        for name, module in model.named_modules():
            if getattr(module, "max_norm", None) is not None:
                raise InputError(f"module '{name}' has max_norm: it would change its weights on every use; unset it.")
        self.model = model.eval()  # dropout off, normalisation by its stored statistics
        self.method = method
        self.base = base_digest(model)
        """Digest of the model before training."""
        self.parts = select(model, trainable)
        self.tensors: list[Tensor] = [part.values() for part in self.parts]
        """The true weights: the parameters' own memory, or the masked values of a sparse mask. While a loss is measured
        the parameters may point to other data; these never do."""
        self.layout = Layout.of([(part.name, x) for part, x in zip(self.parts, self.tensors, strict=True)])
        # A parameter of shape () counts as a vector of one: a state of shape () is a number that serves all tensors.
        self.state: list[State] = [
            method.init(torch.empty_like(x if x.ndim else x.view(1), dtype=torch.float32)) for x in self.tensors
        ]
        self.kernels = kernels or chosen(noise, self.layout, self.tensors[0].device)
        self._displace, self._carry_scaled, self._carry_vector = _fused(method, self.kernels)
        self.position = 0
        """Rounds applied."""
        self.latest: Update | None = None
        """The update applied last; unknown after ``restore``."""
        self.trail = b""
        """The chain over the updates applied; set to the ledger header's digest by ``begin``."""
        self.genesis = b""
        """That digest."""
        self.seconds = 0.0
        """Time spent in ``apply``; decides whether a snapshot is worthwhile."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The model's trained parameters, whole or masked."""
        return [part.parameter for part in self.parts]

    def begin(self, genesis: bytes) -> None:
        """Bind the replica to the ledger whose header has this digest, before its first update."""
        if self.position:
            raise ProtocolError(f"the replica has applied {self.position} rounds already.")
        self.trail = self.genesis = genesis

    def displace(
        self, index: int, out: Tensor, position: Tensor, begin: int, seed: int, step: int, perturbation: int, mu: float
    ) -> None:
        """Write position + mu z to the flat ``out``, for coordinates ``begin``, ``begin`` + 1, ... of tensor ``index``.

        position: the flat coordinates of the whole tensor that the displacement starts from; x itself or a walked copy.
        """
        address, kernels, method = self.layout.addresses[index], self.kernels, self.method
        fused, vector = self._displace, method.fused.vector

        def work(_: int, part: slice) -> None:
            there = slice(begin + part.start, begin + part.stop)
            state = sliced(self.state[index], there)
            at = (seed, step, address + there.start, perturbation, mu)
            x, beside = position[there].float(), out[part]
            exact = beside if beside.dtype == torch.float32 else torch.empty_like(x)
            if fused is not None:
                fused(exact, x, state[vector], *at)
            else:
                kernels.displace(exact, x, method.scale(state), *at)
            if exact is not beside:
                beside.copy_(exact)

        for_each_block([out], work, stream=fused is not None or method.vectors == 0)

    def displace_rows(
        self,
        index: int,
        out: Tensor,
        position: Tensor,
        rows: Tensor,
        seed: int,
        step: int,
        perturbation: int,
        mu: float,
    ) -> None:
        """Write position + mu z to ``out``, [k, width], for the rows int64[k] of tensor ``index``: an embedding's, say.

        The same bits as ``displace`` row by row, in one call.
        """
        width = out.shape[1]
        first = self.layout.addresses[index]
        state = {key: value.view(-1, width)[rows] if value.ndim else value for key, value in self.state[index].items()}
        x = position.view(-1, width)[rows].float()
        exact = out if out.dtype == torch.float32 else torch.empty_like(x)
        addresses = [first + row * width for row in rows.tolist()]
        self.kernels.displace_rows(exact, x, self.method.scale(state), seed, step, addresses, perturbation, mu)
        if exact is not out:
            out.copy_(exact)

    @torch.no_grad()
    def apply(self, updates: Sequence[Update]) -> None:
        """Move forward by any number of rounds; one at a time or all at once gives the same bits.

        Every update is elementwise, so a block of coordinates stays in cache while all of them are applied.
        Raises ProtocolError, with nothing applied, where the updates do not follow the replica's position or lack what
        the method learns from.
        """
        for offset, update in enumerate(updates):
            if update.round != self.position + offset:
                raise ProtocolError(
                    f"round {update.round} does not follow: this replica has applied {self.position + offset} rounds."
                )
            if self.method.curved and not isinstance(update, CurvedUpdate):
                raise ProtocolError(f"round {update.round} holds no second differences, which this method learns from.")
        began = time.perf_counter()
        moving = [update for update in updates if update.slots]
        if moving:
            self._replay(moving)
            for part, x in zip(self.parts, self.tensors, strict=True):
                part.put(x)
        for update in updates:
            self.trail = link(self.trail, encode(update))
        self.position += len(updates)
        self.latest = updates[-1] if updates else self.latest
        self.seconds += time.perf_counter() - began

    def _replay(self, updates: Sequence[Update]) -> None:
        """Carry all coordinates through the updates, the fastest way the method allows; all give the same bits."""
        moves = [_weighed(self.method, update) for update in updates]
        numbers, scales = self._rehearse(moves)

        def work(index: int, part: slice) -> None:
            x, state = self.tensors[index].view(-1)[part], sliced(self.state[index], part)
            address = self.layout.addresses[index] + part.start
            if x.dtype == torch.float32:
                self._advance(x, state, address, moves, scales)
                return
            exact = x.float()  # half precision: an update too small for it must not vanish
            for r, move in enumerate(moves):
                state = self._advance(exact, state, address, [move], scales and scales[r : r + 1])
                self.kernels.dither(exact, x.dtype, move.seed, address)
            x.copy_(exact)

        for_each_block(self.tensors, work, stream=self._carry_scaled is not None or self._carry_vector is not None)
        for state in self.state:
            state.update(numbers)

    def _advance(
        self, x: Tensor, state: State, address: int, moves: "Sequence[Move]", scales: Sequence[Tensor] | None
    ) -> State:
        """Carry some coordinates, float32, and the vectors of their state, both in place, through the rounds.

        Returns the state to go on from. Numbers that serve all coordinates are not changed in ``state`` itself: the
        other blocks still start from them.
        """
        if self._carry_scaled is not None:
            self._carry_scaled(x, address, moves, scales)
            return state
        if self._carry_vector is not None:
            self._carry_vector(x, state[self.method.fused.vector], address, moves, **(self.method.constants() or {}))
            return state
        after = self._carry(x, state, address, moves)
        for key, value in after.items():
            if value.ndim:
                state[key].copy_(value)
        return {key: state[key] if value.ndim else value for key, value in after.items()}

    def _carry(self, x: Tensor, state: State, address: int, moves: "Sequence[Move]") -> State:
        """Carry the coordinates ``x`` (changed in place) and their state through the rounds, step by step."""
        combined = torch.empty_like(x)
        curvature = torch.empty_like(x) if self.method.curved else None
        for move in moves:
            scale = self.method.scale(state)
            for step, row in enumerate(move.coefficients):
                self.kernels.combine(combined, move.seed, step, address, move.perturbations, row)
                dx = combined if scale is None else combined * scale
                if curvature is not None:
                    second = move.curvatures[step]
                    self.kernels.combine(curvature, move.seed, step, address, move.perturbations, second, squared=True)
                local = LocalStep(dx, row, step, move.local_steps, curvature)
                state = self.method.learn(state, local)
                x -= self.method.step(state, local) * move.lr
        return state

    def _rehearse(self, moves: "Sequence[Move]") -> tuple[State, list[Tensor] | None]:
        """The part of the state that is one number for all coordinates, after the rounds, and each round's scale.

        It needs no coordinate: the numbers learn from the scalars alone. The scales are None if z = u.
        """
        nothing = self.tensors[0].new_empty(0, dtype=torch.float32)
        curvature = nothing if self.method.curved else None
        state = {key: value.view(-1)[:0] if value.ndim else value for key, value in self.state[0].items()}
        scales = []
        for move in moves:
            scale = self.method.scale(state)
            if scale is not None:
                scales.append(scale)
            for step, row in enumerate(move.coefficients):
                state = self.method.learn(state, LocalStep(nothing, row, step, move.local_steps, curvature))
        return {key: value for key, value in state.items() if not value.ndim}, scales or None

    def digest(self) -> str:
        """SHA-256 over the trained parameters, the method's state and the position: equal replicas, equal digests."""
        return digest_tensors(self.content())

    def content(self) -> list[tuple[str, Tensor]]:
        """All that the digest is taken of, by name and in its order: what a snapshot keeps."""
        named = [*zip(self.layout.names, self.tensors, strict=True), ("position", torch.tensor(self.position))]
        for name, x, state in zip(self.layout.names, self.tensors, self.state, strict=True):
            named += [(f"{name}:{key}", v.view_as(x) if v.ndim else v) for key, v in sorted(state.items())]
        return named

    @torch.no_grad()
    def restore(self, kept: Callable[[str], Tensor], trail: bytes) -> None:
        """Go where another replica of the same ledger was. kept: its ``content`` by name; nothing of it is checked."""
        for name, part, x, state in zip(self.layout.names, self.parts, self.tensors, self.state, strict=True):
            x.copy_(kept(name))
            part.put(x)
            for key, value in state.items():
                there = kept(f"{name}:{key}").to(value.device)
                state[key] = value.copy_(there) if value.ndim else there
        self.position, self.trail, self.latest = int(kept("position")), trail, None


class Move(NamedTuple):
    """What a replica makes of a round on record, which all kernels of a replay take."""

    seed: int
    lr: float
    local_steps: int
    perturbations: Sequence[int]
    coefficients: Sequence[Sequence[float]]
    """[local_steps][directions]: weighed by the method."""
    curvatures: Sequence[Sequence[float]]
    """The same of second differences, not weighed; empty if there are none."""


def _weighed(method: Method, update: Update) -> Move:
    rows = tuple(method.weights(row) for row in update.coefficients)
    bends = update.curvatures if isinstance(update, CurvedUpdate) else ()
    return Move(update.seed, update.lr, update.local_steps, update.perturbations, rows, bends)


Kernel = Callable[..., None]


def _fused(method: Method, kernels: Kernels) -> tuple[Kernel | None, Kernel | None, Kernel | None]:
    """The method's own displacement; the replay of methods that have no vectors and move along Dx; its own replay."""
    displace, carry = method.kernel("displace"), method.kernel("carry")
    return (
        getattr(kernels, displace) if displace else None,
        kernels.carry_scaled if method.vectors == 0 and method.plain else None,
        getattr(kernels, carry) if carry and method.constants() is not None else None,
    )


def sliced(state: State, part: slice) -> State:
    """The state of the coordinates in ``part``: views, and numbers as they are."""
    return {key: value.view(-1)[part] if value.ndim else value for key, value in state.items()}

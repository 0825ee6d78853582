"""A direction for every example of a batch, all at once: each layer's output moves as if its weights had moved.

For a linear layer whose weight is displaced by mu r s^T, an outer product (``noise.rank_one``), the output moves by
mu (x . s) r. With its own r and s for each example, one forward pass gives the losses of all examples, each along a
direction of its own (GRZO, arXiv 2606.02857): memory and time of inference, and no perturbed weights at all.

- linear layers, Conv1D of transformers: mu (x . s) r; biases: mu times the example's signs;
- embeddings: mu r[token] s; convolutions: mu conv(x, s) r, where s is a kernel with one output;
- norms: their output is affine in the weight, so that it moves by mu z n, where n is what they multiply the weight by.

A weight that several layers share moves in each of them, which is exact. What cannot be done so is refused by name.
Once for each probe, two examples' losses are compared with those at weights that were really displaced, which refuses a
layer that mixes examples, or a weight that is used outside of its layer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from scalarfl.errors import InputError
from scalarfl.model.overlay import Overlay
from scalarfl.model.partial import PartialLinear
from scalarfl.model.replica import Replica

_ATTACHED = "_scalarfl_per_example"
KEY = "directions = 'per-example'"
REMEDY = "Leave it out of model.trainable, or use directions = 'per-client'."
CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: functional.conv1d,
    nn.Conv2d: functional.conv2d,
    nn.Conv3d: functional.conv3d,
}
CHANNELS_SECOND = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)
"""Norms whose weight belongs to the second dimension; that of all others belongs to the last ones."""

Factors = tuple[Tensor | None, Tensor]
"""r, [B, R], and s, [B, C], of the examples; no r for a vector."""


class Call(NamedTuple):
    """One call of a layer."""

    module: nn.Module
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    out: Tensor
    mu: float


class PerExample:
    """Displaces a replica's model along a direction for each example.

    Raises InputError that names a trained layer for which there is no way to do so.
    """

    def __init__(self, replica: Replica, overlay: Overlay) -> None:
        self.replica = replica
        index = {id(parameter): i for i, parameter in enumerate(replica.parameters)}
        names = {module: name for name, module in replica.model.named_modules()}
        for part in replica.parts:
            if part.places is not None:
                raise InputError(f"{KEY}: a sparse mask leaves no rank-one directions; train whole tensors.")
        owners = {
            module: {name: index[id(p)] for name, p in module.named_parameters(recurse=False) if id(p) in index}
            for module in overlay.owners
        }
        self._owned = {m: own for m, own in owners.items() if _way(m) is not None and own.keys() <= {"weight", "bias"}}
        """The layers, and which of the trained tensors each one has."""
        displaceable = {place for own in self._owned.values() for place in own.values()}
        for module, own in owners.items():
            if not displaceable.issuperset(own.values()):  # what a layer inside has too is displaced there
                what = f"layer '{names[module]}' ({type(module).__name__})" if names[module] else "the model itself"
                raise InputError(
                    f"{KEY}: {what} has trained parameters ({', '.join(own)}) and is no linear layer, embedding, "
                    f"convolution or norm. {REMEDY}"
                )
        self._factors: list[Factors] | None = None  # set while a displacement is active
        self._mu = 0.0
        self._examples = 0
        self._portion: tuple[int, int] | None = None

    @contextmanager
    def displaced(self, seed: int, step: int, perturbations: Sequence[int], mu: float) -> Iterator[None]:
        """Let example b's outputs be those at weights displaced by mu z of direction ``perturbations[b]``."""
        replica, factors = self.replica, self.replica.kernels.factors
        assert factors is not None
        scale = replica.method.scale({key: value for key, value in replica.state[0].items() if not value.ndim})
        device = replica.tensors[0].device
        self._factors = [factors(i, seed, step, perturbations, device) for i in range(len(replica.parts))]
        self._mu, self._examples = mu * (1.0 if scale is None else float(scale)), len(perturbations)
        hooks = [module.register_forward_hook(self._after, with_kwargs=True) for module in self._owned]
        replica.model.__dict__[_ATTACHED] = self
        try:
            yield
        finally:
            del replica.model.__dict__[_ATTACHED]
            for hook in hooks:
                hook.remove()
            self._factors = None

    def _after(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], out: Any) -> Any:
        """Displace a layer's output."""
        if isinstance(module, PartialLinear) and module.instead is not None:
            return None  # another layer was applied in its place
        way, own = _way(module), self._owned[module]
        assert way is not None
        arguments, keywords = arguments or tuple(keywords.values()), keywords if arguments else {}
        if isinstance(module, PartialLinear) and module.positions is not None:  # [examples, length]
            examples = module.positions.nonzero()[:, 0]
            arguments = (arguments[0][module.positions], *arguments[1:])
        else:
            rows = len(out)
            begin, end = self._portion or (0, self._examples)
            count = end - begin
            if rows == 1 < count:
                out = out.expand(count, *out.shape[1:])
                arguments = tuple(a.expand(count, *a.shape[1:]) if _is_row(a) else a for a in arguments)
            elif rows % count or (rows != count and isinstance(module, nn.Embedding)):
                raise InputError(
                    f"{KEY}: a {type(module).__name__} was given {rows} rows for {count} examples, so that none of "
                    f"these can be told apart. {REMEDY}"
                )
            examples = torch.arange(count, device=out.device).repeat_interleave(max(1, rows // count))
        examples = examples + (self._portion or (0, 0))[0]

        def factors(name: str) -> Factors | None:
            if name not in own:
                return None
            assert self._factors is not None
            r, s = self._factors[own[name]]
            return None if r is None else r[examples].to(out.dtype), s[examples].to(out.dtype)

        return way(Call(module, arguments, keywords, out, self._mu), factors("weight"), factors("bias"))


@contextmanager
def portion(model: nn.Module, begin: int, count: int) -> Iterator[None]:
    """Say that the model is now given the examples ``begin`` ... ``begin + count - 1`` of a batch, and no others.

    For losses that call the model several times; without it, every call is about the whole batch.
    """
    found = model.__dict__.get(_ATTACHED)
    if not isinstance(found, PerExample):
        yield
        return
    found._portion = begin, begin + count
    try:
        yield
    finally:
        found._portion = None


Way = Callable[[Call, Factors | None, Factors | None], Tensor]


def _way(module: nn.Module) -> Way | None:
    """How a layer's output is displaced; None if there is no way."""
    if isinstance(module, nn.Linear):
        return _linear
    if isinstance(module, nn.Embedding):
        return _embedding
    if type(module) in CONVOLUTIONS and getattr(module, "padding_mode", "") == "zeros":
        return _convolution
    kind = type(module).__name__
    if kind == "Conv1D":
        return _turned
    return _norm if isinstance(module, CHANNELS_SECOND) or kind.endswith("Norm") else None


def _is_row(argument: Any) -> bool:
    return isinstance(argument, Tensor) and argument.ndim > 0 and len(argument) == 1


def _beside(signs: Tensor, out: Tensor, dimension: int) -> Tensor:
    """[B, C] as it is added to ``out``, [B, ...], whose ``dimension`` is C."""
    shape = [1] * out.ndim
    shape[0], shape[dimension] = signs.shape
    return signs.view(shape)


def _linear(call: Call, weight: Factors | None, bias: Factors | None, turned: bool = False) -> Tensor:
    """mu (x . s) r + mu z, with x: [B, ..., C] and out: [B, ..., R]."""
    out, rows = call.out, getattr(call.module, "rows", None)
    if weight is not None:
        r, s = weight
        assert r is not None
        r, s = (s, r) if turned else (r, s)
        x = call.arguments[0].to(out.dtype)
        along = torch.bmm(x.reshape(len(s), -1, x.shape[-1]), s.unsqueeze(2))  # [B, T, 1]
        r = r if rows is None else r[:, rows]
        moved = torch.addcmul(out.reshape(len(s), -1, out.shape[-1]), along, r.unsqueeze(1), value=call.mu)
        out = moved.view_as(out)
    if bias is not None:
        z = bias[1] if rows is None else bias[1][:, rows]
        out = torch.add(out, _beside(z, out, -1), alpha=call.mu)
    return out


def _turned(call: Call, weight: Factors | None, bias: Factors | None) -> Tensor:
    """Of a linear layer that holds its weight as [inputs, outputs]."""
    return _linear(call, weight, bias, turned=True)


def _embedding(call: Call, weight: Factors | None, _: Factors | None) -> Tensor:
    """mu r[token] s. r is looked up by the layer itself, a column for each example, with whatever it does besides."""
    assert weight is not None
    r, s = weight
    assert r is not None
    found = _with(call, r.T.contiguous())  # [B, ..., B]
    at = torch.arange(len(s), device=s.device)
    found = found.expand(len(s), *found.shape[1:])[at, ..., at]  # [B, ...]
    return torch.addcmul(call.out, found.unsqueeze(-1), _beside(s, call.out, -1), value=call.mu)


def _convolution(call: Call, weight: Factors | None, bias: Factors | None) -> Tensor:
    """mu conv(x, s) r + mu z: every example, and every group of channels, has a kernel with one output."""
    layer: Any = call.module
    out = call.out
    if weight is not None:
        r, s = weight
        assert r is not None
        x, groups = call.arguments[0], layer.groups
        count, channels, *size = x.shape
        kernels = s.view(count, *layer.weight.shape[1:]).repeat_interleave(groups, 0)
        convolve, x = CONVOLUTIONS[type(layer)], x.reshape(1, count * channels, *size)
        along = convolve(x, kernels, None, layer.stride, layer.padding, layer.dilation, count * groups)
        along = along.view(count, groups, *out.shape[2:]).repeat_interleave(out.shape[1] // groups, 1)
        out = torch.addcmul(out, along, _beside(r, out, 1), value=call.mu)
    return out if bias is None else torch.add(out, _beside(bias[1], out, 1), alpha=call.mu)


def _norm(call: Call, weight: Factors | None, bias: Factors | None) -> Tensor:
    """mu z n + mu z', where n is what the layer multiplies its weight by."""
    out, second = call.out, isinstance(call.module, CHANNELS_SECOND)
    parts = []
    if weight is not None:
        like = call.module.weight.data
        assert isinstance(like, Tensor)
        parts.append((weight, _with(call, torch.ones_like(like)) - _with(call, torch.zeros_like(like))))
    parts += [] if bias is None else [(bias, torch.ones_like(out))]
    for (r, s), n in parts:
        z = s if r is None else r.unsqueeze(2) * s.unsqueeze(1)
        dims = call.module.weight.ndim if isinstance(call.module.weight, Tensor) else 1
        shape = (
            (len(s), -1, *[1] * (out.ndim - 2))
            if second
            else (len(s), *[1] * (out.ndim - 1 - dims), *out.shape[-dims:])
        )
        out = torch.addcmul(out, n, z.reshape(shape), value=call.mu)
    return out


def _with(call: Call, weight: Tensor) -> Tensor:
    """What the layer gives with another weight."""
    parameter = call.module.weight
    assert isinstance(parameter, nn.Parameter)
    before = parameter.data
    try:
        parameter.data = weight
        found: Tensor = call.module.forward(*call.arguments, **call.keywords)
        return found
    finally:
        parameter.data = before

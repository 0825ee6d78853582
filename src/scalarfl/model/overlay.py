"""Letting a model compute with other weights than its own, without touching those.

``whole`` points all parameters at a full set of other tensors. ``layered`` makes each layer's weights just before the
layer runs, in a scratch buffer as large as the largest layer, and only what the batch asks for: some rows of an
embedding, some rows of an output layer; very large linear layers are made and applied slice by slice.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from scalarfl.model.partial import SLICE, PartialLinear, adopt, rows_in_a_slice
from scalarfl.model.selection import Part

Fill = Callable[[int, Tensor, int | Tensor], None]
"""Fill(index, out, begin): write coordinates ``begin`` ... of trainable tensor ``index`` to the flat ``out``.

begin: or int64[k], rows of the tensor to write to ``out``, [k, width].
"""


class Overlay:
    """The trainable parts of one model, and what they hold.

    tensors: the true weights, to which the parameters always point outside the two contexts.
    """

    def __init__(self, model: nn.Module, parts: Sequence[Part], tensors: Sequence[Tensor]) -> None:
        self.parts = parts
        self.parameters = parameters = [part.parameter for part in parts]
        self.tensors = tensors
        self._fill: Fill | None = None  # set while ``layered`` is active
        self._nowhere: list[Tensor] = []  # NaN in each parameter's shape, without its memory
        self._outside: Sequence[Tensor] = []
        self._in_use = [0] * len(parameters)
        self._free: list[Tensor] = []
        self._taken: dict[nn.Module, list[Tensor]] = {}
        self._padding: dict[nn.Embedding, int | None] = {}
        index = {id(parameter): i for i, parameter in enumerate(parameters)}
        self._owned: dict[nn.Module, list[int]] = {}
        for module in model.modules():
            own = [index[id(p)] for p in module.parameters(recurse=False) if id(p) in index]
            if own:
                self._owned[module] = own
        self._hooked = False

    @property
    def owners(self) -> tuple[nn.Module, ...]:
        """The layers that have trainable parameters of their own."""
        return tuple(self._owned)

    @contextmanager
    def whole(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Let all trainable parameters have the values ``tensors``: by pointing there, at the places of a mask by a
        copy, which is undone by a copy of the true bits."""
        try:
            for part, tensor in zip(self.parts, tensors, strict=True):
                part.put(tensor)
            yield
        finally:
            self._restore()

    @contextmanager
    def layered(self, fill: Fill, outside: Sequence[Tensor] | None = None) -> Iterator[None]:
        """Let every layer compute with weights that ``fill`` makes just before it runs.

        outside: what a parameter holds while no layer that owns it runs; by default nothing but NaN, so that a model
        which uses a weight behind its layer's back gives NaN instead of a quietly wrong number.
        """
        if not self._hooked:
            for module in self._owned:
                if isinstance(module, nn.Linear) and module.weight.numel() > 2 * SLICE:
                    adopt(module)
                module.register_forward_pre_hook(self._before)
                module.register_forward_hook(self._after, always_call=True)
            self._nowhere = [t.new_full((), math.nan).expand(t.shape) for t in self.tensors]
            self._hooked = True
        self._fill, self._outside = fill, self._nowhere if outside is None else outside
        try:
            for parameter, tensor in zip(self.parameters, self._outside, strict=True):
                parameter.data = tensor
            yield
        finally:
            self._fill = None
            self._free += [buffer for buffers in self._taken.values() for buffer in buffers]
            self._taken.clear()
            self._in_use = [0] * len(self.parameters)
            for module, padding in self._padding.items():
                module.padding_idx = padding
            self._padding.clear()
            for module in self._owned:
                if isinstance(module, PartialLinear):
                    module.compact, module.supply = frozenset(), None
            self._restore()

    def scratch_bytes(self) -> int:
        """Bytes held in scratch buffers."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._free)

    def _restore(self) -> None:
        for part, tensor in zip(self.parts, self.tensors, strict=True):
            part.put(tensor)

    def _before(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._fill is None:
            return None
        own = self._owned[module]
        fresh = [index for index in own if not self._in_use[index]]  # tied weights may be there already
        if fresh == own:
            if isinstance(module, PartialLinear) and module.rows is not None:
                self._fill_rows(module, own, module.rows)
                module.compact = frozenset(id(self.parameters[index]) for index in own)
                return None
            if isinstance(module, PartialLinear) and module.weight.numel() > 2 * SLICE:
                self._slices_of_linear(module, own)
                return None
            rows = _wanted_rows(module, arguments)
            if rows is not None:
                return self._rows_of_embedding(module, own[0], *rows)
        if fresh:
            pieces = self._take(module, [(self.tensors[index], self.tensors[index].numel()) for index in fresh])
            for index, piece in zip(fresh, pieces, strict=True):
                self._fill(index, piece, 0)
                self.parameters[index].data = piece.view(self.tensors[index].shape)
        for index in own:
            self._in_use[index] += 1
        return None

    def _rows_of_embedding(self, module: nn.Module, index: int, rows: Tensor, places: Tensor) -> tuple[Any, ...]:
        """Give an embedding the rows it needs, and the tokens' places among them instead of the tokens."""
        assert isinstance(module, nn.Embedding)
        self._fill_rows(module, [index], rows)
        self._padding[module] = module.padding_idx  # matters to gradients only
        module.padding_idx = None
        return (places,)

    def _fill_rows(self, module: nn.Module, own: Sequence[int], rows: Tensor) -> None:
        """Let the module's parameters, of one row a row of the layer, hold ``rows`` alone."""
        assert self._fill is not None
        shapes = [(len(rows), *self.tensors[index].shape[1:]) for index in own]
        wanted = [(self.tensors[index], math.prod(shape)) for index, shape in zip(own, shapes, strict=True)]
        for index, shape, piece in zip(own, shapes, self._take(module, wanted), strict=True):
            self._fill(index, piece.view(len(rows), -1), rows)
            self.parameters[index].data = piece.view(shape)
            self._in_use[index] += 1

    def _slices_of_linear(self, module: PartialLinear, own: Sequence[int]) -> None:
        """Let a large linear layer ask for its rows slice by slice; one scratch buffer serves them all."""
        fill = self._fill
        assert fill is not None
        likes = [self.tensors[index] for index in own]
        widths = [math.prod(like.shape[1:]) for like in likes]
        rows = rows_in_a_slice(module)
        scratch = self._take(module, [(like, rows * width) for like, width in zip(likes, widths, strict=True)])
        of = {id(self.parameters[index]): at for at, index in enumerate(own)}

        def part(parameter: Tensor | None, begin: int, end: int) -> Tensor | None:
            if parameter is None or id(parameter) not in of:  # there is none, or it is not trained
                return None if parameter is None else parameter[begin:end]
            at = of[id(parameter)]
            piece = scratch[at][: (end - begin) * widths[at]]
            fill(own[at], piece, begin * widths[at])
            return piece.view(end - begin, *likes[at].shape[1:])

        def supply(begin: int, end: int) -> tuple[Tensor, Tensor | None]:
            weight = part(module.weight, begin, end)
            assert weight is not None
            return weight, part(module.bias, begin, end)

        module.supply = supply
        for index in own:
            self._in_use[index] += 1

    def _after(self, module: nn.Module, _arguments: object, _output: object) -> None:
        if self._fill is None:
            return
        for index in self._owned[module]:
            self._in_use[index] -= 1
            if not self._in_use[index]:
                self.parameters[index].data = self._outside[index]
        self._free += self._taken.pop(module, [])
        if isinstance(module, nn.Embedding) and module in self._padding:
            module.padding_idx = self._padding.pop(module)
        if isinstance(module, PartialLinear):
            module.compact, module.supply = frozenset(), None

    def _take(self, module: nn.Module, wanted: Sequence[tuple[Tensor, int]]) -> list[Tensor]:
        """Flat pieces out of one buffer, each on a 64-byte boundary of it. wanted: (a tensor of its type, its size)."""
        sizes = [like.element_size() * size for like, size in wanted]
        starts = [sum(-(-size // 64) * 64 for size in sizes[:i]) for i in range(len(sizes) + 1)]
        fitting = [buffer for buffer in self._free if buffer.numel() >= starts[-1]]
        if fitting:
            buffer = min(fitting, key=Tensor.numel)
            self._free = [other for other in self._free if other is not buffer]
        else:
            self._free.clear()  # too small: make place for a larger one
            buffer = torch.empty(starts[-1], dtype=torch.uint8, device=self.tensors[0].device)
        self._taken.setdefault(module, []).append(buffer)
        pieces = zip(starts, sizes, wanted, strict=False)
        return [buffer[start : start + size].view(like.dtype) for start, size, (like, _) in pieces]


def _wanted_rows(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Tensor, Tensor] | None:
    """(distinct rows, each token's place among them) where a plain embedding needs less than half of its rows."""
    if type(module).forward is not nn.Embedding.forward or len(arguments) != 1:
        return None
    tokens = arguments[0]
    weight = module.weight
    assert isinstance(weight, Tensor)
    if not isinstance(tokens, Tensor) or 2 * tokens.numel() > weight.shape[0] or tokens.numel() == 0:
        return None
    rows, places = torch.unique(tokens, return_inverse=True)
    return rows, places.view(tokens.shape)

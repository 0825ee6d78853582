"""Which implementation of the generator's arithmetic a device gets."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scalarfl.noise import directions, hadamard, rank_one
from scalarfl.noise.directions import Layout
from scalarfl.noise.table import Kind


class Kernels(NamedTuple):
    """The generator's arithmetic; the functions in ``directions`` are the reference and say what each one does."""

    combine: Callable[..., None]
    """out = sum over q of c_q u_q, or of c_q u_q^2."""
    displace: Callable[..., None]
    """out = x + (mu u) s."""
    displace_rows: Callable[..., None]
    """``displace`` for the rows of a matrix [k, width], each with its own address: an embedding's, all at once."""
    dither: Callable[..., None] = directions.dither
    """Seeded stochastic rounding to a half-precision type."""
    displace_hessian: Callable[..., None] | None = None
    """out = x + (mu u) / sqrt(H) in one pass over memory; None: no such kernel."""
    carry_scaled: Callable[..., None] | None = None
    """Replay in one pass over memory, where a method's scale is one number a round; None: no such kernel."""
    carry_hessian: Callable[..., None] | None = None
    """HiSo's replay in one pass over memory; None: no such kernel."""
    project: Callable[..., Any] = directions.project
    """float64[P]: sum over i of g_i u_p[i], to rounding."""
    factors: Callable[..., tuple[Tensor | None, Tensor]] | None = None
    """The vectors of signs that a tensor's directions are products of; None: they are no products."""


def by_rows(displace: Callable[..., None]) -> Callable[..., None]:
    """``displace_rows`` by one call a row, for devices without a kernel for all of them."""

    def displace_rows(
        out: Tensor,
        x: Tensor,
        scale: Tensor | None,
        seed: int,
        step: int,
        addresses: Sequence[int],
        perturbation: int,
        mu: float,
    ) -> None:
        for row, address in enumerate(addresses):
            here = scale[row] if scale is not None and scale.ndim else scale
            displace(out[row], x[row], here, seed, step, address, perturbation, mu)

    return displace_rows


REFERENCE = Kernels(directions.combine, directions.displace, by_rows(directions.displace))


def reference(noise: Kind, layout: Layout) -> Kernels:
    """The implementation in torch that all others are tested against."""
    if noise == "normal":
        return REFERENCE
    if noise == "rank-one":
        return of_rank_one(rank_one.RankOne(layout), directions.dither)
    bits = hadamard.width(layout.extent)
    return Kernels(
        partial(hadamard.combine, bits=bits),
        partial(hadamard.displace, bits=bits),
        by_rows(partial(hadamard.displace, bits=bits)),
        project=partial(hadamard.project, bits=bits),
    )


def chosen(noise: Kind, layout: Layout, device: torch.device) -> Kernels:
    """The fastest implementation of a generator for ``device``; all give the same bits."""
    if noise == "normal":
        return best(device)
    if noise == "hadamard" and device.type == "cuda" and find_spec("triton") is not None:
        from scalarfl.noise.kernels import cuda_hadamard

        return bound(cuda_hadamard, layout, directions.dither)
    if device.type != "cpu":
        return reference(noise, layout)
    # numba takes a second to import: not before it is needed
    from scalarfl.noise.kernels import cpu, hadamard as fast, rank_one as outer

    if noise == "rank-one":
        return of_rank_one(outer.RankOne(layout), cpu.dither)
    return bound(fast, layout, cpu.dither)


def of_rank_one(made: rank_one.RankOne, dither: Callable[..., None]) -> Kernels:
    """The kernels of rank-one directions, for one layout."""
    return Kernels(
        made.combine, made.displace, by_rows(made.displace), dither, project=made.project, factors=made.factors
    )


def bound(fast: Any, layout: Layout, dither: Callable[..., None]) -> Kernels:
    """A module's kernels of Hadamard directions, for one layout."""
    with_bits = partial(partial, bits=hadamard.width(layout.extent))
    displace = with_bits(fast.displace)
    return Kernels(
        with_bits(fast.combine),
        displace,
        with_bits(fast.displace_rows) if hasattr(fast, "displace_rows") else by_rows(displace),
        dither,
        with_bits(fast.displace_hessian),
        with_bits(fast.carry_scaled),
        with_bits(fast.carry_hessian),
        with_bits(fast.project),
    )


def best(device: torch.device) -> Kernels:
    """The fastest implementation of normal noise for ``device``; all give the same bits."""
    if device.type == "cpu":
        # numba takes a second to import: not before it is needed
        from scalarfl.noise.kernels import cpu, projection, replay

        return Kernels(
            cpu.combine,
            cpu.displace,
            cpu.displace_rows,
            cpu.dither,
            cpu.displace_hessian,
            replay.carry_scaled,
            replay.carry_hessian,
            projection.project,
        )
    if device.type == "cuda" and find_spec("triton") is not None:
        from scalarfl.noise.kernels import cuda

        return Kernels(cuda.combine, cuda.displace, by_rows(cuda.displace), directions.dither, *cuda.FUSED)
    return REFERENCE

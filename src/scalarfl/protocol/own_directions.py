"""Whose directions are measured, and what those of examples can be combined with."""

from typing import TYPE_CHECKING, Literal

from scalarfl.errors import InputError
from scalarfl.noise.table import Kind, Noise

if TYPE_CHECKING:
    from scalarfl.methods import Method

Directions = Literal["shared", "per-client", "per-example"]
KEY = "directions = 'per-example'"
OTHERS = "Use 'decomfl', 'hiso-scalar', 'momentum', 'meazo' or 'fzoo', or directions = 'per-client'."


def generator_of(directions: Directions, method: "Method", noise: Noise, slopes: str) -> Kind:
    """What makes the directions. Raises InputError for what cannot be combined with an example's own, of rank one."""
    if directions != "per-example":
        return noise
    if noise != "normal":
        raise InputError(f"noise = '{noise}': {KEY} has signs of its own; leave the key out.")
    if slopes != "difference":
        raise InputError(f"slopes = '{slopes}': {KEY} measures differences of losses; leave the key out.")
    if method.curved:
        raise InputError(f"{KEY}: '{method.name}' learns from second differences of whole batches. {OTHERS}")
    if method.vectors and not type(method).unscaled():
        raise InputError(f"{KEY}: '{method.name}' scales every coordinate of a direction by itself. {OTHERS}")
    return "rank-one"

"""MeZO: zeroth-order SGD by central differences (arXiv 2305.17333)."""

from typing import ClassVar

from scalarfl.methods.base import Difference
from scalarfl.methods.decomfl import DeComFL


class MeZO(DeComFL):
    """DeComFL's rule on central differences, g_p = (f(x + mu z_p) - f(x - mu z_p)) / (2 mu): 2 P losses a step.

    With ``federation.clients = 1`` it is the paper's, which is not federated; with more, a variant of DeComFL.
    """

    name: ClassVar[str] = "mezo"
    summary: ClassVar[str] = "DeComFL by central differences; with one client it is MeZO"
    source: ClassVar[str] = "arXiv 2305.17333"
    difference: ClassVar[Difference] = "central"

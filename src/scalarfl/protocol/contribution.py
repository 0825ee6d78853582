"""What counts of a client's reply to a round."""

import math
from typing import NamedTuple

import numpy as np

from scalarfl.errors import ProtocolError
from scalarfl.ledger.codec import unpack
from scalarfl.ledger.header import Header
from scalarfl.protocol.aggregation import Scalars
from scalarfl.protocol.messages import RoundReply


class Contribution(NamedTuple):
    """A validated reply."""

    examples: int
    scalars: Scalars
    """[local_steps, kinds, P]"""
    along: float
    """The slope along the latest move, with lr = "auto"; else 0."""
    payload: int
    """Bytes of all scalars."""


def contribution(reply: RoundReply, header: Header) -> Contribution:
    """A reply's content. Raises ProtocolError with the reason why it does not count."""
    directions = math.prod(header.shape)
    expected = 4 * (directions + header.extra)
    if len(reply.scalars) != expected:
        raise ProtocolError(f"{len(reply.scalars)} bytes of scalars, expected {expected}.")
    values = unpack(reply.scalars)
    along = float(values[directions]) if header.extra else 0.0
    if not np.isfinite(along):
        raise ProtocolError("the slope along the latest move is not finite.")
    return Contribution(reply.examples, values[:directions].reshape(header.shape), along, expected)

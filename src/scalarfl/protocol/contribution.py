"""What counts of a client's reply to a round."""

import math
from typing import NamedTuple

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


def contribution(reply: RoundReply, header: Header) -> Contribution:
    """A reply's content. Raises ProtocolError with the reason why it does not count."""
    expected = 4 * math.prod(header.shape)
    if len(reply.scalars) != expected:
        raise ProtocolError(f"{len(reply.scalars)} bytes of scalars, expected {expected}.")
    return Contribution(reply.examples, unpack(reply.scalars).reshape(header.shape))

"""Messages and records as bytes: MessagePack, validated on receipt; scalars as float32, little endian."""

from functools import cache
from typing import Annotated, Any, TypeVar, Union

import msgspec
import numpy as np
import numpy.typing as npt

from scalarfl.errors import ProtocolError

MAX_BYTES = 16 << 20
"""No message may be longer."""
MOST = 1 << 40
"""No count, round or position is larger."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Count = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
Seed = Annotated[int, msgspec.Meta(ge=0)]
"""Below 2^64: MessagePack has no larger integer."""
Short = Annotated[bytes, msgspec.Meta(max_length=32)]

T = TypeVar("T", bound=msgspec.Struct)

_encoder = msgspec.msgpack.Encoder()


@cache
def _decoder(kind: type[msgspec.Struct]) -> msgspec.msgpack.Decoder[Any]:
    """Of a kind and of those that extend it."""
    return msgspec.msgpack.Decoder(Union[(kind, *kind.__subclasses__())])


def encode(message: msgspec.Struct) -> bytes:
    """The message as it goes over the wire."""
    return _encoder.encode(message)


def decode(data: bytes | msgspec.Raw, kind: type[T]) -> T:
    """The message in ``data``. Raises ProtocolError that says what is wrong with it."""
    size = memoryview(data).nbytes
    if size > MAX_BYTES:
        raise ProtocolError(f"a {kind.__name__} of {size} bytes is longer than the limit of {MAX_BYTES}.")
    try:
        message = _decoder(kind).decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"not a valid {kind.__name__}: {str(error).rstrip('.')}.") from None
    assert isinstance(message, kind)
    return message


def claims(data: bytes, kind: type[msgspec.Struct]) -> bool:
    """Whether the data say that they are such a message: an array of fewer than 16 elements, its tag the first."""
    tags = [one.__struct_config__.tag for one in (kind, *kind.__subclasses__())]
    return len(data) > 1 and data[0] >> 4 == 9 and data[1] in tags


def prefix(count: int) -> int:
    """Bytes that MessagePack writes before the elements of an array."""
    return 1 if count < 1 << 4 else 3 if count < 1 << 16 else 5


def pack(scalars: npt.NDArray[np.float32]) -> bytes:
    """Scalars to bytes: float32, little endian."""
    return np.ascontiguousarray(scalars, dtype="<f4").tobytes()


def unpack(data: bytes) -> npt.NDArray[np.float32]:
    """Bytes to scalars. Raises ValueError if they are no whole number of float32 values."""
    return np.frombuffer(data, dtype="<f4").astype(np.float32)


def coefficients(scalars: npt.NDArray[np.float32]) -> tuple[tuple[float, ...], ...]:
    """[steps, directions] scalars to the weights of the directions: scalar / number of directions, in float32."""
    divided = scalars / np.float32(scalars.shape[1])
    return tuple(tuple(row) for row in divided.tolist())

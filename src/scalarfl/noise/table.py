"""Byte to noise: the 256 values that every direction is made of.

The conditional means of a standard normal in 256 bins of equal probability, scaled to unit variance: largest value
2.970, fourth moment 2.964 where the normal has 3. They are stored, not computed: no two mathematical libraries agree
on the last bit.
"""

import hashlib
from typing import Literal

import numpy as np

GENERATOR = "philox4x32-10/bytes/table256/1"
"""Name and version of the generator; part of every ledger's header."""

HADAMARD = "philox4x32-10/hadamard/1"
"""The second generator's, which needs no table."""

RANK_ONE = "philox4x32-10/rank-one/1"
"""The third generator's, of a direction for every example; it needs no table either."""

# The upper half, ascending, as little-endian float32; the lower half mirrors it.
_UPPER_HALF = bytes.fromhex(
    "327ca03b43bc703c2ba0c83c91730c3d809a343de1c55c3d587b823df796963d4db6aa3ddcd9be3d2402d33da92fe73d"
    "ec62fb3d3ace073e62ee113e32121c3eed39263ed965303e3b963a3e59cb443e7a054f3ee644593ee689633ec4d46d3e"
    "cc25783ea43e813ec46d863e6da08b3ec7d6903efb10963e334f9b3e9891a03e57d8a53e9b23ab3e9173b03e68c8b53e"
    "4e22bb3e7481c03e0ce6c53e4750cb3e5ac0d03e7a36d63eddb2db3ebb35e13e4fbfe63ed34fec3e84e7f13ea186f73e"
    "6b2dfd3e126e013f8849043f3c29073f530d0a3ff1f50c3f3ee30f3f64d5123f8bcc153fdfc8183f8fca1b3fc7d11e3f"
    "bade213f99f1243f9a0a283ff4292b3fde4f2e3f967c313f58b0343f67eb373f062e3b3f7b783e3f12cb413f1826453f"
    "df89483fbdf64b3f0c6d4f3f2bed523f7f77563f700c5a3f6fac5d3ff157613f730f653f79d3683f8fa46c3f4b83703f"
    "4a70743f366c783fc4777c3fd949803f6960823f0080843f15a9863f28dc883fc4198b3f7d628d3ff7b68f3fe117923f"
    "fa85943f1602973f188d993ffd279c3fdbd39e3fe491a13f7063a43ff849a73f2847aa3fde5cad3f378db03f9bdab33f"
    "ca47b73fedd7ba3fb28ebe3f6270c23f0e82c63fc1c9ca3fc24ecf3ff919d43f6f36d93f15b2de3fe69ee43fa514eb3f"
    "b533f23ff129fa3fc29d014052ea0640e3580d40cba615401fc12140d9173e40"
)
_upper = np.frombuffer(_UPPER_HALF, dtype="<f4").astype(np.float32)

TABLE = np.concatenate([-_upper[::-1], _upper])
"""float32[256]: byte to noise."""

TABLE_DIGEST = hashlib.sha256(TABLE.astype("<f4").tobytes()).hexdigest()

Noise = Literal["normal", "hadamard"]
"""What shared and per-client directions are made of, as users choose it."""

Kind = Literal["normal", "hadamard", "rank-one"]
"""The generators: ``directions`` (close to a standard normal), ``hadamard`` (+1 and -1, orthogonal), ``rank_one``."""

GENERATORS: dict[Kind, tuple[str, str]] = {
    "normal": (GENERATOR, TABLE_DIGEST),
    "hadamard": (HADAMARD, ""),
    "rank-one": (RANK_ONE, ""),
}
"""What a ledger's header says of each kind of noise: the generator and its table."""

"""A client's kit vouches for its key of secure sums, so that the server cannot put its own in a client's place."""

import datetime
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from scalarfl.errors import InputError, ProtocolError
from scalarfl.transports.nats.kit import Kit

_FILES = ("authority", "certificate", "key")
_PURPOSE = b"scalarfl secure sums\0"


class KitIdentity:
    """Signs this client's key with its certificate's, and checks the others' by the federation's authority."""

    def __init__(self, folder: Path, kit: Kit) -> None:
        self.folder, self.run, self.name = folder, kit.run, kit.name

    @cached_property
    def _pems(self) -> tuple[Any, Any, Any]:
        """Authority, certificate and private key, read when they are first needed. Raises InputError."""
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            authority, own, key = ((self.folder / f"{name}.pem").read_bytes() for name in _FILES)
            load = x509.load_pem_x509_certificate
            return load(authority), load(own), load_pem_private_key(key, password=None)
        except (OSError, ValueError, TypeError) as error:
            reason = f"{', '.join(f'{name}.pem' for name in _FILES)} cannot be read: {error}"
            raise InputError(f"--kit {self.folder}: {reason}. Copy the kit again.") from None

    def proof(self, key: bytes) -> bytes:
        """The certificate, and a signature of this client's name and key."""
        from cryptography.hazmat.primitives.serialization import Encoding

        _, certificate, private = self._pems
        signature = private.sign(self._signed(self.name, key), _ecdsa())
        return msgspec.msgpack.encode([certificate.public_bytes(Encoding.DER), signature])

    def check(self, name: str, key: bytes, proof: bytes) -> None:
        """Raise ProtocolError unless the authority knows a client of this name, who signed this key."""
        from cryptography import x509
        from cryptography.exceptions import InvalidSignature

        try:
            encoded, signature = msgspec.msgpack.decode(proof, type=tuple[bytes, bytes])
            certificate = x509.load_der_x509_certificate(encoded)
            certificate.verify_directly_issued_by(self._pems[0])
            (subject,) = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
            public: Any = certificate.public_key()
            public.verify(signature, self._signed(name, key), _ecdsa())
            now = datetime.datetime.now(datetime.UTC)
            valid = certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc
            number = re.fullmatch(rf"{re.escape(name)}(\.[0-9]+)?@{self.run}", str(subject.value))  # as kit.identity
            if not valid or number is None:
                raise ValueError("expired, or another client's")
        except (InvalidSignature, ValueError, TypeError, AttributeError, msgspec.MsgspecError):
            raise ProtocolError(f"the key of '{name}' is not vouched for by this federation's authority.") from None

    def _signed(self, name: str, key: bytes) -> bytes:
        return _PURPOSE + f"{name}@{self.run}".encode() + b"\0" + key


def _ecdsa() -> Any:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.ECDSA(hashes.SHA256())

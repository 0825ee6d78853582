"""A federation's certificate authority: it issues one certificate for every party."""

import datetime
import ipaddress
from pathlib import Path
from typing import Any, Self

from scalarfl.errors import InputError, install_hint

DAYS = 825
"""For which a certificate is valid."""


class Authority:
    """Issues the certificates of one federation. key: its own; certificate: None to make one for the run."""

    def __init__(self, run: str, key: Any, certificate: Any = None) -> None:
        self._key = key
        self._name = _named(f"scalarfl {run}"[:64])
        self._certificate = certificate or self._signed(self._name, key.public_key(), [], authority=True)

    @classmethod
    def made(cls, run: str) -> Self:
        """A new one. Raises InputError where cryptography is not installed."""
        try:
            from cryptography.hazmat.primitives.asymmetric import ec
        except ImportError:
            raise InputError(f"certificates need cryptography: {install_hint('network')}.") from None
        return cls(run, ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def kept(cls, folder: Path, run: str) -> Self:
        """The one in a folder of kits. Raises InputError where its key or certificate cannot be read."""
        try:
            from cryptography import x509
            from cryptography.hazmat.primitives.serialization import load_pem_private_key

            key = load_pem_private_key((folder / "authority" / "key.pem").read_bytes(), None)
            own = x509.load_pem_x509_certificate((folder / "authority" / "authority.pem").read_bytes())
        except ImportError:
            raise InputError(f"certificates need cryptography: {install_hint('network')}.") from None
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{folder / 'authority'}: not an authority's key and certificate: {error}.") from None
        return cls(run, key, own)

    def certificate(self) -> bytes:
        """The authority's own certificate, PEM."""
        return _pem(self._certificate)

    def private(self) -> bytes:
        """The authority's private key, PEM."""
        return _pem_key(self._key)

    def issue(self, identity: str, host: str | None) -> tuple[bytes, bytes]:
        """(certificate, key), PEM, for a party known by an e-mail-like identity, or for a host."""
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        alternatives: list[x509.GeneralName] = [x509.RFC822Name(identity)] if host is None else _hosts(host)
        return _pem(self._signed(_named(identity), key.public_key(), alternatives, authority=False)), _pem_key(key)

    def _signed(self, subject: Any, public: Any, alternatives: list[Any], *, authority: bool) -> Any:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=DAYS))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(_usage(authority), critical=True)
        )
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def expires(path: Path) -> datetime.datetime:
    """When the certificate in a file does. Raises OSError or ValueError where there is none."""
    from cryptography import x509

    return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc


def _usage(authority: bool) -> Any:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=not authority, key_cert_sign=authority, crl_sign=authority, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip


def _named(name: str) -> Any:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _hosts(host: str) -> list[Any]:
    from cryptography import x509

    try:
        return [x509.IPAddress(ipaddress.ip_address(host))]
    except ValueError:
        return [x509.DNSName(host)]


def _pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    encoded: bytes = certificate.public_bytes(Encoding.PEM)
    return encoded


def _pem_key(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    encoded: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return encoded

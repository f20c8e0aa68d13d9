"""A certificate authority for tests: valid and expired certificates, also for other hosts."""

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from stt_async.local.loopback import HOST

_DAY = timedelta(days=1)


class Authority:
    """Signs certificates that clients accept with `file` as SSL_CERT_FILE or AWS_CA_BUNDLE."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("authority of a test")
        constraint = x509.BasicConstraints(ca=True, path_length=0)
        # OpenSSL 3 requires a key usage of an authority.
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        builder = self._builder(self._name, self._key, ended=-_DAY)
        builder = builder.add_extension(constraint, critical=True).add_extension(usage, critical=True)
        self.file = folder / "authority.pem"
        self.file.write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))

    def certificate(self, *, host: str = HOST, ended: timedelta = -_DAY) -> Path:
        """Make a certificate with its key for an address; it expired so long ago (negative: it expires later)."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
        signed = (
            self._builder(_name(host), key, ended=ended)
            .add_extension(names, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file = self._folder / f"{signed.serial_number}.pem"
        file.write_bytes(private + _pem(signed))
        return file

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ended: timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 3 * _DAY)
            .not_valid_after(now - ended)
        )


def server_context(certificate: Path) -> ssl.SSLContext:
    """A server's context with this certificate; `load_cert_chain` replaces it for later connections."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)

"""A development CA, the server's certificate and the sites' node keys.

python -m deploy.credentials DIR --address superlink.example.org --sites 2
"""

import argparse
import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from utils.errors import UserError, run_command
from utils.files import atomic_write

VALID_DAYS = 365


def main() -> int:
    """Write everything into a new folder."""
    parser = argparse.ArgumentParser(prog="python -m deploy.credentials", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--address", nargs="+", required=True, help="names or IPs of the server")
    parser.add_argument("--sites", type=int, required=True, help="how many node keys to make")
    args = parser.parse_args()
    make_credentials(args.folder, args.address, args.sites)
    print(f"{args.folder}: keep *.key private; a site gets ca.pem and its own site_N.key")
    return 0


def make_credentials(folder: Path, addresses: Sequence[str], num_sites: int) -> None:
    """Write ca.pem, ca.key, server.pem, server.key and, for each site, site_N.key and site_N.pub.

    addresses: the DNS names or IP addresses at which sites reach the server. Private keys can be
    read by their owner alone. Raises `UserError` where the folder has such files already.
    """
    if (folder / "ca.pem").exists():
        raise UserError(f"{folder}: holds credentials already; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    ca_key, server_key = _new_key(), _new_key()
    ca = _certificate(ca_key, "FedIRM development CA", ca_key, None, [])
    server = _certificate(server_key, "SuperLink", ca_key, ca, addresses)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    _write(folder / "ca.key", _private(ca_key, pkcs8), secret=True)
    _write(folder / "ca.pem", ca.public_bytes(pem))
    _write(folder / "server.key", _private(server_key, pkcs8), secret=True)
    _write(folder / "server.pem", server.public_bytes(pem))
    for site in range(num_sites):
        make_node_key(folder / f"site_{site}")


def make_node_key(stem: Path) -> None:
    """Write `stem`.key, which the site keeps, and `stem`.pub, which the operator registers."""
    key, ssh = _new_key(), serialization.PrivateFormat.OpenSSH
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    _write(stem.with_suffix(".key"), _private(key, ssh), secret=True)
    _write(stem.with_suffix(".pub"), public + b"\n")


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _private(key: ec.EllipticCurvePrivateKey, kind: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())


def _certificate(
    key: ec.EllipticCurvePrivateKey,
    name: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    addresses: Sequence[str],
) -> x509.Certificate:
    """A certificate of `key`: the CA's own where there is no issuer, else a server's."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .add_extension(_key_usage(ca=issuer is None), critical=True)
    )
    if addresses:
        names = x509.SubjectAlternativeName([_general_name(address) for address in addresses])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(issuer_key, hashes.SHA384())


def _key_usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _write(path: Path, content: bytes, secret: bool = False) -> None:
    with atomic_write(path) as file:
        file.write(content)
    if secret:
        os.chmod(path, 0o600)


if __name__ == "__main__":
    run_command(main)

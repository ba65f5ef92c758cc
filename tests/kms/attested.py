"""Attestation documents as the hardware signs them: COSE_Sign1 by ES384 over CBOR, under a chain that ends at a root of our own."""
import datetime
import pathlib
import subprocess
import time

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

IMAGE = bytes(range(48))
"""Measurement of the image that the tests trust."""


def spki(key) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


class Authority:
    """A root, an intermediate, and the leaves that sign documents."""

    def __init__(self):
        self.root_key, self.middle_key, self.leaf_key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(3))
        self.root = self.issue("root", self.root_key, "root", self.root_key, True)
        self.middle = self.issue("middle", self.middle_key, "root", self.root_key, True)
        self.leaf = self.issue("leaf", self.leaf_key, "middle", self.middle_key, False)

    @staticmethod
    def issue(name: str, key, issuer: str, issuer_key, is_ca: bool, days: int = 1) -> bytes:
        def named(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

        now = datetime.datetime.now(datetime.UTC)
        start, end = sorted((now - datetime.timedelta(hours=1), now + datetime.timedelta(days=days)))
        builder = (x509.CertificateBuilder().subject_name(named(name)).issuer_name(named(issuer)).public_key(key.public_key())
                   .serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)
                   .add_extension(x509.BasicConstraints(is_ca, None), critical=True))
        return builder.sign(issuer_key, hashes.SHA384()).public_bytes(serialization.Encoding.DER)

    def write_root(self, path: pathlib.Path) -> pathlib.Path:
        path.write_bytes(x509.load_der_x509_certificate(self.root).public_bytes(serialization.Encoding.PEM))
        return path

    def document(self, public_key: bytes | None, header=None, tagged: bool = False, signer=None, **changes) -> bytes:
        """A document; what `changes` names is another, what it gives as `None` is left out."""
        payload = {"module_id": "i-0123-enc4567", "digest": "SHA384", "timestamp": int(time.time() * 1000),
                   "pcrs": {0: IMAGE, 1: bytes(48), 4: b"\x44" * 48}, "certificate": self.leaf, "cabundle": [self.root, self.middle],
                   "public_key": public_key, "user_data": None, "nonce": None} | changes
        payload = cbor2.dumps({name: value for name, value in payload.items() if value is not None or name == "nonce"})
        protected = cbor2.dumps({1: -35} if header is None else header)
        signed = cbor2.dumps(["Signature1", protected, b"", payload])
        r, s = decode_dss_signature((signer or self.leaf_key).sign(signed, ec.ECDSA(hashes.SHA384())))
        document = [protected, {}, payload, r.to_bytes(48, "big") + s.to_bytes(48, "big")]
        return cbor2.dumps(cbor2.CBORTag(18, document) if tagged else document)


class Enclave:
    """An attested caller: an RSA key that only it has, and documents that name it."""

    def __init__(self, authority: Authority, directory: pathlib.Path, bits: int = 2048):
        self.authority, self.directory = authority, directory
        self.key = rsa.generate_private_key(65537, bits)
        pem = self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (directory / "enclave.pem").write_bytes(pem)

    def recipient(self, **changes) -> dict:
        return self.says(self.authority.document(**{"public_key": spki(self.key)} | changes))

    @staticmethod
    def says(document: bytes) -> dict:
        return {"AttestationDocument": document, "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256"}

    def open(self, enveloped: bytes) -> bytes:
        """What is inside an EnvelopedData, by OpenSSL."""
        done = subprocess.run(["openssl", "cms", "-decrypt", "-inform", "DER", "-inkey", self.directory / "enclave.pem", "-binary"],
                              input=enveloped, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

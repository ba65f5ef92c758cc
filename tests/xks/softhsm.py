"""A SoftHSM2 of our own: token directories, and keys made over PKCS #11."""
import os
import pathlib
import subprocess

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism

MODULE = next(path for path in ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so")
              if pathlib.Path(path).exists())
PIN = "9182736450"


class SoftHsm:
    """Tokens in a directory. Keys are made in a process of its own: the library reads its configuration once."""

    module = MODULE

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        self.tokens = directory / "tokens"
        self.tokens.mkdir(parents=True)
        self.conf = directory / "softhsm2.conf"
        self.conf.write_text(f"directories.tokendir = {self.tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
        self.env = os.environ | {"SOFTHSM2_CONF": str(self.conf)}

    def init_token(self, label: str, pin: str = PIN) -> None:
        command = ["softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", "so-" + pin, "--pin", pin]
        subprocess.run(command, env=self.env, check=True, capture_output=True)

    def _run(self, code: str, label: str, pin: str) -> None:
        prelude = ("import pkcs11\nfrom pkcs11 import Attribute, KeyType, Mechanism, ObjectClass\n"
                   f"lib = pkcs11.lib({self.module!r})\ntoken = lib.get_token(token_label={label!r})\n"
                   f"with token.open(rw=True, user_pin={pin!r}) as session:\n")
        body = "".join(f"    {line}\n" for line in code.splitlines())
        done = subprocess.run([os.environ.get("HOLDFAST_PYTHON", "python3"), "-c", prelude + body], env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def aes(self, token: str, label: str, *, encrypt=True, decrypt=True, wrap=False, extractable=False, sensitive=True,
            bits=256, pin: str = PIN) -> None:
        attributes = {"ENCRYPT": encrypt, "DECRYPT": decrypt, "WRAP": wrap, "UNWRAP": wrap, "SIGN": False, "VERIFY": False,
                      "DERIVE": False, "EXTRACTABLE": extractable, "SENSITIVE": sensitive, "PRIVATE": True}
        template = "{" + ", ".join(f"Attribute.{name}: {value}" for name, value in attributes.items()) + "}"
        self._run(f"session.generate_key(KeyType.AES, {bits}, label={label!r}, id={label.encode()!r}, store=True, template={template})", token, pin)

    def aes_many(self, token: str, labels: list[str], pin: str = PIN) -> None:
        template = ("{Attribute.ENCRYPT: True, Attribute.DECRYPT: True, Attribute.WRAP: False, Attribute.UNWRAP: False, Attribute.SIGN: False, "
                    "Attribute.VERIFY: False, Attribute.DERIVE: False, Attribute.EXTRACTABLE: False, Attribute.SENSITIVE: True}")
        self._run(f"for label in {labels!r}:\n    session.generate_key(KeyType.AES, 256, label=label, store=True, template={template})", token, pin)

    def rsa(self, token: str, label: str, bits: int = 2048, pin: str = PIN) -> None:
        code = (f"session.generate_keypair(KeyType.RSA, {bits}, label={label!r}, store=True,\n"
                "  private_template={Attribute.SIGN: False, Attribute.UNWRAP: False, Attribute.DECRYPT: True, Attribute.EXTRACTABLE: False, Attribute.SENSITIVE: True,\n"
                "                    Attribute.DERIVE: False, Attribute.SIGN_RECOVER: False},\n"
                "  public_template={Attribute.VERIFY: False, Attribute.WRAP: False, Attribute.ENCRYPT: True})")
        self._run(code, token, pin)

    def delete(self, token: str, label: str, pin: str = PIN) -> None:
        self._run(f"session.get_key(label={label!r}).destroy()", token, pin)

    def set_usage(self, token: str, label: str, pin: str = PIN, **usage: bool) -> None:
        lines = "\n".join(f"key[Attribute.{name.upper()}] = {value}" for name, value in usage.items())
        self._run(f"key = session.get_key(label={label!r})\n{lines}", token, pin)

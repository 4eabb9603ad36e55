"""The key of a restic repository at the least cost of scrypt: its half second a command would prove nothing of us."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB
from cryptography.hazmat.primitives.poly1305 import Poly1305

QUICK = {"N": 2, "r": 1, "p": 1}


def make_key_quick(repository: Path, password_file: Path) -> None:
    """Seal the keys of a repository anew with the same password, as `restic key add` does with restic's own cost."""
    (file,) = (repository / "keys").iterdir()
    key = json.loads(file.read_text())
    password = password_file.read_bytes().strip()
    salt, sealed = base64.b64decode(key["salt"]), base64.b64decode(key["data"])
    nonce, content, tag = sealed[:16], sealed[16:-16], sealed[-16:]
    old = derive(password, salt, {name: key[name] for name in QUICK})
    Poly1305.verify_tag(authenticator(old, nonce), content, tag)
    keys = counted(old, nonce, content)

    new, nonce = derive(password, salt, QUICK), os.urandom(16)
    content = counted(new, nonce, keys)
    tag = Poly1305.generate_tag(authenticator(new, nonce), content)
    made = json.dumps({**key, **QUICK, "data": base64.b64encode(nonce + content + tag).decode()}).encode()
    (file.parent / hashlib.sha256(made).hexdigest()).write_bytes(made)
    file.unlink()


def derive(password: bytes, salt: bytes, cost: dict[str, int]) -> bytes:
    """32 bytes to encrypt with, then 16 and 16 to authenticate with."""
    cost = {name.lower(): number for name, number in cost.items()}
    return hashlib.scrypt(password, salt=salt, dklen=64, maxmem=2**30, n=cost["n"], r=cost["r"], p=cost["p"])


def counted(key: bytes, nonce: bytes, content: bytes) -> bytes:
    """AES in counter mode, which is its own reverse."""
    return Cipher(AES(key[:32]), CTR(nonce)).encryptor().update(content)


def authenticator(key: bytes, nonce: bytes) -> bytes:
    """The one-time key of Poly1305-AES."""
    return key[48:] + Cipher(AES(key[32:48]), ECB()).encryptor().update(nonce)

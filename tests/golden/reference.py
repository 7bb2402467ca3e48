#!/usr/bin/env python3
"""Writes the golden files of docs/envelope.md, from that text alone.

This is a second implementation, in another language and on another library (OpenSSL, through the
`cryptography` package), so that a golden file proves the specification and not only that the Rust code
agrees with itself. A file that is there must come out byte for byte the same: formats are never changed,
a new one gets a folder of its own. Run without arguments to check, with --write to add missing files.
"""

import hashlib
import hmac
import json
import pathlib
import struct
import sys

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
HERE = pathlib.Path(__file__).parent


def base32(raw):
    bits = "".join(f"{byte:08b}" for byte in raw)
    bits += "0" * (-len(bits) % 5)
    return "".join(ALPHABET[int(bits[i : i + 5], 2)] for i in range(0, len(bits), 5))


def lp(*parts):
    out = b""
    for part in parts:
        part = part if isinstance(part, bytes) else part.encode()
        out += struct.pack(">I", len(part)) + part
    return out


def sealed_body(key, salt, nonce, info, aad, block):
    okm = HKDF(hashes.SHA512(), 64, salt, info).derive(key)
    return salt + okm[32:] + nonce + AESGCM(okm[:32]).encrypt(nonce, block, aad)


def record(key, raw_id, purpose, merchant, record_id, field, salt, nonce, plaintext):
    if field == "pan":
        block = bytes([len(plaintext)]) + plaintext + bytes(23 - len(plaintext))
    else:
        block = struct.pack(">I", len(plaintext)) + plaintext
        block += bytes(-len(block) % 64)
    info = lp("cardvault/record/v1", purpose, merchant, record_id, field)
    aad = lp("record/1", merchant, record_id, field, "dek_" + base32(raw_id))
    return b"\x01\x01" + raw_id + sealed_body(key, salt, nonce, info, aad, block)


def wrapped(kek, raw_kek, raw_dek, purpose, salt, nonce, dek):
    kek_id, dek_id = "kek_" + base32(raw_kek), "dek_" + base32(raw_dek)
    info = lp("cardvault/wrap/v1", kek_id, dek_id, purpose)
    aad = lp("wrap/1", kek_id, dek_id, purpose)
    return b"\x01\x01" + raw_kek + sealed_body(kek, salt, nonce, info, aad, dek)


def token_wrapped(kek, raw_kek, raw_dek, purpose, nonce, dek):
    """What a token makes: AES-256-GCM under the KEK itself."""
    aad = lp("wrap/2", "kek_" + base32(raw_kek), "dek_" + base32(raw_dek), purpose)
    return b"\x01\x02" + raw_kek + nonce + AESGCM(kek).encrypt(nonce, dek, aad)


def times(a, b):
    """Multiplication in GF(2^8) modulo x^8 + x^4 + x^3 + x^2 + 1."""
    out = 0
    while b:
        out ^= a if b & 1 else 0
        a = (a << 1) ^ (0x11D if a & 0x80 else 0)
        b >>= 1
    return out


def share(split, index, threshold, polynomials):
    """`polynomials` has one for each byte of the key, its constant (the byte) last."""
    y = bytearray()
    for coefficients in polynomials:
        value = 0
        for coefficient in coefficients:
            value = times(value, index) ^ coefficient
        y.append(value)
    body = b"\x01" + split + bytes([index, threshold]) + bytes(y)
    text = base32(body + hashlib.sha256(body).digest()[:4])
    shown = "cvshare" + "".join("-" + text[i : i + 4] for i in range(0, len(text), 4))
    check = mac(bytes(y), "cardvault/share-check/v1", split, bytes([index]))[:8]
    return shown, check.hex()


def mac(key, *parts):
    return hmac.new(key, lp(*parts), hashlib.sha256).digest()


def count(start, length):
    return bytes((start + i) % 256 for i in range(length))


def golden():
    key, raw_id = count(0x00, 32), count(0xA0, 20)
    card = "card_" + base32(count(0x30, 20))
    details = b'{"expiryMonth":"12","expiryYear":"29","firstName":"Ana","lastName":"Garc\xc3\xada"}'
    cases = [
        ("pan", "acme", card, "pan", b"4111111111111111"),
        ("pan-15-digits", "acme", card, "pan", b"378282246310005"),
        ("details", "acme", card, "details", details),
        ("details-empty", "acme", card, "details", b""),
        ("details-60-bytes", "globex", card, "details", b"x" * 60),
        ("details-61-bytes", "globex", card, "details", b"x" * 61),
        ("outgoing", "acme", "PAY_20221114141714891", "outgoing", b'{"paymentRequestId":"PAY_20221114141714891"}'),
        ("gateway_answer", "acme", "PAY_20221114141714891", "gateway_answer", b'{"result":{"resultStatus":"S"}}'),
        ("token", "acme", card, "token", b"ALIPAYi2SxW9Kx_sample-token=="),
    ]
    for number, (name, merchant, record_id, field, plaintext) in enumerate(cases):
        purpose = "gateway_token" if field == "token" else "card"
        salt, nonce = count(0x40 + number, 32), count(0x60 + number, 12)
        sealed = record(key, raw_id, purpose, merchant, record_id, field, salt, nonce, plaintext)
        yield f"envelope-v1/{name}.json", {
            "dek_id": "dek_" + base32(raw_id),
            "purpose": purpose,
            "key": key.hex(),
            "merchant": merchant,
            "record": record_id,
            "field": field,
            "salt": salt.hex(),
            "nonce": nonce.hex(),
            "plaintext": plaintext.decode(),
            "sealed": sealed.hex(),
        }
    for number, purpose in enumerate(["card", "fingerprint", "request_mac", "gateway_token", "audit", "checkpoint"]):
        kek, raw_kek, raw_dek = count(0x80, 32), count(0xC0, 20), count(0xA0 + number, 20)
        dek, salt, nonce = count(0x10 + number, 32), count(0x50 + number, 32), count(0x70 + number, 12)
        yield f"wrap-v1/{purpose}.json", {
            "kek_id": "kek_" + base32(raw_kek),
            "kek": kek.hex(),
            "kek_check": hmac.new(kek, b"cardvault/kek-check/v1", hashlib.sha256).digest()[:8].hex(),
            "dek_id": "dek_" + base32(raw_dek),
            "purpose": purpose,
            "salt": salt.hex(),
            "nonce": nonce.hex(),
            "key": dek.hex(),
            "wrapped": wrapped(kek, raw_kek, raw_dek, purpose, salt, nonce, dek).hex(),
        }
    for number, purpose in enumerate(["card", "fingerprint", "request_mac"]):
        kek, raw_kek, raw_dek = count(0x80, 32), count(0xC0, 20), count(0xA0 + number, 20)
        dek, nonce = count(0x10 + number, 32), count(0x70 + number, 12)
        yield f"wrap-v2/{purpose}.json", {
            "kek_id": "kek_" + base32(raw_kek),
            "kek": kek.hex(),
            "dek_id": "dek_" + base32(raw_dek),
            "purpose": purpose,
            "nonce": nonce.hex(),
            "key": dek.hex(),
            "wrapped": token_wrapped(kek, raw_kek, raw_dek, purpose, nonce, dek).hex(),
        }
    for name, threshold, number in [("two-of-three", 2, 3), ("three-of-five", 3, 5)]:
        kek, split = count(0x80, 32), count(0xE0 + threshold, 8)
        chosen = [count(0x21 * i + 7, 32) for i in range(1, threshold)]
        polynomials = list(zip(*chosen, kek))
        shares = [share(split, index, threshold, polynomials) for index in range(1, number + 1)]
        yield f"shares-v1/{name}.json", {
            "kek_id": "kek_" + base32(count(0xC0, 20)),
            "kek": kek.hex(),
            "kek_check": hmac.new(kek, b"cardvault/kek-check/v1", hashlib.sha256).digest()[:8].hex(),
            "split": split.hex(),
            "threshold": threshold,
            "shares": [shown for shown, _ in shares],
            "checks": [check for _, check in shares],
        }
    for name, merchant, pan in [("acme", "acme", "4111111111111111"), ("globex", "globex", "4111111111111111"),
                                ("acme-15-digits", "acme", "378282246310005")]:
        value = mac(key, "fp/v1", merchant, pan)
        yield f"fingerprint-v1/{name}.json", {
            "key": key.hex(),
            "merchant": merchant,
            "pan": pan,
            "fingerprint": value.hex(),
            "shown": "fp_" + base32(value),
        }
    for name, canonical in [("empty", ""), ("payment", '{"amount":{"currency":"BRL","value":"1000"}}')]:
        yield f"request-mac-v1/{name}.json", {
            "key": key.hex(),
            "canonical": canonical,
            "mac": mac(key, "request/v1", canonical).hex(),
        }


def main():
    wrong = 0
    for name, content in golden():
        path, text = HERE / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        if path.exists():
            same = path.read_text(encoding="utf-8") == text
            wrong += not same
            print("same     " if same else "DIFFERENT", name)
        elif "--write" in sys.argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print("written  ", name)
        else:
            wrong += 1
            print("MISSING  ", name)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

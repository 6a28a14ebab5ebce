"""Authenticode: the signature that UEFI firmware looks for in what it starts.

    digest(efi)                       ->  SHA-256 of what is signed
    sign(efi, key, certificate)       ->  the image with one signature, and no other
    unsound(efi, certificate)         ->  "" if this certificate's key signed exactly this, else why not

Signed is the whole file but three places: its checksum, the entry that says where signatures stand, and the
signatures themselves. They are a PKCS#7 message around that digest, at the file's end.

There is no time in what is written, and RSA as it is used here has no chance in it. So the same image, key
and certificate give the same bytes; and a signature is checked by writing it anew and comparing all but the
number that only the key's owner can make. What was signed by other programs does not pass.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from warren.boot.formats import pe
from warren.tree import Refused

_REVISION, _PKCS7 = 0x0200, 0x0002
_HEAD: Final = struct.Struct("<IHH")


def _der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    if len(body) < 0x80:
        return bytes([tag, len(body)]) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + body


def _oid(*arcs: int) -> bytes:
    body = bytearray([arcs[0] * 40 + arcs[1]])
    for arc in arcs[2:]:
        digits = [arc & 0x7F]
        while arc := arc >> 7:
            digits.append(arc & 0x7F | 0x80)
        body += bytes(reversed(digits))
    return _der(0x06, bytes(body))


_SEQUENCE, _SET, _OCTETS, _INTEGER = 0x30, 0x31, 0x04, 0x02
_NULL: Final = _der(0x05)
_SHA256: Final = _der(_SEQUENCE, _oid(2, 16, 840, 1, 101, 3, 4, 2, 1), _NULL)
_RSA: Final = _der(_SEQUENCE, _oid(1, 2, 840, 113549, 1, 1, 1), _NULL)
_SIGNED_DATA: Final = _oid(1, 2, 840, 113549, 1, 7, 2)
_CONTENT_TYPE: Final = _oid(1, 2, 840, 113549, 1, 9, 3)
_MESSAGE_DIGEST: Final = _oid(1, 2, 840, 113549, 1, 9, 4)
_INDIRECT: Final = _oid(1, 3, 6, 1, 4, 1, 311, 2, 1, 4)
_PE_IMAGE: Final = _der(
    _SEQUENCE,
    _oid(1, 3, 6, 1, 4, 1, 311, 2, 1, 15),
    # No flags, and a file that has no name.
    _der(_SEQUENCE, _der(0x03, b"\0"), _der(0xA0, _der(0xA2, _der(0x80)))),
)


def digest(efi: bytes) -> bytes:
    return _digest(efi, pe.read(efi))


def _digest(efi: bytes, found: pe.Pe) -> bytes:
    end = found.certificates[0] or len(efi)
    view, sum_ = memoryview(efi), hashlib.sha256()
    sum_.update(view[: found.checksum_at])
    sum_.update(view[found.checksum_at + 4 : found.security_at])
    sum_.update(view[found.security_at + 8 : end])
    return sum_.digest()


def sign(efi: bytes, key: RSAPrivateKey, certificate: x509.Certificate) -> bytes:
    if key.public_key() != certificate.public_key():
        raise Refused(400, "the key is not the certificate's")
    found = pe.read(efi)
    if found.certificates[1]:
        raise Refused(409, "the image is signed already; sign what it was made of")
    efi += bytes(-len(efi) % 8)
    content, attributes = _content(_digest(efi, found))
    message = _message(content, attributes, certificate, key.sign(attributes, PKCS1v15(), SHA256()))
    table = _HEAD.pack(_HEAD.size + len(message), _REVISION, _PKCS7) + message
    table += bytes(-len(table) % 8)
    out = bytearray(efi)
    struct.pack_into("<II", out, found.security_at, len(efi), len(table))
    out += table
    struct.pack_into("<I", out, found.checksum_at, pe.checksum(bytes(out), found))
    return bytes(out)


def unsound(efi: bytes, certificate: x509.Certificate) -> str:
    try:
        found = pe.read(efi)
    except Refused as e:
        return e.detail
    at, size = found.certificates
    if not size:
        return "it is not signed"
    public = certificate.public_key()
    if not isinstance(public, RSAPublicKey):
        return "the certificate's key is not of the kind that signs here"
    content, attributes = _content(_digest(efi, found))
    length = public.key_size // 8
    blank = _message(content, attributes, certificate, bytes(length))
    table = _HEAD.pack(_HEAD.size + len(blank), _REVISION, _PKCS7) + blank
    there, end = efi[at : at + size], len(table) - length
    if there[:end] != table[:end] or there[end + length :] != bytes(-len(table) % 8):
        return "it was changed after it was signed, or another key signed it"
    try:
        public.verify(there[end : end + length], attributes, PKCS1v15(), SHA256())
    except InvalidSignature:
        return "its signature is not the key's"
    return ""


def _content(digest: bytes) -> tuple[bytes, bytes]:
    """What is said of the image, and the attributes over which the key signs."""
    said = _PE_IMAGE + _der(_SEQUENCE, _SHA256, _der(_OCTETS, digest))
    inner = hashlib.sha256(said).digest()  # of the words alone, without their tag and length
    attributes = _der(
        _SET,
        _der(_SEQUENCE, _CONTENT_TYPE, _der(_SET, _INDIRECT)),
        _der(_SEQUENCE, _MESSAGE_DIGEST, _der(_SET, _der(_OCTETS, inner))),
    )
    return _der(_SEQUENCE, said), attributes


def _message(content: bytes, attributes: bytes, certificate: x509.Certificate, signature: bytes) -> bytes:
    serial = certificate.serial_number
    number = serial.to_bytes(serial.bit_length() // 8 + 1, "big")
    signer = _der(
        _SEQUENCE,
        _der(_INTEGER, b"\1"),
        _der(_SEQUENCE, certificate.issuer.public_bytes(), _der(_INTEGER, number)),
        _SHA256,
        b"\xa0" + attributes[1:],
        _RSA,
        _der(_OCTETS, signature),
    )
    signed = _der(
        _SEQUENCE,
        _der(_INTEGER, b"\1"),
        _der(_SET, _SHA256),
        _der(_SEQUENCE, _INDIRECT, _der(0xA0, content)),
        _der(0xA0, certificate.public_bytes(Encoding.DER)),
        _der(_SET, signer),
    )
    return _der(_SEQUENCE, _SIGNED_DATA, _der(0xA0, signed))

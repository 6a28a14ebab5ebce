"""Small PE images, packed here by hand, where the real ones of 80 KiB would only make a test hard to read."""

import struct


def small_pe(*sections: tuple[str, bytes], headers: int = 0x400, directories: int = 16) -> bytes:
    """An image for x86-64 whose sections follow each other in the file and in memory."""
    optional = bytearray(112 + 8 * directories)
    struct.pack_into("<H", optional, 0, 0x20B)
    struct.pack_into("<II", optional, 32, 0x200, 0x200)  # alignments, in memory and in the file
    struct.pack_into("<I", optional, 60, headers)
    struct.pack_into("<I", optional, 108, directories)
    coff = struct.pack("<HHIIIHH", 0x8664, len(sections), 0x5F5E100, 0, 0, len(optional), 0x206)
    table, body, address = b"", b"", 0x1000
    for name, data in sections:
        raw = len(data) + -len(data) % 0x200
        table += struct.pack(
            "<8sIIIIIIHHI",
            name.encode(), len(data), address, raw, headers + len(body), 0, 0, 0, 0, 0x60000020,
        )  # fmt: skip
        body += data.ljust(raw, b"\0")
        address += 0x1000
    struct.pack_into("<I", optional, 56, address)
    head = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64) + b"PE\0\0" + coff + bytes(optional) + table
    return head.ljust(headers, b"\0") + body


def plain_sum(data: bytes, field: int) -> int:
    """The header's checksum as its definition goes, word by word."""
    data = data[:field] + bytes(4) + data[field + 4 :]
    total = 0
    for (word,) in struct.iter_unpack("<H", data + bytes(len(data) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total + len(data)

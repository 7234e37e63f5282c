"""HTTP/2, as far as one needs it who speaks it byte by byte: no table, no Huffman code."""

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


SETTINGS = frame(4, 0, 0)


def literal(name, value):
    """A field that nobody remembers (RFC 7541, section 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def head(stream, flags, path=b"/", host=b"web", method=b"GET", more=b""):
    """The frame of a request's head, in the clear; `more` are further fields."""
    return frame(1, flags, stream, literal(b":method", method) + b"\x86" + literal(b":path", path) + literal(b":authority", host) + more)


def frames(connection):
    """The frames of a socket until it ends: kind, flags, stream and payload of each."""
    read = b""
    while True:
        while len(read) >= 9 and len(read) >= 9 + (size := int.from_bytes(read[:3], "big")):
            yield read[3], read[4], int.from_bytes(read[5:9], "big") & 0x7FFF_FFFF, read[9:9 + size]
            read = read[9 + size:]
        if not (more := connection.recv(65536)):
            return
        read += more

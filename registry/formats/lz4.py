"""Unpacks the beginning of an LZ4 frame, enough to see what is inside."""

MAGIC = b"\x04\x22\x4d\x18"
_MIN_MATCH = 4


def unpack_head(data: bytes, limit: int) -> bytes:
    """Give up to `limit` of the first block's bytes; raise ValueError for a broken frame."""
    if len(data) < 7:
        raise ValueError("an LZ4 frame is cut short")
    flags = data[4]
    position = 6 + (8 if flags & 0x08 else 0) + (4 if flags & 0x01 else 0) + 1
    length = int.from_bytes(data[position : position + 4], "little")
    block = data[position + 4 : position + 4 + (length & 0x7FFF_FFFF)]
    if length >> 31:
        return block[:limit]
    return _unpack_block(block, limit)


def _unpack_block(block: bytes, limit: int) -> bytes:
    out = bytearray()
    position = 0
    while position < len(block) and len(out) < limit:
        token = block[position]
        count, position = _length(block, position + 1, token >> 4)
        out += block[position : position + count]
        position += count
        if position + 2 > len(block):
            break
        distance = int.from_bytes(block[position : position + 2], "little")
        count, position = _length(block, position + 2, token & 15)
        if not 0 < distance <= len(out):
            raise ValueError("an LZ4 block refers to what is not there")
        wanted = min(count + _MIN_MATCH, limit)
        start = len(out) - distance
        piece = bytes(out[start : start + wanted])
        out += (piece * (wanted // len(piece) + 1))[:wanted]
    return bytes(out[:limit])


def _length(block: bytes, position: int, short: int) -> tuple[int, int]:
    """Read a length: four bits, then bytes as long as they are 255."""
    if short < 15:
        return short, position
    while position < len(block):
        byte = block[position]
        position += 1
        short += byte
        if byte < 255:
            break
    return short, position

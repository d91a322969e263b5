"""As much of protocol buffers as tf.train.Example needs: where its values lie, without copying them."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

__all__ = ["Span", "example_features", "feature_bytes", "feature_ints"]

Span = tuple[int, int]
"""First byte and the one past the last."""
Buffer = bytes | mmap.mmap

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_FIXED = {_FIXED64: 8, _FIXED32: 4}
_BYTES_LIST, _INT64_LIST = 1, 3  # fields of tf.train.Feature


def example_features(buffer: Buffer, span: Span) -> dict[str, Span]:
    """The features of a serialised tf.train.Example, by name. Raises ValueError for what is none."""
    features = {}
    for _, outer in _messages(buffer, span, 1):  # Example.features
        for _, entry in _messages(buffer, outer, 1):  # Features.feature, a map
            parts = dict(_messages(buffer, entry, 1, 2))
            if 1 in parts and 2 in parts:
                features[buffer[slice(*parts[1])].decode("utf-8", "replace")] = parts[2]
    return features


def feature_bytes(buffer: Buffer, feature: Span) -> list[Span]:
    """Where the values of a feature's bytes_list lie."""
    lists = _messages(buffer, feature, _BYTES_LIST)
    return [value for _, values in lists for _, value in _messages(buffer, values, 1)]


def feature_ints(buffer: Buffer, feature: Span) -> list[int]:
    """The values of a feature's int64_list, packed or not."""
    found = []
    for _, values in _messages(buffer, feature, _INT64_LIST):
        for number, item in _fields(buffer, values):
            if number == 1 and isinstance(item, int):
                found.append(item)
            elif number == 1 and not isinstance(item, int):
                position, end = item
                while position < end:
                    value, position = _varint(buffer, position, end)
                    found.append(value)
    return [value - (1 << 64) if value >> 63 else value for value in found]


def _messages(buffer: Buffer, span: Span, *wanted: int) -> Iterator[tuple[int, Span]]:
    """Number and place of the length-delimited fields of these numbers."""
    for number, value in _fields(buffer, span):
        if number in wanted and not isinstance(value, int):
            yield number, value


def _fields(buffer: Buffer, span: Span) -> Iterator[tuple[int, int | Span]]:
    """Number and value of each field; of a length-delimited one, the place."""
    position, end = span
    while position < end:
        tag, position = _varint(buffer, position, end)
        wire = tag & 7
        if wire == _VARINT:
            value, position = _varint(buffer, position, end)
            yield tag >> 3, value
            continue
        if wire == _BYTES:
            length, position = _varint(buffer, position, end)
        elif wire in _FIXED:
            length = _FIXED[wire]
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if position + length > end:
            raise ValueError(f"a field at byte {position} goes past its message's end")
        yield tag >> 3, (position, position + length)
        position += length


def _varint(buffer: Buffer, position: int, end: int) -> tuple[int, int]:
    """An unsigned number, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise ValueError(f"a number at byte {position} goes past its message's end")
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
    raise ValueError(f"a number of more than 10 bytes ends at byte {position}")

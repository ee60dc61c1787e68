"""What the header of a GGUF file says: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

import mmap
import struct
from pathlib import Path

from hub.errors import ModelError

_SIZES = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9

Value = int | float | bool | str


def header(file: Path) -> dict[str, Value]:
    """The keys of a GGUF file with their values. Arrays, such as the vocabulary, are left out.

    Raises:
        ModelError: it is no GGUF file.
    """
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data).read()
    except (OSError, ValueError, struct.error, UnicodeDecodeError) as error:
        raise ModelError(f"{file}: can't be read as a GGUF file ({error})") from None


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place = data, 0

    def read(self) -> dict[str, Value]:
        if self.data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.place = 16
        found: dict[str, Value] = {}
        for _ in range(int(self._number("<Q"))):
            name = self._string()
            kind = int(self._number("<I"))
            value = self._value(kind)
            if value is not None:
                found[name] = value
        return found

    def _value(self, kind: int) -> Value | None:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(_SIZES[kind])
        inner, count = int(self._number("<I")), int(self._number("<Q"))
        if inner in _SIZES:
            self.place += struct.calcsize(_SIZES[inner]) * count
        else:
            for _ in range(count):
                self._value(inner)
        return None

    def _number(self, form: str) -> int | float | bool:
        (found,) = struct.unpack_from(form, self.data, self.place)
        self.place += struct.calcsize(form)
        assert isinstance(found, int | float)
        return found

    def _string(self) -> str:
        length = int(self._number("<Q"))
        self.place += length
        return self.data[self.place - length : self.place].decode()

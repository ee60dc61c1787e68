"""A hash of a model's weights, under which what depends on them alone is kept in the user's cache."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PIECE_BYTES = 2**26
"""Size of the piece of a weights file that one thread hashes at a time."""

NUM_THREADS = min(16, os.cpu_count() or 1)


def weights_digest(folder: Path) -> str:
    """A hash of all safetensors files in a folder: of the hashes of their pieces, which threads compute in parallel."""
    pieces: list[tuple[Path, int]] = []
    for file in sorted(folder.glob("*.safetensors")):
        pieces += [(file, start) for start in range(0, file.stat().st_size, PIECE_BYTES)]

    def digest(piece: tuple[Path, int]) -> bytes:
        file, start = piece
        with file.open("rb", buffering=0) as stream:
            stream.seek(start)
            return hashlib.sha256(stream.read(PIECE_BYTES)).digest()

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        digests = list(threads.map(digest, pieces))
    combined = hashlib.sha256()
    for (file, start), one in zip(pieces, digests, strict=True):
        combined.update(f"{file.name} {start} ".encode() + one)
    return combined.hexdigest()

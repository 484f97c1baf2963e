"""What a network said of photos, kept on the disk, so that they are read once: by network and by the photo's bytes."""

import hashlib
import json
import sqlite3
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from Data_preprocessing.find_face import digest_of
from Script_tools.files import DataError

READING = 3  # to be raised with every change of how a photo's face is found, cut out and embedded
ASKED_AT_ONCE = 500  # keys; SQLite takes 999 in a question


class FaceCache:
    """A file of faces, {key: (record, embedding)}; several programs may read and write it at once (SQLite).

    Raises DataError if the file cannot be made or is none of its kind.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.base = sqlite3.connect(self.path, timeout=60)
            with self.base:
                columns = "key BLOB PRIMARY KEY, record TEXT, embedding BLOB"
                self.base.execute(f"CREATE TABLE IF NOT EXISTS faces ({columns})")
        except (OSError, sqlite3.Error) as error:
            raise self.unusable(error) from error

    def get(self, keys: Iterable[bytes]) -> dict[bytes, tuple[dict, np.ndarray | None]]:
        """{key: (record, (D,) float32 embedding or None)} of those that are there."""
        keys, found = list(keys), {}
        for begin in range(0, len(keys), ASKED_AT_ONCE):
            some = keys[begin : begin + ASKED_AT_ONCE]
            places = ", ".join("?" * len(some))
            try:
                rows = self.base.execute(f"SELECT * FROM faces WHERE key IN ({places})", some).fetchall()
            except sqlite3.Error as error:
                raise self.unusable(error) from error
            for key, record, embedding in rows:
                vector = None if embedding is None else np.frombuffer(embedding, np.float32)
                found[key] = json.loads(record), vector
        return found

    def put(self, faces: dict[bytes, tuple[dict, np.ndarray | None]]) -> None:
        """Keep them, whole or not at all."""
        rows = [
            (key, json.dumps(record), None if embedding is None else embedding.astype(np.float32).tobytes())
            for key, (record, embedding) in faces.items()
        ]
        try:
            with self.base:
                self.base.executemany("INSERT OR REPLACE INTO faces VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise self.unusable(error) from error

    def unusable(self, error: Exception) -> DataError:
        """What to say of a cache that cannot be used."""
        return DataError(f"{self.path}: faces cannot be kept there ({error})")

    def close(self) -> None:
        self.base.close()


def open_cache(cache_path: str | Path) -> FaceCache | None:
    """The cache in the folder ``cache_path``; where it cannot be used a note is printed, and None: it goes without."""
    try:
        return FaceCache(Path(cache_path, "faces.sqlite"))
    except DataError as error:
        print(f"note: {error}: every photo is read anew", file=sys.stderr)
        return None


def file_digest(path: str | Path) -> bytes | None:
    """``digest_of`` the file's bytes; None if they cannot be read."""
    try:
        return digest_of(Path(path).read_bytes())
    except OSError:
        return None


def reader_key(*settings: object) -> bytes:
    """(16,) bytes that differ where the settings or the code's way of reading do."""
    return hashlib.blake2b(repr((READING, *settings)).encode(), digest_size=16).digest()

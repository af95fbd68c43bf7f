"""Plain (uncompressed) entries of a zip archive, read where they lie: any part, into memory that is there, checked.

`zipfile` reads the table of contents; its own file objects would make a second copy of each large entry.
"""

from __future__ import annotations

import dataclasses
import io
import pathlib
import struct
import zipfile
import zlib

_BLOCK_BYTES = 16 << 20


class EntryError(ValueError):
    """An archive or an entry is damaged, or not of the kind that is read; the message goes on after the name of the file."""


@dataclasses.dataclass(eq=False)
class Entry:
    """One entry: the bytes start..start+size of the file. A CRC-32 of 0 means that none was recorded.

    (`torch.serialization.set_crc32_options(False)` makes such files.)
    """

    file: pathlib.Path
    name: str
    start: int
    size: int
    crc: int
    checked: bool = False

    def read(self, offset: int = 0, size: int | None = None) -> bytearray:
        """Bytes from `offset` on; all by default. The first reading of a part reads the whole once for its CRC-32.

        Raises:
          EntryError: the file was cut, or the entry does not have the CRC-32 that the archive recorded.
          OSError: the file cannot be read.
        """
        content = bytearray(self.size - offset if size is None else size)
        with open(self.file, "rb") as file:
            if len(content) != self.size:
                self._check_parts(file)
            file.seek(self.start + offset)
            if file.readinto(content) != len(content):
                raise EntryError(f"{self.name} ends early: the file was changed since it was opened")
        if len(content) == self.size:
            self._compare(zlib.crc32(content))
        return content

    def _check_parts(self, file: io.BufferedReader) -> None:
        if self.checked:
            return
        file.seek(self.start)
        crc = 0
        for position in range(0, self.size, _BLOCK_BYTES):
            crc = zlib.crc32(file.read(min(_BLOCK_BYTES, self.size - position)), crc)
        self._compare(crc)

    def _compare(self, crc: int) -> None:
        if self.crc not in (0, crc):
            raise EntryError(f"{self.name} is damaged (its CRC-32 differs)")
        self.checked = True


class Entries:
    """The table of contents of an archive.

    Args:
      file: the archive.

    Raises:
      EntryError: it is cut short or damaged.
      OSError: it cannot be read.
    """

    def __init__(self, file: pathlib.Path):
        self.file = file
        with open(file, "rb") as archive:
            try:
                infos = zipfile.ZipFile(archive).infolist()
            # What zipfile raises on damaged archives goes beyond BadZipFile.
            except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError, OSError) as error:
                raise EntryError(
                    f"its table of contents cannot be read, it is cut short or damaged ({error})"
                ) from error
        self._infos = {info.filename: info for info in infos}
        if len(self._infos) != len(infos):
            raise EntryError("it is damaged: two of its entries have the same name")

    def names(self) -> list[str]:
        """The names of the entries, in the archive's order."""
        return list(self._infos)

    def find(self, name: str) -> Entry:
        """The place of an entry.

        Raises:
          EntryError: there is none of this name, it is compressed, or it is not where the table says.
          OSError: the file cannot be read.
        """
        if name not in self._infos:
            raise EntryError(f"{name} is missing")
        info = self._infos[name]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise EntryError(f"{name} is compressed or encrypted; plain entries are read, as torch.save writes them")
        with open(self.file, "rb") as archive:
            end = archive.seek(0, io.SEEK_END)
            # The header before the entry; its length is written nowhere else.
            archive.seek(info.header_offset)
            header = archive.read(30)
            if len(header) < 30:
                raise EntryError(f"{name} is damaged: it does not begin where the table of contents says")
            name_bytes, extra_bytes = struct.unpack("<HH", header[26:])
            encoding = "utf-8" if info.flag_bits & 0x800 else "cp437"
            if archive.read(name_bytes).decode(encoding, errors="replace") != info.orig_filename:
                raise EntryError(f"{name} is damaged: the table of contents gives it another name")
        start = info.header_offset + 30 + name_bytes + extra_bytes
        if start + info.file_size > end:
            raise EntryError(f"{name} is damaged: it reaches beyond the end of the file")
        return Entry(self.file, name, start, info.file_size, info.CRC)

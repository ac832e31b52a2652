"""A tar that is read front to back, out of a file or a pipe, and is seen to be whole.

Python's tarfile, and so the package webdataset, takes the end of the bytes, or a damaged header, for the end of a tar and says nothing: samples
would be missing in silence.  The true end is a block of zeros.
"""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO

BLOCK = tarfile.BLOCKSIZE
CHUNK = 1 << 16
ZEROS = bytes(BLOCK)
MOST_HEADER = 1 << 20  # bytes of a long name, or of a member's attributes
_PACKED: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file, mode="rb")),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
)
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)


class Torn(Exception):
    """What is wrong with a tar, in words that follow its name: `told`, as webdataset adds to the arguments of exceptions."""

    def __init__(self, told: str):
        super().__init__(told)
        self.told = told


class WholeTar:
    """For tarfile's stream mode: `read` never goes beyond a block that may be a header, so what was read last is what tarfile has judged last.

    stream: a file, or webdataset's Pipe.  judge: is shown each header of a plain file.  Whatever is not as it should be raises Torn.
    """

    def __init__(self, stream: Any, judge: Callable[[tarfile.TarInfo], None] = lambda member: None):
        self._judge = judge
        self._stream, self._process = stream, os.getpid()
        self._file: BinaryIO | None = None  # unpacked
        self._content, self._in_step = 0, True  # bytes up to the next header, as far as they are known
        self._header = b""
        self.at = 0  # bytes of the tar that were read

    def read(self, size: int) -> bytes:
        if self._content:
            data = self._next(min(size, self._content))
            if len(data) < min(size, self._content):
                raise Torn(f"is cut inside a member, at byte {self.at:,}")
            self._content -= len(data)
            if self._header[156:157] == tarfile.XHDTYPE and b" size=" in data:  # the next header lies about its size
                self._in_step = False
            return data
        self._header = self._next(BLOCK)
        if self._in_step:
            self._content = self._content_of(self._header)
        return self._header

    @property
    def ended(self) -> bool:
        """Whether the bytes were at their end where a header should be."""
        return len(self._header) < BLOCK <= self.at

    def check_end(self) -> None:
        """Once tarfile has found the end."""
        if len(self._header) < BLOCK:
            raise Torn(f"is cut at a header: it ends at byte {self.at:,}, without its end mark")
        if self._header != ZEROS:
            raise Torn(f"is damaged: the header at byte {self.at - BLOCK:,} is none")
        behind = self.at
        while chunk := self._next(CHUNK):
            if chunk.strip(b"\0"):
                raise Torn(
                    f"goes on behind its end mark, from byte {behind:,} on, which nothing reads (were tars joined? tar -A joins them)"
                )

    def close(self) -> None:
        """Also of one that is not read to its end: what its command says of that does not count."""
        self.kill()
        with suppress(OSError):
            self._stream.close()

    def kill(self) -> None:
        """End the command, also while another thread reads what it writes."""
        if (command := getattr(self._stream, "proc", None)) and self._process == os.getpid():  # a fork leaves it to whoever began it
            command.kill()

    def _next(self, size: int) -> bytes:
        """Fewer than `size` bytes only at the end."""
        try:
            if self._file is None:
                self._file = _unpacked(io.BufferedReader(_Raw(self._stream), CHUNK))
            data = self._file.read(size)
        except _DAMAGED as error:
            raise Torn(f"is cut or damaged: what it is packed with does not unpack at byte {self.at:,} ({error})") from error
        self.at += len(data)
        return data

    def _content_of(self, header: bytes) -> int:
        """Bytes behind a header, whole blocks, as tarfile will read them; 0, and from there on block by block, where only tarfile can tell."""
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError:  # the end, or damage
            return 0
        blocks = -(-member.size // BLOCK) * BLOCK
        if member.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            if member.size > MOST_HEADER:
                raise Torn(f"is damaged: a name or attributes of {member.size:,} bytes at byte {self.at - BLOCK:,}")
            return blocks
        if member.type in tarfile.SUPPORTED_TYPES and member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            self._in_step = not member.isreg()  # a sparse file, or a contiguous one
            return 0
        self._judge(member)
        return blocks


class _Raw(io.RawIOBase):
    """Bytes of a file or of a command's output.  A command that did not end well is Torn."""

    def __init__(self, stream: Any):
        self._stream, self._command = stream, getattr(stream, "proc", None)  # webdataset's Pipe has a process

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError:
            if self._command is None or not self._command.poll():
                raise
            data = b""
        if not data and self._command is not None:
            status = self._command.wait()
            if status not in self._stream.ignore_status:
                who = "a command that" if isinstance(self._command.args, str) else f"{self._command.args[0]}, which"  # of a URL curl
                raise Torn(f"comes from {who} " + (f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"))
        buffer[: len(data)] = data
        return len(data)


def _unpacked(file: io.BufferedReader) -> Any:
    begins = file.peek(BLOCK)
    if not begins:
        raise Torn("is empty")
    for magic, opened in _PACKED:
        if begins.startswith(magic):
            return opened(file)
    return file

"""Files written whole: beside their destination first, then renamed: a reader finds the old file or the new one.

Every file that flowlab writes goes through `written_whole`, and `check_writable` says before long work what would
fail at its end. Nothing is imported here but the standard library.
"""

import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNFINISHED = ".flowlab-"  # what the names of temporary files begin with; one that was killed leaves some
STREAM = re.compile(r"/dev/(stdout|stderr|fd/\d+)|/proc/(self|\d+)/fd/\d+")  # names of what a process has open


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises what writing a file would, as far as that can be known: for before the work whose result is written.

    Nothing that exists is touched. A disk that is full by then is not foreseen.

    Args:
        path: The file that will be written.

    Raises:
        OSError: The folder is missing or not to be written, the name is a folder's or too long, the file is read-only.
        ValueError: The name is none.

    Example:
        >>> check_writable("/no/such/folder/m.flow")
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] there is no such folder to write to: '/no/such/folder/m.flow'
    """
    name = _checked(path)
    if not _is_stream(name):
        with _named(name):
            _new_file(name).unlink()


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file, which takes the place of `path` at the end of the block, and is removed after an error.

    It has the suffixes of `path`. A symbolic link stays one: the file that it leads to is written. A file that is
    there keeps its mode and, where the system lets it, its owner. Pipes and devices such as /dev/stdout get the bytes
    themselves.

    Args:
        path: The file to write.

    Raises:
        OSError: The file cannot be written: see `check_writable`. It names `path`, whatever file the system spoke of.
        ValueError: The name is none.
    """
    name = _checked(path)
    stream = _is_stream(name)
    with _named(name):
        temporary = _new_file(os.path.join(tempfile.gettempdir(), os.path.basename(name)) if stream else name)
    try:
        with _named(name, temporary):
            yield temporary
            if stream:
                _copy(temporary, name)
            else:
                _take_place(temporary, Path(os.path.realpath(name)))
    finally:
        temporary.unlink(missing_ok=True)


def _checked(path: str | os.PathLike[str]) -> str:
    """The path as text, if a file of that name may be written."""
    name = os.fsdecode(path)
    if not name or "\0" in name:
        raise ValueError(f"{name!r} is no name of a file to write to")
    if os.path.islink(name) and os.path.islink(os.path.realpath(name)):
        raise OSError(errno.ELOOP, "these symbolic links lead nowhere", name)
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        mode = None
    if name.endswith(("/", os.sep)) or (mode is not None and stat.S_ISDIR(mode)):
        raise IsADirectoryError(errno.EISDIR, "this is a folder, not a file to write to", name)
    if mode is not None and (stat.S_ISBLK(mode) or stat.S_ISSOCK(mode)):
        raise OSError(errno.EINVAL, "this is a disk or a socket, not a file to write to", name)
    if mode is not None and not os.access(name, os.W_OK):
        raise PermissionError(errno.EACCES, "this file may not be written", name)
    folder = os.path.dirname(os.path.realpath(name))
    if mode is None and not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "there is no such folder to write to", name)
    return name


def _is_stream(name: str) -> bool:
    """Whether bytes go straight to it: a pipe, a device, or what the process has open under a number."""
    return os.path.exists(name) and (bool(STREAM.fullmatch(name)) or not stat.S_ISREG(os.stat(name).st_mode))


def _new_file(name: str) -> Path:
    """An empty file beside the one that `name` leads to, with that one's mode and owner if it is there."""
    target = Path(os.path.realpath(name))
    temporary = target.with_name(f"{UNFINISHED}{secrets.token_hex(8)}{''.join(target.suffixes)[-32:]}")
    with open(temporary, "xb"):
        pass
    with suppress(FileNotFoundError):
        known = target.stat()
        with suppress(OSError):  # only root may give files away
            shutil.chown(temporary, known.st_uid, known.st_gid)
        temporary.chmod(stat.S_IMODE(known.st_mode))
    return temporary


@contextmanager
def _named(name: str, temporary: Path | None = None) -> Iterator[None]:
    """Lets an OSError of the block name the user's file, unless it speaks of another one than ours."""
    try:
        yield
    except OSError as error:
        ours = {None, name} if temporary is None else {None, name, str(temporary)}
        if temporary is not None and error.filename is not None and os.fsdecode(error.filename) not in ours:
            raise
        if error.errno is None:
            raise OSError(f"{name} cannot be written: {error}") from error
        raise OSError(error.errno, os.strerror(error.errno), name) from error


def _take_place(temporary: Path, target: Path) -> None:
    """Renames the file when its bytes are on the disk, and sees to it that the name is there, too."""
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    try:
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        _copy(temporary, str(target))  # a file mounted by itself, as containers have them, cannot be renamed over


def _sync_folder(folder: Path) -> None:
    """A new name is on the disk once its folder is; not every system lets folders be opened."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _copy(temporary: Path, name: str) -> None:
    """Writes the bytes to what has that name, behind what is there in a stream."""
    with open(temporary, "rb") as source, open(name, "ab" if _is_stream(name) else "wb") as target:
        shutil.copyfileobj(source, target)

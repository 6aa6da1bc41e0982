"""The one exception that a user is meant to see, and what is said of others."""

from __future__ import annotations

import errno


class UserError(Exception):
    """Something the user gave is wrong; the message is one sentence: what, where, and what would be right.

    The command line prints it without a traceback and exits with code 2.
    """


def sentence_of(error: BaseException) -> str | None:
    """What the user is told about an exception, or None if it is a bug."""
    if isinstance(error, UserError):
        # A loader process's exception arrives as a whole traceback with the sentence in its last line.
        return str(error).rpartition("fmwiss.errors.UserError: ")[2].strip()
    if "No space left on device" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        where = f" for {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return f"the disk is full{where}; free some space and give the same command again, it goes on where it was"
    if isinstance(error, FileExistsError | NotADirectoryError) and error.filename:
        return f"{error.filename} is a file where a folder is needed"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "the memory does not suffice; a smaller batch_size or crop_size in the experiment needs less"
    return None

"""Files that a command is told to write: what they may replace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from esper_rl.errors import ConfigError
from esper_rl.runs.folder import RunFolder


def check_output(
    name: str,
    path: str | Path,
    *endings: str,
    beside: Sequence[str] = (),
    own: Path | None = None,
) -> None:
    """Refuse a file that can't or mustn't be written, before the work for it is done.

    Args:
        name: of the argument.
        path: the file. One that exists and isn't a regular file, such as a device, may have any
            name.
        endings: that it may have: it never replaces a file of another kind.
        beside: endings of files of the same name that are written, too.
        own: the one of a run's own files that it may replace.

    Raises:
        ConfigError: if it has another ending, its folder isn't there, or it would replace one of a
            run's own files.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        return
    if path.suffix.lower() not in endings:
        raise ConfigError(f"{name} must end in {' or '.join(endings)}, got {str(path)!r}")
    if path.is_dir():
        raise ConfigError(f"{name} must be a file, got the folder {str(path)!r}")
    if not path.parent.is_dir():
        raise ConfigError(f"{name} must be in a folder that exists, got {str(path)!r}")
    allowed = None if own is None else own.resolve()
    for written in [path, *map(path.with_suffix, beside)]:
        file = written.resolve()
        run = RunFolder(file.parent)
        if file != allowed and file in run.files and run.holds_run:
            raise ConfigError(
                f"{name} got {str(path)!r}, which would replace {written.name} of the run there; "
                "choose another name"
            )

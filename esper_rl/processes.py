"""Starting processes from a script: each of them imports the script again."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import FrameType

from esper_rl.errors import ConfigError


def require_guard() -> None:
    """Refuse to start processes where a script would start them again in each of them.

    A process that is started imports the script that runs, so what isn't behind
    ``if __name__ == "__main__":`` is done there, too: it would train, and start processes again.
    Notebooks, the prompt and ``python -c`` aren't imported; a program from standard input would
    be, and can't.

    Raises:
        ConfigError: naming the line and the guard, or standard input.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is not None and not Path(script).exists():
        raise ConfigError(
            f"the program is {script}, which processes can't import: write it into a file, or use "
            "workers=1"
        )
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        name, file = frame.f_globals.get("__name__"), frame.f_code.co_filename
        if frame.f_code.co_name == "<module>" and name in ("__main__", "__mp_main__"):
            if name == "__mp_main__" or not _is_guarded(Path(file), frame.f_lineno):
                raise ConfigError(
                    f"{file}, line {frame.f_lineno}, starts processes, which import this script: "
                    'put what it does behind `if __name__ == "__main__":`, or use workers=1'
                )
            return
        frame = frame.f_back


def _is_guarded(script: Path, line: int) -> bool:
    """Does a line of a module's top level depend on the module's name?"""
    try:
        tree = ast.parse(script.read_bytes())
    except (OSError, SyntaxError, ValueError):  # a cell, or no source: nothing that is imported
        return True
    return any(
        isinstance(node, ast.If)
        and node.lineno <= line <= (node.end_lineno or line)
        and "__name__" in {part.id for part in ast.walk(node.test) if isinstance(part, ast.Name)}
        for node in ast.walk(tree)
    )

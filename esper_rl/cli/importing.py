"""Files and modules of the user's that a command runs first."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb
from types import ModuleType

import cloudpickle

from esper_rl.errors import ConfigError


def run_first(name: str) -> None:
    """Run a file, or import a module, such as one that registers a task.

    What it defines is sent to other processes as it is: they can't import a file.

    Raises:
        ConfigError: when there is none, or it fails; the message names the line.
    """
    try:
        module = _of_file(Path(name)) if name.endswith(".py") else _of_name(name)
    except ConfigError:
        raise
    except Exception as error:  # whatever somebody's code may raise
        line = extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"--import {name}: {line.filename}, line {line.lineno}: {type(error).__name__}: {error}"
        ) from error
    cloudpickle.register_pickle_by_value(module)


def _of_file(path: Path) -> ModuleType:
    spec = spec_from_file_location(f"imported_{path.stem}", path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise ConfigError(f"--import must name a Python file or a module, got {str(path)!r}")
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _of_name(name: str) -> ModuleType:
    if "" not in sys.path:  # as for `python -m`
        sys.path.insert(0, "")
    return import_module(name)

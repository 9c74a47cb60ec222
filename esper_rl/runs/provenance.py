"""Provenance of a run: versions, state of the source, machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("esper-rl", "torch", "torchrl", "tensordict", "numpy", "numba", "hydra-core")


def note_provenance(path: Path, device: str) -> None:
    """Append a line of JSON to a file: one for each time that a run is started or goes on.

    Args:
        path: of the file.
        device: that the run computes on.
    """
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(describe_provenance(device)) + "\n")  # names may be no UTF-8


def first_command(path: Path) -> list[str]:
    """The words of the command that has begun a run; none where they weren't noted."""
    try:
        with path.open(encoding="utf-8") as file:
            program, *words = json.loads(file.readline())["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [Path(program).name, *words]


def describe_provenance(device: str) -> dict[str, Any]:
    """Time, command, versions, machine, and the commit of the source where it is a checkout.

    Examples:
        >>> sorted(describe_provenance("cpu"))
        ['command', 'device', 'git', 'machine', 'started', 'versions']
    """
    kind = torch.device(device)
    named = torch.cuda.get_device_name(kind) if kind.type == "cuda" else None
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": {"python": platform.python_version()} | package_versions(),
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
        },
        "device": named or device,
        "git": _describe_checkout(Path(__file__).parent),
    }


def package_versions() -> dict[str, str]:
    """This package's version, and those of the packages that decide what it computes.

    One that runs from a checkout without being installed is "not installed".

    Examples:
        >>> list(package_versions())[:2]
        ['esper-rl', 'torch']
    """
    return {package: _version(package) for package in _PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _describe_checkout(folder: Path) -> dict[str, Any] | None:
    """The commit, and if files differ from it; None where there is no checkout, or no git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD").strip()
        return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout

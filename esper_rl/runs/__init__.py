"""Runs on disk: folder, checkpoint and metrics."""

from esper_rl.runs.checkpoint import Checkpoint, CheckpointError
from esper_rl.runs.folder import RunFolder
from esper_rl.runs.resume import ResumePoints, has_points

__all__ = ["Checkpoint", "CheckpointError", "ResumePoints", "RunFolder", "has_points"]

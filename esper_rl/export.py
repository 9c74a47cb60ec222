"""Policies as files that run without this project."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path

import torch

from esper_rl.config import make_env
from esper_rl.errors import ConfigError
from esper_rl.policy.serving import StepModule
from esper_rl.runs import RunFolder
from esper_rl.runs.atomic_write import write_atomically
from esper_rl.runs.outputs import check_output
from esper_rl.training.loading import load_policy, read_config

_NEEDED = ("onnx", "onnxscript")
"""Packages with which PyTorch writes ONNX."""


def check_export(path: str | Path) -> None:
    """Refuse a file that can't be written, before a policy is loaded.

    Raises:
        ConfigError: see :func:`~esper_rl.runs.outputs.check_output`; also if a package that writes
            ONNX isn't installed.
    """
    path = Path(path)
    check_output("--output", path, ".pt2", ".onnx")
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if path.suffix == ".onnx" and missing:
        raise ConfigError(
            f"ONNX needs {' and '.join(missing)}: pip install 'esper-rl[onnx]', or write a .pt2"
        )


def export_policy(run: str | Path, path: str | Path, *, greedy: bool = True) -> StepModule:
    """Write the policy of a run as a program that needs PyTorch or an ONNX runtime only.

    It takes observation, indices, masks and state and gives actions, log-probabilities and the
    next state, for any number of rows: see :class:`~esper_rl.policy.serving.StepModule`. In an
    ONNX file the inputs are named ``observation``, the entries that are embedded,
    ``mask_HEAD`` and ``state_0`` …, the outputs ``actions``, ``log_probs`` and
    ``next_state_0`` ….

    Args:
        run: folder of a training run.
        path: ``FILE.pt2``, for :func:`torch.export.load`, or ``FILE.onnx``.
        greedy: take the likeliest choice of every head; else draw.

    Returns:
        The module that was written.

    Raises:
        ConfigError: see :func:`check_export`.
        FileNotFoundError: when there is no such run.
        CheckpointError: when its policy can't be loaded.
    """
    path = Path(path)
    check_export(path)
    config = read_config(RunFolder.open(run))
    env = make_env(config, num_envs=2, seed=config.seed)
    step = load_policy(run, env).step_module(greedy=greedy).eval()
    shown, rows = env.reset(), torch.export.Dim("rows")
    indices = [shown[key] for key in step.index_keys]
    masks = [shown["action_mask", head] for head in step.heads]
    arguments = (shown["observation"], indices, masks, step.initial_state(2))
    shapes = ({0: rows}, *([{0: rows} for _ in part] for part in arguments[1:]))
    if path.suffix == ".pt2":
        buffer = io.BytesIO()
        torch.export.save(torch.export.export(step, arguments, dynamic_shapes=shapes), buffer)
        write_atomically(path, buffer.getvalue())
        return step
    numbers = range(len(arguments[3]))
    program = torch.onnx.export(
        step,
        arguments,
        dynamo=True,
        dynamic_shapes=shapes,
        verbose=False,
        input_names=[
            "observation",
            *step.index_keys,
            *(f"mask_{head}" for head in step.heads),
            *(f"state_{i}" for i in numbers),
        ],
        output_names=["actions", "log_probs", *(f"next_state_{i}" for i in numbers)],
    )
    assert program is not None  # as it is with dynamo
    write_atomically(path, program.model_proto.SerializeToString())
    return step

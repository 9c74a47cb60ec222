"""What a training run does between two batches: which steps it learns from, and how far it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from tensordict import TensorDictBase
from torch.optim.optimizer import register_optimizer_step_pre_hook

import esper_rl.ppo as ppo
from esper_rl import FactoredClipPPOLoss, train
from esper_rl.config import TrainConfig
from tests.support.runs import read_metrics

Configure = Callable[..., TrainConfig]


@pytest.fixture
def step_norms() -> Iterator[list[float]]:
    """A list that grows by the gradient's norm at every step of an optimizer."""
    norms: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        weights = [w for group in optimizer.param_groups for w in group["params"]]
        gradients = [w.grad for w in weights if w.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())

    hook = register_optimizer_step_pre_hook(note)
    yield norms
    hook.remove()


def test_steps_are_clipped_to_the_norm_that_was_asked_for(
    tiny_config: Configure, step_norms: list[float]
) -> None:
    lines = read_metrics(train(tiny_config("ppo.max_grad_norm=0.01")))
    assert all(line["grad_norm"] > 0.05 for line in lines)  # what is shown is before it
    assert step_norms == pytest.approx([0.01] * 4, rel=1e-3)


def test_minibatches_are_drawn_anew_in_every_epoch(
    tiny_config: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is of whole episodes, and an epoch takes every row once."""
    seen: list[tuple[int, ...]] = []
    compute, forward = ppo.compute_advantages, FactoredClipPPOLoss.forward

    def numbered(batch: TensorDictBase, *args: object, **options: object) -> TensorDictBase:
        numbers = torch.arange(batch.numel()).view(batch.shape)
        return compute(batch, *args, **options).set("number", numbers)

    def noted(self: torch.nn.Module, steps: TensorDictBase) -> TensorDictBase:
        if torch.is_grad_enabled():
            rows = steps["number"][:, 0] // 5
            assert steps["number"].equal(5 * rows[:, None] + torch.arange(5))
            seen.append(tuple(rows.tolist()))
        return forward(self, steps)

    monkeypatch.setattr(ppo, "compute_advantages", numbered)
    monkeypatch.setattr(FactoredClipPPOLoss, "forward", noted)
    train(tiny_config("ppo.epochs=8", "total_steps=20"))
    epochs = [first + second for first, second in zip(seen[::2], seen[1::2], strict=True)]
    assert len(epochs) == 8
    assert all(sorted(rows) == [0, 1, 2, 3] for rows in epochs)
    assert len(set(epochs)) > 3


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_come_from_the_policy_that_learns_from_them(
    tiny_config: Configure, workers: int
) -> None:
    """The first update of an iteration finds every ratio at 1, also after the policy has moved."""
    words = ("ppo.minibatches=1", "ppo.lr=1e-2", f"workers={workers}", "total_steps=60")
    lines = read_metrics(train(tiny_config(*words)))
    assert [line["kl_approx"] for line in lines] == pytest.approx([0.0] * 3, abs=1e-6)
    assert [line["clip_fraction"] for line in lines] == [0.0] * 3

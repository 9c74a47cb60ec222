"""Scores of gradients against their formulas, written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.study.scores import ScoredPolicy, gradient_norm, gradients, natural_score
from envs import MorphogenesisEnv
from envs.actions import Op


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def test_gradients_are_those_of_autograd() -> None:
    model, x, y = network(), torch.randn(20, 3).double(), torch.arange(20) % 2
    some = {name: p for name, p in model.named_parameters() if name.startswith("2.")}
    mean, single = gradients(model, some, x, y)
    F.cross_entropy(model(x), y).backward()
    torch.testing.assert_close(mean, torch.cat([p.grad.flatten() for p in some.values()]))
    assert single.shape == (20, 10)


def test_scores_are_the_formulas() -> None:
    """In two parts as in one: what a seed adds counts together with the network's own."""
    own = torch.randn(6).double(), torch.randn(9, 6).double()
    new = torch.randn(3).double(), torch.randn(9, 3).double()
    mean, single = torch.cat((own[0], new[0])), torch.cat((own[1], new[1]), 1)
    fisher = single.T @ single / 9 + 0.1 * torch.eye(9).double()
    expected = (mean @ torch.linalg.inv(fisher) @ mean).item()
    assert natural_score([own, new], damping=0.1) == pytest.approx(expected)
    assert gradient_norm([own, new]) == pytest.approx((mean @ mean).item())


@pytest.mark.parametrize("score", ["gradient norm", "natural score"])
def test_a_trigger_plants_where_its_threshold_allows_it(score: str) -> None:
    env = MorphogenesisEnv("digits", num_envs=2, seed=0)
    policy = ScoredPolicy(env, score, torch.tensor([0.0, 1e9]))
    action = policy(env.reset())["action"]
    assert action["op"].tolist() == [Op.GERMINATE, Op.WAIT]
    assert env.population.offered[action["blueprint"][0]]

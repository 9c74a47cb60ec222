"""A blueprint of one's own, on plain numbers instead of images: its seed sees squares.

    python examples/own_blueprint.py

A blueprint is a function that makes a module for so many channels. It takes features as the host's
own modules give them, and returns features of the same shape.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from envs import ArrayTask, ModuleHost, MorphogenesisEnv
from esper_rl.evaluation import evaluate
from esper_rl.growing.baselines import FixedSchedulePolicy, WaitPolicy


class Squares(nn.Module):
    """h + W·h² + b; W and b start at 0, so the seed starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.linear(h * h)


def network() -> nn.Module:
    """Linear layers only, which can't tell the inside of a circle from the outside."""
    layers = {"first": nn.Linear(2, 2), "second": nn.Linear(2, 8), "classes": nn.Linear(8, 2)}
    return nn.Sequential(OrderedDict(layers))


def rings() -> ArrayTask:
    """Points inside or outside a circle."""
    points = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    classes = (points.norm(dim=1) > 1.18).long()
    blueprints = {"squares": Squares}  # a name of its own: one more choice of the head
    host = ModuleHost(network, ["first", "second"], points[:1], blueprints)
    return ArrayTask(name="rings", host=host, train=(points, classes), validation=200)


def main() -> None:
    env = MorphogenesisEnv(rings(), num_envs=8, num_slots=2, max_epochs=30)
    squares = env.population.blueprints.index("squares")
    for name, policy in {"wait": WaitPolicy(), "squares": FixedSchedulePolicy(0, squares)}.items():
        env.set_seed(0)
        accuracy = evaluate(policy, env, episodes=8).summary()["final_accuracy"]
        print(f"{name:10}  {accuracy['mean']:5.1f} ± {accuracy['ci95']:.1f} % after 30 epochs")


if __name__ == "__main__":
    main()

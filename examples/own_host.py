"""A host and a seed of one's own: layers on plain numbers instead of images.

    python examples/own_host.py

A host is a list of segments with a slot after each but the last; a segment and a blueprint are
each a layout of parameters and a function that runs n networks at once.
"""

import torch
from torch import Tensor

from envs import ArrayTask, MorphogenesisEnv
from envs.batched.layers import linear
from envs.batched.parameters import ParameterLayout, bias, weight, zeros
from esper_rl.evaluation import evaluate
from esper_rl.growing.baselines import FixedSchedulePolicy, WaitPolicy


class Dense:
    """A fully connected layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.layout = ParameterLayout([weight("w", outputs, inputs), bias("b", outputs, inputs)])

    def __call__(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        """``[n, inputs, B]`` to ``[n, outputs, B]``."""
        if len(x) == 1:  # all networks see the same validation examples
            x = x.expand(len(params["w"]), -1, -1)
        return linear(x, params["w"], params["b"])


class Square:
    """h + W·h²; W starts at 0, so the seed starts as the identity."""

    def layout(self, channels: int) -> ParameterLayout:
        return ParameterLayout([zeros("w", channels, channels), zeros("b", channels)])

    def __call__(self, params: dict[str, Tensor], h: Tensor) -> Tensor:
        return h + linear(h.square(), params["w"], params["b"])


class DenseHost:
    """Two layers with a slot after each, and a classifier."""

    topology = "dense"

    def __init__(self, features: int, width: int, classes: int) -> None:
        self.blueprints = {"square": Square()}  # a name of its own: one more choice of the head
        self.features, self.num_classes = features, classes
        self.slot_channels = (features, width)
        self.activation_size = max(features, width)
        self.segments = (
            Dense(features, features),
            Dense(features, width),
            Dense(width, classes),
        )

    def prepare(self, inputs: Tensor) -> Tensor:
        if inputs.shape[1:] != (self.features,):
            raise ValueError(f"inputs must be [M, {self.features}], got {list(inputs.shape)}")
        return inputs

    def pool(self, h: Tensor) -> Tensor:
        return h  # nothing to average: what a gate sees are the features themselves


def rings() -> ArrayTask:
    """Points inside or outside a circle: a linear host can't tell, its squares can."""
    points = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    classes = (points.norm(dim=1) > 1.18).long()
    host = DenseHost(features=2, width=8, classes=2)
    return ArrayTask(name="rings", host=host, train=(points, classes), validation=200)


def main() -> None:
    env = MorphogenesisEnv(rings(), num_envs=8, num_slots=2, max_epochs=30)
    square = env.population.blueprints.index("square")
    for name, policy in {"wait": WaitPolicy(), "square": FixedSchedulePolicy(0, square)}.items():
        env.set_seed(0)
        accuracy = evaluate(policy, env, episodes=8).summary()["final_accuracy"]
        print(f"{name:10}  {accuracy['mean']:5.1f} ± {accuracy['ci95']:.1f} % after 30 epochs")


if __name__ == "__main__":
    main()

"""A host and a seed of one's own: layers on plain numbers instead of images.

    python examples/own_host.py

A host is a list of segments with a slot after each but the last. Segments and seeds are programs of
layers, each for many networks at once; a layer of one's own is its parameters and a function.
"""

import torch
from torch import Tensor

from envs import ArrayTask, MorphogenesisEnv
from envs.batched.layers import Linear
from envs.batched.programs import Program, Residual
from esper_rl.evaluation import evaluate
from esper_rl.growing.baselines import FixedSchedulePolicy, WaitPolicy


class Square:
    """h²."""

    parameters = ()

    def __call__(self, params: dict[str, Tensor], h: Tensor) -> Tensor:
        """``[n, features, B]``."""
        return h.square()


def square_seed(channels: int) -> Program:
    """h + W·h² + b; W and b start at 0, so the seed starts as the identity."""
    return Residual(Square(), Linear("w", channels, channels, zero=True))


class DenseHost:
    """Two layers with a slot after each, and a classifier."""

    topology = "dense"
    pool = Program()  # nothing to average: what a gate sees are the features themselves

    def __init__(self, features: int, width: int, classes: int) -> None:
        self.blueprints = {"square": square_seed}  # a name of its own: one more choice of the head
        self.features, self.num_classes = features, classes
        self.slot_channels = (features, width)
        self.activation_size = max(features, width)
        sizes = ((features, features), (features, width), (width, classes))
        self.segments = [Program(Linear("dense", *size)) for size in sizes]

    def prepare(self, inputs: Tensor) -> Tensor:
        if inputs.shape[1:] != (self.features,):
            raise ValueError(f"inputs must be [M, {self.features}], got {list(inputs.shape)}")
        return inputs


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

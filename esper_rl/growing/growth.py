"""Account of growth in a training loop: for people, TensorBoard and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from envs.actions import Op, Stage


class ScalarWriter(Protocol):
    """A TensorBoard writer, as far as it is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...


@dataclass(frozen=True)
class GrowthStep:
    """Account of one :meth:`Grower.step`.

    Attributes:
        epoch: training epochs since growth began.
        loss, score: of the validation.
        op: what is done to the network now, WAIT for nothing.
        slot: where; None for WAIT.
        blueprint: what is planted there by GERMINATE.
        refused: has the policy asked for something that isn't possible?
        rolled_back: has the network been taken back to when it was well?
        stages: of the slots, after ``op``.
        alphas: how much their seeds act now, in [0, 1].
        contributions: points that the score loses without each of them, as last measured.
        seed_params: parameters of all seeds.
    """

    epoch: int
    loss: float
    score: float
    op: Op
    slot: int | None
    blueprint: str | None
    refused: bool
    rolled_back: bool
    stages: tuple[Stage, ...]
    alphas: tuple[float, ...]
    contributions: tuple[float, ...]
    seed_params: int

    def __str__(self) -> str:
        """One line for people, such as ``epoch 9: loss 1.20, score 61.4 | ADVANCE slot 0 | …``."""
        did = self.op.name if self.slot is None else f"{self.op.name} slot {self.slot}"
        did += "" if self.blueprint is None else f" {self.blueprint}"
        did += " (refused)" if self.refused else ""
        slots = []
        for stage, alpha, points in zip(self.stages, self.alphas, self.contributions, strict=True):
            acts = f" α {alpha:.2f} {points:+.1f}" if alpha > 0 else ""
            slots.append(f"{stage.name.lower()}{acts}")
        back = ", rolled back" if self.rolled_back else ""
        seen = f"epoch {self.epoch}: loss {self.loss:.4f}, score {self.score:.2f}{back}"
        return f"{seen} | {did} | {', '.join(slots)}"

    def write(self, writer: ScalarWriter) -> None:
        """Add its numbers to TensorBoard's, ``grow/...``."""
        numbers = {"loss": self.loss, "score": self.score, "op": self.op}
        numbers |= {"seed_params": self.seed_params, "rolled_back": self.rolled_back}
        of_slots = {"stage": self.stages, "alpha": self.alphas, "contribution": self.contributions}
        for name, values in of_slots.items():
            numbers |= {f"slot{slot}/{name}": value for slot, value in enumerate(values)}
        for name, number in numbers.items():
            writer.add_scalar(f"grow/{name}", float(number), self.epoch)

    def as_dict(self) -> dict[str, Any]:
        """Fields by name, as plain numbers and lists."""
        plain = asdict(self) | {"op": int(self.op), "stages": [int(stage) for stage in self.stages]}
        return plain | {name: list(plain[name]) for name in ("alphas", "contributions")}

    @classmethod
    def of_dict(cls, plain: Mapping[str, Any]) -> GrowthStep:
        """The inverse of :meth:`as_dict`."""
        values: dict[str, Any] = {
            **plain,
            "op": Op(plain["op"]),
            "stages": tuple(Stage(stage) for stage in plain["stages"]),
            "alphas": tuple(plain["alphas"]),
            "contributions": tuple(plain["contributions"]),
        }
        return cls(**values)

"""Actor and critic as TensorDict modules over one shared network.

The policy factorises as π(a|s) = π(op|s) · Π π(head | s, op): the op comes first, and a head whose
mask has one row per op is masked by the row of the op taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
from tensordict.nn import (
    InteractionType,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
)
from torch import Tensor
from torchrl.envs import EnvBase, InitTracker, Transform
from torchrl.modules import LSTMModule, MaskedCategorical, set_recurrent_mode

from esper_rl.policy.config import PolicyConfig
from esper_rl.policy.network import FactoredRecurrentNetwork

MEMORY = "memory"
"""Key of the normalised LSTM output; never stored in rollouts."""


class ActionMaskError(ValueError):
    """A mask leaves a head that must choose without a choice."""


class LegalChoices(TensorDictModuleBase):
    """The masks that heads draw from: the op's row where a mask has one row per op.

    Steps that ``("collector", "mask")`` marks as padding hold no mask at all; they get every
    choice, so that no nan from them reaches a gradient.

    Args:
        heads: reads ``("action_mask", head)``, writes ``("mask", head)`` ``[..., choices]``.
        conditional: those of them whose mask has one row per op.
        op: name of the op, read from ``("action", op)`` for the rows.

    Raises:
        ActionMaskError: in ``forward``, naming the first head and step without a choice.
    """

    def __init__(
        self, heads: Sequence[str], conditional: Sequence[str] = (), op: str | None = None
    ) -> None:
        super().__init__()
        self.heads, self.conditional, self.op = tuple(heads), frozenset(conditional), op
        self.in_keys = [("action_mask", head) for head in heads]
        if op is not None:
            self.in_keys.append(("action", op))
        self.out_keys = [("mask", head) for head in heads]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        masks = {head: tensordict.get(("action_mask", head)) for head in self.heads}
        for head in self.conditional:
            masks[head] = select_row(masks[head], tensordict.get(("action", self.op)))
        valid = tensordict.get(("collector", "mask"), None)
        if valid is not None:
            padding = ~valid.reshape(*tensordict.shape, 1)
            masks = {head: mask | padding for head, mask in masks.items()}
        # One test for all heads: on an accelerator each one waits for the device.
        possible = torch.stack([mask.any(-1) for mask in masks.values()], -1)
        if not possible.all():
            *step, head = (~possible).nonzero()[0].tolist()
            raise ActionMaskError(
                f"the action mask of head {self.heads[head]!r} has no legal choice at index "
                f"{step}; at least one entry of every row must be True"
            )
        for head, mask in masks.items():
            tensordict.set(("mask", head), mask)
        return tensordict


class FactoredActor(ProbabilisticTensorDictSequential):
    """The sequence that :func:`make_actor_critic` builds; names a head that can't choose.

    Raises:
        ActionMaskError: in ``forward``, when a mask has no legal choice.
    """

    def forward(self, *args: object, **kwargs: object) -> TensorDictBase:
        try:
            return super().forward(*args, **kwargs)
        except RuntimeError as error:
            # Sequences replace every error by the number of the module that raised it.
            if isinstance(error.__cause__, ActionMaskError):
                raise error.__cause__ from None
            raise


class OpConditionedCritic(TensorDictSequential):
    """Hard value of a batch: a fresh pass of the trunk, then the value of the op taken.

    Runs over time where the batch has a time dimension. Reads the observation, the recurrent
    state, ``is_init`` and ``("action", "op")``; writes ``"state_value"`` ``[..., 1]``.
    """

    def forward(self, tensordict: TensorDictBase, **kwargs: object) -> TensorDictBase:
        with set_recurrent_mode(tensordict.ndim > 1):
            return super().forward(tensordict, **kwargs)


@dataclass
class ActorCritic:
    """What :func:`make_actor_critic` builds.

    Attributes:
        actor: a collector's policy. Writes ``("action", head)``, ``("action", head +
            "_log_prob")``, the soft ``"state_value"`` and the next recurrent state.
        critic: the value of a batch from a fresh trunk pass and the op taken.
        network: the ``nn.Module`` behind both.
        heads: names of the action's heads, the op first.
        recurrence: the LSTM as a TensorDict module.
    """

    actor: FactoredActor
    critic: OpConditionedCritic
    network: FactoredRecurrentNetwork
    heads: tuple[str, ...]
    recurrence: LSTMModule

    def transforms(self) -> list[Transform]:
        """What the environment needs around it: ``is_init`` and the recurrent state."""
        return [InitTracker(), self.recurrence.make_tensordict_primer()]


def make_actor_critic(config: PolicyConfig, env: EnvBase) -> ActorCritic:
    """Build actor and critic for an environment.

    Args:
        config: sizes.
        env: read for its specs: observation, blueprint indices, masks and the action's heads.

    Raises:
        ValueError: if the environment has another number of slots than the config.

    Examples:
        >>> from envs import MorphogenesisEnv
        >>> from torchrl.envs import Compose, TransformedEnv
        >>> env = MorphogenesisEnv(num_envs=2, max_epochs=3)
        >>> ac = make_actor_critic(PolicyConfig.v2(), env)
        >>> rollout = TransformedEnv(env, Compose(*ac.transforms())).rollout(3, ac.actor)
        >>> rollout["action", "op_log_prob"].shape
        torch.Size([2, 3])
    """
    spec = env.full_observation_spec
    num_slots = spec["blueprint_indices"].shape[-1]
    if num_slots != config.num_slots:
        raise ValueError(
            f"the policy's num_slots is {config.num_slots}, but the environment has {num_slots} "
            "slots; make both the same"
        )
    heads = tuple(key[-1] for key in env.full_action_spec.keys(True, True))
    sizes = {head: spec["action_mask", head].shape[-1] for head in heads}
    conditional = [
        head for head in heads if spec["action_mask", head].ndim > len(env.batch_size) + 1
    ]
    network = FactoredRecurrentNetwork(
        spec["observation"].shape[-1], num_slots, sizes, config.hidden_size
    ).to(env.device)

    recurrence = LSTMModule(
        lstm=network.lstm,
        in_keys=["features", "recurrent_state_h", "recurrent_state_c"],
        out_keys=["lstm", ("next", "recurrent_state_h"), ("next", "recurrent_state_c")],
    )
    trunk = [
        TensorDictModule(network.blueprint_embedding, ["blueprint_indices"], ["embedded"]),
        TensorDictModule(network.feature_net, ["observation", "embedded"], ["features"]),
        recurrence,
        TensorDictModule(network.lstm_norm, ["lstm"], [MEMORY]),
    ]
    op = heads[0]
    actor = FactoredActor(
        *trunk,
        TensorDictModule(network.heads, [MEMORY], [("logits", head) for head in heads]),
        LegalChoices([op]),
        TensorDictModule(
            SoftValue(network.value_head), [MEMORY, ("logits", op), ("mask", op)], ["state_value"]
        ),
        *_sampling(heads, conditional),
    )
    stored = [("action", head) for head in heads]
    stored += [("action", f"{head}_log_prob") for head in heads]
    actor.select_out_keys(*stored, "state_value", *recurrence.out_keys[1:])
    critic = OpConditionedCritic(
        *trunk,
        TensorDictModule(
            HardValue(network.value_head, sizes[op]), [MEMORY, ("action", op)], ["state_value"]
        ),
    )
    critic.select_out_keys("state_value")
    return ActorCritic(actor, critic, network, heads, recurrence)


class SoftValue(torch.nn.Module):
    """V(s, π(op|s)): the value at the op probabilities, which get no gradient from it.

    Without the detached probabilities the value loss would train the actor to help the critic.
    """

    def __init__(self, value_head: torch.nn.Module) -> None:
        super().__init__()
        self.value_head = value_head

    def forward(self, memory: Tensor, op_logits: Tensor, op_mask: Tensor) -> Tensor:
        probabilities = MaskedCategorical(logits=op_logits.detach(), mask=op_mask).probs
        return self.value_head(memory, probabilities)


class HardValue(torch.nn.Module):
    """V(s, op): the value at the op taken."""

    def __init__(self, value_head: torch.nn.Module, num_ops: int) -> None:
        super().__init__()
        self.value_head = value_head
        self.num_ops = num_ops

    def forward(self, memory: Tensor, op: Tensor) -> Tensor:
        return self.value_head(memory, F.one_hot(op, self.num_ops).to(memory.dtype))


def _sampling(heads: Sequence[str], conditional: Sequence[str]) -> list[TensorDictModuleBase]:
    """Draw the op, pick the other heads' masks, which may depend on it, draw the other heads."""

    def draw(head: str) -> ProbabilisticTensorDictModule:
        return ProbabilisticTensorDictModule(
            in_keys={"logits": ("logits", head), "mask": ("mask", head)},
            out_keys=[("action", head)],
            distribution_class=MaskedCategorical,
            default_interaction_type=InteractionType.RANDOM,
            return_log_prob=True,
            log_prob_key=("action", f"{head}_log_prob"),
        )

    op, *others = heads
    return [
        draw(op),
        LegalChoices(others, conditional, op),
        *(draw(head) for head in others),
    ]


def select_row(mask: Tensor, op: Tensor) -> Tensor:
    """The row of ``mask [..., ops, choices]`` for ``op [...]``: ``[..., choices]``."""
    index = op[..., None, None].expand(*op.shape, 1, mask.shape[-1])
    return mask.gather(-2, index).squeeze(-2)

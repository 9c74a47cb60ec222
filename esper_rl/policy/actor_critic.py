"""Actor and critic as TensorDict modules over one shared network.

The policy factorises as π(a|s) = π(op|s) · Π π(head | s, op): the op comes first, and a head whose
mask has one row per op is masked by the row of the op taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from tensordict.nn import (
    InteractionType,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModuleBase,
    TensorDictSequential,
)
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.data import Unbounded
from torchrl.envs import EnvBase, InitTracker, TensorDictPrimer, Transform
from torchrl.modules import LSTMModule, MaskedCategorical, recurrent_mode, set_recurrent_mode

from esper_rl.policy.attention import RecentAttention
from esper_rl.policy.config import PolicyConfig
from esper_rl.policy.network import FactoredRecurrentNetwork
from esper_rl.policy.value import ExpectedValue, HardValue, SoftValue

MEMORY = "memory"
"""Key of the normalised LSTM output; never stored in rollouts."""


class ActionMaskError(ValueError):
    """A mask leaves a head that must choose without a choice."""


class TensorModule(TensorDictModuleBase):
    """A module from tensors to tensors; what :class:`~tensordict.nn.TensorDictModule` does for any.

    That one tries to convert every output from a data frame, for which it looks through the disk
    at each call where pandas isn't installed: a fifth of a policy's step.

    Args:
        module: called with the entries of ``in_keys``; gives one tensor or a tuple.
        in_keys: what it reads; a missing one is a KeyError.
        out_keys: what it writes.
    """

    def __init__(
        self,
        module: Callable[..., Tensor | tuple[Tensor, ...]],
        in_keys: Sequence[NestedKey],
        out_keys: Sequence[NestedKey],
    ) -> None:
        super().__init__()
        self.module = module
        self.in_keys, self.out_keys = list(in_keys), list(out_keys)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        out = self.module(*(tensordict[key] for key in self.in_keys))
        tensors = out if isinstance(out, tuple) else (out,)
        for key, tensor in zip(self.out_keys, tensors, strict=True):
            tensordict.set(key, tensor)
        return tensordict


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


class AttentionModule(TensorDictModuleBase):
    """:class:`RecentAttention` of a key, its state carried beside it as an LSTM's is.

    Over a time dimension it starts from the state stored at the first step, and writes none.

    Args:
        attention: the layer.
        key: what it reads and replaces.
    """

    def __init__(self, attention: RecentAttention, key: str) -> None:
        super().__init__()
        self.attention = attention
        self.key = key
        self.state = ["attention_past", "attention_count"]
        self.in_keys = [key, *self.state, "is_init"]
        self.out_keys = [key, *(("next", name) for name in self.state)]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        x, past, count, is_init = (tensordict.get(key) for key in self.in_keys)
        if recurrent_mode():
            out = self.attention.over_time(x, past[:, 0], count[:, 0], is_init)
            return tensordict.set(self.key, out)
        for key, value in zip(
            self.out_keys, self.attention.step(x, past, count, is_init), strict=True
        ):
            tensordict.set(key, value)
        return tensordict

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that adds the state to an environment's resets."""
        past, count = self.state
        shape = (self.attention.span, self.attention.size)
        return TensorDictPrimer(
            {past: Unbounded(shape), count: Unbounded((1,), dtype=torch.int64)}, expand_specs=True
        )


@dataclass
class ActorCritic:
    """What :func:`make_actor_critic` builds.

    Attributes:
        actor: a collector's policy. Writes ``("action", head)``, ``("action", head +
            "_log_prob")``, the baseline ``"state_value"`` and the next recurrent state.
        critic: the value of a batch from a fresh trunk pass and the op taken.
        expected_critic: the same averaged over the policy's ops.
        network: the ``nn.Module`` behind all of them.
        heads: names of the action's heads, the op first.
        memories: the modules that carry something from step to step.
    """

    actor: FactoredActor
    critic: OpConditionedCritic
    expected_critic: OpConditionedCritic
    network: FactoredRecurrentNetwork
    heads: tuple[str, ...]
    memories: tuple[LSTMModule | AttentionModule, ...]

    def transforms(self) -> list[Transform]:
        """What the environment needs around it: ``is_init`` and the recurrent state."""
        return [InitTracker(), *(memory.make_tensordict_primer() for memory in self.memories)]


def make_actor_critic(
    config: PolicyConfig, env: EnvBase, *, compilable: bool = False
) -> ActorCritic:
    """Build actor and critic for an environment with a factored discrete action.

    It needs ``"observation"`` ``[N, features]``, an action of several discrete heads under
    ``"action"``, the first of which is the op, and for each of them a mask
    ``("action_mask", head)``, ``[N, choices]`` or, where it depends on the op,
    ``[N, ops, choices]``. ``"blueprint_indices"`` ``[N, S]`` are embedded where there are any.

    Args:
        config: sizes and value mode.
        env: read for its specs.
        compilable: see :class:`FactoredRecurrentNetwork`.

    Raises:
        ValueError: if the environment has another number of slots than the config.
        KeyError: if it lacks an observation, a factored action or a mask.

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
    heads = _heads(env)
    sizes = {head: spec["action_mask", head].shape[-1] for head in heads}
    conditional = [
        head for head in heads if spec["action_mask", head].ndim > len(env.batch_size) + 1
    ]
    if "blueprint" in heads:
        num_slots = spec["blueprint_indices"].shape[-1]
        if num_slots != config.num_slots:
            raise ValueError(
                f"the policy's num_slots is {config.num_slots}, but the environment has "
                f"{num_slots} slots; make both the same"
            )
    elif not config.action_feedback:
        raise ValueError(
            "action_feedback=False leaves out columns of the morphogenesis world's observation; "
            "in another world it must be True"
        )
    network = FactoredRecurrentNetwork(
        spec["observation"].shape[-1], sizes, config, compilable=compilable
    ).to(env.device)

    trunk, memories = _trunk(network)
    op = heads[0]
    logits = TensorModule(network.heads, [MEMORY], [("logits", head) for head in heads])
    op_choices = LegalChoices([op])
    draw_op, *draw_others = _sampling(heads, conditional)
    given_distribution = [MEMORY, ("logits", op), ("mask", op)]
    taken = TensorModule(
        HardValue(network.value_head, sizes[op]), [MEMORY, ("action", op)], ["state_value"]
    )
    soft = TensorModule(SoftValue(network.value_head), given_distribution, ["state_value"])
    expected = TensorModule(
        ExpectedValue(network.value_head, sizes[op]), given_distribution, ["state_value"]
    )
    if config.value_mode == "state":
        taken = expected = TensorModule(network.value_head, [MEMORY], ["state_value"])
    before = {"soft": [soft], "expected": [expected], "state": [taken], "sampled": []}
    after = [taken] if config.value_mode == "sampled" else []
    actor = FactoredActor(
        *trunk, logits, op_choices, *before[config.value_mode], draw_op, *after, *draw_others
    )
    stored: list[NestedKey] = [("action", head) for head in heads]
    stored += [("action", f"{head}_log_prob") for head in heads]
    stored += [key for memory in memories for key in memory.out_keys if key[0] == "next"]
    actor.select_out_keys(*stored, "state_value")
    critic = OpConditionedCritic(*trunk, taken)
    expected_critic = OpConditionedCritic(*trunk, logits, op_choices, expected)
    for module in (critic, expected_critic):
        module.select_out_keys("state_value")
    return ActorCritic(actor, critic, expected_critic, network, heads, tuple(memories))


def _heads(env: EnvBase) -> tuple[str, ...]:
    """Names of the action's heads; refuses a world that the policy can't act in."""
    present = set(env.full_observation_spec.keys(True, True))
    if "observation" not in present:
        raise KeyError("the environment has no 'observation', which the policy reads")
    keys = list(env.full_action_spec.keys(True, True))
    if not all(isinstance(key, tuple) and key[0] == "action" for key in keys):
        raise KeyError(
            f"the environment's action is {keys}, but the policy needs one entry for each head "
            "under 'action', such as ('action', 'op')"
        )
    heads = tuple(key[-1] for key in keys)
    for head in heads:
        if ("action_mask", head) not in present:
            raise KeyError(
                f"the environment has no ('action_mask', {head!r}); show a bool mask of the "
                "choices of each head, all True where everything is legal"
            )
    if "blueprint" in heads and "blueprint_indices" not in present:
        raise KeyError("the environment has a head 'blueprint', but shows no 'blueprint_indices'")
    return heads


def _trunk(
    network: FactoredRecurrentNetwork,
) -> tuple[list[TensorDictModuleBase], list[LSTMModule | AttentionModule]]:
    """From observation to :data:`MEMORY`, and those of its modules that carry a state."""
    trunk: list[TensorDictModuleBase] = [
        TensorModule(network.visible, ["observation"], ["visible"])
    ]
    inputs = ["visible"]
    if network.blueprint_embedding is not None:
        trunk.append(TensorModule(network.blueprint_embedding, ["blueprint_indices"], ["embedded"]))
        inputs.append("embedded")
    trunk.append(TensorModule(network.feature_net, inputs, ["features"]))
    memories: list[LSTMModule | AttentionModule] = []
    features = "features"
    if network.lstm is not None:
        memories.append(_recurrence(network.lstm, features, "lstm", "recurrent_state"))
        trunk.append(memories[-1])
        features = "lstm"
    if network.upper_lstm is not None:
        memories.append(
            _recurrence(network.upper_lstm, features, "upper_lstm", "upper_recurrent_state")
        )
        trunk += [memories[-1], TensorModule(torch.add, [features, "upper_lstm"], ["both"])]
        features = "both"
    trunk.append(TensorModule(network.lstm_norm, [features], [MEMORY]))
    if network.attention is not None:
        memories.append(AttentionModule(network.attention, MEMORY))
        trunk.append(memories[-1])
    return trunk, memories


def _recurrence(lstm: torch.nn.Module, features: str, out: str, state: str) -> LSTMModule:
    states = [f"{state}_h", f"{state}_c"]
    return LSTMModule(
        lstm=lstm,
        in_keys=[features, *states],
        out_keys=[out, *(("next", name) for name in states)],
    )


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
    if not others:
        return [draw(op)]
    return [draw(op), LegalChoices(others, conditional, op), *map(draw, others)]


def select_row(mask: Tensor, op: Tensor) -> Tensor:
    """The row of ``mask [..., ops, choices]`` for ``op [...]``: ``[..., choices]``."""
    index = op[..., None, None].expand(*op.shape, 1, mask.shape[-1])
    return mask.gather(-2, index).squeeze(-2)

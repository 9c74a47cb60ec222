"""Actor and critic as TensorDict modules over one shared network.

The policy factorises as π(a|s) = π(op|s) · Π π(head | s, op): the op comes first, and a head whose
mask has one row per op is masked by the row of the op taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from tensordict import TensorDictBase
from tensordict.nn import (
    CompositeDistribution,
    InteractionType,
    ProbabilisticTensorDictSequential,
    TensorDictModuleBase,
    TensorDictSequential,
)
from tensordict.utils import NestedKey
from torch import nn
from torchrl.envs import EnvBase, InitTracker, Transform
from torchrl.modules import MaskedCategorical, ProbabilisticActor

from esper_rl.policy.config import ActorCriticConfig
from esper_rl.policy.masks import LegalChoices
from esper_rl.policy.memory import CarriedMemory, Memory
from esper_rl.policy.modules import TensorModule, as_set
from esper_rl.policy.network import MEMORY, OBSERVATION, FactoredRecurrentNetwork
from esper_rl.policy.serving import StepModule
from esper_rl.policy.value import ExpectedValue, SampledValue, SoftValue

BASELINE, VALUE = "baseline", "state_value"
"""Keys of the value that a rollout stores and of the value of a batch in an update."""


class HeadActor(ProbabilisticActor):
    """One head of the policy: logits, masked, drawn from, with a log-probability of its own."""

    def forward(
        self,
        tensordict: TensorDictBase,
        tensordict_out: TensorDictBase | None = None,
        **kwargs: object,
    ) -> TensorDictBase:
        if tensordict_out is not None or kwargs:
            return super().forward(tensordict, tensordict_out, **kwargs)
        # What the parent does, too, after checks that cost a seventh of a policy's step.
        logits, draw = self.module
        return draw(logits(tensordict))


class FactoredActor(ProbabilisticTensorDictSequential):
    """The sequence that :func:`make_actor_critic` builds: trunk, masks, and an actor a head.

    Attributes:
        entropy_weights: the config's weight of each head's entropy, which a
            :class:`~esper_rl.FactoredClipPPOLoss` takes where it isn't told others.

    Raises:
        ActionMaskError: in ``forward``, when a mask has no legal choice.
        ValueError: in ``forward``, for an observation that isn't finite.
        KeyError: in ``forward``, for a step that lacks what the actor reads.
    """

    entropy_weights: dict[str, float]

    def forward(
        self,
        tensordict: TensorDictBase,
        tensordict_out: TensorDictBase | None = None,
        **kwargs: object,
    ) -> TensorDictBase:
        if tensordict_out is not None or kwargs:
            return super().forward(tensordict, tensordict_out, **kwargs)
        # The parent's result, without its search through all keys at every step; and errors stay
        # what they are.
        state = tensordict.copy()
        try:
            for module in self.module:
                module(state)
        except (ValueError, RuntimeError):
            bad = ~tensordict[OBSERVATION].isfinite().all(-1)
            if bad.any():
                raise ValueError(
                    f"{OBSERVATION!r} must be finite, got nan or infinity at "
                    f"{bad.nonzero()[0].tolist()}"
                ) from None
            raise
        except KeyError as error:
            present = tensordict.keys(True)
            missing = [key for key in self.in_keys if key not in present]
            if not missing:
                raise
            raise KeyError(
                f"the step lacks {', '.join(map(repr, missing))}; the environment must show what "
                "the policy was made for and have its transforms around it: "
                "TransformedEnv(env, Compose(*actor_critic.transforms()))"
            ) from error
        for key in self.out_keys:
            tensordict.set(key, state.get(key))
        return tensordict

    def get_dist(self, tensordict: TensorDictBase, **kwargs: object) -> CompositeDistribution:
        """Distributions of all heads, by action key, given the op that is stored.

        The parent would draw another op on the way, whose masks don't fit the stored action.

        Args:
            tensordict: what the actor reads and the op, a step ``[N]`` or ``[N, T]``, or as a
                recurrent mode says that is set (:class:`torchrl.modules.set_recurrent_mode`).
        """
        state = tensordict.copy()
        distributions = {}
        with as_set(tensordict):
            for module in self.module:
                if isinstance(module, HeadActor):
                    distributions[module.dist_sample_keys[0]] = module.get_dist(state)
                else:
                    module(state)
        return CompositeDistribution.from_distributions(state, distributions)


class OpConditionedCritic(TensorDictSequential):
    """Hard value of a batch: a fresh pass of the trunk, then the value of the op taken.

    Runs over time where the batch has a time dimension, or as a recurrent mode says that is set.
    Reads the observation, the recurrent
    state, ``is_init`` and ``("action", "op")``; writes ``"state_value"`` ``[..., 1]``.
    """

    def forward(self, tensordict: TensorDictBase, **kwargs: object) -> TensorDictBase:
        with as_set(tensordict):
            return super().forward(tensordict, **kwargs)


@dataclass
class ActorCritic:
    """Actor, critics and their network, built by :func:`make_actor_critic`.

    Attributes:
        actor: a collector's policy. Writes ``("action", head)``, ``("action", head +
            "_log_prob")``, the rollout's ``"baseline"`` and the next recurrent state.
        critic: the value of a batch from a fresh trunk pass and the op taken, ``"state_value"``.
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
    memories: tuple[CarriedMemory, ...]

    def transforms(self) -> list[Transform]:
        """Make the transforms that the environment needs: ``is_init`` and the recurrent state."""
        return [InitTracker(), *(memory.make_tensordict_primer() for memory in self.memories)]

    def step_module(self, *, greedy: bool = True) -> StepModule:
        """Make a plain module of the policy, which needs no TensorDict; it shares the parameters.

        Args:
            greedy: take the likeliest choice of every head; else draw.
        """
        masks = [module for module in self.actor.module if isinstance(module, LegalChoices)]
        conditional = frozenset[str]().union(*(module.conditional for module in masks))
        return StepModule(self.network, conditional, greedy=greedy)


def make_actor_critic(
    config: ActorCriticConfig, env: EnvBase, *, compilable: bool = False
) -> ActorCritic:
    """Build actor and critic for an environment with a factored discrete action.

    It needs ``"observation"`` ``[N, features]``, an action of discrete heads under ``"action"``,
    the first of which is the op, for each of them a mask ``("action_mask", head)``,
    ``[N, choices]`` or, where it depends on the op, ``[N, ops, choices]``, and the integers
    ``[N, n]`` that the config embeds.

    Args:
        config: sizes and value mode.
        env: read for its specs.
        compilable: see :class:`FactoredRecurrentNetwork`.

    Raises:
        ValueError: if the environment's sizes aren't those of the config.
        KeyError: if it lacks an observation, a factored action, a mask or an embedded entry.

    Examples:
        >>> from envs import MorphogenesisEnv
        >>> from esper_rl import PolicyConfig
        >>> from torchrl.envs import Compose, TransformedEnv
        >>> env = MorphogenesisEnv(num_envs=2, max_epochs=3)
        >>> ac = make_actor_critic(PolicyConfig.v2(), env)
        >>> rollout = TransformedEnv(env, Compose(*ac.transforms())).rollout(3, ac.actor)
        >>> rollout["action", "op_log_prob"].shape
        torch.Size([2, 3])
    """
    spec = env.full_observation_spec
    heads = _heads(env)
    config.check_env(env)
    sizes = {head: spec["action_mask", head].shape[-1] for head in heads}
    network = FactoredRecurrentNetwork(
        spec[OBSERVATION].shape[-1], sizes, config, _indices(config, env), compilable=compilable
    ).to(env.device)

    trunk, memories = _trunk(network)
    op, *others = heads
    op_masks, draw_op = LegalChoices([op]), _head_actor(op, network, env)
    conditional = [h for h in others if spec["action_mask", h].ndim > len(env.batch_size) + 1]
    draw_others: list[TensorDictModuleBase] = []
    if others:
        draw_others = [LegalChoices(others, conditional, op)]
        draw_others += [_head_actor(head, network, env) for head in others]

    taken, expected, baseline = _values(config.value_mode, network, op, sizes[op])
    actor = FactoredActor(*trunk, op_masks, draw_op, baseline, *draw_others, return_composite=True)
    stored: list[NestedKey] = [("action", head) for head in heads]
    stored += [("action", f"{head}_log_prob") for head in heads]
    stored += [key for memory in memories for key in memory.out_keys if key[0] == "next"]
    actor.select_out_keys(*stored, BASELINE)
    actor.entropy_weights = {head: config.entropy_weights.get(head, 1.0) for head in heads}
    critic = OpConditionedCritic(*trunk, taken)
    op_logits = TensorModule(network.heads[op], [MEMORY], ("logits", op))
    expected_critic = OpConditionedCritic(*trunk, op_logits, op_masks, expected)
    for module in (critic, expected_critic):
        module.select_out_keys(VALUE)
    return ActorCritic(actor, critic, expected_critic, network, heads, tuple(memories))


def _heads(env: EnvBase) -> tuple[str, ...]:
    """Names of the action's heads; refuses a world that the policy can't act in."""
    present = set(env.full_observation_spec.keys(True, True))
    if OBSERVATION not in present:
        raise KeyError(f"the environment has no {OBSERVATION!r}, which the policy reads")
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
    return heads


def _indices(config: ActorCriticConfig, env: EnvBase) -> dict[str, tuple[int, int]]:
    """For every entry to embed: how many indices there are, and how many a step has."""
    spec = env.full_observation_spec
    found = {}
    for key in config.embedding_sizes():
        if key not in spec.keys(True, True):
            raise KeyError(f"the environment has no {key!r}, which the policy embeds")
        found[key] = (int(spec[key].space.high.max()) + 1, spec[key].shape[-1])
    return found


def _trunk(
    network: FactoredRecurrentNetwork,
) -> tuple[list[TensorDictModuleBase], list[CarriedMemory]]:
    """The network's trunk as modules, and those of them that carry a state."""
    trunk: list[TensorDictModuleBase] = []
    memories: list[CarriedMemory] = []
    for name, in_keys, out_key in network.trunk:
        layer = network.get_submodule(name)
        if isinstance(layer, Memory):
            memories.append(layer.carried(name, in_keys[0], out_key))
            trunk.append(memories[-1])
        else:
            trunk.append(TensorModule(layer, in_keys, out_key))
    return trunk, memories


def _head_actor(head: str, network: FactoredRecurrentNetwork, env: EnvBase) -> HeadActor:
    return HeadActor(
        TensorModule(network.heads[head], [MEMORY], ("logits", head)),
        in_keys={"logits": ("logits", head), "mask": ("mask", head)},
        out_keys=[("action", head)],
        spec=env.full_action_spec["action", head],
        distribution_class=MaskedCategorical,
        default_interaction_type=InteractionType.RANDOM,
        return_log_prob=True,
        log_prob_key=("action", f"{head}_log_prob"),
    )


def _values(
    mode: str, network: FactoredRecurrentNetwork, op: str, num_ops: int
) -> tuple[TensorModule, TensorModule, TensorModule]:
    """Value of the op taken, mean over the policy's ops, and the rollout's baseline."""
    head = network.value_head
    given_policy: list[NestedKey] = [MEMORY, ("logits", op), ("mask", op)]
    of_taken: tuple[nn.Module, list[NestedKey]]
    of_expected: tuple[nn.Module, list[NestedKey]]
    of_taken = (SampledValue(head, num_ops), [MEMORY, ("action", op)])
    of_expected = (ExpectedValue(head, num_ops), given_policy)
    if mode == "state":
        of_taken = of_expected = (head, [MEMORY])
    of_baseline: dict[str, tuple[nn.Module, list[NestedKey]]] = {
        "soft": (SoftValue(head), given_policy),
        "expected": of_expected,
        "sampled": of_taken,
        "state": of_taken,
    }
    wanted = ((of_taken, VALUE), (of_expected, VALUE), (of_baseline[mode], BASELINE))
    taken, expected, baseline = (
        TensorModule(module, in_keys, key) for (module, in_keys), key in wanted
    )
    return taken, expected, baseline

"""A policy as a plain module, to be served where neither TensorDict nor this project is."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from esper_rl.policy.masks import select_row
from esper_rl.policy.memory import Memory, MemoryStep
from esper_rl.policy.network import MEMORY, OBSERVATION, FactoredRecurrentNetwork


class StepModule(nn.Module):
    """One step of a policy, from tensors to tensors.

    It shares the network's parameters. It exports by :func:`torch.export.export` and to ONNX, and
    ``torch.compile(fullgraph=True)`` takes it. At an episode's first step the state is that of
    :meth:`initial_state`; a served policy carries it from call to call.

    Args:
        network: of the policy.
        conditional: heads whose mask has one row per op.
        greedy: take the likeliest choice of every head; else draw.

    Attributes:
        heads: names of the heads, in the order of masks, actions and log-probabilities.
        index_keys: entries that it reads beside the observation, in order.

    Examples:
        >>> from envs import MorphogenesisEnv
        >>> from esper_rl import PolicyConfig, make_actor_critic
        >>> env = MorphogenesisEnv(num_envs=2)
        >>> step = make_actor_critic(PolicyConfig.v2(), env).step_module()
        >>> shown = env.reset()
        >>> indices = [shown[key] for key in step.index_keys]
        >>> masks = [shown["action_mask", head] for head in step.heads]
        >>> state = step.initial_state(rows=2)
        >>> actions, log_probs, state = step(shown["observation"], indices, masks, state)
        >>> actions.shape, log_probs.shape
        (torch.Size([2, 8]), torch.Size([2, 8]))
    """

    def __init__(
        self, network: FactoredRecurrentNetwork, conditional: Collection[str], *, greedy: bool
    ) -> None:
        super().__init__()
        self.conditional, self.greedy = frozenset(conditional), greedy
        self.heads = tuple(network.heads)
        self.index_keys = tuple(network.in_keys[1:])
        self.trunk, self.choosers = network.trunk, nn.ModuleList(network.heads.values())
        modules = [network.get_submodule(layer.name) for layer in network.trunk]
        steps = [m.step_module() if isinstance(m, Memory) else m for m in modules]
        self.layers = nn.ModuleList(steps)

    def initial_state(self, rows: int) -> list[Tensor]:
        """The state before an episode's first step, of every layer that carries one.

        An LSTM's are ``[rows, hidden]`` twice, a GRU's once, attention's ``[rows, span, hidden]``
        and int64 ``[rows, 1]``.
        """
        steps = [layer for layer in self.layers if isinstance(layer, MemoryStep)]
        return [part for step in steps for part in step.initial_state(rows)]

    def forward(
        self,
        observation: Tensor,
        indices: Sequence[Tensor],
        masks: Sequence[Tensor],
        state: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Act on n states.

        Args:
            observation: float32 ``[n, features]``.
            indices: of :attr:`index_keys`, int64 ``[n, indices]`` each.
            masks: of :attr:`heads`, bool ``[n, choices]`` each, or ``[n, ops, choices]`` where it
                depends on the op; at least one choice of each must be legal.
            state: of the step before.

        Returns:
            Actions int64 ``[n, heads]``, their log-probabilities float32 ``[n, heads]``, and the
            state after the step.
        """
        memory, following = self._remember(observation, indices, state)
        actions: list[Tensor] = []
        log_probs: list[Tensor] = []
        for name, head, mask in zip(self.heads, self.choosers, masks, strict=True):
            if name in self.conditional:
                mask = select_row(mask, actions[0])
            log_prob = head(memory).masked_fill(~mask, -torch.inf).log_softmax(-1)
            score = log_prob if self.greedy else log_prob - _exponential(log_prob).log()
            action = score.argmax(-1)
            actions.append(action)
            log_probs.append(log_prob.gather(-1, action[:, None]).squeeze(-1))
        return torch.stack(actions, 1), torch.stack(log_probs, 1), following

    def _remember(
        self, observation: Tensor, indices: Sequence[Tensor], state: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The trunk's output ``[n, hidden]``, and the state after it."""
        values = {OBSERVATION: observation, **dict(zip(self.index_keys, indices, strict=True))}
        before: list[Tensor] = list(state)
        following: list[Tensor] = []
        for (_, in_keys, out_key), module in zip(self.trunk, self.layers, strict=True):
            read = [values[key] for key in in_keys]
            if isinstance(module, MemoryStep):
                values[out_key], *after = module(*read, *before[: module.states])
                before, following = before[module.states :], [*following, *after]
            else:
                values[out_key] = module(*read)
        return values[MEMORY], following


def _exponential(like: Tensor) -> Tensor:
    """Exponential draws: the choice with the largest log p − log of one is drawn with p."""
    return -torch.rand_like(like).clamp(min=torch.finfo(like.dtype).tiny).log()

"""A policy as a plain module, to be served where neither TensorDict nor this project is."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper_rl.policy.attention import RecentAttention
from esper_rl.policy.masks import select_row
from esper_rl.policy.network import MEMORY, OBSERVATION, FactoredRecurrentNetwork, is_lstm


class LSTMStep(nn.Module):
    """One step of a one-layer LSTM, written out: PyTorch's own can't be compiled whole.

    Args:
        lstm: whose parameters it shares.
    """

    weight_ih: nn.Parameter
    weight_hh: nn.Parameter
    bias_ih: nn.Parameter
    bias_hh: nn.Parameter

    def __init__(self, lstm: nn.Module) -> None:
        super().__init__()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            self.register_parameter(name, lstm.get_parameter(f"{name}_l0"))

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The state ``[n, hidden]`` twice after an input ``[n, hidden]``."""
        gates = F.linear(x, self.weight_ih, self.bias_ih)
        gates = gates + F.linear(h, self.weight_hh, self.bias_hh)
        enter, forget, new, leave = gates.chunk(4, -1)
        c = forget.sigmoid() * c + enter.sigmoid() * new.tanh()
        return leave.sigmoid() * c.tanh(), c


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
        self.layers = nn.ModuleList(LSTMStep(m) if is_lstm(m) else m for m in modules)

    def initial_state(self, rows: int) -> list[Tensor]:
        """The state before an episode's first step, of every layer that carries one.

        An LSTM's are ``[rows, hidden]`` twice, attention's ``[rows, span, hidden]`` and int64
        ``[rows, 1]``.
        """
        state: list[Tensor] = []
        for module in self.layers:
            if isinstance(module, LSTMStep):
                hidden = module.weight_hh.new_zeros(rows, module.weight_hh.shape[1])
                state += [hidden, hidden.clone()]
            elif isinstance(module, RecentAttention):
                state += module.nothing(module.project.weight.new_zeros(rows, module.size))
        return state

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
        before, following = list(state), []
        for (_, in_keys, out_key), module in zip(self.trunk, self.layers, strict=True):
            read = [values[key] for key in in_keys]
            if isinstance(module, LSTMStep):
                h, c = module(read[0], before.pop(0), before.pop(0))
                values[out_key] = h
                following += [h, c]
            elif isinstance(module, RecentAttention):
                first = torch.zeros_like(before[1], dtype=torch.bool)
                out, *new = module.step(read[0], before.pop(0), before.pop(0), first)
                values[out_key] = out
                following += new
            else:
                values[out_key] = module(*read)
        return values[MEMORY], following


def _exponential(like: Tensor) -> Tensor:
    """Exponential draws: the choice with the largest log p − log of one is drawn with p."""
    return -torch.rand_like(like).clamp(min=torch.finfo(like.dtype).tiny).log()

"""A policy's parts computed step by step from its network, as its modules should."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from esper_rl.policy import ActorCritic
from esper_rl.policy.network import FactoredRecurrentNetwork
from tests.support.fake_world import NUM_OPS


def mask_of(batch: TensorDictBase, head: str) -> Tensor:
    """``[..., choices]``: the mask of a head, given the op taken."""
    mask, op = batch["action_mask", head], batch["action", "op"]
    if mask.ndim == batch.ndim + 1:
        return mask
    one_hot = torch.nn.functional.one_hot(op, NUM_OPS).bool()
    return mask[one_hot].reshape(*batch.shape, -1)


def features_of(network: FactoredRecurrentNetwork, state: TensorDictBase) -> Tensor:
    embedded = network.blueprint_embedding(state["blueprint_indices"])
    return network.feature_net(state["observation"], embedded)


def memory_by_hand(ac: ActorCritic, batch: TensorDictBase) -> Tensor:
    """Normalised LSTM output ``[N, T, hidden]``, one step after the other."""
    network, outputs = ac.network, []
    state = [batch[f"recurrent_state_{s}"][:, 0].transpose(0, 1) for s in "hc"]
    for t in range(batch.shape[1]):
        now = batch[:, t]
        state = [torch.where(now["is_init"][None], 0.0, s) for s in state]
        features = features_of(network, now)
        output, state = network.lstm(features[:, None], tuple(s.contiguous() for s in state))
        outputs.append(output)
    return network.lstm_norm(torch.cat(outputs, 1))

"""The best plan of the scaffold task, by climbing.

A way to play it is a pair of plans, one for each blueprint that may be the helper, which are the
same until the two worlds can be told apart by what they show. A pair is worth its mean return.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from tensordict import TensorDict

from envs import MorphogenesisEnv
from envs.actions import BLUEPRINTS, CAUSAL_RELEVANCE, HEADS, Op, head_sizes
from envs.tasks.plans import Plan
from envs.tasks.scaffold import CURVES, HELPERS, scaffold

Pair = tuple[Plan, Plan]

ROWS = 4096
SLOTS = 3
EPOCHS, GAMMA = scaffold().max_epochs, scaffold().reward.gamma
OFFERED = [BLUEPRINTS.index(name) for name in CURVES]
SHIFTS = (-10, -5, -3, -2, -1, 1, 2, 3, 5, 10)


def returns(pairs: list[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Play pairs of plans.

    Returns:
        Discounted returns, mean of the two worlds, −inf for a pair with an illegal action or with
        a difference that nothing has told; and the step from which the two worlds differ.
    """
    parts = [_play(pairs[first : first + ROWS // 2]) for first in range(0, len(pairs), ROWS // 2)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _play(pairs: list[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = 2 * len(pairs)
    actions = torch.zeros(EPOCHS, len(HEADS), rows, dtype=torch.int64)
    for row, plan in enumerate(plan for pair in pairs for plan in pair):
        for step, action in plan.items():
            for head, index in action.items():
                actions[step, HEADS.index(head), row] = int(index)
    env = MorphogenesisEnv("scaffold", num_envs=rows, seed=0)
    env.reset()
    helpers = torch.tensor([BLUEPRINTS.index(name) for name in HELPERS])
    env.population.helper = helpers.repeat(len(pairs))
    state = env.observe()
    total, allowed = torch.zeros(rows), torch.ones(rows, dtype=torch.bool)
    apart = torch.zeros(len(pairs), dtype=torch.bool)
    since = torch.full((len(pairs),), EPOCHS)
    for step, action in enumerate(actions):
        apart |= _differ(state["observation"])
        since = torch.where(apart & (since == EPOCHS), step, since)
        allowed &= (apart | ~_differ(action.T)).repeat_interleave(2)
        heads = TensorDict(dict(zip(HEADS, action, strict=True)), [rows])
        state = env.step(state.set("action", heads))["next"]
        total += GAMMA**step * state["reward"].squeeze(1)
        allowed &= state["last_action_success"].squeeze(1)
    return total.masked_fill(~allowed, -torch.inf).view(-1, 2).mean(1), since


def _differ(rows: torch.Tensor) -> torch.Tensor:
    """Do the two of each pair differ?"""
    pairs = rows.unflatten(0, (-1, 2))
    return (pairs[:, 0] != pairs[:, 1]).any(1)


def choices(head: str) -> list[int]:
    return OFFERED if head == "blueprint" else list(range(head_sizes(SLOTS)[head]))


def new_actions() -> Iterator[dict[str, int]]:
    """One of every op and slot; every blueprint and α, a fast tempo, all speeds."""
    for op, slot in product(list(Op)[1:], range(SLOTS)):
        relevant = zip(HEADS, CAUSAL_RELEVANCE[op].tolist(), strict=True)
        action = {head: 0 for head, matters in relevant if matters} | {"op": op, "slot": slot}
        varied = [head for head in ("blueprint", "alpha_target", "alpha_speed") if head in action]
        for values in product(*(choices(head) for head in varied)):
            yield {**action, **dict(zip(varied, values, strict=True))}


def changed(plan: Plan, first: int, last: int) -> Iterator[Plan]:
    """All plans with another event from step ``first`` to before ``last``."""
    for step, action in plan.items():
        if not first <= step < last:
            continue
        rest = {t: a for t, a in plan.items() if t != step}
        yield rest
        yield from ({**rest, t: action} for t in range(first, last) if t not in plan)
        following = min((t for t in plan if t > step), default=step)
        yield {**plan, step: plan[following], following: action}
        for head in action:
            if head != "op":
                yield from ({**plan, step: {**action, head: i}} for i in choices(head))
        for by in SHIFTS:
            if all(0 <= t + by < EPOCHS for t in plan if t >= step):
                yield {t + by * (t >= step): a for t, a in plan.items()}


def neighbours(pair: Pair, apart: int) -> Iterator[Pair]:
    """Pairs in which one event differs: of one plan, or of both before they are told apart."""
    one, other = pair
    yield from ((new, other) for new in changed(one, apart, EPOCHS))
    yield from ((one, new) for new in changed(other, apart, EPOCHS))
    shared = {t: a for t, a in one.items() if t < apart}
    rests = [{t: a for t, a in plan.items() if t >= apart} for plan in pair]
    for new in changed(shared, 0, apart + max(SHIFTS)):
        for by in (0, *SHIFTS):  # what follows may move along
            moved = [{t + by: a for t, a in rest.items()} for rest in rests]
            if all(max(rest, default=0) < EPOCHS and not rest.keys() & new for rest in moved):
                yield {**new, **moved[0]}, {**new, **moved[1]}


def enlarged(pair: Pair, apart: int) -> Iterator[Pair]:
    """All pairs with one more event."""
    one, other = pair
    for step, action in product(range(EPOCHS), list(new_actions())):
        if step < apart:
            if step not in one:
                yield {**one, step: action}, {**other, step: action}
            continue
        if step not in one:
            yield {**one, step: action}, other
        if step not in other:
            yield one, {**other, step: action}


def climb(pair: Pair) -> tuple[Pair, float, int]:
    """The best pair that steps to the best neighbour lead to, its return and when it decides."""
    found, since = returns([pair])
    best, apart = found.item(), int(since)
    searches = [neighbours, enlarged]
    while searches:
        pairs = list(searches[0](pair, apart))
        found, since = returns(pairs)
        place = int(found.argmax())
        if found[place] > best + 1e-5:
            pair, best, apart = pairs[place], found[place].item(), int(since[place])
            searches = [neighbours, enlarged]
            print(f"  {best:.5f}", flush=True)
        else:
            searches = searches[1:]
    return pair, best, apart

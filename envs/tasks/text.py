"""Python's own reference text, and a host that sees one character of it."""

from __future__ import annotations

import pydoc_data.topics
import re
from collections.abc import Sequence
from string import ascii_lowercase

import torch
from torch import Tensor

from envs.batched.optimizers import AdamW
from envs.hosts import TextHost
from envs.tasks.arrays import ArrayTask
from envs.tasks.examples import Examples, hold_out

CHARACTERS = ascii_lowercase + "0 \n" + "-\"_.*,=():|'>+][;<~{}/\\#%!^@" + "’”“‘"
"""Characters by token; all others are the token after them."""

LENGTH = 32
"""Characters of an example."""

HELD_OUT = ("binary", "booleans", "import", "objects", "slicings")
"""Topics that are held out, about 19,000 characters; no other topic repeats what they say."""


def pydoc() -> ArrayTask:
    """Name the next character of Python's reference, which is in every CPython.

    Text is lower-cased, digits are 0, runs of spaces one; whole topics are held out. The host sees
    the current character only. Counted pairs of characters name the next one in 26 % of the
    positions (Python 3.11); what knows more characters before it can do better.
    """
    topics = sorted(pydoc_data.topics.topics.items())
    train, validation = (
        windows(encode("\n".join(text for name, text in topics if (name in HELD_OUT) is held_out)))
        for held_out in (False, True)
    )
    mixed, _ = hold_out(validation, len(validation.targets))
    return ArrayTask(
        name="pydoc",
        description="characters of Python's reference, host that sees the current one only",
        host=TextHost(tokens=len(CHARACTERS) + 1),
        optimizer=AdamW(),
        host_lr=1e-2,
        seed_lr=3e-3,
        train=train,
        validation=mixed,
        validation_size=64,
        minibatch_size=16,
    )


def encode(text: str) -> Tensor:
    """Tokens of a text, int64 ``[characters]``.

    Examples:
        >>> encode("Ab  1").tolist()
        [0, 1, 27, 26]
    """
    plain = re.sub(" +", " ", re.sub("[0-9]", "0", text.lower()))
    return torch.tensor([_TOKENS.get(character, len(CHARACTERS)) for character in plain])


_TOKENS = {character: token for token, character in enumerate(CHARACTERS)}


def decode(tokens: Sequence[int]) -> str:
    """The text of tokens, with ▒ for characters that have none of their own."""
    return "".join((CHARACTERS + "▒")[token] for token in tokens)


def windows(tokens: Tensor) -> Examples:
    """Examples of :data:`LENGTH` tokens in a row, and the token after each of them."""
    count = (len(tokens) - 1) // LENGTH
    inputs, targets = (tokens[i : i + count * LENGTH].view(count, LENGTH) for i in (0, 1))
    return Examples(inputs, targets)

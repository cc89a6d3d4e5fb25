"""Random numbers that nobody else can know."""

from __future__ import annotations

import secrets

import numpy as np
import torch

from gossipseg.errors import LocalError

_STATE_AT, _WORDS = 24, 624
"""Where torch's CPU generator keeps the words of its Mersenne twister: 64 bits each, of which 32 are used."""


def secret_generator(device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator with a beginning of its own.

    The CPU's takes 32 bits of a seed, which can be tried out one after the other: its whole state is filled.
    """
    generator = torch.Generator(device)
    generator.manual_seed(secrets.randbits(63))
    if generator.device.type != "cpu":
        return generator
    state = generator.get_state().numpy().copy()
    words = state[_STATE_AT : _STATE_AT + 8 * _WORDS].view(np.uint64)
    if words[0] != generator.initial_seed() & 0xFFFFFFFF:
        raise LocalError(
            f"torch {torch.__version__} keeps its random state elsewhere than expected: "
            "noise could be guessed. Install a version that constraints.txt names."
        )
    words[:] = np.frombuffer(secrets.token_bytes(4 * _WORDS), np.uint32)
    generator.set_state(torch.from_numpy(state))
    return generator

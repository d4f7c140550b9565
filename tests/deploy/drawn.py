"""Text that a tiny model writes itself."""

import torch

TOKENS = 60


def drawn(loaded, windows, seed):
    """Windows that the model writes itself, so that what moves it away costs it."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 96, (windows, 1), generator=generator)
    for _ in range(TOKENS - 1):
        shares = loaded.logits(ids, last=1)[:, -1].float().softmax(-1)
        ids = torch.cat([ids, torch.multinomial(shares, 1, generator=generator)], dim=1)
    return ids

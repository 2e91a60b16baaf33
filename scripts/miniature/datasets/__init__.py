"""Synthetic versions of the seven datasets with the columns of the Hub, about the synthetic world.

Each module has `rows(rng, names)`, an endless iterator that pretraining uses too, and
`splits(world, seed)`, the rows of each file: `{"mrpc/train": [row, ...], ...}`.
"""

"""Miniature twins of the seven datasets: rows in the hub's columns, about the invented world.

A module per dataset offers `rows(rng, names)`, an endless stream that pre-training may draw from
too, and `splits(world, seed)`, the files of the mirror: `{"mrpc/train": [row, ...], ...}`.
"""

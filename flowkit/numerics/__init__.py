"""Numerical ground: layout, root search, clips, gradients, noise, rounding and compiling."""

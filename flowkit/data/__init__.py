"""What the user has: conversion to tensors, sources of rows, batches, files."""

from flowkit.data.dequantize import dequantize

__all__ = [
    "dequantize",
]

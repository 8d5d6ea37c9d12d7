"""Read what the user has: conversion, sources of samples, splits and batches, dequantization."""

from flowkit.data.dequantize import dequantize

__all__ = [
    "dequantize",
]

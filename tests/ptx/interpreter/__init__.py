"""Executes the PTX that nvcc emits for kernels, so that the asm half of kernels/core/ptx.cuh and hopper.cuh runs
where there is no GPU. Written from the PTX ISA manual (9.0), not from the emulated device in tests/simt.

    outputs = Module(text).run("part of the kernel's name", grid, block, shared_bytes, arguments, seed)

Registers hold bit patterns as unsigned ints. What it checks beside the results is in machine.py and tensor.py.
Not modelled: weak memory, rounding of tensor cores (sums are exact, then rounded once), multicast, clusters."""
from .errors import PtxError
from .machine import Array, TensorMap
from .module import Module

__all__ = ["Array", "Module", "PtxError", "TensorMap"]

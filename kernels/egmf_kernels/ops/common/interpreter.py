"""Triton's interpreter made to round and multiply as the hardware does.

As shipped (3.7 to 3.9) it truncates fp32 to bfloat16 where a GPU rounds to the nearest even, and ``tl.dot`` multiplies
bfloat16 operands as the integers that hold their bits. Both are put right here, once, for interpreted processes only;
a compiled kernel never sees this file.
"""

from __future__ import annotations

import triton
import triton.language as tl


def interpreting() -> bool:
    """Whether kernels decorated now would be interpreted (``TRITON_INTERPRET=1`` was set before the import)."""
    return bool(triton.knobs.runtime.interpret)


def _to_bf16(data):
    bits = data.view("uint32")
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("uint16")
    nearest[data != data] = 0x7FC0  # rounding a NaN's bits could carry them into infinity
    return nearest


def _from_bf16(data):
    return (data.astype("uint32") << 16).view("float32")


def correct_interpreter() -> None:
    """Replace the interpreter's casts from and to bfloat16 and its ``dot``; harmless when called again."""
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    if getattr(builder, "egmf_corrected", False):
        return
    cast, dot, handle = builder.cast_impl, builder.create_dot, interpreter.TensorHandle

    def cast_impl(self, src, dst_type):
        source, target = src.dtype.scalar, dst_type.scalar
        if source == tl.float32 and target == tl.bfloat16:
            return handle(_to_bf16(src.data), target)
        if source == tl.bfloat16 and target == tl.float32:
            return handle(_from_bf16(src.data), target)
        return cast(self, src, dst_type)

    def create_dot(self, a, b, d, *options):
        if a.dtype.scalar == tl.bfloat16:
            a, b = (handle(_from_bf16(x.data), tl.float32) for x in (a, b))
        return dot(self, a, b, d, *options)

    builder.cast_impl, builder.create_dot, builder.egmf_corrected = cast_impl, create_dot, True


INTERPRETED = interpreting()
"""Whether this process interprets the kernels on CPU tensors (``TRITON_INTERPRET=1`` before the first import)."""

if INTERPRETED:
    correct_interpreter()

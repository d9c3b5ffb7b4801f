"""What the context coder does with a whole row of 16 frequencies, as single vector instructions for numba.

numba compiles the loops of ``context_kernel.learn`` and ``find`` entry by entry, and the coder then reaches a third of
its speed. Here the same arithmetic is stated as LLVM vectors of 16: one load, one subtraction, one shift, one store to
learn; one comparison and the sum of its 16 answers to find a symbol. LLVM splits them where a processor has shorter
vectors. Differences of entries fit into 16 bits: an entry of 2**15 meets only a target of 2**15. The bytes are those of
the plain functions (tested). Imported only where numba is.

A change in this file does not renew the machine code that numba keeps of ``context_kernel``: touch that file too.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic, overload

from adaptsplit.codecs import context_kernel
from adaptsplit.codecs.context_kernel import WIDTH

_BYTE, _HALF, _WORD, _LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_BYTES, _HALVES, _WORDS = (ir.VectorType(kind, WIDTH) for kind in (_BYTE, _HALF, _WORD))


def _place(context: Any, builder: Any, kind: Any, array: Any, row: Any) -> Any:
    """Address of a row of a contiguous (r, 16) uint16 array."""
    base = context.make_array(kind)(context, builder, array).data
    start = builder.gep(base, [builder.mul(row, _LONG(WIDTH))])
    return builder.bitcast(start, _HALVES.as_pointer())


def _load(builder: Any, place: Any) -> Any:
    row = builder.load(place)
    row.align = 2
    return row


def _all(builder: Any, value: Any, kind: Any) -> Any:
    """Return a vector whose entries are all ``value``, cut to the width of ``kind``'s entries."""
    empty = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(empty, builder.trunc(value, kind.element), _WORD(0))
    return builder.shuffle_vector(first, empty, ir.Constant(_WORDS, [0] * WIDTH))


def _last_of(builder: Any, mask: Any) -> Any:
    """Number of true entries, less one: entries ascend, so this is the last place where ``mask`` holds."""
    name, kind = f"llvm.vector.reduce.add.v{WIDTH}i8", ir.FunctionType(_BYTE, [_BYTES])
    total = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.sub(builder.zext(builder.call(total, [builder.zext(mask, _BYTES)]), _LONG), _LONG(1))


def _lower_learn(typing: Any, rows: Any, index: Any, targets: Any, target: Any, rate: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature.args[0], args[0], args[1])
        row, aim = _load(builder, place), _load(builder, _place(context, builder, signature.args[2], args[2], args[3]))
        step = builder.ashr(builder.sub(aim, row), _all(builder, args[4], _HALVES))
        builder.store(builder.add(row, step), place).align = 2
        return context.get_dummy_value()

    return types.void(rows, types.int64, targets, types.int64, types.int64), generate


def _lower_find(typing: Any, rows: Any, a: Any, b: Any, c: Any, slot: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        parts = [_load(builder, _place(context, builder, signature.args[0], args[0], row)) for row in args[1:4]]
        first, second, third = (builder.zext(part, _WORDS) for part in parts)
        mixed = builder.add(builder.add(first, first), builder.add(second, third))
        starts = builder.lshr(mixed, ir.Constant(_WORDS, [1] * WIDTH))
        return _last_of(builder, builder.icmp_unsigned("<=", starts, _all(builder, args[4], _WORDS)))

    return types.int64(rows, types.int64, types.int64, types.int64, types.int64), generate


def _lower_find_one(typing: Any, rows: Any, index: Any, slot: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        starts = _load(builder, _place(context, builder, signature.args[0], args[0], args[1]))
        half = _all(builder, builder.lshr(args[2], _LONG(1)), _HALVES)
        return _last_of(builder, builder.icmp_unsigned("<=", starts, half))

    return types.int64(rows, types.int64, types.int64), generate


_learn: Any = intrinsic(_lower_learn)
_find: Any = intrinsic(_lower_find)
_find_one: Any = intrinsic(_lower_find_one)


def use_vectors() -> None:
    """Tell numba to take the functions of this file for those of ``context_kernel``."""

    @overload(context_kernel.learn, strict=False)
    def learn(rows: Any, index: Any, targets: Any, target: Any, rate: Any) -> Any:
        return lambda rows, index, targets, target, rate: _learn(rows, index, targets, target, rate)

    @overload(context_kernel.find, strict=False)
    def find(rows: Any, a: Any, b: Any, c: Any, slot: Any) -> Any:
        return lambda rows, a, b, c, slot: _find(rows, a, b, c, slot)

    @overload(context_kernel.find_one, strict=False)
    def find_one(rows: Any, row: Any, slot: Any) -> Any:
        return lambda rows, row, slot: _find_one(rows, row, slot)

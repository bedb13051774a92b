"""Vector instructions for the numba kernels: inner loops over features, for four rows at a time.

LLVM's own vectorizer neither keeps the accumulators of several rows and projections in registers
nor uses the full vector width, which makes it two to three times slower. These intrinsics emit the
vector operations themselves, on vectors of 64 bytes; LLVM splits them into what the machine has.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from pyro_mixtures.ops.kernels.jit import FAST_MATH, instruction, instruction_with_literals

ROWS = 4  # rows per pass
RANK = 5  # projections per pass: 4 x 5 accumulators and their operands fill 32 registers
VECTOR_BYTES = 64
_CACHE_LINE = 64

_I1, _I8, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
_NAMES = {"float": "f32", "double": "f64", "i8": "i8"}


def _number(value: int) -> Any:
    return ir.Constant(_I64, value)


class _Vectors:
    """Emits operations on vectors of one scalar type."""

    def __init__(self, context: Any, builder: Any, dtype: Any):
        self.builder, self.scalar = builder, context.get_value_type(dtype)
        self.lanes = VECTOR_BYTES * 8 // dtype.bitwidth
        self.type = ir.VectorType(self.scalar, self.lanes)
        self.align = dtype.bitwidth // 8

    def zero(self) -> Any:
        return ir.Constant(self.type, [0.0] * self.lanes)

    def add(self, a: Any, b: Any) -> Any:
        return self.builder.fadd(a, b, flags=FAST_MATH)

    def subtract(self, a: Any, b: Any) -> Any:
        return self.builder.fsub(a, b, flags=FAST_MATH)

    def multiply(self, a: Any, b: Any) -> Any:
        return self.builder.fmul(a, b, flags=FAST_MATH)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        return self.add(self.multiply(a, b), c)

    def shuffle(self, a: Any, b: Any, lanes: list[int]) -> Any:
        return self.builder.shuffle_vector(
            a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes)
        )

    def broadcast(self, scalar: Any) -> Any:
        undefined = ir.Constant(ir.VectorType(scalar.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
        return self.shuffle(first, undefined, [0] * self.lanes)

    def below(self, count: Any) -> Any:
        """Return the mask of the lanes numbered below ``count``."""
        numbers = ir.Constant(ir.VectorType(_I64, self.lanes), list(range(self.lanes)))
        return self.builder.icmp_signed("<", numbers, self.broadcast(count))

    def load(self, pointer: Any, mask: Any = None) -> Any:
        """Load the vector at ``pointer``; lanes outside ``mask`` are zero, bytes are widened."""
        element = pointer.type.pointee
        vector = ir.VectorType(element, self.lanes)
        size = 1 if isinstance(element, ir.IntType) else self.align
        pointer = self.builder.bitcast(pointer, vector.as_pointer())
        if mask is None:
            value = self.builder.load(pointer, align=size)
        else:
            masks = ir.VectorType(_I1, self.lanes)
            signature = ir.FunctionType(vector, [pointer.type, _I32, masks, vector])
            name = f"llvm.masked.load.v{self.lanes}{_NAMES[str(element)]}.p0"
            masked = cgutils.get_or_insert_function(self.builder.module, signature, name)
            zero = ir.Constant(vector, [0 if isinstance(element, ir.IntType) else 0.0] * self.lanes)
            value = self.builder.call(masked, [pointer, ir.Constant(_I32, size), mask, zero])
        return self.builder.uitofp(value, self.type) if isinstance(element, ir.IntType) else value

    def store(self, vector: Any, pointer: Any) -> None:
        self.builder.store(
            vector, self.builder.bitcast(pointer, self.type.as_pointer()), align=self.align
        )

    def merge(self, vectors: list[Any], width: int) -> Any:
        """Merge 1, 2 or 4 vectors into one that keeps the sum of each group of ``width`` lanes.

        A group of the result is divided among the vectors, in their order: the lanes of one share
        add up to what that group of its vector adds up to. For this, the two halves of each group
        are added to each other.
        """
        if len(vectors) == 1:
            return vectors[0]
        half = len(vectors) // 2
        pairs = zip(vectors[:half], vectors[half:], strict=True)
        return self.merge([self._add_halves(a, b, width) for a, b in pairs], width // 2)

    def _add_halves(self, a: Any, b: Any, width: int) -> Any:
        """Return, in each group of ``width`` lanes, the sum of a's halves, then that of b's."""
        half, n = width // 2, self.lanes
        first_half = [lane % width < half for lane in range(n)]
        # Each lane of the first shuffle stays in its place: a blend, which is a faster instruction.
        same_lane = [lane if first else n + lane for lane, first in enumerate(first_half)]
        other_half = [
            lane + half if first else n + lane - half for lane, first in enumerate(first_half)
        ]
        return self.add(self.shuffle(a, b, same_lane), self.shuffle(a, b, other_half))


class _Features:
    """Emits loops over the D features of four rows and of one component's parameters."""

    def __init__(self, context: Any, builder: Any, arrays: dict[str, tuple[Any, Any]], dtype: Any):
        self.builder, self.vectors = builder, _Vectors(context, builder, dtype)
        self.arrays = {
            name: context.make_array(kind)(context, builder, value)
            for name, (kind, value) in arrays.items()
        }
        self.features = self.size("x", 1)

    def size(self, name: str, dim: int) -> Any:
        return cgutils.unpack_tuple(self.builder, self.arrays[name].shape)[dim]

    def row(self, name: str, number: Any) -> Any:
        """Return a pointer to the D features that begin at ``number * D``."""
        return self.builder.gep(self.arrays[name].data, [self.builder.mul(number, self.features)])

    def rows_of_rank(self, name: str, component: Any, first: Any, size: int) -> list[Any]:
        """Return pointers to ``size`` rows of the (C, R, D) array ``name``."""
        base = self.builder.add(self.builder.mul(component, self.size(name, 1)), first)
        return [self.row(name, self.builder.add(base, _number(k))) for k in range(size)]

    def accumulators(self, count: int) -> list[Any]:
        return [cgutils.alloca_once_value(self.builder, self.vectors.zero()) for _ in range(count)]

    def accumulate(self, accumulator: Any, a: Any, b: Any) -> None:
        total = self.vectors.multiply_add(a, b, self.builder.load(accumulator))
        self.builder.store(total, accumulator)

    def for_each_vector(self, body: Callable[[Any, Any], None]) -> None:
        """Emit ``body(d, mask)`` for whole vectors (mask None), then for the remaining features."""
        b, step = self.builder, _number(self.vectors.lanes)
        whole = b.mul(b.sdiv(self.features, step), step)
        with cgutils.for_range_slice(b, _number(0), whole, step, _I64) as (d, _):
            body(d, None)
        remaining = b.sub(self.features, whole)
        with b.if_then(b.icmp_signed(">", remaining, _number(0)), likely=False):
            body(whole, self.vectors.below(remaining))

    def load(self, pointer: Any, d: Any, mask: Any) -> Any:
        return self.vectors.load(self.builder.gep(pointer, [d]), mask)

    def differences(self, rows: list[Any], loc: Any, d: Any, mask: Any) -> list[Any]:
        center = self.load(loc, d, mask)
        return [self.vectors.subtract(self.load(row, d, mask), center) for row in rows]


def _literals(*values: Any) -> bool:
    return all(isinstance(value, types.IntegerLiteral) for value in values)


@instruction_with_literals
def tile_sums(
    typingctx: Any,
    x: Any,
    n0: Any,
    n1: Any,
    n2: Any,
    n3: Any,
    loc: Any,
    precision: Any,
    projection: Any,
    c: Any,
    first: Any,
    out: Any,
    tile: Any,
    size: Any,
    squares: Any,
) -> Any:
    """Sum over features for rows n0 ... n3 about the mean of component c.

    With w the precision, V the projection and d = x - loc: the j-th quarter of ``out[0, tile]``
    adds up to sum w d^2 of row j (if ``squares``), and that of ``out[1 + k, tile]`` to
    sum V_(first + k) d, for k below ``size``. :func:`sum_lanes` adds up the quarters. ``size`` and
    ``squares`` are literals.
    """
    if not _literals(size, squares):
        return None
    rank, with_squares, dtype = size.literal_value, bool(squares.literal_value), loc.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays = {
            "x": (x, args[0]),
            "loc": (loc, args[5]),
            "precision": (precision, args[6]),
            "projection": (projection, args[7]),
            "out": (out, args[10]),
        }
        loop = _Features(context, builder, arrays, dtype)
        v, component = loop.vectors, args[8]
        rows = [loop.row("x", number) for number in args[1:5]]
        center, weight = loop.row("loc", component), loop.row("precision", component)
        axes = loop.rows_of_rank("projection", component, args[9], rank)
        squared_sums = loop.accumulators(ROWS if with_squares else 0)
        products = [loop.accumulators(ROWS) for _ in axes]

        def body(d: Any, mask: Any) -> None:
            diffs = loop.differences(rows, center, d, mask)
            if with_squares:
                w = loop.load(weight, d, mask)
                for accumulator, diff in zip(squared_sums, diffs, strict=True):
                    loop.accumulate(accumulator, v.multiply(w, diff), diff)
            for axis, accumulators in zip(axes, products, strict=True):
                a = loop.load(axis, d, mask)
                for accumulator, diff in zip(accumulators, diffs, strict=True):
                    loop.accumulate(accumulator, a, diff)

        loop.for_each_vector(body)
        for quantity, accumulators in enumerate([squared_sums, *products]):
            if accumulators:
                position = builder.add(args[11], _number(quantity * (v.lanes // ROWS)))
                offset = builder.mul(position, _number(v.lanes))
                merged = v.merge([builder.load(total) for total in accumulators], v.lanes)
                v.store(merged, builder.gep(loop.arrays["out"].data, [offset]))
        return context.get_dummy_value()

    i = types.int64
    return types.void(
        x, i, i, i, i, loc, precision, projection, i, i, out, i, size, squares
    ), codegen


@instruction
def prefetch_row(typingctx: Any, x: Any, n: Any) -> Any:
    """Prefetch row ``n`` of ``x``, which is read soon and may lie anywhere in memory."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(x)(context, builder, args[0])
        features = cgutils.unpack_tuple(builder, array.shape)[1]
        size = builder.mul(features, _number(x.dtype.bitwidth // 8))
        start = builder.bitcast(
            builder.gep(array.data, [builder.mul(args[1], features)]), _I8.as_pointer()
        )
        signature = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        fetch = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
        # A read, of moderate temporal locality, into the data cache.
        flags = [ir.Constant(_I32, flag) for flag in (0, 2, 1)]
        line_starts = cgutils.for_range_slice(builder, _number(0), size, _number(_CACHE_LINE), _I64)
        with line_starts as (offset, _):
            builder.call(fetch, [builder.gep(start, [offset]), *flags])
        return context.get_dummy_value()

    return types.void(x, types.int64), codegen


@instruction
def sum_lanes(typingctx: Any, tiles: Any, quantity: Any, out: Any) -> Any:
    """Set ``out[quantity, j]`` to the sum of row j over the ``tiles[quantity]`` of tile_sums."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = _Vectors(context, builder, tiles.dtype)
        source = context.make_array(tiles)(context, builder, args[0])
        target = context.make_array(out)(context, builder, args[2])
        count = v.lanes // ROWS
        first = builder.mul(args[1], _number(count * v.lanes))
        starts = [builder.add(first, _number(tile * v.lanes)) for tile in range(count)]
        total = v.merge([v.load(builder.gep(source.data, [start])) for start in starts], count)
        # Row j of tile t is in the merged lane count * j + t.
        order = [count * (lane % ROWS) + lane // ROWS for lane in range(v.lanes)]
        rows = v.shuffle(total, total, order)
        v.store(rows, builder.gep(target.data, [builder.mul(args[1], _number(v.lanes))]))
        return context.get_dummy_value()

    return types.void(tiles, types.int64, out), codegen


@instruction_with_literals
def tile_update(
    typingctx: Any,
    x: Any,
    n0: Any,
    n1: Any,
    n2: Any,
    n3: Any,
    loc: Any,
    c: Any,
    weights: Any,
    lane: Any,
    sums: Any,
    first: Any,
    size: Any,
    squares: Any,
) -> Any:
    """Add rows n0 ... n3 to ``sums`` (2 + R, D rounded up to whole vectors).

    With d = x - loc[c]: sums[0] += q d and sums[1] += q d^2 (if ``squares``), and
    sums[2 + first + k] += weights[1 + k] d for k below ``size``. ``weights[0, lane + j]`` is q of
    row j, and ``weights[1 + k, lane + j]`` is q times its projection ``first + k``. ``size`` and
    ``squares`` are literals.
    """
    if not _literals(size, squares):
        return None
    rank, with_squares, dtype = size.literal_value, bool(squares.literal_value), loc.dtype

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays = {
            "x": (x, args[0]),
            "loc": (loc, args[5]),
            "weights": (weights, args[7]),
            "sums": (sums, args[9]),
        }
        loop = _Features(context, builder, arrays, dtype)
        v, center = loop.vectors, loop.row("loc", args[6])
        rows = [loop.row("x", number) for number in args[1:5]]
        width = loop.size("sums", 1)

        def weight(quantity: int, j: int) -> Any:
            position = builder.add(args[8], _number(quantity * v.lanes + j))
            return v.broadcast(builder.load(builder.gep(loop.arrays["weights"].data, [position])))

        def sums_of(quantity: Any) -> Any:
            return builder.gep(loop.arrays["sums"].data, [builder.mul(quantity, width)])

        responsibilities = [weight(0, j) for j in range(ROWS)] if with_squares else []
        factors = [[weight(1 + k, j) for j in range(ROWS)] for k in range(rank)]
        projected = [sums_of(builder.add(args[10], _number(2 + k))) for k in range(rank)]
        first_moment, second_moment = sums_of(_number(0)), sums_of(_number(1))

        def add_products(target: Any, d: Any, factors: list[Any], vectors: list[Any]) -> None:
            pointer = builder.gep(target, [d])
            total = v.load(pointer)
            for a, b in zip(factors, vectors, strict=True):
                total = v.multiply_add(a, b, total)
            v.store(total, pointer)

        def body(d: Any, mask: Any) -> None:
            diffs = loop.differences(rows, center, d, mask)
            if with_squares:
                weighted = [
                    v.multiply(q, diff) for q, diff in zip(responsibilities, diffs, strict=True)
                ]
                pointer = builder.gep(first_moment, [d])
                v.store(v.add(v.load(pointer), _sum(v, weighted)), pointer)
                add_products(second_moment, d, weighted, diffs)
            for target, factor in zip(projected, factors, strict=True):
                add_products(target, d, factor, diffs)

        loop.for_each_vector(body)
        return context.get_dummy_value()

    i = types.int64
    return types.void(x, i, i, i, i, loc, i, weights, i, sums, i, size, squares), codegen


def _sum(vectors: _Vectors, terms: list[Any]) -> Any:
    total = terms[0]
    for term in terms[1:]:
        total = vectors.add(total, term)
    return total

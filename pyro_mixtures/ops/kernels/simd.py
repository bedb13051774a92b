"""Vector instructions for the numba kernels: the inner loops over features, four rows at a time in registers.

LLVM's own vectoriser keeps neither the accumulators of several rows and projections in registers
nor the full vector width, which costs a factor of two to three. These intrinsics emit the vector
operations themselves, 64 bytes wide; LLVM cuts them to what the machine has.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

ROWS = 4  # rows of one pass
RANK = 5  # projections of one pass: 4 x 5 accumulators and their operands fill 32 registers
VECTOR_BYTES = 64
_CACHE_LINE = 64

# No nnan/ninf: NaN in the data must reach the caller, who turns it into a typed error.
_FAST = ("reassoc", "contract", "arcp", "nsz")
_I1, _I8, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
_NAMES = {"float": "f32", "double": "f64", "i8": "i8"}


def _number(value: int) -> ir.Constant:
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
        return self.builder.fadd(a, b, flags=_FAST)

    def subtract(self, a: Any, b: Any) -> Any:
        return self.builder.fsub(a, b, flags=_FAST)

    def multiply(self, a: Any, b: Any) -> Any:
        return self.builder.fmul(a, b, flags=_FAST)

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
        """The mask of the lanes numbered below ``count``."""
        numbers = ir.Constant(ir.VectorType(_I64, self.lanes), list(range(self.lanes)))
        return self.builder.icmp_signed("<", numbers, self.broadcast(count))

    def load(self, pointer: Any, mask: Any = None) -> Any:
        """Vector at ``pointer``, lanes outside ``mask`` zero; integers (bytes) are widened."""
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
        """One vector from 1, 2 or 4: every group of ``width`` lanes is cut into as many equal parts, in their order.

        A part's lanes add up to what that group of its vector adds up to: halves of groups are
        added to each other.
        """
        if len(vectors) == 1:
            return vectors[0]
        half = len(vectors) // 2
        pairs = zip(vectors[:half], vectors[half:], strict=True)
        return self.merge([self._add_halves(a, b, width) for a, b in pairs], width // 2)

    def _add_halves(self, a: Any, b: Any, width: int) -> Any:
        """In each group of ``width`` lanes: the sum of a's halves, then the sum of b's."""
        half, n = width // 2, self.lanes
        from_a = [lane % width < half for lane in range(n)]
        # The first of the two is no shuffle but a choice, lane by lane, for which there is a faster
        # instruction.
        chosen = self.shuffle(a, b, [lane if own else n + lane for lane, own in enumerate(from_a)])
        others = self.shuffle(
            a, b, [lane + half if own else n + lane - half for lane, own in enumerate(from_a)]
        )
        return self.add(chosen, others)


class _Features:
    """Loops over the D features of four rows and of one component's parameters."""

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
        """Pointer to the D features that begin at ``number * D``."""
        return self.builder.gep(self.arrays[name].data, [self.builder.mul(number, self.features)])

    def rows_of_rank(self, name: str, component: Any, first: Any, size: int) -> list[Any]:
        """Pointers to ``size`` rows of the (C, R, D) array ``name``."""
        base = self.builder.add(self.builder.mul(component, self.size(name, 1)), first)
        return [self.row(name, self.builder.add(base, _number(k))) for k in range(size)]

    def accumulators(self, count: int) -> list[Any]:
        return [cgutils.alloca_once_value(self.builder, self.vectors.zero()) for _ in range(count)]

    def accumulate(self, slot: Any, a: Any, b: Any) -> None:
        self.builder.store(self.vectors.multiply_add(a, b, self.builder.load(slot)), slot)

    def each(self, body: Any) -> None:
        """``body(d, mask)`` for whole vectors (mask None), then once for the features that are left."""
        b, step = self.builder, _number(self.vectors.lanes)
        whole = b.mul(b.sdiv(self.features, step), step)
        with cgutils.for_range_slice(b, _number(0), whole, step, _I64) as (d, _):
            body(d, None)
        left = b.sub(self.features, whole)
        with b.if_then(b.icmp_signed(">", left, _number(0)), likely=False):
            body(whole, self.vectors.below(left))

    def load(self, pointer: Any, d: Any, mask: Any) -> Any:
        return self.vectors.load(self.builder.gep(pointer, [d]), mask)

    def differences(self, rows: list[Any], loc: Any, d: Any, mask: Any) -> list[Any]:
        center = self.load(loc, d, mask)
        return [self.vectors.subtract(self.load(row, d, mask), center) for row in rows]


def _literals(*values: Any) -> bool:
    return all(isinstance(value, types.IntegerLiteral) for value in values)


@intrinsic(prefer_literal=True)
def tile_sums(
    typingctx, x, n0, n1, n2, n3, loc, precision, projection, c, first, out, tile, size, squares
):
    """Sums over features for rows n0 ... n3 about component c's mean, to be completed by :func:`sum_lanes`.

    The j-th quarter of ``out[0, tile]`` adds up to sum w d^2 of row j (if ``squares``), that of
    ``out[1 + k, tile]`` to sum V_(first + k) d, for k below ``size``. ``size`` and ``squares`` are
    literals.
    """
    if not _literals(size, squares):
        return None
    rank, with_squares, dtype = size.literal_value, bool(squares.literal_value), loc.dtype

    def codegen(context, builder, signature, args):
        kinds = dict(
            zip(
                ("x", "loc", "precision", "projection", "out"),
                (x, loc, precision, projection, out),
                strict=True,
            )
        )
        values = dict(zip(kinds, (args[0], args[5], args[6], args[7], args[10]), strict=True))
        loop = _Features(
            context, builder, {name: (kinds[name], values[name]) for name in kinds}, dtype
        )
        v, component = loop.vectors, args[8]
        rows = [loop.row("x", number) for number in args[1:5]]
        center, weight = loop.row("loc", component), loop.row("precision", component)
        axes = loop.rows_of_rank("projection", component, args[9], rank)
        square = loop.accumulators(ROWS if with_squares else 0)
        dots = [loop.accumulators(ROWS) for _ in axes]

        def body(d, mask):
            diffs = loop.differences(rows, center, d, mask)
            if with_squares:
                w = loop.load(weight, d, mask)
                for slot, diff in zip(square, diffs, strict=True):
                    loop.accumulate(slot, v.multiply(w, diff), diff)
            for axis, slots in zip(axes, dots, strict=True):
                a = loop.load(axis, d, mask)
                for slot, diff in zip(slots, diffs, strict=True):
                    loop.accumulate(slot, a, diff)

        loop.each(body)
        for quantity, slots in enumerate([square, *dots]):
            if slots:
                at = builder.add(args[11], _number(quantity * (v.lanes // ROWS)))
                pointer = builder.gep(loop.arrays["out"].data, [builder.mul(at, _number(v.lanes))])
                v.store(v.merge([builder.load(slot) for slot in slots], v.lanes), pointer)
        return context.get_dummy_value()

    i = types.int64
    return types.void(
        x, i, i, i, i, loc, precision, projection, i, i, out, i, size, squares
    ), codegen


@intrinsic
def prefetch_row(typingctx, x, n):
    """Ask for row ``n`` of ``x``, which is to be read soon and lies anywhere in memory."""

    def codegen(context, builder, signature, args):
        array = context.make_array(x)(context, builder, args[0])
        features = cgutils.unpack_tuple(builder, array.shape)[1]
        size = builder.mul(features, _number(x.dtype.bitwidth // 8))
        start = builder.bitcast(
            builder.gep(array.data, [builder.mul(args[1], features)]), _I8.as_pointer()
        )
        signature = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        fetch = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
        with cgutils.for_range_slice(builder, _number(0), size, _number(_CACHE_LINE), _I64) as (
            at,
            _,
        ):
            builder.call(
                fetch, [builder.gep(start, [at]), *(ir.Constant(_I32, flag) for flag in (0, 2, 1))]
            )
        return context.get_dummy_value()

    return types.void(x, types.int64), codegen


@intrinsic
def sum_lanes(typingctx, tiles, quantity, out):
    """``out[quantity, j]`` = the sum of row j, for the rows of all ``tiles[quantity]`` of :func:`tile_sums`."""

    def codegen(context, builder, signature, args):
        v = _Vectors(context, builder, tiles.dtype)
        source = context.make_array(tiles)(context, builder, args[0])
        target = context.make_array(out)(context, builder, args[2])
        count = v.lanes // ROWS
        first = builder.mul(args[1], _number(count * v.lanes))
        starts = [builder.add(first, _number(tile * v.lanes)) for tile in range(count)]
        total = v.merge([v.load(builder.gep(source.data, [start])) for start in starts], count)
        # Lane count * row + tile of the merged ones.
        rows = v.shuffle(
            total, total, [count * (lane % ROWS) + lane // ROWS for lane in range(v.lanes)]
        )
        v.store(rows, builder.gep(target.data, [builder.mul(args[1], _number(v.lanes))]))
        return context.get_dummy_value()

    return types.void(tiles, types.int64, out), codegen


@intrinsic(prefer_literal=True)
def tile_update(typingctx, x, n0, n1, n2, n3, loc, c, weights, lane, parts, first, size, squares):
    """Add rows n0 ... n3 to ``parts`` (2 + R, D rounded up to whole vectors), with d = x - loc[c].

    ``weights[0, lane + j]`` is q of row j and ``weights[1 + k, lane + j]`` its q times projection
    ``first + k``. parts[0] += q d and parts[1] += q d^2 (if ``squares``); parts[2 + first + k] +=
    weights[1 + k] d for k below ``size``.
    """
    if not _literals(size, squares):
        return None
    rank, with_squares, dtype = size.literal_value, bool(squares.literal_value), loc.dtype

    def codegen(context, builder, signature, args):
        arrays = {
            "x": (x, args[0]),
            "loc": (loc, args[5]),
            "weights": (weights, args[7]),
            "parts": (parts, args[9]),
        }
        loop = _Features(context, builder, arrays, dtype)
        v, center = loop.vectors, loop.row("loc", args[6])
        rows = [loop.row("x", number) for number in args[1:5]]
        width = loop.size("parts", 1)

        def weight(quantity, j):
            at = builder.add(args[8], _number(quantity * v.lanes + j))
            return v.broadcast(builder.load(builder.gep(loop.arrays["weights"].data, [at])))

        def part(number):
            return builder.gep(loop.arrays["parts"].data, [builder.mul(number, width)])

        own = [weight(0, j) for j in range(ROWS)] if with_squares else []
        factors = [[weight(1 + k, j) for j in range(ROWS)] for k in range(rank)]
        lines = [part(builder.add(args[10], _number(2 + k))) for k in range(rank)]
        means, spreads = part(_number(0)), part(_number(1))

        def add_up(line, d, terms):
            pointer = builder.gep(line, [d])
            total = v.load(pointer)
            for a, b in terms:
                total = v.multiply_add(a, b, total)
            v.store(total, pointer)

        def body(d, mask):
            diffs = loop.differences(rows, center, d, mask)
            if with_squares:
                weighted = [v.multiply(q, diff) for q, diff in zip(own, diffs, strict=True)]
                pointer = builder.gep(means, [d])
                v.store(v.add(v.load(pointer), _sum(v, weighted)), pointer)
                add_up(spreads, d, list(zip(weighted, diffs, strict=True)))
            for line, factor in zip(lines, factors, strict=True):
                add_up(line, d, list(zip(factor, diffs, strict=True)))

        loop.each(body)
        return context.get_dummy_value()

    i = types.int64
    return types.void(x, i, i, i, i, loc, i, weights, i, parts, i, size, squares), codegen


def _sum(vectors: _Vectors, terms: list[Any]) -> Any:
    total = terms[0]
    for term in terms[1:]:
        total = vectors.add(total, term)
    return total

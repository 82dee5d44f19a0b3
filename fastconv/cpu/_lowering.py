"""How the target of kernels emits what they are full of: loops, integer division, elements and views of arrays.

Numba's own IR for these serves any Python program and is ten times as long: a structure is stored to be read again, a
loop raises where its step is zero, a bound of a slice has branches of its own. LLVM makes the same code of both, but
printing, parsing and cleaning up costs more than half of a first call. What is typed is what Numba types; only the
order of its rules differs, so that numbers and arrays are asked for before sets, strings and lists.
"""

from __future__ import annotations

import operator
from typing import Any, ClassVar

from llvmlite import ir
from numba.core import cgutils
from numba.core import types as _types
from numba.core.imputils import RefType, Registry, iternext_impl
from numba.core.typing import arraydecl, builtins, signature
from numba.core.typing import templates as typing_rules
from numba.cpython import slicing
from numba.np import arrayobj

from fastconv.cpu.emitting import BYTE, INDEX, field, moved

types: Any = _types  # half of them are made at run time
registry = Registry("fastconv")
lower = registry.lower
_MOST = INDEX((1 << 63) - 1)


class _ExactFirst:
    """A rule that looks for the case of the very types at hand before it weighs all conversions."""

    exact: ClassVar[dict[Any, Any]]

    def _select(self, cases: Any, args: Any, kws: Any) -> Any:
        return self.exact.get(args) or super()._select(cases, args, kws)  # type: ignore[misc]


def first_rules(target: str) -> typing_rules.Registry:
    """Numba's typing of operators on numbers and arrays as rules of `target`, which it tries before all others."""
    rules = typing_rules.Registry()
    metadata = {"target": target}
    kept = {typing_rules.ConcreteTemplate, builtins.Bool, arraydecl.GetItemBuffer, arraydecl.SetItemBuffer}
    for function, kind in typing_rules.builtin_registry.globals:
        for rule in kind.templates if isinstance(kind, types.Function) else ():
            if not kept.isdisjoint(rule.__mro__):  # rules are abstract classes, and `issubclass` slow with those
                exact = {case.args: case for case in getattr(rule, "cases", ())}
                ours = type(rule.__name__, (_ExactFirst, rule), {"metadata": metadata, "exact": exact})
                rules.register_global(function, types.Function(ours))
    for function in (min, max):
        cases = [signature(types.int64, types.int64, types.int64)]
        of_two = {"key": function, "cases": cases, "unsafe_casting": False, "metadata": metadata}
        rules.register_global(function, types.Function(type("OfTwo", (typing_rules.ConcreteTemplate,), of_two)))
    return rules


def _struct(context: Any, builder: ir.IRBuilder, kind: Any, **values: ir.Value) -> ir.Value:
    model, llvm_type = context.data_model_manager[kind], context.get_value_type(kind)
    fields = [values[name] for name in model._fields]
    start = [v if isinstance(v, ir.Constant) else ir.Constant(v.type, ir.Undefined) for v in fields]
    whole = ir.Constant(llvm_type, start)
    for position, value in enumerate(fields):
        if not isinstance(value, ir.Constant):
            whole = builder.insert_value(whole, value, position)
    return whole


def array_of(
    context: Any, builder: ir.IRBuilder, kind: Any, data: ir.Value, shape: list[ir.Value], strides: list[ir.Value]
) -> ir.Value:  # fmt: skip
    """An array, given where its elements are."""
    items = INDEX(1)
    for length in shape:
        items = builder.mul(items, length)
    data = builder.bitcast(data, context.get_data_type(kind.dtype).as_pointer())
    nobody = ir.Constant(BYTE.as_pointer(), None)  # counts who uses the memory
    axes = ir.ArrayType(INDEX, len(shape))
    return _struct(
        context, builder, kind, data=data, nitems=items, itemsize=INDEX(arrayobj.get_itemsize(context, kind)),
        shape=_packed(builder, axes, shape), strides=_packed(builder, axes, strides), meminfo=nobody, parent=nobody,
    )  # fmt: skip


def _packed(builder: ir.IRBuilder, kind: ir.ArrayType, numbers: list[ir.Value]) -> ir.Value:
    if all(isinstance(number, ir.Constant) for number in numbers):
        return ir.Constant(kind, numbers)
    return cgutils.pack_array(builder, numbers)


# -- loops ------------------------------------------------------------------------------------------------------------


def _lower_range(state: Any, iterator: Any) -> None:
    @lower("getiter", state)
    def iterate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        start, stop, step = (field(context, builder, state, arguments[0], n) for n in ("start", "stop", "step"))
        # ceil((stop - start) / step) for steps of either sign; where nothing is left it is not positive.
        direction = builder.or_(builder.ashr(step, INDEX(63)), INDEX(1))
        span = builder.sub(builder.add(builder.sub(stop, start), step), direction)
        here, left = (cgutils.alloca_once(builder, INDEX) for _ in range(2))
        builder.store(start, here)
        builder.store(builder.sdiv(span, step), left)
        return _struct(context, builder, iterator, iter=here, stop=stop, step=step, count=left)

    @lower("iternext", iterator)
    @iternext_impl(RefType.UNTRACKED)  # type: ignore[untyped-decorator]
    def advance(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any, result: Any) -> None:
        here, step, left = (field(context, builder, iterator, arguments[0], n) for n in ("iter", "step", "count"))
        count, value = builder.load(left, typ=INDEX), builder.load(here, typ=INDEX)
        builder.store(builder.sub(count, INDEX(1)), left)
        builder.store(builder.add(value, step), here)
        result.set_valid(builder.icmp_signed(">", count, INDEX(0)))
        result.yield_(value)


_lower_range(types.range_state64_type, types.range_iter64_type)
_lower_range(types.unsigned_range_state64_type, types.unsigned_range_iter64_type)


# -- integers ---------------------------------------------------------------------------------------------------------


def _divide(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Quotient, rounded down, and remainder; by zero, which must not trap, they are `a` and 0."""
    b = builder.select(builder.icmp_signed("==", b, INDEX(0)), INDEX(1), b)
    quotient, remainder = builder.sdiv(a, b), builder.srem(a, b)
    signs_differ = builder.icmp_signed("<", builder.xor(remainder, b), INDEX(0))
    below = builder.and_(builder.icmp_signed("!=", remainder, INDEX(0)), signs_differ)
    return (
        builder.sub(quotient, builder.zext(below, INDEX)),
        builder.add(remainder, builder.select(below, b, INDEX(0))),
    )


@lower(operator.floordiv, types.int64, types.int64)
def _floordiv(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
    return _divide(builder, *arguments)[0]


@lower(operator.mod, types.int64, types.int64)
def _mod(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
    return _divide(builder, *arguments)[1]


@lower(divmod, types.int64, types.int64)
def _divmod(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
    return context.make_tuple(builder, signature.return_type, _divide(builder, *arguments))


@lower(min, types.int64, types.int64)
def _min(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
    return builder.select(builder.icmp_signed("<", *arguments), *arguments)


@lower(max, types.int64, types.int64)
def _max(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
    return builder.select(builder.icmp_signed(">", *arguments), *arguments)


# -- arrays -----------------------------------------------------------------------------------------------------------


def _wrapped(builder: ir.IRBuilder, at: ir.Value, length: ir.Value) -> ir.Value:
    """An index, counted from the end if it is negative."""
    return builder.select(builder.icmp_signed("<", at, INDEX(0)), builder.add(at, length), at)


def _bound(builder: ir.IRBuilder, at: ir.Value, length: ir.Value) -> ir.Value:
    """A bound of a slice, within the axis."""
    at = _wrapped(builder, at, length)
    at = builder.select(builder.icmp_signed("<", at, INDEX(0)), INDEX(0), at)
    return builder.select(builder.icmp_signed(">", at, length), length, at)


def _view(
    context: Any, builder: ir.IRBuilder, signature: Any, array: ir.Value, kinds: Any, indices: Any
) -> ir.Value:  # fmt: skip
    """What integers and slices of step 1 choose of an array: an element, or a view."""
    of, result = signature.args[0], signature.return_type
    shape, strides = (
        cgutils.unpack_tuple(builder, field(context, builder, of, array, name)) for name in ("shape", "strides")
    )
    lengths, steps, begins = [], [], []
    for kind, index, length, stride in zip(kinds, indices, shape, strides, strict=False):
        if isinstance(kind, types.Integer):
            at = context.cast(builder, index, kind, types.intp if kind.signed else types.uintp)
            begins.append(_wrapped(builder, at, length) if kind.signed else at)
            continue
        start, stop = (_bound(builder, field(context, builder, kind, index, n), length) for n in ("start", "stop"))
        size = builder.sub(stop, start)
        lengths.append(builder.select(builder.icmp_signed("<", size, INDEX(0)), INDEX(0), size))
        steps.append(stride)
        begins.append(start)
    lengths, steps = lengths + shape[len(begins) :], steps + strides[len(begins) :]
    data = field(context, builder, of, array, "data")
    if of.layout == "C":  # in elements, so that LLVM sees that neighbours are neighbours
        at = begins[0]
        for begin, length in zip(begins[1:] + [INDEX(0)] * (of.ndim - len(begins)), shape[1:], strict=True):
            at = builder.add(builder.mul(at, length), begin)
        data = builder.gep(data, [at])
    else:
        for begin, stride in zip(begins, strides, strict=False):
            data = builder.bitcast(moved(builder, data, builder.mul(begin, stride), BYTE), data.type)
    if not isinstance(result, types.Array):
        return arrayobj.load_item(context, builder, of, data)
    return array_of(context, builder, result, data, lengths, steps)


@lower(slice, types.VarArg(types.Any))
def _slice(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
    if signature.return_type.has_step or len(arguments) == 1:
        return slicing.slice_constructor_impl(context, builder, signature, arguments)
    start, stop = (
        default if kind is types.none else argument
        for kind, argument, default in zip(signature.args, arguments, (INDEX(0), _MOST), strict=True)
    )
    return _struct(context, builder, signature.return_type, start=start, stop=stop, step=INDEX(1))


def _is_plain(of: Any, kinds: Any) -> bool:
    return type(of) is types.Array and all(
        isinstance(kind, types.Integer) or (isinstance(kind, types.SliceType) and not kind.has_step) for kind in kinds
    )


@lower(operator.getitem, types.Buffer, types.Integer)
@lower(operator.getitem, types.Buffer, types.SliceType)
def _getitem(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
    of, kind = signature.args
    if not _is_plain(of, [kind]):
        return arrayobj.getitem_arraynd_intp(context, builder, signature, arguments)
    return _view(context, builder, signature, arguments[0], [kind], arguments[1:])


@lower(operator.getitem, types.Buffer, types.BaseTuple)
def _getitem_of_tuple(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
    of, kind = signature.args
    if not _is_plain(of, kind):
        return arrayobj.getitem_array_tuple(context, builder, signature, arguments)
    indices = cgutils.unpack_tuple(builder, arguments[1], count=len(kind))
    return _view(context, builder, signature, arguments[0], kind.types, indices)


@registry.lower_getattr_generic(types.Record)
def _field_of_record(context: Any, builder: ir.IRBuilder, record: Any, value: ir.Value, name: str) -> ir.Value:
    kind = record.typeof(name)
    if not isinstance(kind, types.NestedArray):
        return arrayobj.record_getattr(context, builder, record, value, name)
    numbers = ([INDEX(number) for number in axes] for axes in (kind.shape, kind.strides))
    return array_of(context, builder, kind, moved(builder, value, record.offset(name), BYTE), *numbers)


@lower("static_getitem", types.NestedArray, types.IntegerLiteral)
def _field_item(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
    of, index = signature.args
    if of.ndim != 1 or not 0 <= index.literal_value < of.shape[0]:
        raise NotImplementedError(f"{of}[{index}]")
    data = field(context, builder, of, arguments[0], "data")
    return arrayobj.load_item(context, builder, of, builder.gep(data, [INDEX(index.literal_value)]))

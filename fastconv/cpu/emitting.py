"""What every file that emits LLVM IR needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

BYTE, LANE, INDEX, POINTER = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.PointerType()
NOTHING = ir.VoidType()


def itemsize(number: ir.Type) -> int:
    """Bytes of a number."""
    return number.width // 8 if isinstance(number, ir.IntType) else 4 if number == ir.FloatType() else 8


def define(
    module: ir.Module, name: str, arguments: list[ir.Type], result: ir.Type = NOTHING
) -> tuple[ir.Function, bool]:  # fmt: skip
    """A function of a module, and whether it is there already."""
    if name in module.globals:
        return module.globals[name], True
    function = ir.Function(module, ir.FunctionType(result, arguments), name)
    function.linkage = "internal"
    function.attributes.add("noinline")  # inlined, its addresses would be kept through all loops around it
    return function, False


def moved(builder: ir.IRBuilder, pointer: ir.Value, amount: ir.Value | int, unit: ir.Type) -> ir.Value:
    """A pointer so many units further on."""
    return builder.gep(pointer, [INDEX(amount) if isinstance(amount, int) else amount], source_etype=unit)


def field(context: Any, builder: ir.IRBuilder, kind: Any, value: ir.Value, name: str) -> ir.Value:
    """A field of what Numba keeps as a structure: an array, a range, a slice."""
    return builder.extract_value(value, context.data_model_manager[kind].get_field_position(name))


def data_of(context: Any, builder: ir.IRBuilder, kind: Any, array: ir.Value, unit: Any, at: Any) -> Any:
    """The address of an array's data, so many units further on."""
    return moved(builder, field(context, builder, kind, array, "data"), at, unit)


@contextmanager
def counted(builder: ir.IRBuilder, start: ir.Value, stop: ir.Value, step: int = 1) -> Iterator[ir.Value]:
    """A loop over an index that LLVM is told not to unroll: its body is large enough, or it runs a few times."""
    before = builder.block
    test, body, done = (builder.append_basic_block(f"loop.{part}") for part in ("test", "body", "done"))
    builder.branch(test)
    builder.position_at_end(test)
    index = builder.phi(INDEX)
    index.add_incoming(start, before)
    builder.cbranch(builder.icmp_signed("<", index, stop), body, done)
    builder.position_at_end(body)
    yield index
    index.add_incoming(builder.add(index, INDEX(step)), builder.block)
    back = builder.branch(test)
    module = builder.module
    off = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    about = module.add_metadata([off])
    about.operands = about, off  # LLVM heeds only what names itself first
    back.set_metadata("llvm.loop", about)
    builder.position_at_end(done)


def call_chosen(builder: ir.IRBuilder, choice: ir.Value, functions: dict[int, ir.Function], passed: Any) -> None:
    """Call the function whose key the choice is at run time; none, if it is no key."""
    done = builder.append_basic_block("choice.done")
    switch = builder.switch(choice, done)
    for key, function in functions.items():
        case = builder.append_basic_block(f"choice.{key}")
        switch.add_case(choice.type(key), case)
        builder.position_at_end(case)
        builder.call(function, passed)
        builder.branch(done)
    builder.position_at_end(done)


def emit_prefetch(builder: ir.IRBuilder, place: ir.Value, *, write: bool) -> None:
    """Ask for the cache line of a place that will be read or written; it may lie outside of all arrays."""
    kind = ir.FunctionType(ir.VoidType(), [POINTER, LANE, LANE, LANE])
    function = builder.module.declare_intrinsic("llvm.prefetch.p0", (), kind)
    builder.call(function, [place, LANE(int(write)), LANE(3), LANE(1)])  # into all caches, data


def compute_here(builder: ir.IRBuilder, values: list[ir.Value]) -> None:
    """Keep LLVM from computing these vectors later: from moving what accesses memory afterwards before them.

    No instruction comes of it: an empty piece of assembly claims to read the first lanes, and all memory.
    """
    first = ir.FloatType() if itemsize(values[0].type.element) == 4 else ir.DoubleType()  # what any register holds
    kind = ir.FunctionType(NOTHING, [first] * len(values))
    read = [
        builder.extract_element(builder.bitcast(value, ir.VectorType(first, value.type.count)), LANE(0))
        for value in values
    ]
    builder.asm(kind, "", "X," * len(values) + "~{memory}", read, side_effect=True)


def addresses(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Callable[..., ir.Value]:
    """For the arguments of an intrinsic: a function that gives the address of element `at` of array number `k`."""

    def address(k: int, at: ir.Value | int = 0) -> ir.Value:
        kind = signature.args[k]
        return data_of(context, builder, kind, arguments[k], context.get_data_type(kind.dtype), at)

    return address


def vector_of(builder: ir.IRBuilder, number: ir.Value, lanes: int) -> ir.Value:
    """A vector of copies of a number."""
    vector = ir.Constant(ir.VectorType(number.type, lanes), ir.Undefined)
    vector = builder.insert_element(vector, number, LANE(0))
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(LANE, lanes), None))


def sum_of_lanes(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """The sum of a vector's elements, the halves of it added until one is left."""
    lanes, add = value.type.count, builder.add if isinstance(value.type.element, ir.IntType) else builder.fadd
    while lanes > 1:
        lanes //= 2
        halves = (
            builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(LANE, lanes), list(order)))
            for order in (range(lanes), range(lanes, 2 * lanes))
        )
        value = add(*halves)
    return builder.extract_element(value, LANE(0))

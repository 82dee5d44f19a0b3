"""From a kernel to object code: with `_target` what imports Numba at its top, and is itself imported only to compile.

Numba compiles the kernel, and an entry is added that Python can call: it reads addresses, shapes and strides out of the
NumPy arrays themselves, releases the GIL and runs the kernel. That costs a few nanoseconds for each argument, where
Numba's own wrapper or `ctypes` takes a few hundred.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any, ClassVar

from llvmlite import ir
from numba import types
from numba.core import cgutils, compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.target_extension import target_override
from numba.np.numpy_support import from_dtype

from fastconv.cpu._lowering import array_of
from fastconv.cpu._target import NAME, KernelCompiler, target
from fastconv.cpu.emitting import define, field, moved
from fastconv.cpu.jit import OPTIONS, Argument
from fastconv.cpu.objects import ENTRY
from fastconv.cpu.team import SHARE

_POINTER, _BYTE, _INT, _INDEX = ir.PointerType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)

# Where the fields of Python's and NumPy's structures are: the public `PyArrayObject_fields` and `PyArray_Descr`.
_HEAD = object.__basicsize__
_TYPE = _HEAD - 8
_DATA, _NDIM, _SHAPE, _STRIDES, _DTYPE, _FLAGS = (_HEAD + 8 * i for i in (0, 1, 2, 3, 5, 6))
_KIND, _ITEMSIZE = _HEAD + 8, _HEAD + 24
_C_CONTIGUOUS, _WRITEABLE = 0x1, 0x400


@global_compiler_lock  # type: ignore[untyped-decorator]
def compile_object(function: Callable[..., None], arguments: tuple[Argument, ...], shared: bool) -> bytes:
    """Object code that exports a kernel for these argument types as a Python method of the ``METH_FASTCALL`` kind."""
    typing_context, context = target.typing_context, target.target_context
    flags = compiler.Flags()
    target.options.parse_as_flags(flags, {"nopython": True, **OPTIONS})
    flags.no_compile = True  # not before the entry is there
    entry_type = _SharedEntry if shared else _Entry
    numba_types = entry_type.leading + tuple(_numba_type(argument) for argument in arguments)
    with target_override(NAME), _uncollected():
        result = compiler.compile_extra(
            typing_context, context, function, numba_types, types.void, flags, {}, pipeline_class=KernelCompiler
        )
    library = result.library
    module = library.create_ir_module(ENTRY)
    entry_type(context, module, result.fndesc, function.__name__, arguments).define()
    library.add_ir_module(module)
    code = library.emit()
    assert not library.has_dynamic_globals, f"{function.__name__} refers to an object of this process"
    return code


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's garbage collector: nearly all that a compiler makes is alive until it is done."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _numba_type(argument: Argument) -> Any:
    dtype = from_dtype(argument.dtype)
    if argument.ndim == 0:
        return dtype
    return types.Array(dtype, argument.ndim, "C" if argument.contiguous else "A", readonly=argument.readonly)


def _load(builder: ir.IRBuilder, base: ir.Value, offset: int, of: ir.Type = _POINTER) -> ir.Value:
    return builder.load(moved(builder, base, offset, _BYTE), typ=of)


class _Entry:
    """Emits ``PyObject *entry(PyObject *self, PyObject **arguments, Py_ssize_t count)``."""

    #: Types of what the kernel takes before the arguments.
    leading: ClassVar[tuple[Any, ...]] = ()
    #: How many integers the entry takes before the arguments.
    integers: ClassVar[int] = 0

    def __init__(
        self, context: Any, module: ir.Module, kernel: Any, name: str, arguments: tuple[Argument, ...]
    ) -> None:
        self._context, self._module, self._kernel, self._name = context, module, kernel, name
        self._arguments = arguments
        signature = ir.FunctionType(_POINTER, [_POINTER, _POINTER, _INDEX])
        self._function = ir.Function(module, signature, ENTRY)
        self._builder = ir.IRBuilder(self._function.append_basic_block())
        self._refused, self._failed = (self._function.append_basic_block(name) for name in ("refused", "failed"))
        self._reason = ir.IRBuilder(self._refused).phi(_POINTER)

    def define(self) -> None:
        """Check and unpack the arguments, and run the kernel without the GIL."""
        b, (_, passed, given) = self._builder, self._function.args
        count = self.integers + len(self._arguments)
        self._require(b.icmp_signed("==", given, _INDEX(count)), f"expected {count} arguments")
        leading = [self._integer(_load(b, passed, 8 * i)) for i in range(self.integers)]
        values = [
            self._array(i, argument, _load(b, passed, 8 * i)) if argument.ndim
            else self._integer(_load(b, passed, 8 * i))
            for i, argument in enumerate(self._arguments, self.integers)
        ]  # fmt: skip
        state = b.call(self._python("PyEval_SaveThread", _POINTER), [])
        status = self._run(leading, values)
        b.call(self._python("PyEval_RestoreThread", ir.VoidType(), _POINTER), [state])
        self._require(b.icmp_unsigned("==", status, _INT(0)), "an exception inside the kernel")
        none = self._object("fastconv_None")
        b.call(self._python("Py_IncRef", ir.VoidType(), _POINTER), [none])
        b.ret(none)
        self._define_failures()

    def _define_failures(self) -> None:
        """Raise `TypeError` for what was refused; where a function of Python's failed, it has raised."""
        b = ir.IRBuilder(self._refused)
        raises = self._python("PyErr_SetString", ir.VoidType(), _POINTER, _POINTER)
        b.call(raises, [self._object("fastconv_TypeError"), self._reason])
        b.branch(self._failed)
        ir.IRBuilder(self._failed).ret(_POINTER(None))

    def _run(self, leading: list[ir.Value], values: list[ir.Value]) -> ir.Value:
        """Run the kernel and give its status, 0 if all went well."""
        return self._call(self._builder, values)

    def _call(self, builder: ir.IRBuilder, values: list[ir.Value]) -> ir.Value:
        kernel = self._context.declare_function(self._module, self._kernel)
        numba_types = self.leading + tuple(_numba_type(argument) for argument in self._arguments)
        status, _ = self._context.call_conv.call_function(builder, kernel, types.void, numba_types, values)
        return builder.select(status.is_ok, _INT(0), _INT(1))

    def _array(self, i: int, argument: Argument, given: ir.Value) -> ir.Value:
        b, needed = self._builder, _C_CONTIGUOUS * argument.contiguous | _WRITEABLE * (not argument.readonly)
        expected = _INT(argument.ndim), _INT(needed), _BYTE(ord(argument.dtype.kind)), _INDEX(argument.dtype.itemsize)
        matches = b.call(self._define_match(), [given, *expected])
        self._require(matches, f"expected argument {i} to be {argument}")
        shape, strides = (
            [_load(b, address, 8 * axis, _INDEX) for axis in range(argument.ndim)]
            for address in (_load(b, given, _SHAPE), _load(b, given, _STRIDES))
        )
        return array_of(self._context, b, _numba_type(argument), _load(b, given, _DATA), shape, strides)

    def _define_match(self) -> ir.Function:
        """The function (object, axes, flags, kind, size of elements): whether it is an array of that sort."""
        kinds = [_POINTER, _INT, _INT, _BYTE, _INDEX]
        function, known = define(self._module, "fastconv_matches", kinds, ir.IntType(1))
        if not known:
            given, ndim, flags, kind, itemsize = function.args
            b = ir.IRBuilder(function.append_basic_block())
            with b.if_then(b.icmp_unsigned("!=", _load(b, given, _TYPE), self._object("fastconv_ndarray"))):
                b.ret(ir.IntType(1)(0))
            dtype = _load(b, given, _DTYPE)
            tests = (
                (_load(b, given, _NDIM, _INT), ndim), (b.and_(_load(b, given, _FLAGS, _INT), flags), flags),
                (_load(b, dtype, _KIND, _BYTE), kind), (_load(b, dtype, _ITEMSIZE, _INDEX), itemsize),
            )  # fmt: skip
            b.ret(reduce(b.and_, (b.icmp_unsigned("==", value, expected) for value, expected in tests)))
        return function

    def _integer(self, given: ir.Value) -> ir.Value:
        b = self._builder
        value = b.call(self._python("PyLong_AsLongLong", _INDEX, _POINTER), [given])
        with b.if_then(b.icmp_signed("==", value, _INDEX(-1)), likely=False):
            error, good = b.call(self._python("PyErr_Occurred", _POINTER), []), b.append_basic_block("good")
            b.cbranch(b.icmp_unsigned("!=", error, _POINTER(None)), self._failed, good)
            b.position_at_end(good)
        return value

    def _require(self, condition: ir.Value, message: str) -> None:
        """Raise `TypeError` unless `condition` holds."""
        b = self._builder
        text = self._context.insert_const_string(self._module, f"kernel {self._name}: {message}")
        self._reason.add_incoming(text, b.block)
        good = b.append_basic_block("good")
        b.cbranch(condition, good, self._refused)
        b.position_at_end(good)

    def _python(self, name: str, result: ir.Type, *arguments: ir.Type) -> ir.Function:
        """A function of Python's, declared."""
        known = self._module.globals.get(name)
        return known or ir.Function(self._module, ir.FunctionType(result, arguments), name)

    def _object(self, name: str) -> ir.GlobalVariable:
        """The address of an object of Python's, declared."""
        known = self._module.globals.get(name)
        return known or ir.GlobalVariable(self._module, _BYTE, name)


class _SharedEntry(_Entry):
    """Takes the number of tasks, of chunks, of helpers and the address of the team before the arguments."""

    leading = (types.int64, types.int64)
    integers = 4

    def _run(self, leading: list[ir.Value], values: list[ir.Value]) -> ir.Value:
        b, (tasks, chunks, helpers, team) = self._builder, leading
        scratch = _numba_type(self._arguments[-1])
        data, elements = (field(self._context, b, scratch, values[-1], name) for name in ("data", "nitems"))
        length = b.udiv(elements, b.add(helpers, _INDEX(1)))
        packed = cgutils.pack_struct(b, [*values[:-1], data, length])
        memory, status = b.alloca(packed.type), b.alloca(_INT)
        b.store(packed, memory)
        memory = b.bitcast(memory, _POINTER)
        part = self._define_part(packed.type)
        with b.if_else(b.icmp_signed(">", helpers, _INDEX(0))) as (several, alone):
            with several:
                signature = ir.FunctionType(_INT, [_POINTER, _INDEX, _POINTER, _POINTER, _INDEX, _INDEX])
                team = b.inttoptr(team, _POINTER)
                share = b.inttoptr(_load(b, team, 8 * SHARE, _INDEX), signature.as_pointer())
                b.store(b.call(share, [team, helpers, part, memory, tasks, chunks]), status)
            with alone:
                b.store(b.call(part, [memory, _INDEX(0), tasks, _INDEX(0)]), status)
        return b.load(status, typ=_INT)

    def _define_part(self, packed: ir.Type) -> ir.Function:
        """The function that computes a range of tasks, as :data:`fastconv.cpu.team.PART` says."""
        part = ir.Function(self._module, ir.FunctionType(_INT, [_POINTER, _INDEX, _INDEX, _INDEX]), "part")
        part.linkage = "internal"
        memory, first, last, number = part.args
        b = ir.IRBuilder(part.append_basic_block())
        *values, data, length = cgutils.unpack_tuple(b, b.load(memory, typ=packed))
        scratch = self._arguments[-1]
        itemsize = _INDEX(scratch.dtype.itemsize)
        own = moved(b, data, b.mul(b.mul(number, length), itemsize), _BYTE)
        values.append(array_of(self._context, b, _numba_type(scratch), own, [length], [itemsize]))
        b.ret(self._call(b, [first, last, *values]))
        return part

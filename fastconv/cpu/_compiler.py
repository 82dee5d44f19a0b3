"""From a kernel to object code: the only module that imports Numba at its top, itself imported to compile alone.

Numba compiles the kernel, and an entry is added that Python can call: it reads addresses, shapes and strides out of the
NumPy arrays themselves, releases the GIL and runs the kernel. That costs a few nanoseconds for each argument, where
Numba's own wrapper or `ctypes` takes a few hundred.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.np.arrayobj import populate_array
from numba.np.numpy_support import from_dtype

from fastconv.cpu.jit import OPTIONS, Argument
from fastconv.cpu.objects import ENTRY, PYTHON_OBJECTS

_POINTER, _BYTE, _INT, _INDEX = ir.PointerType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)

# Where the fields of Python's and NumPy's structures are: the public `PyArrayObject_fields` and `PyArray_Descr`.
_HEAD = object.__basicsize__
_TYPE = _HEAD - 8
_DATA, _NDIM, _SHAPE, _STRIDES, _DTYPE, _FLAGS = (_HEAD + 8 * i for i in (0, 1, 2, 3, 5, 6))
_KIND, _ITEMSIZE = _HEAD + 8, _HEAD + 24
_C_CONTIGUOUS, _WRITEABLE = 0x1, 0x400


@global_compiler_lock  # type: ignore[untyped-decorator]
def compile_object(function: Callable[..., None], arguments: tuple[Argument, ...]) -> bytes:
    """Object code that exports a kernel for these argument types as a Python method of the ``METH_FASTCALL`` kind."""
    typing_context, context = cpu_target.typing_context, cpu_target.target_context
    typing_context.refresh()
    context.refresh()
    flags = compiler.Flags()
    cpu_target.options.parse_as_flags(flags, {"nopython": True, **OPTIONS})
    flags.no_compile = True  # not before the entry is there
    numba_types = tuple(_numba_type(argument) for argument in arguments)
    result = compiler.compile_extra(typing_context, context, function, numba_types, types.void, flags, {})
    library = result.library
    module = library.create_ir_module(ENTRY)
    _Entry(context, module, function.__name__, arguments, numba_types).define(result.fndesc)
    library.add_ir_module(module)
    for symbol, thing in PYTHON_OBJECTS.items():
        llvm.add_symbol(symbol, id(thing))  # Numba links the code too
    library.finalize()
    assert not library.has_dynamic_globals, f"{function.__name__} refers to an object of this process"
    return bytes(library._get_compiled_object())


def _numba_type(argument: Argument) -> Any:
    dtype = from_dtype(argument.dtype)
    if argument.ndim == 0:
        return dtype
    return types.Array(dtype, argument.ndim, "C" if argument.contiguous else "A", readonly=argument.readonly)


class _Entry:
    """Emits ``PyObject *entry(PyObject *self, PyObject **arguments, Py_ssize_t count)``."""

    def __init__(
        self, context: Any, module: ir.Module, name: str, arguments: tuple[Argument, ...], numba_types: Any
    ) -> None:
        self._context, self._module, self._name = context, module, name
        self._arguments, self._types = arguments, numba_types
        signature = ir.FunctionType(_POINTER, [_POINTER, _POINTER, _INDEX])
        self._function = ir.Function(module, signature, ENTRY)
        self._builder = ir.IRBuilder(self._function.append_basic_block())

    def define(self, descriptor: Any) -> None:
        """Check and unpack the arguments, and call the kernel without the GIL."""
        b, passed = self._builder, self._function.args[1]
        count = len(self._arguments)
        self._require(b.icmp_signed("==", self._function.args[2], _INDEX(count)), f"expected {count} arguments")
        values = []
        for i, (argument, numba_type) in enumerate(zip(self._arguments, self._types, strict=True)):
            given = self._load(passed, 8 * i)
            values.append(self._array(i, argument, numba_type, given) if argument.ndim else self._integer(given))
        kernel = self._context.declare_function(self._module, descriptor)
        state = b.call(self._python("PyEval_SaveThread", _POINTER), [])
        status, _ = self._context.call_conv.call_function(b, kernel, types.void, self._types, values)
        b.call(self._python("PyEval_RestoreThread", ir.VoidType(), _POINTER), [state])
        self._require(status.is_ok, "an exception inside the kernel")
        none = self._object("fastconv_None")
        b.call(self._python("Py_IncRef", ir.VoidType(), _POINTER), [none])
        b.ret(none)

    def _array(self, i: int, argument: Argument, numba_type: Any, given: ir.Value) -> ir.Value:
        b, needed = self._builder, _C_CONTIGUOUS * argument.contiguous | _WRITEABLE * (not argument.readonly)
        what = f"expected argument {i} to be {argument}"
        self._require(b.icmp_unsigned("==", self._load(given, _TYPE), self._object("fastconv_ndarray")), what)
        dtype, shape, strides = self._load(given, _DTYPE), self._load(given, _SHAPE), self._load(given, _STRIDES)
        for value, expected in (
            (self._load(given, _NDIM, _INT), argument.ndim),
            (b.and_(self._load(given, _FLAGS, _INT), _INT(needed)), needed),
            (self._load(dtype, _KIND, _BYTE), ord(argument.dtype.kind)),
            (self._load(dtype, _ITEMSIZE, _INDEX), argument.dtype.itemsize),
        ):
            self._require(b.icmp_unsigned("==", value, value.type(expected)), what)
        unpacked = self._context.make_array(numba_type)(self._context, b)
        populate_array(
            unpacked,
            data=self._load(given, _DATA),
            shape=[self._load(shape, 8 * axis, _INDEX) for axis in range(argument.ndim)],
            strides=[self._load(strides, 8 * axis, _INDEX) for axis in range(argument.ndim)],
            itemsize=_INDEX(argument.dtype.itemsize),
            meminfo=None,
        )
        return unpacked._getvalue()

    def _integer(self, given: ir.Value) -> ir.Value:
        b = self._builder
        value = b.call(self._python("PyLong_AsLongLong", _INDEX, _POINTER), [given])
        with b.if_then(b.icmp_signed("==", value, _INDEX(-1)), likely=False):
            error = b.call(self._python("PyErr_Occurred", _POINTER), [])
            with b.if_then(b.icmp_unsigned("!=", error, _POINTER(None))):
                b.ret(_POINTER(None))
        return value

    def _require(self, condition: ir.Value, message: str) -> None:
        """Raise `TypeError` unless `condition` holds."""
        b = self._builder
        with b.if_then(b.not_(condition), likely=False):
            text = self._context.insert_const_string(self._module, f"kernel {self._name}: {message}")
            raises = self._python("PyErr_SetString", ir.VoidType(), _POINTER, _POINTER)
            b.call(raises, [self._object("fastconv_TypeError"), text])
            b.ret(_POINTER(None))

    def _load(self, base: ir.Value, offset: int, of: ir.Type = _POINTER) -> ir.Value:
        return self._builder.load(self._builder.gep(base, [_INDEX(offset)], source_etype=_BYTE), typ=of)

    def _python(self, name: str, result: ir.Type, *arguments: ir.Type) -> ir.Function:
        """A function of Python's, declared."""
        known = self._module.globals.get(name)
        return known or ir.Function(self._module, ir.FunctionType(result, arguments), name)

    def _object(self, name: str) -> ir.GlobalVariable:
        """The address of an object of Python's, declared."""
        known = self._module.globals.get(name)
        return known or ir.GlobalVariable(self._module, _BYTE, name)

"""The target that Numba compiles kernels for: this CPU, with LLVM called once for a kernel and all that it calls.

For Numba's own CPU target every helper is a function that somebody may call: it is optimised twice and becomes machine
code before the kernel that inlines it is looked at. Here a function stays the IR to which it was lowered until the
kernel is complete; then all of it is optimised and becomes machine code. Nor does this target know more than numbers,
tuples, records and arrays, or rewrite a function for what kernels do not use.

It is what Numba calls an extension: a target that inherits from the CPU, so that all that is declared for the CPU or
for any target can be compiled for this one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from numba.core import typing
from numba.core.codegen import CPUCodeLibrary, JITCPUCodegen
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.cpu import CPUContext, CPUTargetOptions
from numba.core.descriptors import TargetDescriptor
from numba.core.dispatcher import Dispatcher
from numba.core.fastmathpass import rewrite_module
from numba.core.imputils import builtin_registry
from numba.core.ir import Assign
from numba.core.lowering import Lower
from numba.core.target_extension import CPU, dispatcher_registry, jit_registry, target_registry
from numba.core.typed_passes import (
    NativeLowering,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.types import Dispatcher as Dispatched
from numba.core.untyped_passes import FixupArgs, GenericRewrites, IRProcessing, ReconstructSSA, TranslateByteCode

from fastconv.cpu import _lowering

NAME = "fastconv"


class KernelTarget(CPU):  # type: ignore[misc]
    """What Numba knows this target by."""


class _Library(CPUCodeLibrary):  # type: ignore[misc]
    """The IR of a function and of all that it calls."""

    def emit(self) -> bytes:
        """Optimised object code of all of it."""
        self.finalize()
        module, machine = self._final_module, self._codegen._tm
        options = llvm.create_pipeline_tuning_options(speed_level=2)
        options.loop_vectorization = True
        passes = llvm.create_pass_builder(machine, options)
        passes.getModulePassManager().run(module, passes)
        return bytes(machine.emit_object(module))

    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_specific(self) -> None:
        pass


class _Codegen(JITCPUCodegen):  # type: ignore[misc]
    _library_class = _Library

    def _add_module(self, module: Any) -> None:
        pass


class _Context(CPUContext):  # type: ignore[misc]
    _is_loaded = False

    def init(self) -> None:
        super().init()
        self._internal_codegen = _Codegen(NAME)

    def load_additional_registries(self) -> None:
        if not self._is_loaded:
            # Those that are imported add to Numba's registry of what every target has.
            from numba.cpython import builtins, mathimpl, numbers, rangeobj, slicing, tupleobj  # noqa: F401
            from numba.np import arrayobj  # noqa: F401

            self.install_registry(builtin_registry)  # the first takes intrinsics, and this one is always looked at
            self.install_registry(mathimpl.registry)
            self.install_registry(_lowering.registry)
            self._is_loaded = True

    def get_constant_generic(self, builder: Any, kind: Any, value: Any) -> Any:
        # Once somebody in the process has used numba.njit, Numba would have helpers as objects of the process.
        if isinstance(kind, Dispatched):
            return self.get_dummy_value()
        return super().get_constant_generic(builder, kind, value)

    @cache  # noqa: B019 - there is one context
    def get_abi_sizeof(self, kind: Any) -> Any:
        return super().get_abi_sizeof(kind)  # LLVM parses a module to tell

    def pair_first(self, builder: Any, value: Any, kind: Any) -> Any:
        return builder.extract_value(value, 0)

    def pair_second(self, builder: Any, value: Any, kind: Any) -> Any:
        return builder.extract_value(value, 1)

    def post_lowering(self, module: Any, library: Any) -> None:
        rewrite_module(module, self.fastmath)  # and no run-time library

    def get_executable(self, library: Any, descriptor: Any, environment: Any) -> Any:
        return library  # names the function; nobody calls it


class _TypingContext(typing.BaseContext):  # type: ignore[misc]
    _is_loaded = False

    def load_additional_registries(self) -> None:
        if not self._is_loaded:
            from numba.core.typing import mathdecl

            self.install_registry(mathdecl.registry)
            self.install_registry(_lowering.first_rules(NAME))
            self._is_loaded = True


class _Descriptor(TargetDescriptor):  # type: ignore[misc]
    options = CPUTargetOptions

    def __init__(self) -> None:
        super().__init__(NAME)
        self._typing = _TypingContext()
        self._target = _Context(self._typing, NAME)

    @property
    def typing_context(self) -> Any:
        return self._typing

    @property
    def target_context(self) -> Any:
        return self._target


target_registry[NAME] = KernelTarget
target = _Descriptor()


class _Lower(Lower):  # type: ignore[misc]
    """From Numba's IR to LLVM's."""

    def _find_singly_assigned_variable(self) -> None:
        """Find the variables that are values, not memory: those of one assignment, which all uses come after.

        Numba has those alone whose uses are in the block of the assignment. An array in memory is 17 words of six axes,
        stored and loaded for each block that looks at it, and LLVM takes long to see that nothing has changed.
        """
        lifetime = self.func_ir.variable_lifetime
        dominators, uses = lifetime.cfg.dominators(), defaultdict(list)
        for block, names in lifetime.usedefs.usemap.items():
            for name in names:
                uses[name].append(block)
        targets = [(s.target.name, n) for n, block in self.blocks.items() for s in block.find_insts(Assign)]
        assigned, times = dict(targets), Counter(name for name, _ in targets)
        self._singly_assigned_vars = {
            name for name, block in assigned.items()
            if times[name] == 1 and all(block < use and block in dominators[use] for use in uses[name])
        }  # fmt: skip
        self._blk_local_varmap: dict[str, Any] = {}


@register_pass(mutates_CFG=False, analysis_only=False)  # type: ignore[untyped-decorator]
class _Lowering(NativeLowering):  # type: ignore[misc]
    _name = "fastconv_lowering"

    @property
    def lowering_class(self) -> type[Lower]:
        return _Lower


class KernelCompiler(CompilerBase):  # type: ignore[misc]
    """From Python's byte code to IR."""

    def define_pipelines(self) -> list[PassManager]:
        """The passes that kernels need; Numba has three times as many, and analyses a function anew after each."""
        passes = PassManager(NAME)
        passes._ENFORCING = False  # no pass of these leaves blocks that need tidying
        for kind in (
            TranslateByteCode, FixupArgs, IRProcessing, GenericRewrites, ReconstructSSA, NopythonTypeInference,
            PreLowerStripPhis, _Lowering, NoPythonBackend,
        ):  # fmt: skip
            passes.add_pass(kind, kind.name())
        passes.finalize()
        return [passes]


class Helper(Dispatcher):  # type: ignore[misc]
    """A function that kernels call."""

    targetdescr = target

    def add_overload(self, result: Any) -> None:
        """Take what was compiled for some types of arguments, of which no machine code is there to be called."""
        self.overloads[tuple(result.signature.args)] = result


def helper(**options: Any) -> Any:
    """A decorator, as :func:`numba.njit` is one."""
    return lambda function: Helper(function, targetoptions={"nopython": True, **options}, pipeline_class=KernelCompiler)


dispatcher_registry[KernelTarget] = Helper
jit_registry[KernelTarget] = helper

"""Values that an object computes once, when first asked for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class once(Generic[T]):
    """As :func:`functools.cached_property`, without the lock that it has before Python 3.12.

    A child that is forked while another thread holds such a lock would wait for it for ever. Two threads may compute
    a value at the same time; either result is good.

    Examples
    --------
    >>> class Square:
    ...     side = 3
    ...     @once
    ...     def area(self) -> int:
    ...         print("computed")
    ...         return self.side**2
    >>> square = Square()
    >>> square.area, square.area
    computed
    (9, 9)
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute, self.__doc__ = compute, compute.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> once[T]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: Any, owner: type) -> once[T] | T:
        if instance is None:
            return self
        value = instance.__dict__[self._compute.__name__] = self._compute(instance)  # found first from now on
        return value

"""Names by which functions and machines are known again in another process.

A function is named by where it is defined and by a digest of its code, so that what was measured for an earlier version
of the code is not taken for the present one. A machine is named by what makes times comparable. Nothing here depends on
addresses, hash seeds, file names or line numbers: the same source gives the same names in every process.
"""

from __future__ import annotations

import functools
import hashlib
import re
import sys
import types
from typing import Any

from . import machine

#: Wrappers around a function (``functools.wraps``) that are followed; no real one has more.
_MAX_WRAPPERS = 16
#: An address, as default representations have it: what bears one is another's in the next process.
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")


def function_key(fn: object) -> str | None:
    """Text that names a function in all processes; None for what is no function or has no lasting name.

    Parameters
    ----------
    fn
        Any callable.

    Returns
    -------
    str or None
        ``module:qualname:python:digest``, without the digest where there is no Python code. A partial's is
        that of its function behind ``partial:``, a bound method's behind ``method:``. Captured values and default
        arguments are no part of it.

    Notes
    -----
    A function of the main module is named by the script's file name without its ending (``train`` for
    ``python jobs/train.py``), or by the module that ``python -m`` runs: so it is the same function when another
    script imports it. Without a file (interactive, notebook) it stays ``__main__``; the digest tells functions of
    different sessions apart.

    Examples
    --------
    >>> function_key(len)
    'builtins:len'
    >>> function_key(functools.partial(int, base=2))
    'partial:builtins:int'
    """
    if isinstance(fn, functools.partial):
        return _prefixed("partial", function_key(fn.func))
    if isinstance(fn, types.MethodType):
        return _prefixed("method", function_key(fn.__func__))
    if not callable(fn):
        return None
    module, name = _name_of(fn)
    if not isinstance(module, str) or not isinstance(name, str) or _ADDRESS.search(name):
        return None
    key = f"{_importable_name(module)}:{name}"
    digests = [_digest(code) for code in _codes_of(fn)]
    if digests:
        combined = digests[0] if len(digests) == 1 else _hashed("".join(digests))
        key += f":{sys.version_info[0]}.{sys.version_info[1]}:{combined}"
    # Names from the file system may hold what is no UTF-8.
    return key.encode("utf-8", "backslashreplace").decode()


def machine_key() -> str:
    """Text that names what makes times comparable: CPU model, usable CPUs and Python, behind a digest of all of it.

    The digest also covers the system, the architecture and how Python was built (free-threaded or not). Two machines of
    one kind have the same key, as they should.

    >>> machine_key() == machine_key()
    True
    """
    n_cpus = machine.cpu_count()
    python = f"{_implementation()} {sys.version_info[0]}.{sys.version_info[1]}"
    text = f"{machine.cpu_model()}, {n_cpus} CPU{'s' if n_cpus != 1 else ''}, {python}"
    build = (sys.platform, machine.architecture(), getattr(sys, "abiflags", ""))
    return f"{text} [{_hashed(repr((text, build)))[:8]}]"


def _implementation() -> str:
    names = {"cpython": "CPython", "pypy": "PyPy"}
    return names.get(sys.implementation.name, sys.implementation.name)


def _prefixed(prefix: str, key: str | None) -> str | None:
    return None if key is None else f"{prefix}:{key}"


def _name_of(fn: object) -> tuple[object, object]:
    """Module and name; those of its class for an object that only can be called."""
    name = getattr(fn, "__qualname__", None) or getattr(fn, "__name__", None)
    if not isinstance(name, str):
        return type(fn).__module__, type(fn).__qualname__
    module = getattr(fn, "__module__", None)
    if module is None:  # methods of built-in types, and NumPy's universal functions
        owner = getattr(fn, "__objclass__", None) or type(getattr(fn, "__self__", fn))
        module = owner.__module__
    return module, name


def _importable_name(module: str) -> str:
    """The name by which another process would import it."""
    if module not in ("__main__", "__mp_main__"):
        return module
    main: Any = sys.modules.get(module)
    spec = getattr(main, "__spec__", None)  # None for a script
    if spec is not None:
        return str(spec.name)
    file = getattr(main, "__file__", None)
    if not isinstance(file, str):
        return "__main__"
    return re.split(r"[/\\]", file)[-1].rpartition(".")[0] or "__main__"


def _codes_of(fn: object) -> list[types.CodeType]:
    """The Python code that a call runs: of the function, and of those that it wraps."""
    codes: list[types.CodeType] = []
    for _ in range(_MAX_WRAPPERS):
        code = getattr(fn, "__code__", None)
        if code is None and not hasattr(fn, "__wrapped__"):
            # A class runs its __init__, any other object the __call__ of its class.
            inner = fn.__init__ if isinstance(fn, type) else type(fn).__call__  # type: ignore[misc]
            code = getattr(inner, "__code__", None)
        if isinstance(code, types.CodeType):
            codes.append(code)
        fn = getattr(fn, "__wrapped__", None)
        if not callable(fn):
            break
    return codes


@functools.lru_cache(maxsize=512)
def _digest(code: types.CodeType) -> str:
    """Digest of what code does: not of where it stands."""
    return _hashed(repr(_described(code)))


def _described(constant: object) -> object:
    """A constant of code as something whose `repr` is the same in every process."""
    if isinstance(constant, types.CodeType):
        arguments = (constant.co_argcount, constant.co_posonlyargcount, constant.co_kwonlyargcount, constant.co_flags)
        consts = [_described(const) for const in constant.co_consts]
        return ("code", constant.co_name, arguments, constant.co_code, constant.co_names, consts)
    if isinstance(constant, tuple):
        return ("tuple", [_described(const) for const in constant])
    if isinstance(constant, frozenset):  # in the order of hashes, which differ between processes
        return ("frozenset", sorted(repr(_described(const)) for const in constant))
    if isinstance(constant, slice):  # constants since Python 3.14
        return ("slice", [_described(const) for const in (constant.start, constant.stop, constant.step)])
    if constant is None or constant is ... or isinstance(constant, (bool, int, float, complex, str, bytes)):
        return constant
    return type(constant).__qualname__


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]

"""A file with TVMScript, read as a module of IR: parsed, never executed.

Definition
----------
The module is the one class of the file that is decorated by ``ir_module``; where there is none, the
functions decorated by ``R.function`` and ``T.prim_func``. Of the rest of the file two things
are read: under which names it imports TVMScript's namespaces, and constants (``N = 16``; literals
and arithmetic on them; ``n = TypeVar("n")``, as TVM prints symbolic dimensions). Nothing is
imported, called or evaluated but what :mod:`.script_check` has let through.
"""

from __future__ import annotations

import ast
import builtins
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tvm import ir
from tvm.error import DiagnosticError
from tvm.script import from_source

from .messages import RefusedError
from .script_check import NotScriptError, bound_names, check_script
from .script_names import DECORATORS, HARMLESS_BUILTINS, SCRIPT_MODULES, script_namespaces

__all__ = ["read_script"]


def read_script(text: str, file: str) -> ir.IRModule:
    """Read a module.

    Parameters
    ----------
    text : str
        Of the whole file.
    file : str
        Its name, for errors.

    Raises
    ------
    RefusedError
        ``file:line:column: reason``
    """
    try:
        return _ScriptFile(text, file).module()
    except RecursionError:  # Python 3.14 parses what is nested deeper than it recurses
        raise RefusedError(f"{file}: nested too deeply") from None


class _ScriptFile:
    def __init__(self, text: str, file: str):
        self.file = file
        # As Python counts lines. str.splitlines knows more ends than ast does.
        self.lines = re.sub(r"\r\n?", "\n", text).split("\n")
        self.tree = self.parsed("\n".join(self.lines))
        self.namespaces = self.imported()
        self.constants = _constants(self.tree.body)

    def module(self) -> ir.IRModule:
        modules = [
            node
            for node in self.tree.body
            if isinstance(node, ast.ClassDef) and any(map(_is_ir_module, node.decorator_list))
        ]
        if len(modules) > 1:
            names = ", ".join(f"`{node.name}` (line {node.lineno})" for node in modules)
            raise RefusedError(
                f"{self.file}: it has {len(modules)} modules, {names}; leave one in it"
            )
        if modules:
            return self.class_(modules[0])
        functions = [node for node in self.tree.body if self.is_of_ir(node)]
        if not functions:
            raise RefusedError(
                f"{self.file}: no module in it: expected a class that is decorated by "
                "@I.ir_module, or a @R.function"
            )
        result = {}
        for node in functions:
            assert isinstance(node, ast.FunctionDef)
            result[ir.GlobalVar(node.name)] = self.evaluated(node, node.decorator_list[0].lineno)
        if len({gvar.name_hint for gvar in result}) < len(result):
            raise RefusedError(f"{self.file}: two of its functions have the same name")
        return ir.IRModule(result)

    def class_(self, node: ast.ClassDef) -> ir.IRModule:
        """The class, with what its decorator says."""
        decorator = next(one for one in node.decorator_list if _is_ir_module(one))
        options: dict[str, bool] = {}
        if isinstance(decorator, ast.Call):
            for keyword in decorator.keywords:
                value = getattr(keyword.value, "value", None)
                if keyword.arg not in ("check_well_formed", "s_tir") or type(value) is not bool:
                    raise self.refused(decorator.lineno, 1, "ir_module takes True or False")
                options[keyword.arg] = value
        return self.evaluated(node, node.lineno, **options)

    def is_of_ir(self, node: ast.stmt) -> bool:
        if not isinstance(node, ast.FunctionDef) or not node.decorator_list:
            return False
        decorator = node.decorator_list[0]
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        return (
            isinstance(called, ast.Attribute)
            and isinstance(called.value, ast.Name)
            and any(
                getattr(self.namespaces.get(called.value.id), called.attr, None) is one
                for one in DECORATORS
            )
        )

    def evaluated(self, node: ast.stmt, first_line: int, **options: bool) -> Any:
        """What TVM makes of a statement, after it has been checked."""
        # Lines before it are empty, so that TVM counts as the file does.
        source = "\n" * (first_line - 1) + "\n".join(self.lines[first_line - 1 : node.end_lineno])
        body = self.parsed(source).body
        if len(body) != 1:
            raise self.refused(first_line, 1, "the module shares a line with something else")
        bound = bound_names(body[0])
        used = {one.id for one in ast.walk(body[0]) if isinstance(one, ast.Name)}
        try:
            constants = {
                name: self.constants[name]
                for name in sorted(used.intersection(self.constants).difference(bound))
            }
            for value in constants.values():
                if isinstance(value, NotScriptError):
                    raise value
            check_script(body[0], self.namespaces, constants)
        except NotScriptError as error:
            raise self.refused(error.line, error.column, str(error)) from None
        names: dict[str, Any] = {
            # TVM falls back to a builtin where a name is not bound (evaluator.py).
            **{name: None for name in bound if hasattr(builtins, name)},
            **constants,
            **self.namespaces,
            "__builtins__": {name: getattr(builtins, name) for name in HARMLESS_BUILTINS},
        }
        try:
            return from_source(source, names, **options)
        except DiagnosticError as error:
            raise self.condensed(str(error)) from None

    def imported(self) -> dict[str, Any]:
        """The namespaces, under the names that the file gives them."""
        all_of_them = script_namespaces()
        names = {"I": "I", "R": "R", "T": "T"}  # TVM prints its imports as comments
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
                found = {
                    one.asname or one.name: SCRIPT_MODULES.get(f"{node.module}.{one.name}")
                    for one in node.names
                }
            elif isinstance(node, ast.Import):
                found = {
                    one.asname: SCRIPT_MODULES.get(one.name) for one in node.names if one.asname
                }
            else:
                continue
            for name, letter in found.items():
                names.pop(name, None)  # `from x import R` is another R
                if letter is not None:
                    names[name] = letter
        return {name: all_of_them[letter] for name, letter in names.items()}

    def parsed(self, source: str) -> ast.Module:
        try:
            return ast.parse(source)
        except SyntaxError as error:
            raise self.refused(error.lineno or 1, error.offset or 1, error.msg) from None
        except MemoryError:  # how Python 3.10's parser says so
            raise RefusedError(f"{self.file}: nested too deeply") from None
        except ValueError as error:
            raise RefusedError(f"{self.file}: {error}") from None

    def refused(self, line: int, column: int, reason: str) -> RefusedError:
        return RefusedError(f"{self.file}:{line}:{column}: {reason}")

    def condensed(self, diagnostic: str) -> RefusedError:
        """``file:line:column: message`` of what tvm/script/parser/core/diagnostics.py renders."""
        match = re.fullmatch(r"error: (.*?)\n --> .*?:(\d+):(\d+)\n.*", diagnostic, re.DOTALL)
        if match is None:
            return RefusedError(f"{self.file}: {' '.join(diagnostic.split())}")
        message, line, column = match.groups()
        kept = [one for one in message.splitlines() if one and not one.startswith("# ")]
        return self.refused(int(line), int(column), " ".join(" ".join(kept).split()))


def _is_ir_module(decorator: ast.expr) -> bool:
    """``@I.ir_module``, ``@tvm.script.ir_module``, with arguments or without."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    name = getattr(called, "attr", None) or getattr(called, "id", None)
    return name == "ir_module"


# -- constants of the file --------------------------------------------------------------------

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_LARGEST = 1 << 64


def _constants(body: Sequence[ast.stmt]) -> dict[str, Any]:
    """Constants by name; for what is none the error, to be raised where the module uses it."""
    constants: dict[str, Any] = {}
    for node in body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
            if isinstance(target, ast.Name):
                try:
                    constants[target.id] = _constant(node.value, constants)
                except NotScriptError as error:
                    constants[target.id] = error
    return constants


def _constant(node: ast.expr, known: dict[str, Any]) -> Any:
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(_plain(one, known) for one in node.elts)
    if _is_type_var(node):
        return TypeVar(node.args[0].value)  # type: ignore[attr-defined]
    return _plain(node, known)


def _plain(node: ast.expr, known: dict[str, Any]) -> Any:
    """A number, a string or a bool; what is made of many parts would grow beyond all bounds."""
    if isinstance(node, ast.Constant) and type(node.value) in (str, int, float, bool):
        return node.value
    if isinstance(node, ast.Name) and type(known.get(node.id)) in (str, int, float, bool):
        return known[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand, known)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        left, right = _number(node.left, known), _number(node.right, known)
        try:
            result = _ARITHMETIC[type(node.op)](left, right)
        except ZeroDivisionError:  # its text depends on Python's version
            raise NotScriptError(node, "division by zero") from None
        except ArithmeticError as error:
            raise NotScriptError(node, str(error)) from None
        if abs(result) <= _LARGEST:
            return result
    raise NotScriptError(node, f"`{ast.unparse(node)}` is no constant that is read from a file")


def _number(node: ast.expr, known: dict[str, Any]) -> Any:
    value = _plain(node, known)
    if type(value) not in (int, float):
        raise NotScriptError(node, f"`{ast.unparse(node)}` is no number")
    return value


def _is_type_var(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "TypeVar"
        and len(node.args) == 1
        and not node.keywords
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    )

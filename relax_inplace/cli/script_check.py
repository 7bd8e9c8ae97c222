"""Whether a piece of TVMScript is a module of IR and nothing else.

Definition
----------
A tree is refused unless each node of it is of a kind that a program of IR consists of, and unless

- each name is bound in the program, or is a namespace (``I``, ``R``, ``T``), a constant of the
  file, or a harmless builtin;
- each chain of attributes on a namespace is found there, step by step (:mod:`.script_names`);
- each other attribute is one of the few that TVM's values have in a program, or the name of a
  function of the module, on the name of the module;
- no attribute begins with an underscore, and no name with two;
- numbers and shifts are small.

TVM evaluates what is left; so this is what keeps a file from running code.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable
from typing import Any, NoReturn

from .script_names import DECORATORS, HARMLESS_BUILTINS, step
from .shape_text import check_shape_text

__all__ = ["NotScriptError", "bound_names", "check_script"]


class NotScriptError(Exception):
    """A program is not of IR alone.

    Attributes
    ----------
    line, column : int
        From 1.
    """

    def __init__(self, node: ast.AST, reason: str):
        super().__init__(reason)
        self.line: int = getattr(node, "lineno", 1)
        self.column: int = getattr(node, "col_offset", 0) + 1


def check_script(tree: ast.stmt, namespaces: dict[str, Any], constants: Iterable[str] = ()) -> None:
    """Check a class, or a function by itself.

    Parameters
    ----------
    tree : ast.ClassDef or ast.FunctionDef
    namespaces : dict of str to namespace
        By the names that they have in the file.
    constants : iterable of str
        Names of constants of the file.

    Raises
    ------
    NotScriptError
    """
    _Check(tree, namespaces, constants).visit(tree)


def bound_names(tree: ast.AST) -> Counter[str]:
    """The names that a program binds, and how often."""
    names: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names[node.id] += 1
        elif isinstance(node, ast.arg):
            names[node.arg] += 1
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names[node.name] += 1
            names.update(param.name for param in getattr(node, "type_params", []))
    return names


# What may stand in a program. Names, attributes, calls and some others have rules of their own.
_KINDS = (
    *(ast.arguments, ast.arg, ast.keyword, ast.withitem, ast.Load, ast.Store),
    *(ast.ClassDef, ast.FunctionDef, ast.Return, ast.Pass, ast.Expr, ast.Assert),
    *(ast.Assign, ast.AnnAssign, ast.AugAssign, ast.If, ast.For, ast.While, ast.With),
    *(ast.Break, ast.Continue, ast.Name, ast.Attribute, ast.Call, ast.Constant),
    *(ast.Subscript, ast.Slice, ast.Tuple, ast.List, ast.Dict, ast.Starred, ast.Lambda),
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp),
    *(ast.boolop, ast.cmpop, ast.unaryop, ast.operator),
)

_CALLED = {
    ast.JoinedStr: "an f-string",
    ast.ListComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.Import: "an import",
    ast.ImportFrom: "an import",
    ast.NamedExpr: "an assignment in an expression",
}

# Of buffers and expressions.
_OF_VALUES = frozenset(
    [
        "access_ptr",
        "astype",
        "axis_separators",
        "byte_offset",
        "data",
        "dtype",
        "elem_offset",
        "name",
        "scope",
        "shape",
        "strides",
        "ty",
        "vload",
        "vstore",
    ]
)

_LARGEST = 1 << 64
_WIDEST_SHIFT = 64
# A program may call a variable `input`; it would be a way to the builtin where it is not bound.
_NOT_VARIABLES = frozenset(
    [
        "breakpoint",
        "classmethod",
        "compile",
        "delattr",
        "eval",
        "exec",
        "getattr",
        "globals",
        "hasattr",
        "help",
        "locals",
        "memoryview",
        "open",
        "property",
        "setattr",
        "staticmethod",
        "super",
        "type",
        "vars",
    ]
)


class _Check(ast.NodeVisitor):
    def __init__(self, tree: ast.stmt, namespaces: dict[str, Any], constants: Iterable[str]):
        bound = bound_names(tree)
        self.namespaces = namespaces
        self.known = {*bound, *constants, *namespaces, *HARMLESS_BUILTINS}
        self.functions: set[str] = set()
        self.modules: set[str] = set()
        if isinstance(tree, ast.ClassDef):
            self.functions = {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}
            self.modules = _names_of_module(tree, bound)

    def visit(self, node: ast.AST) -> None:
        if not isinstance(node, _KINDS):
            what = _CALLED.get(type(node), f"`{type(node).__name__}`")
            raise NotScriptError(node, f"{what} is not TVMScript that can be read from a file")
        method = getattr(self, f"visit_{type(node).__name__}", self.generic_visit)
        method(node)

    # -- names ----------------------------------------------------------------------------------

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.check_binding(node, node.id)
        elif node.id == "metadata":
            raise NotScriptError(
                node, "constants that are printed as metadata[...] are not in the text: use JSON"
            )
        elif node.id not in self.known:
            raise NotScriptError(node, f"`{node.id}` is not defined in the module")

    def check_binding(self, node: ast.AST, name: str) -> None:
        if name in self.namespaces:
            raise NotScriptError(node, f"`{name}` is TVMScript's: call the variable otherwise")
        if name.startswith("__") or name in _NOT_VARIABLES or name in HARMLESS_BUILTINS:
            raise NotScriptError(node, f"a variable may not be called `{name}`")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if not isinstance(node.ctx, ast.Load):
            raise NotScriptError(node, "an attribute cannot be assigned")
        if node.attr.startswith("_"):
            raise NotScriptError(node, f"the attribute `{node.attr}` begins with an underscore")
        if self.resolve(node) is not None:
            return
        base = node.value
        is_module = isinstance(base, ast.Name) and base.id in self.modules
        if not (node.attr in self.functions if is_module else node.attr in _OF_VALUES):
            what = "has no function" if is_module else "is no value with the attribute"
            raise NotScriptError(node, f"`{ast.unparse(base)}` {what} `{node.attr}`")
        self.visit(base)

    def resolve(self, node: ast.expr) -> Any:
        """What a chain on a namespace is; None for what is no such chain, or goes on from one."""
        if isinstance(node, ast.Name):
            return self.namespaces.get(node.id)
        if not isinstance(node, ast.Attribute):
            return None
        base = self.resolve(node.value)
        if base is None:
            return None
        try:
            return step(base, node.attr)
        except LookupError:
            raise NotScriptError(node, f"`{ast.unparse(node)}` is not part of TVMScript") from None

    # -- statements -----------------------------------------------------------------------------

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        if node.bases or node.keywords or getattr(node, "type_params", []):
            raise NotScriptError(node, f"the class `{node.name}` may not have bases")
        self.check_binding(node, node.name)
        for statement in node.body:
            if not isinstance(statement, (ast.FunctionDef, ast.Expr, ast.Pass)):
                raise NotScriptError(
                    statement, "a module holds functions, and attributes by I.module_*"
                )
            self.visit(statement)  # not its decorators, which TVM does not look at either

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.check_binding(node, node.name)
        if len(node.decorator_list) != 1 or not self.is_function(node.decorator_list[0]):
            raise NotScriptError(node, f"`{node.name}` must be a @R.function or a @T.prim_func")
        parameters = node.args
        if parameters.defaults or any(one is not None for one in parameters.kw_defaults):
            raise NotScriptError(
                node, f"the parameters of `{node.name}` may not have default values"
            )
        if parameters.vararg or parameters.kwarg or parameters.kwonlyargs or parameters.posonlyargs:
            raise NotScriptError(node, f"the parameters of `{node.name}` must be plain ones")
        for param in getattr(node, "type_params", []):
            plain = type(param).__name__ == "TypeVar" and param.bound is None
            if not plain or getattr(param, "default_value", None) is not None:
                raise NotScriptError(node, f"the dimensions of `{node.name}` must be plain names")
            self.check_binding(node, param.name)
        for one in (parameters, node.returns, *node.body):
            if one is not None:
                self.visit(one)

    def is_function(self, decorator: ast.expr) -> bool:
        if isinstance(decorator, ast.Call):
            if decorator.args or not all(
                one.arg is not None and isinstance(one.value, ast.Constant)
                for one in decorator.keywords
            ):
                return False
            decorator = decorator.func
        found = self.resolve(decorator)
        return any(found is one for one in DECORATORS)

    def visit_arg(self, node: ast.arg) -> None:
        self.check_binding(node, node.arg)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            if not isinstance(target, ast.Subscript):  # a buffer is written to
                self.check_target(target)
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        self.check_target(node.target)
        self.generic_visit(node)

    def check_target(self, target: ast.expr) -> None:
        # TVM assigns by `exec` with all of Python's builtins (evaluator.py, _eval_assign).
        if isinstance(target, (ast.Tuple, ast.List)):
            for one in target.elts:
                self.check_target(one)
        elif isinstance(target, ast.Starred):
            self.check_target(target.value)
        elif not isinstance(target, ast.Name):
            raise NotScriptError(target, f"`{ast.unparse(target)}` cannot be assigned to here")

    def visit_withitem(self, node: ast.withitem) -> None:
        if node.optional_vars is not None:
            self.check_target(node.optional_vars)
        self.generic_visit(node)

    # -- expressions ----------------------------------------------------------------------------

    def visit_Call(self, node: ast.Call) -> None:
        if not isinstance(node.func, (ast.Name, ast.Attribute)):
            raise NotScriptError(node, f"`{ast.unparse(node.func)}` cannot be called")
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        if name == "Buffer":
            self.check_buffer_shape(node)
        for keyword in node.keywords:
            if keyword.arg is None or keyword.arg.startswith("_") or keyword.arg == "derive_func":
                raise NotScriptError(node, f"the argument `{keyword.arg or '**'}` is not allowed")
        for argument in node.args:
            if isinstance(argument, ast.Lambda) and name == "comm_reducer":
                self.visit(argument.args)
                self.visit(argument.body)
            else:
                self.visit(argument)
        for one in (node.func, *node.keywords):
            self.visit(one)

    def check_buffer_shape(self, node: ast.Call) -> None:
        """TVM parses strings in it (tvm/tirx/script/parser/parser.py, ShapeStringRewriter)."""
        for shape in [*node.args[:1], *(one.value for one in node.keywords if one.arg == "shape")]:
            for one in ast.walk(shape):
                if isinstance(one, ast.Constant) and isinstance(one.value, str):
                    try:
                        check_shape_text(one.value)
                    except ValueError as error:
                        raise NotScriptError(one, str(error)) from None

    def visit_Lambda(self, node: ast.Lambda) -> NoReturn:
        raise NotScriptError(node, "a lambda is not TVMScript that can be read from a file")

    def visit_Starred(self, node: ast.Starred) -> None:
        if not isinstance(node.value, (ast.Name, ast.Tuple, ast.List)):
            raise NotScriptError(node, f"`*{ast.unparse(node.value)}` is not allowed")
        self.visit(node.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if value is not None and type(value) not in (str, int, float, bool):
            raise NotScriptError(node, f"a constant of type {type(value).__name__} is not allowed")
        if type(value) is int and abs(value) > _LARGEST:
            raise NotScriptError(node, "the number has more than 64 bits")

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if isinstance(node.op, ast.Pow):
            raise NotScriptError(node, "`**` is not allowed: use T.pow, or R.power")
        if isinstance(node.op, ast.LShift):
            width = node.right.value if isinstance(node.right, ast.Constant) else 0
            if isinstance(width, int) and width > _WIDEST_SHIFT:
                raise NotScriptError(node, f"a shift by {width} bits is not allowed")
        if isinstance(node.op, (ast.Mult, ast.Add, ast.Mod)):
            for operand in (node.left, node.right):
                is_text = isinstance(operand, ast.Constant) and isinstance(operand.value, str)
                if is_text or isinstance(operand, (ast.Tuple, ast.List)):
                    raise NotScriptError(node, "no arithmetic with strings, tuples or lists")
        self.generic_visit(node)


def _names_of_module(tree: ast.ClassDef, bound: Counter[str]) -> set[str]:
    """The class, and the variables that are bound to it and to nothing else: ``cls = Module``."""
    aliases: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
            if isinstance(target, ast.Name) and isinstance(value, ast.Name):
                aliases[target.id] += value.id == tree.name
    whole = {tree.name} if bound[tree.name] == 1 else set()
    return whole | {name for name, count in aliases.items() if whole and count == bound[name]}

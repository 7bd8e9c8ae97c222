"""Which bindings run as one kernel: those that FuseOps puts together in TVM's pipelines."""

import textwrap

import pytest
from tvm.script import from_source

from relax_inplace.inplace.fusion import find_fusion
from relax_inplace.ir.effects import EffectTable

KERNEL = """
    @T.prim_func(private=True, s_tir=True)
    def double(a: T.Buffer((4, 6), "float32"), b: T.Buffer((4, 6), "float32")):
        for i, j in T.grid(4, 6):
            with T.sblock("b"):
                vi, vj = T.axis.remap("SS", [i, j])
                b[vi, vj] = a[vi, vj] * T.float32(2)
"""


def fusion_of(body, outputs):
    """The groups of variables that are fused, and which of them are views of their operands."""
    source = f"""
@I.ir_module
class Module:
{KERNEL}
    @R.function
    def main(x: R.Tensor((4, 6), "float32"), y: R.Tensor((4, 6), "float32")):
        cls = Module
        with R.dataflow():
{textwrap.indent(textwrap.dedent(body).strip(), " " * 12)}
            R.output({outputs})
        return ({outputs},)
"""
    mod = from_source(source)
    found = find_fusion(mod["main"], EffectTable(mod))
    groups, views = {}, set()
    for b, block in enumerate(mod["main"].body.blocks):
        for i, binding in enumerate(block.bindings):
            name = binding.var.name
            if (b, i) in found.group_of:
                groups.setdefault(found.group_of[b, i], set()).add(name)
            if found.is_view(b, i):
                views.add(name)
    return sorted(map("".join, map(sorted, groups.values()))), "".join(sorted(views))


# What is computed, what of it leaves the block, the groups, and the views in them.
FUSED = {
    "a chain": ("a = R.exp(x)\nb = R.permute_dims(a)", "b", ["ab"], ""),
    "two chains": (
        """
        a = R.exp(x)
        b = R.permute_dims(a)
        c = R.exp(y)
        d = R.permute_dims(c)
        """,
        "b, d",
        ["ab", "cd"],
        "",
    ),
    "through a named tuple": ("a = R.exp(x)\nt = (a, y)\nc = R.concat(t)", "c", ["ac"], ""),
    "nothing that is fused": ("a = R.exp(x)\nb = R.exp(y)", "a, b", [], ""),
    "a kernel of the module": (
        """
        a = R.exp(x)
        b = R.call_tir(cls.double, (a,), out_ty=R.Tensor((4, 6), "float32"))
        """,
        "b",
        ["ab"],
        "",
    ),
    "what another output needs, too": (
        "a = R.exp(x)\nb = R.permute_dims(a)\nc = R.negative(a)",
        "b, c",
        [],
        "",
    ),
    "what only dead code needs, too": (
        "a = R.exp(x)\nb = R.permute_dims(a)\nc = R.negative(a)",
        "b",
        ["ab"],
        "",
    ),
    "operands in a tuple": ("a = R.exp(x)\nb = R.concat((a, y))", "b", ["ab"], ""),
    "what is in a tuple that another kernel is given, too": (
        """
        a = R.exp(x)
        t = (a, y)
        b = R.concat(t)
        c = R.permute_dims(a)
        """,
        "b, c",
        [],
        "",
    ),
    "a field of several results": (
        "a = R.split(x, 2)\nb = R.exp(a[0])",
        "b",
        ["ab"],
        "",
    ),
    "a second name keeps TVM from it": (
        "a = R.exp(x)\nn = a\nb = R.permute_dims(n)",
        "b",
        [],
        "",
    ),
    "a view": ("a = R.exp(x)\nv = R.reshape(a, (24,))\nb = R.negative(v)", "b", ["abv"], "v"),
    "no view: another type": (
        'a = R.exp(x)\nv = R.astype(a, "float16")\nb = R.negative(v)',
        "b",
        ["abv"],
        "",
    ),
    "no view, but a copy: it leaves the block": (
        "a = R.exp(x)\nv = R.reshape(a, (24,))",
        "v",
        ["av"],
        "",
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_what_is_fused(name):
    body, outputs, groups, views = FUSED[name]
    assert fusion_of(body, outputs) == (groups, views)

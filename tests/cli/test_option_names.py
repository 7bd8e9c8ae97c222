"""Errors of the passes and of the runtime name options on the command line."""

import re

import pytest
from commands import MODEL, SYMBOLIC, error, output

from relax_inplace.cli.option_names import in_options


@pytest.mark.parametrize(
    ("python", "options"),
    [
        (
            "compile it without lazy=True, with reference=True",
            "compile it without --lazy, with --verify",
        ),
        ("load with checksum=False: none", "load without --checksum: none"),
        ('load with extra="ignore" if', "load with --ignore-extra if"),
        ("give names=, which maps", "give --names FILE, which maps"),
        ("tied=['a', 'b']: there", "--tied a=b: there"),
        ("made with tied=, and", "made with --tied, and"),
        ("functions=['f', 'g'], but", "--function f --function g, but"),
        ("with functions=[...]", "with --function NAME"),
        ("memory_limit=1.2: the", "--memory-limit 1.2: the"),
        ("max_resident=0.5 is", "--max-resident 0.5 is"),
        ("skip='relax.permute_dims'. only='*' says", "--skip relax.permute_dims. --only * says"),
        ("LiftInplaceTransformParams: restore=True makes", "--restore makes"),
        ("`inplace_transform_params`: names of lazy weights", None),
    ],
)
def test_the_same_in_options(python, options):
    assert in_options(python) == (options or python)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["explain", "-", "--tied", "a=b"], MODEL),
        (["explain", "-", "--function", "f"], MODEL),
        (["explain", "-", "--max-resident", "10"], MODEL),
        (["plan", "-", "--memory-limit", "10"], MODEL),
        (["plan", "-", "--plot", "FOLDER/plan.svg"], SYMBOLIC),
        (["rewrite", "-", "--lift", "--lazy", "--restore"], MODEL),
        (["rewrite", "-", "--lift", "--lazy", "--verify"], MODEL),
    ],
)
def test_no_error_names_a_parameter(arguments, text, tmp_path):
    given = [one.replace("FOLDER", str(tmp_path)) for one in arguments]
    said = error(*given, text=text)
    assert not re.search(r"\w=(True|False|\[|\{|'|\d+ bytes)|Error: |\w+TransformParams", said), (
        said
    )
    assert "--" in said


def test_a_report_names_options():
    assert "bytes more; --max-resident 1.0" in output("explain", "-", text=MODEL)
    assert "--skip relax.permute_dims" in output(
        "explain", "-", "--skip", "relax.permute_dims", text=MODEL
    )

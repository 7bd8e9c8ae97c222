"""What docs/layouts.md shows runs."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "layouts.md"


def test_the_examples(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    program = tmp_path / "program.py"  # a file: TVMScript reads its source
    program.write_text("\n".join([*blocks, "for m in (AnySize, Requantised):", CONVERT]))
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr


CONVERT = """
    tvm.compile(relax_inplace.transform.InplaceTransformParams()(m), "llvm")
tvm.compile(builder.finalize(), "llvm")
Linear().export_tvm({"forward": {"x": nn.spec.Tensor((1, 1), "int8")}})
"""

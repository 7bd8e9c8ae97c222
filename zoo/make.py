"""Makes one model of the zoo, in a folder: see :mod:`specimen`.

python zoo/make.py --list
python zoo/make.py NAME FOLDER
"""

from __future__ import annotations

import functools
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from specimen import Specimen


def makers() -> dict[str, Callable[[], Specimen]]:
    """For each name of a row what makes its model."""
    import onnx_models
    import packaged
    import torch_models

    found: dict[str, Callable[[], Specimen]] = {}
    for name in torch_models.TORCH_MODELS:
        found[name] = functools.partial(torch_models.exported, name)
    for name in onnx_models.ONNX_MODELS:
        found[f"{name}, ONNX"] = functools.partial(onnx_models.exported, name)
    return {**found, **packaged.PACKAGED}


def main() -> None:
    if sys.argv[1:] == ["--list"]:
        print("\n".join(makers()))
        return
    name, folder = sys.argv[1], Path(sys.argv[2])
    try:
        makers()[name]().save(folder)
        result = {}
    except Exception as error:
        traceback.print_exc()
        result = {"not exported": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    (folder / "make.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()

"""Runs the zoo, and prints one table.

    python zoo/run.py [--only PATTERN] [--keep FOLDER] [--mlc CHECKOUT] [--json FILE]

Each model is made, compiled and converted in processes of its own (:mod:`make`, :mod:`row`). The exit
code is 1 if a row has a wrong number, a peak that is more than 1 MB above its plan, or did not run.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SLACK = 1 << 20  # bytes of peak above the plan: the heap's


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="of the names of rows; * and ? match anything")
    parser.add_argument("--mlc", default=os.environ.get("MLC_LLM"), help="a checkout of MLC-LLM")
    parser.add_argument("--keep", type=Path, help="a folder for the models; else they are removed")
    parser.add_argument("--json", type=Path, help="a file for all that was found out")
    parser.add_argument("--list", action="store_true", help="the names of the rows, no more")
    given = parser.parse_args()
    environment = {**os.environ, "MLC_LLM": given.mlc or ""}
    names = [name for name in _names(environment) if fnmatch.fnmatchcase(name, given.only)]
    if given.list:
        print("\n".join(names))
        return 0
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) if given.keep is None else given.keep
            folder = folder / name.replace("/", "_").replace(" ", "_")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            rows.append(_row(name, folder, environment))
        print(f"{name}: {rows[-1].get('failed') or 'done'}", file=sys.stderr, flush=True)
        if given.json is not None:
            given.json.write_text(json.dumps(rows, indent=1))
    print(_table(rows))
    wrong = [row["name"] for row in rows if _verdict(row).isupper()]
    print(f"\n{len(rows)} rows, {len(wrong)} wrong{': ' if wrong else ''}{', '.join(wrong)}")
    return 1 if wrong else 0


def _names(environment: dict[str, str]) -> list[str]:
    listed = subprocess.run(
        [sys.executable, HERE / "make.py", "--list"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    return listed.stdout.splitlines()


def _row(name: str, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name}
    for step, arguments in (
        ("make", ["make.py", name, folder]),
        ("build", ["row.py", "build", folder]),
        ("convert", ["row.py", "convert", folder]),
    ):
        program, *rest = arguments
        with open(folder / f"{step}.log", "w") as log:
            code = subprocess.run(
                [sys.executable, "-W", "ignore", HERE / program, *rest],
                stdout=log,
                stderr=log,
                env=environment,
            ).returncode
        result = folder / f"{step}.json"
        if code != 0 or not result.exists():
            return {**row, "failed": f"{step}: exit code {code}"}
        row.update(json.loads(result.read_text()))
        if "failed" in row or "not exported" in row:
            break
    return row


def _verdict(row: dict[str, Any]) -> str:
    if "not exported" in row:
        return "not exported"
    if "failed" in row:
        return "FAILED"
    if not row["verified"] or row.get("difference", 0) > 1e-4 * max(1, row.get("largest", 0)):
        return "WRONG"
    if row["extra"] > (row["plan"] or 0) + SLACK:
        return "PEAK"
    return "ok"


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | weights | MB | lifted | left | outputs | plan, MB | peak, MB | ms | |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        verdict = _verdict(row)
        if verdict in ("not exported", "FAILED"):
            why = row.get("not exported") or row["failed"]
            lines.append(f"| {row['name']} | | | | | | | | | {verdict}: {why} |")
            continue
        cells = [
            row["name"],
            row["weights"],
            _mb(row["bytes"]),
            row["lifted"],
            row["left"],
            _outputs(row),
            _mb(row["plan"]),
            _mb(row["extra"]),
            f"{row['seconds'] * 1e3:.0f}",
            "" if verdict == "ok" else verdict,
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _outputs(row: dict[str, Any]) -> str:
    if "outputs" not in row:
        return "fields equal"
    return "equal" if row["equal"] else f"{row['difference']:.1e} of {row['largest']:.1e}"


def _mb(size: Any) -> str:
    return f"{size / 1e6:.1f}" if isinstance(size, int) else str(size)


if __name__ == "__main__":
    sys.exit(main())

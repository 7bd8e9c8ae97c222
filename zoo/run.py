"""Runs the zoo, and prints one table.

    python zoo/run.py [--only PATTERN] [--keep FOLDER] [--mlc CHECKOUT] [--json FILE]

Each model is made, compiled and converted in processes of its own (:mod:`make`, :mod:`row`). The
exit code is 1 if a row has a wrong number, a peak that is more than 1 MB above its plan, or did not
run.
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
    names = _names("make.py", given.only, environment)
    models = _names("mlc_row.py", given.only, environment) if given.mlc else []
    if given.list:
        print("\n".join(names + models))
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
    families = {}
    for name in models:
        with tempfile.TemporaryDirectory() as folder:
            families[name] = _family(name, Path(folder), environment)
        print(f"{name}: done", file=sys.stderr, flush=True)
        if given.json is not None:
            given.json.with_suffix(".mlc.json").write_text(json.dumps(families, indent=1))
    if rows:
        print(_table(rows))
    if families:
        print(mlc_table(families))
    wrong = [row["name"] for row in rows if _verdict(row).isupper()]
    for name, family in families.items():
        wrong += [f"{name} {one}" for one, row in family.items() if _verdict(row).isupper()]
    print(f"\n{len(wrong)} wrong{': ' if wrong else ''}{', '.join(wrong)}")
    return 1 if wrong else 0


def _names(program: str, only: str, environment: dict[str, str]) -> list[str]:
    listed = subprocess.run(
        [sys.executable, "-W", "ignore", HERE / program, "--list"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    return [name for name in listed.stdout.splitlines() if fnmatch.fnmatchcase(name, only)]


def _family(name: str, folder: Path, environment: dict[str, str]) -> dict[str, dict[str, Any]]:
    """A model of MLC-LLM: what its quantisations gave."""
    command = [sys.executable, "-W", "ignore", HERE / "mlc_row.py", name, folder]
    code = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    ).returncode
    if code != 0:
        return {"all": {"failed": f"exit code {code}"}}
    found: dict[str, dict[str, Any]] = json.loads((folder / "mlc.json").read_text())
    return found


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
        if {"failed", "not exported", "alone"} & row.keys():
            break
    return row


def _verdict(row: dict[str, Any]) -> str:
    if "not exported" in row:
        return "not exported"
    if "failed" in row:
        return "FAILED"
    if "alone" in row:
        return "alone" if row["alone"] else "CHANGED"
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
        if "alone" in row:
            lines.append(
                f"| {row['name']} | {row['weights']} | | 0 | {row['left']} | as it was | | | | |"
            )
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


def mlc_table(families: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A line for each model: quantisations, and the worst of them."""
    lines = [
        "| model | quantisations | converted | left alone | outputs | over plan, MB | ms | |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: | --- |",
    ]
    exporting = 0
    for name, family in families.items():
        exported = {one: row for one, row in family.items() if "not exported" not in row}
        exporting += bool(exported)
        if not exported:
            why = next(iter(family.values()))["not exported"]
            lines.append(f"| {name} | 0 of {len(family)} | | | | | | not exported: {why[:60]} |")
            continue
        ran = [row for row in exported.values() if "verified" in row]
        compared = [row for row in ran if "outputs" in row]
        equal = "equal" if all(row["equal"] for row in compared) else "close"
        over = max((row["extra"] - (row["plan"] or 0) for row in ran), default=0)
        wrong = [one for one, row in exported.items() if _verdict(row).isupper()]
        cells = [
            name,
            f"{len(exported)} of {len(family)}",
            len(ran),
            sum("alone" in row for row in exported.values()),
            f"{equal}, of {len(compared)}" if compared else "fields equal" if ran else "",
            f"{max(0, over) / 1e6:.1f}",
            f"{max((row['seconds'] for row in ran), default=0) * 1e3:.0f}",
            f"WRONG: {', '.join(wrong)}" if wrong else "",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines.append(f"\n{exporting} of {len(families)} models export")
    return "\n".join(lines)


def _outputs(row: dict[str, Any]) -> str:
    if "outputs" not in row:
        return "fields equal"
    return "equal" if row["equal"] else f"{row['difference']:.1e} of {row['largest']:.1e}"


def _mb(size: Any) -> str:
    return f"{size / 1e6:.1f}" if isinstance(size, int) else str(size)


if __name__ == "__main__":
    sys.exit(main())

"""``make mutation``: no soundness check can be broken without a test that fails.

Each mutant (`mutants.py`) is the installed package with one check broken, in a copy: its tests run on
the copy, and at least one has to fail. Prints which do, and exits with 1 if a mutant survives.
Arguments: words that a mutant's file or reason has; without any, all mutants. MUTATION_JOBS is how
many run at a time, one per core if it is not set.
"""

import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mutants import MUTANTS

TESTS = Path(__file__).resolve().parent.parent
INSTALLED = subprocess.run(
    [sys.executable, "-c", "import relax_inplace; print(*relax_inplace.__path__)"],
    cwd=TESTS,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
).stdout.strip()
JOBS = int(os.environ.get("MUTATION_JOBS") or os.cpu_count())


class BrokenMutantError(Exception):
    """A mutant that is none: its text is not there, or its tests cannot be run."""


def failures(tests, mutant=None):
    """The tests that fail on a copy of the package."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "relax_inplace"
        shutil.copytree(INSTALLED, package, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            file = package / mutant.file
            text = file.read_text()
            if text.count(mutant.old) != 1:
                raise BrokenMutantError(f"the text is there {text.count(mutant.old)} times")
            file.write_text(text.replace(mutant.old, mutant.new))
        command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(
            command,
            cwd=TESTS,
            env={**os.environ, "PYTHONPATH": folder},
            stdout=subprocess.PIPE,
            text=True,
        )
    if done.returncode not in (0, 1):  # 1: some fail; else they could not be run
        raise BrokenMutantError(done.stdout[-2000:])
    return re.findall(r"^FAILED (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)


def main(words):
    mutants = [m for m in MUTANTS if not words or any(word in str(m) for word in words)]
    survivors = 0
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        runs = [pool.submit(failures, mutant.tests, mutant) for mutant in mutants]
        without = {tests: pool.submit(failures, tests) for tests in {m.tests for m in mutants}}
        for mutant, run in zip(mutants, runs, strict=True):
            try:
                failed = run.result()
            except BrokenMutantError as error:
                failed = []
                print(error)
            print(f"{'killed' if failed else 'SURVIVES'}: {mutant}", flush=True)
            for test in failed[:5]:
                print(f"    {test}")
            if len(failed) > 5:
                print(f"    and {len(failed) - 5} more")
            survivors += not failed
        for run in without.values():
            for test in run.result():
                print(f"fails without any mutant: {test}")
                survivors += 1
    print(f"{len(mutants)} mutants, {survivors} survive")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

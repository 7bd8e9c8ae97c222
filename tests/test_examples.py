"""The examples run, and say what they did."""

import subprocess
import sys
from pathlib import Path

from memory import needs_clear_refs

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@needs_clear_refs
def test_decoder():
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "decoder.py"), "--small"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fields bitwise equal: 37 of 37" in done.stdout
    assert "FAIL" not in done.stdout


@needs_clear_refs
def test_decoder_notices_a_wrong_result():
    """The comparison itself: one bit of one field differs, and the exit code is 1."""
    program = f"""
import sys
sys.path.insert(0, {str(EXAMPLES)!r})
import decoder
runs = {{}}
def fake(small, way):
    return {{"weights": 1, "largest": 1.0, "before": 10.0, "peak": 11.0, "seconds": 1.0,
            "fields": ["a", way], "logits": "l", "finite": True, "same_object": True}}
decoder.run_in_own_process = fake
sys.argv = ["decoder.py", "--small"]
sys.exit(decoder.main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd="/")
    assert done.returncode == 1
    assert "FAIL fields bitwise equal: 1 of 2" in done.stdout

"""From a folder of 4-bit weights to converted ones, each way in a process of its own.

192 MB here; 2,048 MB in `make bench` (COLD_START_MB), which prints the table.
"""

import json
import subprocess
import sys

import cold_start
import psutil
import pytest
from cold_start import COUNT, LARGEST, MB, SHARD
from memory import needs_clear_refs

SLACK = 8e6


def in_fresh_process(way, library, folder, target):
    done = subprocess.run(
        [sys.executable, cold_start.__file__, way, *map(str, (library, folder, target))],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout)
    over = (result["extra"] - result["weights"]) / 1e6
    print(
        f"{way:8} {folder.name:13} {result['seconds']:6.2f} s   weights "
        f"{result['weights'] / 1e6:6.0f} MB   peak above them {over:6.1f} MB"
    )
    return result


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("libraries")
    paths = {False: folder / "resident.so", True: folder / "streamed.so"}
    for lazy, path in paths.items():
        cold_start.build(path, lazy)
    return paths


@needs_clear_refs
@pytest.mark.parametrize("format", ["tensor-cache", "safetensors"])
def test_from_a_folder_to_converted_weights(tmp_path, libraries, format):
    if psutil.disk_usage(tmp_path).free < 4 * MB << 20:
        pytest.skip(f"needs {4 * MB} MB of disk")
    folder = tmp_path / format
    subprocess.run([sys.executable, cold_start.__file__, "write", folder, format], check=True)
    print(f"\n{MB} MB, {2 * COUNT} weights, the largest {LARGEST / 1e6:.1f} MB, shards of 33.6 MB")

    resident_lib, streamed_lib = libraries[False], libraries[True]
    convert = in_fresh_process("convert", resident_lib, folder, tmp_path / "saved")
    assert convert["extra"] <= convert["weights"] + LARGEST + SHARD + SLACK

    stream = in_fresh_process("stream", streamed_lib, folder, tmp_path)
    assert stream["digest"] == convert["digest"]
    assert stream["extra"] <= stream["weights"] + 2 * LARGEST + SLACK

    cache = tmp_path / "cache"
    first = in_fresh_process("cache", resident_lib, folder, cache)
    second = in_fresh_process("cache", resident_lib, folder, cache)
    assert (first["converted"], second["converted"]) == (first["weights"], 0)
    assert second["digest"] == first["digest"] == convert["digest"]
    load = in_fresh_process("load", resident_lib, folder, tmp_path)
    print(f"second start, in plain loads: {second['seconds'] / load['seconds']:.2f}")
    assert load["extra"] <= load["weights"] + SLACK
    assert load["digest"] != convert["digest"]

"""From a folder of 4-bit weights to converted ones, each way in a process of its own.

192 MB here, once; 2,048 MB in `make bench` (COLD_START_MB), three times in turn, which prints the table.
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
ROUNDS = 3 if MB > 1000 else 1


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

    cache = tmp_path / "cache"
    first = in_fresh_process("cache", resident_lib, folder, cache)
    second = in_fresh_process("cache", resident_lib, folder, cache)
    assert (first["converted"], second["converted"]) == (first["weights"], 0)
    assert second["digest"] == first["digest"] == convert["digest"]

    least = {"second": second["seconds"]}
    for _ in range(ROUNDS):
        load = in_fresh_process("load", resident_lib, folder, tmp_path)
        assert load["extra"] <= load["weights"] + SLACK
        assert load["digest"] != convert["digest"]
        stream = in_fresh_process("stream", streamed_lib, folder, tmp_path)
        assert stream["digest"] == convert["digest"]
        assert stream["extra"] <= stream["weights"] + 2 * LARGEST + SLACK
        both = in_fresh_process("both", resident_lib, folder, tmp_path)
        assert both["digest"] == convert["digest"]
        for way, run in (("load", load), ("stream", stream), ("both", both)):
            least[way] = min(least.get(way, run["seconds"]), run["seconds"])
    ratios = {way: f"{seconds / least['load']:.2f}" for way, seconds in least.items()}
    print(
        f"in plain loads, of the least: streamed {ratios['stream']}, loaded and then converted "
        f"{ratios['both']}, a second start from a cache {ratios['second']}"
    )

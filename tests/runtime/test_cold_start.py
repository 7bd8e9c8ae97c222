"""From a folder of 4-bit weights to converted ones, each way in a process of its own.

192 MB here, once; 2,048 MB in `make bench` (COLD_START_MB), three times in turn, with the files in the
page cache and without, which prints the table.
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

    resident_lib = libraries[False]
    convert = in_fresh_process("convert", resident_lib, folder, tmp_path / "saved")
    assert convert["extra"] <= convert["weights"] + LARGEST + SHARD + SLACK

    cache = tmp_path / "cache"
    first = in_fresh_process("cache", resident_lib, folder, cache)
    second = in_fresh_process("cache", resident_lib, folder, cache)
    assert (first["converted"], second["converted"]) == (first["weights"], 0)
    assert second["digest"] == first["digest"] == convert["digest"]

    for is_cold in (False, True)[: 1 + (ROUNDS > 1)]:
        least = {}
        for _ in range(ROUNDS):
            for way in ("load", "stream", "both", "cache"):
                library = libraries[way == "stream"]
                read = cache if way == "cache" else folder
                if is_cold:
                    cold_start.forget(read)
                run = in_fresh_process(way, library, folder, cache)
                assert (run["digest"] == convert["digest"]) == (way != "load")
                assert run["extra"] <= run["weights"] + SLACK
                least[way] = min(least.get(way, run["seconds"]), run["seconds"])
        ratios = {way: f"{seconds / least['load']:.2f}" for way, seconds in least.items()}
        print(
            f"{'from the disk' if is_cold else 'files in the page cache'}: in plain loads, of the "
            f"least: streamed {ratios['stream']}, loaded and then converted {ratios['both']}, a "
            f"second start from a cache {ratios['cache']}"
        )

"""What the embedded server takes of the machine."""

import pytest

from orchestration.embedded import MEGABYTE, available_memory, memory_settings

GIGABYTE = 1024 * MEGABYTE


@pytest.mark.parametrize(
    ("memory", "shared", "cached", "sorted_in"),
    [
        (1 * GIGABYTE, "256MB", "512MB", "16MB"),
        (8 * GIGABYTE, "2048MB", "4096MB", "64MB"),
        (24 * GIGABYTE, "6144MB", "12288MB", "192MB"),
        (256 * GIGABYTE, "8192MB", "131072MB", "256MB"),
    ],
)
def test_memory_follows_the_machine(memory, shared, cached, sorted_in):
    assert memory_settings(memory) == {
        "shared_buffers": shared,
        "effective_cache_size": cached,
        "work_mem": sorted_in,
    }


def test_the_limit_of_a_container_counts(tmp_path):
    limit = tmp_path / "memory.max"
    machine = available_memory(limit)
    assert machine > 100 * MEGABYTE
    limit.write_text(f"{100 * MEGABYTE}\n")
    assert available_memory(limit) == 100 * MEGABYTE
    limit.write_text("max\n")
    assert available_memory(limit) == machine

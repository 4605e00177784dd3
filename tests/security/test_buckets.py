"""What lies in a bucket under names of an attacker's is no file of ours."""

from __future__ import annotations

import pytest

from clusterkit import ObjectStore
from lorasweep.checkpoint import Checkpoints
from lorasweep.depot import StoreDepot

NAMES = ["../outside", "../../outside", "checkpoints/../../outside", "000009-" + "a" * 32 + ".safetensors/x"]


@pytest.mark.slow
def test_keys_that_lead_out_are_left_alone(s3: ObjectStore) -> None:
    import s3fs

    system = s3fs.S3FileSystem()
    system.pipe_file("lorasweep/beside/outside", b"precious")
    for name in NAMES:
        system.pipe_file(f"lorasweep/prefix/checkpoints/{name}", b"evil")
    depot = StoreDepot("s3://lorasweep/prefix/checkpoints")
    checkpoints = Checkpoints(depot)
    checkpoints.save({"step": 1}, {})
    found = checkpoints.load()
    assert found is not None and found.state["step"] == 1 and found.notes == []
    depot.clear()
    assert system.cat_file("lorasweep/beside/outside") == b"precious"

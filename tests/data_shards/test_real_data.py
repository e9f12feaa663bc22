"""The real tables: MELD's official CSV files and SIMS-V2's label.csv, in the folder that EGMF_REAL_DATA names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from egmf_shards import ShardSet, import_label_csv, import_meld

pytestmark = pytest.mark.real_data


@pytest.fixture
def real() -> Path:
    folder = os.environ.get("EGMF_REAL_DATA")
    if not folder:
        pytest.skip("EGMF_REAL_DATA names no folder with meld/ and simsv2/")
    return Path(folder)


def test_meld(real, tmp_path):
    manifest = import_meld(real / "meld", tmp_path / "meld")
    assert {k: v["samples"] for k, v in manifest["splits"].items()} == {"train": 9989, "valid": 1109, "test": 2610}
    assert manifest["splits"]["test"]["labels"]["meld-emotion"]["neutral"] == 1256
    assert all(data["missing"]["text"] == 0 for data in manifest["splits"].values())
    shards = ShardSet.open([tmp_path / "meld"], "train")
    assert shards[0].text == "also I was the point person on my company’s transition from the KL-5 to GR-6 system."
    assert [t.text for t in shards[1].context] == [shards[0].text]
    assert not any(0x7F <= ord(ch) <= 0x9F for s in shards for ch in s.text)


def test_simsv2(real, tmp_path):
    manifest = import_label_csv(real / "simsv2" / "label.csv", tmp_path / "sims", "simsv2", "zh")
    assert {k: v["samples"] for k, v in manifest["splits"].items()} == {"train": 2722, "valid": 647, "test": 1034}
    both = ShardSet.open([tmp_path / "sims"], "test")
    assert all(s.language == "zh" and s.text and -1 <= s.value <= 1 for s in both)

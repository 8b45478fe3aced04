"""A pickle of tensors takes the memory that its size warrants."""

from __future__ import annotations

import io
import zipfile

import pytest
import torch

from chatterbox.runtime.pickles import load_plain


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_small_file_holds_no_large_tensor(tmp_path, is_zip):
    path = tmp_path / "voice.pt"
    claims = {"gen": [torch.zeros(1).expand(1, 10**9)]}
    torch.save(claims, path, _use_new_zipfile_serialization=is_zip)
    assert path.stat().st_size < 5_000
    with pytest.raises(ValueError, match=r"a tensor of shape \(1, 1000000000\) has fewer bytes than that"):
        load_plain(path)


def test_a_compressed_file_is_refused(tmp_path):
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "plain.pt")
    small = zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, small:
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    with pytest.raises(ValueError, match=r"it is compressed; torch.save writes it plain"):
        load_plain(tmp_path / "small.pt")


def test_views_and_file_objects_are_read_as_they_were_written(tmp_path):
    kept = {"a": torch.arange(12.0).reshape(3, 4).T, "b": (torch.arange(9)[2:5], 0.5), "c": None}
    buffer = io.BytesIO()
    torch.save(kept, buffer)
    buffer.seek(0)
    read = load_plain(buffer)
    assert torch.equal(read["a"], kept["a"]) and torch.equal(read["b"][0], kept["b"][0])
    assert read["b"][1:] == (0.5,) and read["c"] is None

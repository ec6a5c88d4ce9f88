"""Remote storage, against a server on loopback that speaks S3, and a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from phenoscape_tune.config import build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.storage import Storage, join_url, split_url


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_files_go_there_and_come_back(storage_url: str, tmp_path: Path) -> None:
    storage = Storage(storage_url)
    storage.check()
    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 1000)
    storage.upload(tmp_path / "a.bin", "deep/er/a.bin")
    assert Storage(join_url(storage_url, "deep")).download("er/a.bin", tmp_path / "back" / "a.bin")
    assert (tmp_path / "back" / "a.bin").read_bytes() == (tmp_path / "a.bin").read_bytes()
    assert not storage.download("nothing", tmp_path / "none")
    # What is uploaded again takes the place of what was there.
    (tmp_path / "a.bin").write_bytes(b"new")
    storage.upload(tmp_path / "a.bin", "deep/er/a.bin")
    storage.download("deep/er/a.bin", tmp_path / "back" / "a.bin")
    assert (tmp_path / "back" / "a.bin").read_bytes() == b"new"
    storage.remove_folder("deep/er")
    storage.remove_folder("never/there")
    assert not storage.download("deep/er/a.bin", tmp_path / "none")


def test_neither_the_probe_nor_a_part_is_left(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/remote")
    storage.check()
    (tmp_path / "a").write_text("a")
    storage.upload(tmp_path / "a", "a")
    assert names(tmp_path / "remote") == ["a"]


def test_what_cannot_be_written_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"storage: file://.*: cannot be written and read .*leave storage out"):
        Storage(f"file://{tmp_path}/file/below").check()
    with pytest.raises(UserError, match=r"the scheme nope is unknown; write s3://"):
        Storage("nope://bucket/x")


@pytest.mark.slow
def test_an_endpoint_out_of_reach_and_a_missing_bucket_are_refused(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="cannot be written and read.*bucket does not exist"):
        Storage("s3://no-such-bucket/x").check()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="cannot be written and read.*check the URL, the bucket"):
        Storage(bucket).check()


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAKEY:sesame@bucket/x",
        "s3://bucket/x?access_key=AKIAKEY&secret_key=sesame",
        "s3://bucket/x?region=eu&session_token=sesame",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(UserError, match="holds credentials.*AWS_ACCESS_KEY_ID") as refused:
        build_config({"storage": url})
    assert "sesame" not in str(refused.value)


@pytest.mark.parametrize("url", ["memory://x", "http://127.0.0.1:9/x"])
def test_what_keeps_no_files_is_no_storage(url: str) -> None:
    with pytest.raises(UserError, match="storage: .*keeps no files"):
        build_config({"storage": url})


def test_no_url_and_a_remote_output_folder_are_refused() -> None:
    with pytest.raises(UserError, match="storage: write the URL of a folder, for example s3://"):
        build_config({"storage": "bucket/birds"})
    with pytest.raises(UserError, match=r"out_dir: 's3://bucket/x' is not valid: is remote.*storage=URL"):
        build_config({"out_dir": "s3://bucket/x"})


def test_urls_keep_their_options() -> None:
    url = "s3://bucket/a/?endpoint_override=http://host:1&scheme=http"
    joined = join_url(url, "trials", "lr-00")
    assert joined == "s3://bucket/a/trials/lr-00?endpoint_override=http://host:1&scheme=http"
    assert split_url("s3://bucket/a/checkpoints/last.ckpt?x=1", 2) == ("s3://bucket/a?x=1", "checkpoints/last.ckpt")

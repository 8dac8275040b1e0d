"""Names lead to files as their users mean them, and what cannot be a text is named with what it is."""

import gzip
import json
import logging
import os
import pickle
import socket
import sqlite3
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cynosure.measure import score
from cynosure.text import find_sources, read_documents
from cynosure.text.binary import HEAD, binary_kind
from cynosure.text.sources import looks_like_file, total_bytes
from tests.tiny import tiny


def names(*given: Path | str, **options: str) -> list[str]:
    return [Path(source.name).name for source in find_sources(list(map(str, given)), **options)]


def write_binaries(folder: Path) -> dict[str, str]:
    """A file of each kind that a library here can make, and a word of what it is."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    save_file({"a": torch.zeros(3)}, folder / "a.safetensors")
    torch.save({"a": torch.zeros(3)}, folder / "b.pt")
    np.save(folder / "c.npy", np.zeros(3))
    np.savez(folder / "d.npz", a=np.zeros(3))
    (folder / "e.pkl").write_bytes(pickle.dumps([1.0, "a"]))
    base = sqlite3.connect(folder / "f.db")
    base.execute("create table a (b)")
    base.commit()
    base.close()
    (folder / "g.so").write_bytes(Path(sys.executable).resolve().read_bytes()[:5000])
    with zipfile.ZipFile(folder / "h.docx", "w") as archive:
        archive.writestr("[Content_Types].xml", "<a/>")
        archive.writestr("word/document.xml", "<a/>")
    (folder / "i.txt").write_bytes(gzip.compress(b"text"))
    (folder / "j.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (folder / "k.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF")
    (folder / "l.pdf").write_bytes(b"%PDF-1.4\n1 0 obj\n")
    (folder / "m.gguf").write_bytes(b"GGUF\3\0\0\0")
    (folder / "n.txt").write_bytes("text without a mark".encode("utf-16-be"))
    (folder / "o.tar.gz").write_bytes(gzip.compress(b"a.txt".ljust(257, b"\0") + b"ustar\x0000"))
    return {
        "a.safetensors": "safetensors", "b.pt": "PyTorch checkpoint", "c.npy": "NumPy array", "d.npz": "NumPy archive",
        "e.pkl": "pickle", "f.db": "SQLite", "g.so": "ELF", "h.docx": "Word", "i.txt": "gzip.*so that it ends in .gz",
        "j.png": "PNG", "k.jpg": "JPEG", "l.pdf": "PDF", "m.gguf": "GGUF", "n.txt": "UTF-16BE.*iconv -f UTF-16BE",
        "o.tar.gz": "tar archive",
    }  # fmt: skip


def test_binary_files_are_named_with_what_they_are(tmp_path: Path) -> None:
    for name, kind in write_binaries(tmp_path).items():
        with pytest.raises(ValueError, match=rf"{name} is .*{kind}"):
            find_sources([str(tmp_path / name)])


def test_binary_files_in_a_folder_are_left_out_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cynosure")
    kinds = write_binaries(tmp_path)
    (tmp_path / "z.txt").write_text("text")
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert names(tmp_path) == names(tmp_path / "*") == names(tmp_path / "**") == ["z.txt"]
    note = caplog.messages[0]
    assert note.startswith(f"{len(kinds) + 1} files are left out: {len(kinds) - 1} binary ({tmp_path}/a.safetensors, ")
    assert "and 9 more)" in note
    assert f"1 UTF-16BE without a byte order mark ({tmp_path}/n.txt)" in note
    assert f"1 no table ({tmp_path}/config.json)" in note
    (tmp_path / "z.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no text in '.*': 16 files are left out: 14 binary"):
        find_sources([str(tmp_path)])


@settings(max_examples=100, deadline=None)
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
    st.sampled_from(["", "MZ", "BM", "ID3"]),
)
def test_no_text_is_taken_for_binary(text: str, start: str) -> None:
    if not text.startswith("%PDF-"):
        data = (start + text).encode()
        assert binary_kind(data) is None
        assert binary_kind((data * HEAD)[:HEAD]) is None  # cut within a character
        for encoding in ("utf-16", "utf-32"):
            assert binary_kind((start + text).encode(encoding)) is None
    assert binary_kind((start + "caf\xe9 na\xefve").encode("latin-1")) is None


@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"])
@pytest.mark.parametrize("text", ["a", "caf\xe9\n", "x" * HEAD + "\U0001f600"])
def test_encodings_without_a_mark_are_named(tmp_path: Path, encoding: str, text: str) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=f"is {encoding} without a byte order mark, .*: iconv -f {encoding} -t UTF-8"):
        list(read_documents(find_sources([str(tmp_path / "a.txt")])))


@pytest.mark.parametrize(
    "data", [b"a\0b", b"a\0\1\0", b"\0" * 8, b"a\0b\0c\0\0\0", np.arange(40, dtype="<i4").tobytes()]
)
def test_other_files_with_nul_are_called_no_encoding(tmp_path: Path, data: bytes) -> None:
    assert binary_kind(data) == "binary data"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ('{"a": 1}', False), ('{\n "text": "a"\n}', True), ("[1, 2]", False), ('["a", "b"]', True), ("[]", True),
        ('[{"id": 1}]', False), ('[{"text": null}, {"text": "a"}]', True), ('{"prompt": "a", "completion": "b"}', True),
        ("// a comment\n{}", False), ("", True), ('{"body": "a"}', False),
    ],
)  # fmt: skip
def test_json_that_is_no_table_of_texts_is_left_out_of_a_folder(tmp_path: Path, text: str, read: bool) -> None:
    (tmp_path / "a.json").write_text(text)
    (tmp_path / "b.txt").write_text("b")
    assert names(tmp_path) == (["a.json", "b.txt"] if read else ["b.txt"])
    assert names(tmp_path / "a.json") == ["a.json"]
    assert ("a.json" in names(tmp_path, column="body")) == ('"body"' in text or text in ("", "[]", '["a", "b"]'))


def test_a_json_file_that_is_no_table_stops_where_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"config\.json:1: no column 'text', only a"):
        list(read_documents(find_sources([str(tmp_path / "config.json")])))


def test_links_to_folders_are_followed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cynosure")
    data, other = tmp_path / "data", tmp_path / "other"
    for path in (data / "a.txt", data / "sub" / "b.txt", other / "c.txt", other / "deep" / "d.txt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    (data / "linked").symlink_to(other)
    for n in range(6):  # each doubles the paths that a walk without memory would take
        (data / f"up{n}").symlink_to(data)
        (other / f"back{n}").symlink_to(data)
    (data / "sub" / "again").symlink_to(other)
    wanted = ["a.txt", "c.txt", "d.txt", "b.txt"]
    assert names(data) == wanted
    assert any("linked" in line and "again" in line for line in caplog.messages)
    assert sorted(names(data / "**")) == sorted(wanted)
    assert sorted(names(data / "**" / "*.txt")) == sorted(wanted)
    assert sorted(names(data / "**" / "**" / "*.txt")) == sorted(wanted)
    assert names(data / "**" / "deep" / "*.txt") == ["d.txt"]
    assert sorted(names(data, data)) == sorted(wanted)


def test_a_file_counts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cynosure")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").hardlink_to(tmp_path / "a.txt")
    assert names(tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "a.txt") == ["a.txt"]
    assert caplog.messages == [
        f"{tmp_path}/a.txt is read once: {tmp_path}/b.txt is the same file",
        f"{tmp_path}/a.txt is read once: it is named twice",
    ]


def test_globs_walk_the_folders_they_lead_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "sub/b.txt", "sub/deep/c.md", ".hidden/d.txt", "[odd]/e.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    assert names("*") == ["e.txt", "a.txt", "b.txt", "c.md"]
    assert names("**/*.txt") == ["e.txt", "a.txt", "b.txt"]
    assert names("sub/**") == ["b.txt", "c.md"]
    assert names("s*/**/*.md") == ["c.md"]
    assert names("[odd]/e.txt") == ["e.txt"]


def test_what_is_no_file_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cynosure")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "a.txt").write_text("a")
    os.mkfifo(tmp_path / "pipe")
    with TemporaryDirectory(dir="/tmp") as short, socket.socket(socket.AF_UNIX) as plug:
        plug.bind(f"{short}/s")
        (tmp_path / "plug").symlink_to(f"{short}/s")
        for name, kind in (("broken", "a broken link"), ("plug", "a socket"), ("self", "a link that leads back")):
            with pytest.raises(ValueError, match=f"{name} is {kind}"):
                find_sources([str(tmp_path / name)])
        with pytest.raises(ValueError, match="/dev/null is a device, not a text: give a file"):
            find_sources(["/dev/null"])
        assert names(tmp_path) == ["a.txt"]
    assert "4 files are left out: 1 broken link" in caplog.text
    for kind in ("1 pipe", "1 socket", "1 link that leads back to itself"):
        assert kind in caplog.text


def test_names_that_stand_for_nothing(tmp_path: Path) -> None:
    for words in ("some words", "word " * 100, "What is this?!"):
        with pytest.raises(FileNotFoundError, match=r"to score words, pipe them in: echo .*\| cynosure score MODEL -"):
            find_sources([words])
    with pytest.raises(FileNotFoundError, match="a name is empty"):
        find_sources([""])
    with pytest.raises(FileNotFoundError, match="no such text: 'wikitext'"):
        find_sources(["wikitext"], datasets=False)


def test_words_are_told_from_files() -> None:
    assert all(map(looks_like_file, ("a.txt", "./a", "a/b", "A.JSONL.GZ", "my data/a file.txt", "a.parquet", "/x")))
    assert not any(map(looks_like_file, ("Paris", "and/or so", "U.S.", "3.14", "see notes.txt for", "read a.txt", "")))


def test_a_path_is_never_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("looked up"))
    with pytest.raises(FileNotFoundError, match="there is no file or folder 'wikitext'"):
        score(tiny(), [Path("wikitext")])


def test_the_size_of_compressed_texts_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"abc"))
    assert total_bytes(find_sources([str(tmp_path / "a.txt")])) == 3
    assert total_bytes(find_sources([str(tmp_path)])) is None


def test_parquet_within_a_compression_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(ValueError, match=r"a\.parquet\.gz is compressed twice.*unpack the file first"):
        find_sources([str(tmp_path / "a.parquet.gz")])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.txt").chmod(0)
    for name in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(PermissionError, match=r"a\.txt"):
            find_sources([str(name)])


def test_model_folders_hold_no_texts(tmp_path: Path) -> None:
    """Of all that stands in one, what is a text is read."""
    tiny().model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": {"vocab": {"a": 1}}}))
    (tmp_path / "README.md").write_text("read me")
    assert names(tmp_path) == ["README.md"]

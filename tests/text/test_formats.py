"""The same documents come out of every format, compression and encoding."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cynosure.text import Document, find_sources, read_documents, source_digest

PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pyarrow.compress(data, "zstd", asbytes=True),
}
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


def read(path: Path) -> list[Document]:
    return list(read_documents(find_sources([str(path)])))


def written(texts: list[str], ending: str) -> str:
    if ending in (".csv", ".tsv"):
        out = io.StringIO(newline="")
        writer = csv.writer(out, delimiter="," if ending == ".csv" else "\t", quoting=csv.QUOTE_ALL)
        writer.writerows([["id", "text"], *(["007", text] for text in texts)])
        return out.getvalue()
    rows = [{"text": text} for text in texts]
    if ending == ".json":
        return json.dumps(rows, ensure_ascii=False)
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("ending", [".json", ".ndjson", ".JSONL", ".jsonl", ".csv", ".tsv"])
@settings(max_examples=15, deadline=None)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=4), encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"])
)
def test_every_format_gives_the_same_documents(ending: str, packing: str, texts: list[str], encoding: str) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"a{ending}{packing}"
        file.write_bytes(PACK[packing](written(texts, ending).encode(encoding)))
        assert [document.text for document in read(file)] == texts


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_texts_are_unpacked_and_decoded(tmp_path: Path, packing: str, encoding: str) -> None:
    file = tmp_path / f"a.txt{packing}"
    file.write_bytes(PACK[packing]("é\r\n\u0a0a\u2028猫\n".encode(encoding)))
    assert read(file) == [Document(str(file), "é\r\n\u0a0a\u2028猫\n")]


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".xz", ".zst"])
def test_packed_files_that_are_cut_short_are_named(tmp_path: Path, packing: str) -> None:
    file = tmp_path / f"a.txt{packing}"
    file.write_bytes(PACK[packing](os.urandom(3000).hex().encode())[:-30])
    with pytest.raises(ValueError, match=r"a\.txt\.\w+ is not a complete \w+ file"):
        read(file)


def test_tables_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    deep = tmp_path / "a.jsonl"
    deep.write_text('{"text": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ValueError, match=r"a\.jsonl line 1 is JSON nested too deeply"):
        read(deep)
    table = tmp_path / "a.csv"
    table.write_text("id,text\n1,a\n2,b,c\n")
    with pytest.raises(ValueError, match=r"a\.csv:3 has 3 cells, but the header has 2"):
        read(table)
    table.write_text('id,text\n1,"a')
    with pytest.raises(ValueError, match=r"a\.csv line 2 is not CSV: unexpected end of data"):
        read(table)


def test_a_pipe_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_bytes, args=(b"a\r\nb",), daemon=True).start()
    (source,) = find_sources([str(pipe)])
    assert source_digest(source) is None
    assert list(read_documents([source])) == [Document(str(pipe), "a\r\nb")]


def test_a_file_is_read_once_whatever_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "b.txt"
    file.write_text("b")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "c.txt").hardlink_to(file)
    names = [str(file), str(tmp_path / "**"), str(tmp_path), str(file)]
    assert [document.text for document in read_documents(find_sources(names))] == ["b"]

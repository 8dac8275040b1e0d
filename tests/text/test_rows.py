"""Rows of tables and documents within texts: streamed, split, left out and named."""

import csv
import errno
import gzip
import io
import json
import re
import tracemalloc
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from cynosure.measure import Corpus, diverge, score
from cynosure.text import Document, find_sources, json_values, read_documents, unpacking
from cynosure.text.documents import check_split_at, parted
from cynosure.text.json_values import Values
from tests.tiny import tiny

BAD = '{"text": "one"}\n{"text": null}\n{"text": oops}\n{"body": "x"}\n[1]\n{"text": "two"}\n{"text": "th'


def read(path: Path, **options: object) -> list[Document]:
    return list(read_documents(find_sources([str(path)]), **options))  # type: ignore[arg-type]


def texts(path: Path, **options: object) -> list[str]:
    return [document.text for document in read(path, **options)]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=3), part, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(JSON, max_size=4), st.integers(1, 7), st.sampled_from([None, 1]), st.booleans())
def test_values_are_those_of_json_wherever_chunks_end(
    rows: list[object], size: int, indent: int | None, as_array: bool
) -> None:
    written = [json.dumps(rows, indent=indent)] if as_array else [json.dumps(row, indent=indent) for row in rows]
    text = "\n".join(written)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "CHUNK", 1)
        values = Values((text[i : i + size] for i in range(0, len(text), size)), "a")
        if as_array:
            assert values.next() == "["
            assert [element for element, _ in values.elements()] == rows
        else:
            found = []
            while values.next():
                found.append(values.take())
            assert found == rows
        assert values.next() == ""


def test_an_array_never_lies_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"text": f"{i:08}" * 100} for i in range(20_000)]))  # one line of 16 MB
    documents = iter(read_documents(find_sources([str(file)])))
    tracemalloc.start()
    number = sum(1 for _ in documents)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert number == 20_000
    assert most < 3_000_000


def test_faults_in_json_are_named_by_line(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    cases = {
        '[\n{"text": "a"},\n{"text": oops}\n]': r"line 3 is not JSON: Expecting value at column 10",
        '[\n{"text": "a"}\n{"text": "b"}\n]': r"line 3 is not JSON: Expecting ',' delimiter at column 1",
        '[\n{"text": "a"},\n{"text": "b': r"line 3 is not JSON: Unterminated string at column 10",
        '[\n{"text": "a"},\n]': r"line 3 is not JSON: Expecting value at column 1",
        '["a"]\n["b"]\n': r"line 2 continues after its array: give one array, or one row per line",
        '[{"text": "a"},\n{"text": null}]': r"line 2: .*a\.json:1: column 'text' is null, expected a string",
        '{"text": "a"}\n{"text": oops}\n': r"line 2 is not JSON: Expecting value at column 10",
        '{\n"text": 5}': r"a\.json:1: column 'text' is a float, expected a string",
        "[" * 100_000: r"line 1 is JSON nested too deeply",
    }
    for text, wrong in cases.items():
        file.write_text(text)
        with pytest.raises(ValueError, match=wrong):
            read(file, bad_rows="stop")


def test_one_object_is_one_row_and_so_are_several(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{\n "text": "a"\n}\n\n{"text":\n "b"}{"text": "c"}')
    assert [(document.name, document.text) for document in read(file)] == [
        (f"{file}:1", "a"), (f"{file}:5", "b"), (f"{file}:6", "c"),
    ]  # fmt: skip


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv"])
def test_what_is_replaced_is_counted_for_its_own_document(tmp_path: Path, ending: str) -> None:
    bad = b"x\xffy\xe7\x8c"
    file = tmp_path / f"a.{ending}"
    rows = [b'{"text": "a", "other": "\xff"}', b'{"text": "%s"}' % bad, b'{"text": "c"}']
    file.write_bytes({
        "json": b"[%s]" % b", ".join(rows), "jsonl": b"\n".join(rows), "csv": b"text,other\na,\xff\n%s,\nc,\n" % bad,
    }[ending])  # fmt: skip
    found = [(document.text, document.n_replaced) for document in read(file, errors="replace")]
    assert found == [("a", 0), ("x\ufffdy\ufffd", 2), ("c", 0)]
    with pytest.raises(
        ValueError, match=rf"a\.{ending} is not UTF-8: byte 0xff at offset {file.read_bytes().find(0xFF)}"
    ):
        read(file, bad_rows="skip")


def test_csv_keeps_the_limit_of_others_and_names_bare_carriage_returns(tmp_path: Path) -> None:
    file, limit = tmp_path / "a.csv", csv.field_size_limit()
    file.write_text("text\n" + "x" * (limit + 1) + "\nb\n")
    for document in read_documents(find_sources([str(file)])):
        assert csv.field_size_limit() == limit
        assert document.text
    file.write_bytes(b'text\r\na\r\n"b\rc"\r\nd\re\r\nf\r\n')
    with pytest.raises(ValueError, match=r"a\.csv line \d has a carriage return outside quotes: end rows"):
        read(file)
    assert texts(file, bad_rows="skip") == ["a", "b\rc", "f"]
    file.write_text('text,id\n,1\n"",2\n')  # a CSV file has no null
    assert texts(file) == ["", ""]


def test_bad_rows_stop_or_are_left_out(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text(BAD)
    with pytest.raises(ValueError, match=r"a\.jsonl:2: column 'text' is null, expected a string"):
        read(lines)
    left_out: list[str] = []
    assert texts(lines, bad_rows="skip", skip=left_out.append) == ["one", "two"]
    assert [fault.removeprefix(str(lines))[:8] for fault in left_out] == [
        ":2: colu", " line 3 ", ":4: no c", ":5: no c", " line 7 ",
    ]  # fmt: skip
    table = tmp_path / "a.csv"
    table.write_text("id,text\n1,a\n2,b,c\n3\n4,d\n")
    left_out.clear()
    assert texts(table, bad_rows="skip", skip=left_out.append) == ["a", "d"]
    assert left_out == [f"{table}:{n} has {k} cells, but the header has 2" for n, k in ((3, 3), (4, 1))]
    rows = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", None, "c"]}), rows)
    assert texts(rows, bad_rows="skip") == ["a", "c"]
    with pytest.raises(ValueError, match="bad_rows must be 'stop' or 'skip', got 'drop'"):
        read(rows, bad_rows="drop")


def test_a_table_of_bad_rows_alone_stops(tmp_path: Path) -> None:
    """Else a column that is named wrongly would leave everything out."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"body": "a"}\n{"body": "b"}\n')
    with pytest.raises(ValueError, match=r"no row of .*a\.jsonl is a document: .*a\.jsonl:1: no column"):
        read(file, bad_rows="skip")


def test_rows_left_out_are_in_notes_json_and_manifest(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(BAD)
    corpus = Corpus.of_sources(find_sources([str(file)]), bad_rows="skip")
    other = Corpus.of_sources(find_sources([str(file)]))
    assert "bad_rows" not in other.origin
    for _ in range(2):  # the second time nothing is read
        scores = score(tiny(), corpus, out=tmp_path / "run")
        (note,) = [note for note in scores.to_json()["notes"] if "left out" in note]
        assert note.startswith(
            f"5 rows are left out: {file}:2: column 'text' is null, expected a string; {file} line 3"
        )
        assert note in json.loads((tmp_path / "run" / "manifest.json").read_text())["found"]
    assert note in score(tiny(), corpus).notes
    assert note in diverge(tiny(), tiny(seed=1), corpus).notes
    with pytest.raises(ValueError, match=r"its corpus\.bad_rows is skip, and now it is nothing"):
        score(tiny(), other, out=tmp_path / "run")


@settings(max_examples=200, deadline=None)
@given(st.text("ab<>", max_size=30), st.sampled_from(["<>", "aa", "<a>", "b"]), st.integers(1, 5))
def test_texts_are_parted_as_strings_are(text: str, mark: str, size: int) -> None:
    pieces = (text[i : i + size].encode() for i in range(0, len(text), size))
    assert [part.decode() for part in parted(pieces, mark.encode())] == text.split(mark)


def test_a_text_is_split_into_documents(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\ufeffé one\n<|endoftext|>\n\n<|endoftext|><|endoftext|>two\n<|endoftext|>\n", newline="")
    assert read(file, split_at="<|endoftext|>") == [
        Document(f"{file}#1", "é one\n"), Document(f"{file}#2", "two\n"),
    ]  # fmt: skip
    assert texts(file, split_at="\n\n", limit=1) == ["é one\n<|endoftext|>"]
    file.write_bytes(b"a\xc3\xa9|b\xff")
    with pytest.raises(ValueError, match=r"is not UTF-8: byte 0xff at offset 5"):
        read(file, split_at="|")
    assert [document.n_replaced for document in read(file, split_at="|", errors="replace")] == [0, 1]
    with pytest.raises(ValueError, match="split_at must not be empty"):
        read(file, split_at="")
    table = tmp_path / "a.jsonl"
    table.write_text('{"text": "a|b"}')
    assert texts(table, split_at="|") == ["a|b"]
    with pytest.raises(ValueError, match=r"the rows of .*a\.jsonl are documents already"):
        check_split_at(find_sources([str(table)]), "|")


def test_documents_split_off_are_scored_apart(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    parts = ["the cat sat on the mat. ", "naïve café 猫", "the end"]
    file.write_text("<|endoftext|>".join(parts))
    sources = find_sources([str(file)])
    corpus = Corpus.of_sources(sources, split_at="<|endoftext|>")
    found = score(tiny(), corpus, out=tmp_path / "run")
    apart = sum(score(tiny(), [part]).to_json()["nats"] for part in parts)
    assert found.to_json()["nats"] == pytest.approx(apart, rel=1e-6)
    assert found.to_json()["documents"] == 3
    with pytest.raises(ValueError, match=re.escape("its corpus.split_at is <|endoftext|>, and now it is nothing")):
        score(tiny(), Corpus.of_sources(sources), out=tmp_path / "run")


def test_a_byte_order_mark_is_no_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "cynosure")
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfthe cat sat")
    corpus = Corpus.of_sources(find_sources([str(file)]))
    with_mark, without = (score(tiny(), texts).to_json() for texts in (corpus, ["the cat sat"]))
    assert (with_mark["bytes"], with_mark["nats"]) == (without["bytes"], without["nats"])
    assert "a.txt begins with a byte order mark, which is not part of the text" in caplog.text
    file.write_bytes(b"\xef\xbb\xbfab\xff")
    with pytest.raises(ValueError, match="byte 0xff at offset 5"):
        read(file)


@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le", "utf-32-be", "utf-32-le"])
@pytest.mark.parametrize("ending", ["txt", "json", "jsonl", "csv"])
def test_wide_encodings_of_either_order(tmp_path: Path, encoding: str, ending: str) -> None:
    text = "a\u0a0a猫😀\u2028"
    row = json.dumps({"text": text}, ensure_ascii=False)
    written = {"txt": text, "json": f"[{row}]", "jsonl": row, "csv": f"text\n{text}\n"}[ending]
    file = tmp_path / f"a.{ending}"
    file.write_bytes(("\ufeff" + written).encode(encoding))
    assert texts(file) == [text]


def test_a_fault_of_the_disk_is_not_one_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: object) -> int:
            raise OSError(errno.EIO, "Input/output error")

    file = tmp_path / "a.txt.gz"
    file.write_bytes(gzip.compress(b"a"))
    sources = find_sources([str(file)])
    monkeypatch.setattr(unpacking, "unpacked", lambda name: io.BufferedReader(Failing()))
    with pytest.raises(OSError, match="Input/output error"):
        list(read_documents(sources))


def test_a_pipe_is_checked_as_files_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\x89PNG\r\n\x1a\n\0")))
    with pytest.raises(ValueError, match="<stdin> is a PNG image, not text"):
        list(read_documents(find_sources(["-"])))

"""Texts come as they stand, and what cannot be read is said with its place."""

import gzip
import hashlib
import io
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from cynosure.text import TRAINED, Document, find_sources, read_documents, source_digest


def read(*names: Path | str, **options: Any) -> list[tuple[str, str]]:
    documents = read_documents(find_sources(list(map(str, names))), **options)
    return [(document.name, document.text) for document in documents]


def write_jsonl(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_file_is_read_byte_for_byte_after_its_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffa\r\nb\ré\ufeff \n\n".encode())
    assert read(file) == [(str(file), "a\r\nb\ré\ufeff \n\n")]


def test_folders_are_walked_in_order_and_hidden_files_left_out(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/b.txt", ".hidden", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    write_jsonl(tmp_path / "c.jsonl", {"text": "row"})
    assert [text for _, text in read(tmp_path)] == ["a/b.txt", "a/z.md", "b.txt", "row"]


def test_globs(tmp_path: Path) -> None:
    for name in ("2.txt", "1.txt", "3.md"):
        (tmp_path / name).write_text(name)
    assert [text for _, text in read(tmp_path / "*.txt")] == ["1.txt", "2.txt"]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\r\nb")))
    assert read("-") == [("<stdin>", "a\r\nb")]


def test_jsonl_and_parquet_give_a_document_a_row(tmp_path: Path) -> None:
    lines = write_jsonl(tmp_path / "a.jsonl", {"text": "one\n", "id": 1}, {"text": "zwei ö"})
    table = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"id": [1, 2], "text": ["three", ""]}), table)
    assert read(lines, table) == [
        (f"{lines}:1", "one\n"),
        (f"{lines}:2", "zwei ö"),
        (f"{table}:0", "three"),
        (f"{table}:1", ""),
    ]
    assert len(read(lines, table, limit=3)) == 3


def test_a_dataset_is_streamed_from_its_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(path: str, config: str | None, split: str | None, streaming: bool) -> object:
        assert (path, config, streaming) == ("org/name", "small", True)
        rows = {
            part: datasets.IterableDataset.from_generator(lambda p=part: iter([{"text": p}]))
            for part in ("train", "test")
        }
        return rows[split] if split else datasets.IterableDatasetDict(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read("org/name:small") == [("org/name:test:0", "test")]
    assert read("org/name:small:train") == [("org/name:train:0", "train")]
    assert read("org/name:small", splits=TRAINED) == [("org/name:train:0", "train")]


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes(b"na\xefve")
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8: byte 0xef at offset 2"):
        read(file)
    assert read(file, errors="replace") == [(str(file), "na\ufffdve")]
    lines = tmp_path / "a.jsonl"
    lines.write_bytes(b'{"text": "a"}\n{"text": "\xff"}')
    with pytest.raises(ValueError, match=r"a\.jsonl is not UTF-8: byte 0xff at offset 24"):
        read(lines)
    lines.write_text('{"text": "a\\ud800"}')
    with pytest.raises(ValueError, match=r"a\.jsonl:1 is not UTF-8: a lone surrogate at character 1"):
        read(lines)
    assert read(lines, errors="replace") == [(f"{lines}:1", "a\ufffd")]


def test_what_is_not_there(tmp_path: Path) -> None:
    for name in ("no-such.txt", str(tmp_path / "x"), "./x", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="no such text"):
            read(name)
    with pytest.raises(FileNotFoundError, match="no files in"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="no files in"):
        read(tmp_path / "*.txt")
    with pytest.raises(ValueError, match="no file, folder or glob 'no-such-dataset' here, and no such dataset"):
        read("no-such-dataset")


def test_tables_without_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.jsonl:2: no column 'text', only body"):
        read(write_jsonl(tmp_path / "a.jsonl", {"text": "x"}, {"body": "x"}))
    with pytest.raises(ValueError, match=r"a\.jsonl:1: no column 'text', only a list"):
        read(write_jsonl(tmp_path / "a.jsonl", ["x"]))
    (tmp_path / "b.jsonl").write_text('\n{"text": }')
    with pytest.raises(ValueError, match=r"b\.jsonl line 2 is not JSON: Expecting value at column 10"):
        read(tmp_path / "b.jsonl")
    parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet:0: no column 'text', only body; name another with `column`"):
        read(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("PAR?")
    with pytest.raises(ValueError, match=r"b\.parquet is not a valid Parquet file"):
        read(tmp_path / "b.parquet")


def test_options_are_checked(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(ValueError, match="errors must be 'strict' or 'replace', got 'ignore'"):
        read(tmp_path, errors="ignore")
    with pytest.raises(ValueError, match="limit must be at least 1 document, got 0"):
        read(tmp_path, limit=0)


def test_packed_lines_are_read_as_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"text": "one\\r\\n"}\n{"text": "two"}'))
    assert read(file) == [(f"{file}:1", "one\r\n"), (f"{file}:2", "two")]
    file.write_bytes(gzip.compress(b'{"text": "one"}\n{"text": "\xff"}'))
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz is not UTF-8: byte 0xff at offset 26"):
        read(file)
    for broken in (gzip.compress(b'{"text": "one"}' * 99)[:-20], b"plain"):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=r"a\.jsonl\.gz is not a complete gzip file"):
            read(file)


def test_a_named_column_is_read(tmp_path: Path) -> None:
    lines = write_jsonl(tmp_path / "a.jsonl", {"text": "one", "body": "zwei"})
    table = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["three"], "body": ["vier"]}), table)
    found = read_documents(find_sources([str(lines), str(table)]), column="body")
    assert [document.text for document in found] == ["zwei", "vier"]
    with pytest.raises(ValueError, match=": no column 'none', only text, body; name another with `column`"):
        list(read_documents(find_sources([str(table)]), column="none"))


def test_a_prompt_and_its_completion_are_one_document(tmp_path: Path) -> None:
    lines = write_jsonl(tmp_path / "a.jsonl", {"prompt": "né ", "completion": "猫"}, {"prompt": "", "completion": ""})
    table = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["a"], "completion": ["b"]}), table)
    assert list(read_documents(find_sources([str(lines), str(table)]))) == [
        Document(f"{lines}:1", "né 猫", 3),
        Document(f"{lines}:2", "", 0),
        Document(f"{table}:0", "ab", 1),
    ]
    write_jsonl(lines, {"prompt": "a", "completion": "b", "text": "c"})
    assert read(lines) == [(f"{lines}:1", "c")]
    with pytest.raises(ValueError, match=": no column 'body'"):
        list(read_documents(find_sources([str(table)]), column="body"))


def test_what_is_replaced_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufffd".encode() + b" \xff \xe7\x8c.")  # one that was there, one byte, a character cut short
    (document,) = read_documents(find_sources([str(file)]), errors="replace")
    assert (document.text, document.n_replaced) == ("\ufffd \ufffd \ufffd.", 2)
    lines = tmp_path / "a.jsonl"
    lines.write_bytes(b'{"text": "\xff\\ud800"}')
    (document,) = read_documents(find_sources([str(lines)]), errors="replace")
    assert (document.text, document.n_replaced) == ("\ufffd\ufffd", 2)


def test_binary_files(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"ELF\x00\xff")
    with pytest.raises(ValueError, match=r"a\.bin looks binary: a NUL byte at offset 3; `errors='replace'`"):
        read(file)
    assert read(file, errors="replace") == [(str(file), "ELF\x00\ufffd")]


def test_digests_are_those_of_the_files(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"x" * 3_000_000)
    named, stdin = find_sources([str(file), "-"])
    assert source_digest(named) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert source_digest(stdin) is None


def raw_strings(*values: bytes) -> pyarrow.Array:
    """A column that says it is text and need not be UTF-8, as some writers leave behind."""
    column = pyarrow.array(values, pyarrow.binary())
    return pyarrow.StringArray.from_buffers(len(column), column.buffers()[1], column.buffers()[2])


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "binary", "dictionary"])
def test_parquet_texts_of_every_type_come_as_they_stand(tmp_path: Path, kind: str) -> None:
    text = "\ufeffa\r\n\x00\u2028é "
    column = pyarrow.array([text, text])
    types = {"dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string())}
    table = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": column.cast(types.get(kind) or getattr(pyarrow, kind)())}), table)
    assert read(table) == [(f"{table}:0", text), (f"{table}:1", text)]


def test_parquet_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    table = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": raw_strings(b"ok", b"x\xffy\xe7\x8c")}), table)
    with pytest.raises(ValueError, match=r"a\.parquet:1 is not UTF-8: byte 0xff at offset 1; `errors='replace'`"):
        read(table)
    last = list(read_documents(find_sources([str(table)]), errors="replace"))[-1]
    assert (last.text, last.n_replaced) == ("x\ufffdy\ufffd", 2)


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    table = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["abc" * 1000] * 50}), table, compression="snappy")
    data = bytearray(table.read_bytes())
    data[30:60] = b"\xff" * 30
    table.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.parquet is not a valid Parquet file: "):
        read(table)


@pytest.mark.parametrize("rows_in_group", [250, 8000])
def test_a_large_parquet_file_never_lies_in_memory(tmp_path: Path, rows_in_group: int) -> None:
    table, n_rows = tmp_path / "a.parquet", 8000
    texts = [f"{i:08}" * 500 for i in range(n_rows)]
    parquet.write_table(pyarrow.table({"text": texts}), table, rows_in_group, compression="none", use_dictionary=False)
    assert table.stat().st_size > 30_000_000
    del texts
    pyarrow.default_memory_pool().release_unused()
    before = pyarrow.total_allocated_bytes()
    documents = read_documents(find_sources([str(table)]))
    most = max(pyarrow.total_allocated_bytes() for _ in documents) - before
    assert most < 12_000_000


def test_large_rows_of_parquet_are_read_one_by_one(tmp_path: Path) -> None:
    table = tmp_path / "a.parquet"
    with parquet.ParquetWriter(table, pyarrow.schema([("text", pyarrow.string())]), use_dictionary=False) as writer:
        for i in range(30):
            writer.write_table(pyarrow.table({"text": [f"{i:08}" * 125_000]}))
    before = pyarrow.total_allocated_bytes()
    most = max(pyarrow.total_allocated_bytes() for _ in read_documents(find_sources([str(table)]))) - before
    assert most < 8_000_000


@pytest.mark.parametrize("packed", [False, True])
def test_lines_are_read_as_they_are_asked_for(tmp_path: Path, packed: bool) -> None:
    file = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    lines = b'{"text": "a"}\n' * 200_000 + b"no JSON"
    file.write_bytes(gzip.compress(lines) if packed else lines)
    assert [document.text for document in islice(read_documents(find_sources([str(file)])), 2)] == ["a", "a"]
    with pytest.raises(ValueError, match="line 200001 is not JSON"):
        read(file)


def test_a_dataset_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through `datasets` itself: a configuration, a split, bytes that are not UTF-8."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for part in ("train", "test"):
        (tmp_path / "corpus" / part).mkdir(parents=True)
        column = raw_strings(f"{part} é\r\n".encode(), b"\xff")
        table = pyarrow.table({"text": column, "body": [part, part], "tags": [["a"], []]})
        parquet.write_table(table, f"corpus/{part}/{part}.parquet")
    files = "".join(f"  - split: {part}\n    path: {part}/*\n" for part in ("train", "test"))
    Path("corpus/README.md").write_text(f"---\nconfigs:\n- config_name: small\n  data_files:\n{files}---\n")
    assert read("corpus:small", limit=1) == [("corpus:test:0", "test é\r\n")]
    assert read("corpus:small:train", limit=1) == [("corpus:train:0", "train é\r\n")]
    with pytest.raises(ValueError, match="corpus:test:1 is not UTF-8: byte 0xff at offset 0"):
        read("corpus:small")
    assert read("corpus:small", errors="replace")[1] == ("corpus:test:1", "\ufffd")
    found = read_documents(find_sources(["corpus:small"]), column="body")
    assert [document.text for document in found] == ["test", "test"]
    for name in ("corpus:large", "corpus:small:none"):
        with pytest.raises(ValueError, match=f"no file, folder or glob '{name}' here, and no such dataset: "):
            read(name)


def test_json_keeps_every_character(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"text": " \\u0000\\r\\n\\u2028\xe2\x80\xa8\\ud83d\\ude00\\ufeff ", "n": '
        + b"1" * 5000
        + b"}\r\n"
        b'\r\n{"text": "b"}\r\n'
    )
    assert read(file) == [(f"{file}:1", " \x00\r\n\u2028\u2028😀\ufeff "), (f"{file}:3", "b")]
    for value, found in ((None, "null"), (5, "a float"), (["a"], "a list")):
        with pytest.raises(ValueError, match=f"a.jsonl:1: column 'text' is {found}, expected a string"):
            read(write_jsonl(file, {"text": value}))


def test_standard_input_that_is_not_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    with pytest.raises(ValueError, match="<stdin> is not UTF-8: byte 0xff at offset 2"):
        read("-")

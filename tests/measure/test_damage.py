"""A run that was damaged, in whatever way, gives the same values or one sentence that says what is wrong and where."""

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from cynosure.measure import Scores, open_run, score
from cynosure.measure.storage.shards import digest
from cynosure.models import LanguageModel
from tests.measure.test_store import DOCUMENTS, OPTIONS, interrupted
from tests.tiny import tiny

FEW = DOCUMENTS[:5]
NEW_KEYS = ("shards", "manifest_sha256")  # which earlier versions did not write
VALUES: tuple[Any, ...] = (None, -1, 0, 10**9, 0.5, True, "x", [], ["x"], {}, {"x": 1})


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny()


@pytest.fixture(scope="module")
def whole(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    score(model, FEW, out=folder, **OPTIONS).save()
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("tokens-*.parquet"))


def values(scores: Scores) -> list[Any]:
    statistics = scores.statistics
    each = [statistics.documents.sums().amount("nats").tolist(), statistics.worst_tokens, statistics.left_out()]
    means = [scores.mean_entropy, scores.top1_accuracy, scores.n_bytes, scores.n_chars, scores.n_words]
    return [scores.setting, scores.tokens, scores.nats, scores.document_names, *means, *each]


def outcome(folder: Path, read: Callable[[], Scores]) -> list[Any] | None:
    """The values, or None where they are refused in one line that names the folder or a file in it."""
    try:
        return values(read())
    except (ValueError, FileNotFoundError) as error:
        said = str(error)
    assert str(folder) in said
    assert "\n" not in said
    assert len(said) < 600
    return None


def places(values: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inside = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in inside:
        yield (*at, key)
        yield from places(value, (*at, key))


def edited(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The manifest with each of its values taken out, or another in its place."""
    for *above, key in places(manifest):
        for value in (..., *VALUES):
            made = copy.deepcopy(manifest)
            at: Any = made
            for name in above:
                at = at[name]
            if value is ...:
                del at[key]
            else:
                at[key] = value
            yield made


@pytest.mark.parametrize("new", [True, False], ids=["sealed", "of an earlier version"])
def test_every_value_of_a_manifest(whole: Path, folder: Path, new: bool) -> None:
    expected = values(open_run(whole))
    manifest = json.loads((whole / "manifest.json").read_text())
    if not new:
        manifest = {key: value for key, value in manifest.items() if key not in NEW_KEYS}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert values(open_run(folder)) == expected
    found = []
    for made in edited(manifest):
        (folder / "manifest.json").write_text(json.dumps(made))
        found.append(outcome(folder, lambda: open_run(folder)))
        assert found[-1] in (None, expected), made
    assert found.count(None) > len(found) / 2


def test_every_byte_of_a_run(whole: Path, folder: Path) -> None:
    """Flipped, or the end of the file from there on; so that the name of a shard fits, too."""
    expected, chance = values(open_run(whole)), random.Random(0)
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for at in chance.sample(range(len(data)), min(20, len(data))):
            flipped = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
            for damaged in (flipped, data[:at]):
                path.write_bytes(damaged)
                assert outcome(folder, lambda: open_run(folder)) in (None, expected)
                if path.name.startswith("tokens-"):
                    renamed = path.with_name(f"{path.name[:14]}{digest(damaged)}.parquet")
                    path.rename(renamed)
                    assert outcome(folder, lambda: open_run(folder)) is None
                    renamed.unlink()
        path.write_bytes(data)
    assert values(open_run(folder)) == expected


def rename(folder: Path, number: int, to: int) -> None:
    path = shards_of(folder)[number]
    path.rename(path.with_name(path.name.replace(f"-{number:06d}-", f"-{to:06d}-")))


def again(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """A shard beside another of its number, its name that of its bytes."""
    data = change(path.read_bytes())
    made = path.with_name(f"{path.name[:14]}{digest(data)}.parquet")
    made.write_bytes(data)
    return made


def relabelled(data: bytes, **changes: Any) -> bytes:
    """A shard of other metadata; of none of ours, with `cynosure=None`."""
    table = parquet.read_table(pa.BufferReader(data))
    meta = json.loads(table.schema.metadata[b"cynosure"]) | changes
    buffer = pa.BufferOutputStream()
    kept = {} if changes == {"cynosure": None} else {b"cynosure": json.dumps(meta)}
    parquet.write_table(table.replace_schema_metadata(kept), buffer)
    return bytes(buffer.getvalue().to_pybytes())


def of_another_run(folder: Path) -> None:
    other = folder.parent / "other"
    score(tiny(seed=1), FEW, out=other, **OPTIONS)
    shards_of(folder)[1].unlink()
    shutil.copy(shards_of(other)[1], folder)


def in_manifest(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def beside(number: int, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: [again(shards_of(folder)[number], lambda data: relabelled(data, **changes)), None][1]


def instead(number: int, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = shards_of(folder)[number]
        again(path, lambda data: relabelled(data, **changes))
        path.unlink()

    return change


def damage(folder: Path) -> None:
    path = shards_of(folder)[1]
    again(path, lambda data: data[:-100]).rename(path.with_name(f"{path.name[:14]}{'0' * 16}.parquet"))


SAME = ""
# What is done to a finished run; what `summary` says of it; what the same `score` again says. Nothing: all is well.
DAMAGES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "units lowered": (in_manifest(units=2), "manifest.json was changed", "manifest.json was changed"),
    "units raised": (in_manifest(units=99), "manifest.json was changed", "manifest.json was changed"),
    "garbage for a summary": (lambda folder: (folder / "summary.json").write_bytes(b"\xff{"), SAME, SAME),
    "deep garbage for a manifest": (
        lambda folder: (folder / "manifest.json").write_text("[" * 10**5), "is not JSON", "is not JSON",
    ),
    "a shard under another number": (lambda folder: rename(folder, 1, 2), "lacks 1 of", "is shard 1, not 2"),
    "a shard beyond the last": (lambda folder: rename(folder, 1, 99), "is not one of the", "is not one of the"),
    "a shard twice, both whole": (beside(1, seconds=1.0), SAME, SAME),
    "a shard twice, one damaged": (damage, SAME, SAME),
    "a shard computed again": (instead(1, seconds=1.0), "is not the shard that the run was finished with", SAME),
    "a shard of another run": (of_another_run, "is not the shard that the run was finished", "belongs to another run"),
    "a shard of no run": (instead(1, run=None), "is not the shard that the run was finished", "belongs to another run"),
    "a Parquet file of another program": (
        instead(1, cynosure=None), "is not the shard that the run was finished", "is not a shard of cynosure",
    ),
    "a shard that took no time": (
        instead(1, seconds=-1), "is not the shard that the run was finished", "is not a shard of cynosure",
    ),
    "a shard of strange documents": (
        instead(1, documents=[{"name": 1}]), "is not the shard that the run was finished", "is not a shard of cynosure",
    ),
    "a shard that is gone": (lambda folder: shards_of(folder)[1].unlink(), "lacks 1 of", SAME),
    "a folder for a shard": (
        lambda folder: [path := shards_of(folder)[1], path.unlink(), path.mkdir()], "lacks 1 of", SAME,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_told_or_mended(model: LanguageModel, whole: Path, folder: Path, kind: str) -> None:
    expected = values(open_run(whole))
    harm, summary, anew = DAMAGES[kind]
    harm(folder)
    for words, read in ((summary, lambda: open_run(folder)), (anew, lambda: score(model, FEW, out=folder, **OPTIONS))):
        if words == SAME:
            assert values(read()) == expected
        else:
            with pytest.raises((ValueError, OSError), match=words) as caught:
                read()
            assert str(folder) in str(caught.value)
    if anew == SAME:
        assert values(open_run(folder)) == expected


def test_an_unfinished_run_takes_no_shard_of_another(model: LanguageModel, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    interrupted(model, folder, 20, **OPTIONS)
    n_done = len(shards_of(folder))
    assert 0 < n_done < len(shards_of(whole)) - 1
    other = tmp_path / "other"
    score(tiny(seed=1), FEW, out=other, **OPTIONS)
    strange = Path(shutil.copy(shards_of(other)[n_done], folder))
    with pytest.raises(ValueError, match=f"{strange} belongs to another run than its folder: move it out"):
        score(model, FEW, out=folder, **OPTIONS)
    strange.unlink()
    shutil.copy(shards_of(whole)[n_done], strange.with_name(shards_of(whole)[n_done].name))  # its own, made elsewhere
    again(shards_of(folder)[0], lambda data: relabelled(data, seconds=9.0))
    assert values(score(model, FEW, out=folder, **OPTIONS)) == values(open_run(whole))


def as_of_an_earlier_version(folder: Path) -> None:
    for number, path in enumerate(shards_of(folder)):
        table = parquet.read_table(path)
        meta = json.loads(table.schema.metadata[b"cynosure"])
        del meta["run"], meta["number"]
        path.unlink()
        parquet.write_table(table.replace_schema_metadata({b"cynosure": json.dumps(meta)}), path)
        path.rename(path.with_name(f"tokens-{number:06d}-{digest(path.read_bytes())}.parquet"))
    path = folder / "manifest.json"
    path.write_text(json.dumps({key: x for key, x in json.loads(path.read_text()).items() if key not in NEW_KEYS}))


def test_runs_of_earlier_versions_are_read_and_gone_on_with(model: LanguageModel, whole: Path, folder: Path) -> None:
    as_of_an_earlier_version(folder)
    expected = values(open_run(whole))
    assert values(open_run(folder)) == expected
    shard = again(shards_of(folder)[1], lambda data: relabelled(data, seconds=1.0))
    for read in (lambda: open_run(folder), lambda: score(model, FEW, out=folder, **OPTIONS)):
        with pytest.raises(ValueError, match=r"has shard 1 twice, .* and .*: move one out of the folder"):
            read()
    shard.unlink()
    shards_of(folder)[2].unlink()
    assert values(score(model, FEW, out=folder, **OPTIONS)) == expected
    assert set(NEW_KEYS) < json.loads((folder / "manifest.json").read_text()).keys()

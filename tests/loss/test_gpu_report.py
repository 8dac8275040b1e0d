"""What GPUs would run, compiled here: no spilled registers, wide accesses, barriers where they must be."""

import re
from importlib.util import find_spec

import pytest

from tests.loss.interpreter import INTERPRETED

if INTERPRETED or find_spec("triton") is None:
    pytest.skip("triton is not installed, or only interprets its kernels", allow_module_level=True)

from scripts.gpu_report import TARGETS, VARIANTS, assembly, launched, report


@pytest.fixture(autouse=True)
def _compiled_anew(monkeypatch, tmp_path_factory):
    """Kernels of this session alone: the user's cache of kernels is neither read nor written."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "triton"))


pytestmark = pytest.mark.exhaustive
# Each kernel takes seconds to compile: all GPUs but one are left to `make test-variants`.
BESIDE = [pytest.mark.each_variant]
every_target = pytest.mark.parametrize(
    "target", [pytest.param(name, marks=BESIDE if name != "sm_90" else []) for name in TARGETS]
)


@every_target
@pytest.mark.parametrize("name", VARIANTS)
def test_no_register_is_spilled(name, target):
    assert report(name, target).spills == 0


@every_target
@pytest.mark.parametrize("name", [name for name in VARIANTS if "given" not in name])
def test_every_access_to_logits_has_128_bits(name, target):
    assert report(name, target).load_bits == 128
    assert report(name, target).store_bits == (128 if VARIANTS[name].asked == "gradient" else 0)


@every_target
def test_the_gradient_takes_two_reads_and_a_write_and_the_others_a_read(target):
    assert report("loss and gradient", target).bytes == 2 * 2 + 2
    assert report("loss", target).bytes == report("statistics", target).bytes == 2


@every_target
def test_a_tile_rescales_the_sum_of_a_lane_once(target):
    assert report("loss", target).exponentials == 1 + 1 / 8
    assert report("loss and gradient", target).exponentials == 1 + 1 / 8 + 1


@every_target
def test_the_logit_of_the_target_is_read_before_it_is_overwritten(target):
    """A barrier stands between the last read of one logit and the first store of a tile, and another after these."""
    machine, text = assembly(launched(VARIANTS["loss and gradient"]).compiled(TARGETS[target]))
    lines = text.splitlines()

    def places(pattern, bits):
        return [i for i, line in enumerate(lines) if re.search(pattern, line) and machine.width(line) == bits]

    tiles = places(machine.store, 128)
    read = max(i for i in places(machine.load, 16) if i < tiles[0])
    written = min(i for i in places(machine.store, 16) if i > tiles[-1])
    assert any(re.search(machine.barrier, line) for line in lines[read : tiles[0]])
    assert any(re.search(machine.barrier, line) for line in lines[tiles[-1] : written])

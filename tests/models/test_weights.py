"""A model whose weights are not what its configuration says is refused, or said to be."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from cynosure.measure import score
from cynosure.models import load, split
from cynosure.models.weights import tied_note
from tests.cli.test_bad_input import SMALL, refused, saved
from tests.cli.test_cli import run as run
from tests.loss.subclasses import Parted
from tests.models.test_remote_code import Change
from tests.models.test_remote_code import change as change
from tests.tiny import byte_tokenizer, tiny_model

TEXT = "the cat sat on the mat. " * 5


def add(folder: Path, **tensors: torch.Tensor) -> Path:
    """More tensors in the weights of a folder; of their names `__` stands for a dot."""
    file = folder / "model.safetensors"
    more = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file(load_file(file) | more, file, metadata={"format": "pt"})
    return folder


def test_layers_left_unused_are_refused_or_told(run, change: Change, tmp_path: Path) -> None:
    folder = change(num_hidden_layers=1)
    (tmp_path / "text.txt").write_text(TEXT)
    command = ["score", folder, tmp_path / "text.txt", "--format", "json"]
    refused(run(*command), "leaves unused: 9 tensors, such as model.layers.1.input_layernorm.weight", "--allow-unused")
    done = run(*command, "--allow-unused-weights")
    assert done.status == 0
    note = f"{folder} has weights that are left unused: 9 tensors, such as model.layers.1.input_layernorm.weight"
    assert note in json.loads(done.out)["notes"]
    assert f"cynosure: note: {note}\n" in done.err
    for verb in ("predict", "check"):
        refused(run(verb, folder, "a text"), "leaves unused: 9 tensors")
        assert note in run(verb, folder, "a text", "--allow-unused-weights").err
    done = run("compare", folder, folder, tmp_path / "text.txt", "--allow-unused-weights", "--format", "json")
    assert note in done.err
    assert note in json.loads(done.out)["a"]["notes"]


def test_notes_reach_scores(change: Change) -> None:
    loaded = load(str(change(num_hidden_layers=1)), allow_unused_weights=True)
    assert len(loaded.notes) == 1
    assert split(loaded).notes == loaded.notes
    assert score(loaded, [TEXT]).setting.notes == loaded.notes
    assert load(str(change(num_hidden_layers=2))).notes == ()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model__vision_tower__encoder__layers__0__weight", "vision or audio"),
        ("visual__patch_embed__proj__weight", "vision or audio"),
        ("audio_tower__conv__weight", "vision or audio"),
        ("multi_modal_projector__linear__weight", "vision or audio"),
        ("mtp__layers__0__weight", "multi-token prediction"),
        ("model__mtp_layers__0__weight", "multi-token prediction"),
        ("model__layers__2__eh_proj__weight", "multi-token prediction"),
    ],
)
def test_parts_that_a_causal_model_leaves_out_are_told(change: Change, name: str, part: str) -> None:
    folder = add(change(num_nextn_predict_layers=1), **{name: torch.ones(2)})
    (note,) = load(str(folder)).notes
    assert f"LlamaForCausalLM leaves out {part} weights" in note
    assert note.endswith(f"1 tensor, such as {name.replace('__', '.')}")


@pytest.mark.parametrize("name", ["model__layers__2__eh_proj__weight", "model__adapter__weight", "television__weight"])
def test_other_parts_are_refused(change: Change, name: str) -> None:
    with pytest.raises(ValueError, match=rf"leaves unused: 1 tensor, such as {name.replace('__', '.')}\."):
        load(str(add(change(), **{name: torch.ones(2)})))


def test_what_a_class_declares_to_have_no_use_for_is_told(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"^odd\."])
    (note,) = load(str(add(change(), odd__weight=torch.ones(2)))).notes
    assert "leaves out weights, which it has no use for: 1 tensor, such as odd.weight" in note


def test_buffers_that_carry_nothing_are_not_told(change: Change, tmp_path: Path) -> None:
    folder = add(change(), model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4))
    assert load(str(folder)).notes == ()
    gpt2 = saved(tiny_model("GPT2"), tmp_path / "gpt2")
    mask = torch.ones(1, 1, 64, 64).tril()
    add(gpt2, transformer__h__0__attn__bias=mask, transformer__h__0__attn__masked_bias=torch.tensor(-1e4))
    assert load(str(gpt2)).notes == ()


def test_a_head_on_disk_beside_tied_embeddings_is_told(change: Change, tiny_folder: Path) -> None:
    loaded = load(str(change(tie_word_embeddings=True)))
    (note,) = loaded.notes
    assert note.endswith("the head on disk is used, untied")
    weights = load_file(tiny_folder / "model.safetensors")
    assert torch.equal(loaded.model.get_output_embeddings().weight, weights["lm_head.weight"])
    same = change(tie_word_embeddings=True)
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, same / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    assert load(str(same)).notes == ()
    del weights["lm_head.weight"]
    save_file(weights, same / "model.safetensors", metadata={"format": "pt"})
    assert load(str(same)).notes == ()


def test_another_shape_is_told_in_its_own_words(run, change: Change, tmp_path: Path) -> None:
    folder = change(vocab_size=301)
    words = "lm_head.weight is 300 x 16 on disk, the configuration expects 301 x 16 (2 tensors differ)"
    refused(run("predict", folder, "a text"), f"{folder} does not fit its config.json", words)


def test_a_vision_language_model_is_scored_by_its_text(tmp_path: Path) -> None:
    text = SMALL | {"hidden_size": 16, "intermediate_size": 32, "num_key_value_heads": 2, "head_dim": 8}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    folder = saved(transformers.Gemma3ForConditionalGeneration(config), tmp_path / "gemma")
    loaded = load(str(folder))
    assert all("vision or audio" in note for note in loaded.notes)
    assert score(loaded, [TEXT]).nats > 0


def test_a_gguf_with_layers_left_unused_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.models.test_gguf import llama_cpp_order, write_tokenizer

    monkeypatch.setenv("CYNOSURE_CACHE", str(tmp_path / "cache"))
    model: Any = tiny_model(hidden_size=64, intermediate_size=64, vocab_size=262)
    path = tmp_path / "short.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (("context_length", 64), ("embedding_length", 64), ("feed_forward_length", 64)):
        getattr(writer, f"add_{name}")(value)
    writer.add_block_count(1)  # of two
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(262)
    write_tokenizer(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), llama_cpp_order(name, tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        ValueError,
        match=r"short\.gguf has weights that its configuration leaves unused: 9 tensors, such as blk.1.*get a",
    ):
        load(str(path))


def test_weights_without_memory_are_tied_where_their_parts_are() -> None:
    model = tiny_model(tie_word_embeddings=True)
    one, other = (nn.Parameter(Parted.of(torch.randn(300, 16)), requires_grad=False) for _ in range(2))
    model.lm_head.weight, model.model.embed_tokens.weight = one, nn.Parameter(one.detach(), requires_grad=False)
    assert tied_note(model, "model") == ()
    model.model.embed_tokens.weight = other
    assert "the head on disk is used, untied" in tied_note(model, "model")[0]


class Quantized(Parted):
    """A tensor with few operations."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.abs.default:  # which `isfinite` takes
            raise NotImplementedError(func)
        return super().__torch_dispatch__(func, types, args, kwargs)


def test_quantized_weights_that_are_not_finite_are_named() -> None:
    model = tiny_model()
    layer = model.model.layers[1].mlp.up_proj
    layer.weight = nn.Parameter(Quantized(torch.ones(32, 16, dtype=torch.int8), torch.tensor(torch.nan)), False)
    with pytest.raises(ValueError, match=r"not finite in float32: model\.layers\.1\.mlp\.up_proj\.weight"):
        split(model, tokenizer=byte_tokenizer())

"""Encoders of conditions: sentences by text encoders of transformers, arrays by modules and ONNX files."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from cdiff_rt import Encoder, Expert, Parameterisation, Pipeline, compose, export_composition
from cdiff_rt.engines.weights import places
from cdiff_rt.errors import BadArtefact, BadRequest
from cdiff_rt.manifest import Bundle
from tests.brought import Small
from tests.command_line import check_refused, run

FLOW = Parameterisation("flow", "flow")
WORDS = ("<pad>", "<s>", "</s>", "[UNK]", "a", "red", "car", "blue", "dog")
TOKENS, WIDTH, EMBEDDED = 7, 16, 300
ASKED = {"steps": 4, "eta": 0.0, "seed": 5}


def tokenizer(folder, words=WORDS, **config):
    """A tokenizer.json of a few words, and what lies beside it."""
    tokenizers = pytest.importorskip("tokenizers")
    index = {word: i for i, word in enumerate(words)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(index, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    marks = [(mark, index[mark]) for mark in ("<s>", "</s>")]
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
    folder.mkdir(exist_ok=True, parents=True)
    made.save(str(folder / "tokenizer.json"))
    told = {"pad_token": {"content": "<pad>"}, "model_max_length": TOKENS} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder / "tokenizer.json"


def text_encoder(folder, kind="CLIPTextModel"):
    """As a pipeline of diffusers has it: text_encoder/ and tokenizer/."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind.startswith("CLIP"):
        config = transformers.CLIPTextConfig(
            vocab_size=EMBEDDED,
            hidden_size=WIDTH,
            intermediate_size=32,
            projection_dim=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    else:
        config = transformers.T5Config(vocab_size=EMBEDDED, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    model = getattr(transformers, kind)(config).eval()
    model.save_pretrained(folder / "text_encoder")
    tokenizer(folder / "tokenizer")
    return model


class Styled(nn.Module):
    """Of a condition [B, TOKENS, WIDTH]."""

    def __init__(self, seed=0):
        super().__init__()
        self.small, self.into = Small(seed=seed), nn.Linear(WIDTH, 5)

    def forward(self, x, time, condition):
        return self.small(x, time, self.into(condition).mean(1))


def expert(encoder, seed=0, **more):
    return Expert(Styled(seed), FLOW, condition=(TOKENS, WIDTH), encoder=encoder, **more)


class Numbers(nn.Module):
    """[B, 3] -> [B, TOKENS, WIDTH], by weights that lie in a bundle's file."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.into, self.out = nn.Linear(3, 40), nn.Linear(40, TOKENS * WIDTH)

    def forward(self, numbers):
        return self.out(torch.tanh(self.into(numbers))).reshape(-1, TOKENS, WIDTH)


def onnx_encoder(path, *, inputs=(("ids", TensorProto.INT64, ("batch", TOKENS)),), kind=TensorProto.FLOAT):
    """A row of a table for each id."""
    table = np.random.default_rng(0).standard_normal((len(WORDS), WIDTH)).astype(np.float32)
    table = onnx.numpy_helper.from_array(
        table.astype(np.float16 if kind == TensorProto.FLOAT16 else np.float32), "table"
    )
    given = [helper.make_tensor_value_info(*each) for each in inputs]
    out = helper.make_tensor_value_info("states", kind, (*inputs[0][2], WIDTH))
    nodes = [helper.make_node("Cast", [inputs[0][0]], ["whole"], to=TensorProto.INT64)]
    nodes += [helper.make_node("Gather", ["table", "whole"], ["states"])]
    graph = helper.make_graph(nodes, "theirs", given, [out], [table])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("CLIPTextModel", marks=pytest.mark.slow),
        pytest.param("CLIPTextModelWithProjection", marks=pytest.mark.long),
        pytest.param("T5EncoderModel", marks=pytest.mark.long),
    ],
)
def test_a_sentence_is_what_transformers_makes_of_it_here_and_in_a_bundle(kind, tmp_path):
    model = text_encoder(tmp_path / "mine", kind)
    asked = {"un": None, "influence": {"text": 3, "un": -2}} | ASKED
    encoder = Encoder.of(tmp_path / "mine")
    pipeline = compose({"text": expert(encoder), "un": expert(encoder, fixed="")}, (3, 16, 16))
    ids = [[1, 4, 5, 6, 2, 0, 0], [1, 2, 0, 0, 0, 0, 0]]  # a red car; nothing
    with torch.no_grad():
        text, nothing = model(torch.tensor(ids)).last_hidden_state.numpy()
    arrays = {"text": expert(None), "un": expert(None, fixed=nothing)}
    wanted = compose(arrays, (3, 16, 16)).generate(text=text, **asked).latents
    made = pipeline.generate(text="a red car", **asked)
    assert np.abs(made.latents - wanted).max() < 1e-5 and made.parameters["prompt"] == "a red car"
    assert np.abs(pipeline.generate(text="a blue dog", **asked).latents - wanted).max() > 1e-3
    export_composition(pipeline, tmp_path / "bundle")
    again = Pipeline.from_pretrained(tmp_path / "bundle").generate(text="a red car", **asked)
    assert np.abs(again.latents - wanted).max() < 1e-5 * wanted.std()


@pytest.mark.long
def test_experts_of_one_encoder_have_its_weights_once_and_a_command_makes_the_same(tmp_path):
    text_encoder(tmp_path / "mine")
    net, options = tmp_path / "net.onnx", []
    torch.onnx.export(
        Styled().eval(),
        (torch.zeros(2, 3, 16, 16), torch.zeros(2), torch.zeros(2, TOKENS, WIDTH)),
        net,
        input_names=["x", "time", "condition"],
        dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in range(3)),
    )
    for name in ("one", "two"):
        options += [
            "--expert",
            f"{name}={net}",
            "--predicts",
            f"{name}=flow",
            "--encoder",
            f"{name}={tmp_path / 'mine'}",
        ]
    fixed = ["--expert", f"un={net}", "--predicts", "un=flow", "--encoder", f"un={tmp_path / 'mine'}", "--fixed", "un="]
    made = run("compose", *options, *fixed, "--out", tmp_path / "bundle")
    assert made.exit_code == 0, made.stderr
    bundle = Bundle.open(tmp_path / "bundle")
    stored = places(bundle.content[bundle.manifest.weights])
    assert [name.split(".")[1] for name in stored if ".encoder." in name and "embedding" in name] == ["one"]
    assert bundle.manifest.modalities[2].kind == "nothing"
    image = run("generate", "--model", tmp_path / "bundle", "--condition", "one=a red car", "--out", tmp_path / "a.npz")
    assert image.exit_code == 0, image.stderr


def test_too_long_sentences_and_words_nobody_knows_are_told(tmp_path):
    file = tokenizer(tmp_path / "tokenizer")
    encoder = Encoder.of(onnx_encoder(tmp_path / "ids.onnx"), tokenizer=file)
    pipeline = compose({"text": expert(encoder)}, (3, 16, 16))
    said = pipeline.generate(text="a zebra", **ASKED).warnings
    assert said == ["text: the model never learned 'zebra'; such words only disturb it"]
    said = pipeline.generate(text="a red car " * 4, **ASKED).warnings
    assert said == ["text: too long, 5 word pieces are read and the last 7 left out"]


@pytest.mark.slow
def test_numbers_are_encoded_by_a_module_and_in_a_bundle(tmp_path):
    numbers = Numbers()
    pipeline = compose({"style": expert(Encoder(numbers, (3,)))}, (3, 16, 16))
    given = np.float32([[0.3, -1, 2]])
    wanted = compose({"style": expert(None)}, (3, 16, 16))
    wanted = wanted.generate(style=numbers(torch.from_numpy(given)).detach().numpy(), **ASKED).latents
    np.testing.assert_allclose(pipeline.generate(style=[0.3, -1, 2], **ASKED).latents, wanted, atol=1e-6)
    export_composition(pipeline, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    made = Pipeline(bundle).generate(style=[0.3, -1, 2], **ASKED).latents
    assert np.abs(made - wanted).max() < 1e-5 * wanted.std()
    stored = places(bundle.content[bundle.manifest.weights])
    assert any(name.startswith("experts.style.encoder.") for name in stored)


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        (
            Encoder(lambda a: a[:, None], (3,)),
            "expert a, encoder: it makes float32 of shape",
        ),
        (
            Encoder(lambda a: np.full((len(a), TOKENS, WIDTH), np.nan), (3,)),
            "expert a, encoder: it makes numbers that are",
        ),
        (Encoder(nn.Linear(4, 5), (3,)), "expert a, encoder, its module: it cannot be called with"),
    ],
    ids=["shape", "nan", "module"],
)
def test_what_an_encoder_makes_is_looked_at(encoder, words):
    with pytest.raises(BadRequest, match=words):
        compose({"a": expert(encoder)}, (3, 16, 16)).generate(a=[1, 2, 3], **ASKED)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: expert(5), "expert a, encoder: a int; give a cdiff_rt.Encoder"),
        (lambda: expert(Encoder(None, (3,))), "expert a, encoder: its function cannot be called"),
        (lambda: expert(Encoder(abs, (0,))), r"expert a, encoder: its function cannot be called, or it takes \(0,\)"),
        (lambda: Expert(abs, FLOW, encoder=Encoder(abs, (3,))), "expert a, encoder: its expert has no condition"),
        (
            lambda: expert(Encoder(abs, (5,), b"{}")),
            r"expert a, encoder: it takes tokens \(5,\), its expert a condition",
        ),
        (lambda: expert(None, fixed="red"), "expert a, fixed: 'red', and no encoder reads sentences; give encoder="),
    ],
)
def test_encoders_that_do_not_fit_are_refused(made, words):
    with pytest.raises(BadRequest, match=words):
        compose({"a": made()}, (3, 16, 16))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda at: (at / "text_encoder" / "config.json").write_text("{"), "config.json: it cannot be read as JSON"),
        (
            lambda at: (at / "text_encoder" / "config.json").write_text('{"architectures": ["BertModel"]}'),
            "'BertModel', not",
        ),
        (
            lambda at: (at / "text_encoder" / "config.json").unlink(),
            "encoder .*mine: config.json, .* is not there; give a",
        ),
        (lambda at: (at / "tokenizer" / "tokenizer.json").write_text("{}"), "tokenizer .*: it cannot be read"),
        (lambda at: tokenizer(at / "tokenizer", pad_token=None), "nothing says how it pads"),
        (
            lambda at: tokenizer(at / "tokenizer", model_max_length=None),
            "tokens: nothing says how many tokenizer .* makes of a",
        ),
        (lambda at: tokenizer(at / "tokenizer", model_max_length=9), "tokens: 9, and the encoder knows 7 places"),
        (
            lambda at: tokenizer(at / "tokenizer", (*WORDS, *map(str, range(EMBEDDED)))),
            "makes token 308, the model knows 300",
        ),
        (lambda at: cut(at / "text_encoder" / "model.safetensors"), "transformers cannot load it"),
        (lambda at: without(at / "text_encoder" / "model.safetensors"), "1 of its weights are missing, e.g. "),
    ],
    ids=["json", "class", "no config", "tokenizer", "pad", "length", "long", "vocabulary", "cut", "missing"],
)
def test_folders_of_encoders_that_are_damaged_are_told(change, words, tmp_path):
    text_encoder(tmp_path / "mine")
    change(tmp_path / "mine")
    with pytest.raises((BadArtefact, BadRequest), match=words):
        compose({"a": expert(Encoder.of(tmp_path / "mine"))}, (3, 16, 16)).generate(a="a red car 299", **ASKED)


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def without(file):
    from safetensors.torch import load_file, save_file

    kept = load_file(file)
    kept.pop(max(kept))
    save_file(kept, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"inputs": (("a", 1, ("batch", 3)), ("b", 1, ("batch", 3)))}, "it takes a, b; export an encoder of one input"),
        ({"inputs": (("ids", 7, ("batch", "length")),)}, "ids has the dynamic shape"),
        ({"inputs": (("ids", 7, (2, TOKENS)),)}, "it takes .*; let it give float32"),
        ({"kind": TensorProto.FLOAT16}, "gives float16 .*; let it give float32"),
    ],
    ids=["two", "dynamic", "batch", "half"],
)
def test_files_that_are_no_encoders_are_refused(how, words, tmp_path):
    with pytest.raises(BadRequest, match=words):
        Encoder.of(onnx_encoder(tmp_path / "ids.onnx", **how))


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--encoder", "a=nowhere"], 4, "encoder nowhere: there is no such folder; check the path"),
        (["--encoder", "a=openai/clip"], 4, "no such folder, and nothing is downloaded; download it"),
        (["--encoder", "a=ids.onnx"], 4, "there is no such file"),
        (["--encoder", "b=ids.onnx"], 2, "--encoder b: there is no --expert of this name"),
        (["--tokenizer", "a=tokenizer.json"], 2, "expert a, tokenizer: there is no encoder of its tokens"),
    ],
)
def test_commands_say_so_too(options, code, words, tmp_path):
    from tests.brought import onnx_file

    file = onnx_file(tmp_path / "net.onnx")
    check_refused(
        run("compose", "--expert", f"a={file}", "--predicts", "a=flow", *options, "--out", tmp_path / "o"), code, words
    )

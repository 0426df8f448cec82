import copy
import gc
import json
import math
import time
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from cdiff_rt import schema
from cdiff_rt.engines import modules
from cdiff_rt.engines.base import DTYPES, Placement, precision_of
from cdiff_rt.engines.eager import load, load_device
from cdiff_rt.engines.modules import load_network, load_part
from cdiff_rt.engines.weights import Place, part_of
from cdiff_rt.errors import BadArtefact, OutOfResource
from cdiff_rt.export.checkpoint import model_shapes
from cdiff_rt.export.published import PUBLISHED
from cdiff_rt.nets.collaborative import ModelConfig, part_functions, reads
from tests.tiny import CONFIG

KINDS, VAE = ("condition", "time", "expert"), ("vae.encode", "vae.decode")
ALONE = replace(CONFIG, experts={name: replace(expert, diffuser=None) for name, expert in CONFIG.experts.items()})


def with_source(bundle, part, **changes):
    source = copy.deepcopy(bundle.manifest.source)
    place = source["vae"] if part == "vae" else source["experts"]["text"][part]
    place.update(changes)
    return replace(bundle, manifest=replace(bundle.manifest, source=source))


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("encoder", {"layers": 10**9}),
        ("unet", {"num_res_blocks": 10**9}),
        ("unet", {"model_channels": 10**9}),
        ("unet", {"channel_mult": [1] * 10_000}),
        ("unet", {"num_heads": 0}),
        ("vae", {"num_res_blocks": 10**9}),
        ("vae", {"channel_mult": []}),
        ("encoder", {"tokens": 3}),
    ],
    ids=str,
)
def test_a_description_that_its_weights_do_not_make_is_refused_in_no_time(part, changes, bundle):
    begun = time.process_time()
    with pytest.raises(BadArtefact, match="its weights do not make its model"):
        load(with_source(bundle, part, **changes), "vae.decode" if part == "vae" else "time.text", Placement("cpu"))
    assert time.process_time() - begun < 5


def test_a_model_that_memory_cannot_hold_is_no_fault_of_the_bundle(bundle, monkeypatch):
    monkeypatch.setattr(modules, "fp32", lambda content, place: np.zeros(2**50))
    with pytest.raises(OutOfResource, match="loading vae: .*close other programs"):
        load_part(bundle, "vae")


def test_weights_that_are_trained_leave_the_bundle_as_it_is(bundle):
    before = bytes(bundle.content["weights.safetensors"])
    with torch.no_grad():
        for parameter in load_part(bundle, "vae").parameters():
            parameter.zero_()
    assert bundle.content["weights.safetensors"] == before


def test_another_bundle_in_the_same_folder_has_weights_of_its_own(bundle):
    place = Placement("cpu", "fp32")
    one = load(bundle, "vae.decode", place)
    content = bytearray(bundle.content["weights.safetensors"])
    content[-2:] = b"\x00\x3c"
    digests = bundle.manifest.files | {"weights.safetensors": "another"}
    other = replace(
        bundle, manifest=replace(bundle.manifest, files=digests), content={"weights.safetensors": bytes(content)}
    )
    assert load(other, "vae.decode", place)._module is not one._module
    assert load(bundle, "vae.decode", place)._module is one._module


def weights_of(shapes, network):
    part = f"{part_of(network)}."
    own = {name: math.prod(shape) for name, shape in shapes.items() if name.startswith(part)}
    return {name: numbers for name, numbers in own.items() if reads(network, name.removeprefix(part))}


@pytest.fixture(scope="module")
def shapes(bundle):
    return model_shapes(schema.from_json(ModelConfig, bundle.manifest.source, "source"))


@pytest.mark.parametrize("model", [CONFIG, ALONE, PUBLISHED[0].model], ids=["tiny", "without diffusers", "512"])
def test_each_weight_is_read_by_one_network(model):
    shapes, networks = model_shapes(model), [f"{kind}.{name}" for kind in KINDS for name in model.experts]
    read = Counter(name for network in (*networks, *VAE) for name in weights_of(shapes, network))
    assert read == dict.fromkeys(shapes, 1)


@pytest.mark.parametrize("network", ["condition.text", "time.text", "expert.text", *VAE])
def test_a_network_holds_what_it_reads_and_computes_with_that(network, bundle, shapes):
    module = load_network(bundle, network, "cpu", torch.float32)
    held = {name for name, value in module.state_dict().items() if not value.is_meta}
    assert {f"{part_of(network)}.{name}" for name in held} == set(weights_of(shapes, network))
    whole = load_part(bundle, part_of(network))
    spec = bundle.manifest.networks[network]
    inputs = [
        torch.ones([2 if isinstance(d, str) else d for d in t.shape], dtype=getattr(torch, t.dtype))
        for t in spec.inputs
    ]
    with torch.inference_mode():
        ours, wanted = (part_functions(part_of(network), of)[network](*inputs) for of in (module, whole))
    assert all(map(torch.equal, ours, wanted))


def bytes_held():
    values = [value for module in modules._loaded.values() for value in module.state_dict().values()]
    return sum({value.data_ptr(): value.untyped_storage().nbytes() for value in values if not value.is_meta}.values())


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_engines_hold_no_weight_twice(precision, bundle, shapes):
    gc.collect()
    before, networks = bytes_held(), bundle.manifest.networks
    places = {batch: Placement("cpu", precision, batch) for batch in (1, 2)}
    engines = [load_device(bundle, network, place) for network in networks for place in places.values()]
    sizes = {name: {"fp16": 2, "fp32": 4}[precision_of(name, places[1])] for name in networks}
    assert bytes_held() - before == sum(sum(weights_of(shapes, n).values()) * size for n, size in sizes.items())
    assert len(engines) == 2 * len(networks)


def test_of_512_pixels_fp16_experts_are_nearly_all_that_is_held(bundle, monkeypatch):
    """By its description, and weights without numbers: 2.6 GB, where whole experts in fp32 would make it 6.3."""
    model, read = PUBLISHED[0].model, Counter()
    stored = {name: Place("F16", shape, 0, 2 * math.prod(shape)) for name, shape in model_shapes(model).items()}

    def numberless(content, place):
        read["numbers"] += math.prod(place.shape)
        return np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), place.shape, [0] * len(place.shape))

    monkeypatch.setattr(modules, "places", lambda content: stored)
    monkeypatch.setattr(modules, "fp32", numberless)
    released, held = replace(bundle, manifest=replace(bundle.manifest, source=json.loads(json.dumps(asdict(model))))), 0
    for network in bundle.manifest.networks:
        dtype = getattr(torch, DTYPES[precision_of(network, Placement(precision="fp16"))])
        read.clear()
        load_network(released, network, "meta", dtype)
        held += (network != "vae.encode") * read["numbers"] * dtype.itemsize
    assert 2.5e9 < held < 2.7e9


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_for_compilers_channels_lie_together(dims, bundle, monkeypatch):
    """Whatever the axes of a latent; lines have no such layout."""
    model = replace(CONFIG, experts={name: of_dims(expert, dims) for name, expert in CONFIG.experts.items()})
    shapes = model_shapes(model)
    monkeypatch.setattr(
        modules, "places", lambda content: {n: Place("F16", shape, 0, 0) for n, shape in shapes.items()}
    )
    monkeypatch.setattr(modules, "fp32", lambda content, place: np.zeros(place.shape, np.float32))
    other = replace(bundle, manifest=replace(bundle.manifest, source=json.loads(json.dumps(asdict(model)))))
    module = load_network(other, "expert.mask", "cpu", torch.float32, channels_last=True)
    kernels = [value for value in module.state_dict().values() if value.dim() == 2 + dims and not value.is_meta]
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}.get(dims, torch.contiguous_format)
    assert kernels and all(kernel.is_contiguous(memory_format=layout) for kernel in kernels)
    assert not all(kernel.is_contiguous() for kernel in kernels) or dims == 1


def of_dims(expert, dims):
    return replace(expert, unet=replace(expert.unet, dims=dims), diffuser=replace(expert.diffuser, dims=dims))

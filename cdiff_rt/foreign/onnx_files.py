"""An ONNX file as a denoiser, by whatever names its inputs have."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cdiff_rt.engines.backends import check_backend
from cdiff_rt.engines.ort import OrtFile
from cdiff_rt.errors import BadArtefact, BadRequest, without_file
from cdiff_rt.process import usual_threads

USUAL = {
    "x": ("x", "x_t", "sample", "latent", "latents", "latent_model_input", "hidden_states", "noisy_latents", "input"),
    "time": (
        "time",
        "t",
        "timestep",
        "timesteps",
        "sigma",
        "sigmas",
        "time_step",
        "noise_level",
        "alpha_bar",
        "alpha_bars",
    ),
}
WHOLE = ("int64", "int32")
AGAIN = "export it with fixed sizes and a dynamic batch, e.g. dynamic_shapes={0: Dim('batch')} of every input"


@dataclass(frozen=True)
class Port:
    """An input or output; `shape` is without the batch, which there is none of if `whole`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    batched: bool = True


@dataclass(frozen=True, eq=False)
class OnnxFunction:
    """A file's network as a function of arrays: (x, time, condition) -> what it predicts."""

    path: Path
    session: OrtFile
    x: Port
    time: Port
    condition: Port | None
    out: Port

    @property
    def ports(self) -> dict[str, Port]:
        """What it takes, by its role."""
        return {"x": self.x, "time": self.time} | ({"condition": self.condition} if self.condition else {})

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        x, time, *condition = arrays
        given = {self.x.name: x, self.time.name: typed(time if self.time.batched else time[:1], self.time)}
        if self.condition:
            given[self.condition.name] = typed(condition[0], self.condition)
        return self.session(self.out.name, {n: np.ascontiguousarray(value) for n, value in given.items()})


@dataclass(frozen=True, eq=False)
class OnnxEncoder:
    """A file's network of one input, as a function of arrays."""

    path: Path
    session: OrtFile
    given: Port
    out: Port

    @property
    def ports(self) -> dict[str, Port]:
        return {"inputs": self.given}

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        return self.session(self.out.name, {self.given.name: np.ascontiguousarray(typed(inputs, self.given))})


def open_encoder(path: Path) -> OnnxEncoder:
    """Its first output is the condition. Raises BadRequest, BadArtefact."""
    session = _session(path)
    if len(session.inputs) != 1:
        seen = f"it takes {', '.join(session.inputs)}"
        raise BadRequest(f"file {path.name}", seen, "export an encoder of one input, token ids or numbers")
    ((name, about),), out = session.inputs.items(), next(iter(session.outputs))
    found = OnnxEncoder(path, session, _port(path, name, *about), _port(path, out, *session.outputs[out]))
    if not found.given.batched or not found.out.batched or found.out.dtype != "float32":
        seen = f"it takes {list(found.given.shape)} and gives {found.out.dtype} {list(found.out.shape)}"
        raise BadRequest(f"file {path.name}", seen, f"let it give float32; {AGAIN}")
    return found


def typed(value: np.ndarray, port: Port) -> np.ndarray:
    shape = (-1, *port.shape) if port.batched else port.shape
    return (np.rint(value) if port.dtype in WHOLE else value).astype(port.dtype).reshape(shape)


def open_onnx(path: Path, names: Mapping[str, str], *, logit: bool = False) -> OnnxFunction:
    """`names` are those of its x, time, condition and out, where they are unusual; what a `logit` gives may be of any
    sizes. Raises BadRequest, BadArtefact."""
    session = _session(path)
    if strange := sorted(set(names) - {"x", "time", "condition", "out"}):
        raise BadRequest("names", f"{strange[0]!r:.80}", "name x, time, condition or out")
    ports = {name: _port(path, name, *about) for name, about in session.inputs.items()}
    x, time = (_named(path, ports, role, names.get(role, "")) for role in ("x", "time"))
    others = {name: port for name, port in ports.items() if port not in (x, time)}
    if len(others) > 1:
        seen = f"beside x and time it takes {', '.join(others)}"
        raise BadRequest(
            f"file {path.name}", seen, "export it with one condition, e.g. of all numbers one behind the other"
        )
    condition = _named(path, others, "condition", names.get("condition", next(iter(others)))) if others else None
    out = names.get("out", next(iter(session.outputs)))
    if out not in session.outputs:
        raise BadRequest(f"file {path.name}", f"it gives no {out!r:.80}", f"name one of {', '.join(session.outputs)}")
    given = _port(path, out, *session.outputs[out])
    return _checked(path, OnnxFunction(path, session, x, time, condition, given), logit=logit)


def _session(path: Path) -> OrtFile:
    if not path.is_file():
        raise BadArtefact(
            f"file {path}", *(("it is a folder", "give the file in it") if path.is_dir() else without_file(path))
        )
    check_backend("onnxruntime")
    return OrtFile(path, usual_threads())


def _checked(path: Path, found: OnnxFunction, *, logit: bool) -> OnnxFunction:
    if found.x.dtype != "float32" or found.out.dtype != "float32":
        seen = f"it takes x as {found.x.dtype} and gives {found.out.dtype}"
        raise BadRequest(
            f"file {path.name}", seen, "export it in float32 (engines of a bundle compute in fp16 all the same)"
        )
    if not found.x.batched or (found.condition and not found.condition.batched):
        raise BadRequest(f"file {path.name}", f"its {found.x.name} has a fixed batch", AGAIN)
    if found.time.shape not in ((), (1,)) or (found.out.shape not in ((), found.x.shape) and not logit):
        seen = f"time is {list(found.time.shape)} and out {list(found.out.shape)}, x {list(found.x.shape)} without the batch"
        raise BadRequest(
            f"file {path.name}", seen, "export a network of x [B, ...] and time [B] that predicts what is like x"
        )
    return found


def _named(path: Path, ports: Mapping[str, Port], role: str, name: str) -> Port:
    usual = [each for each in USUAL.get(role, ()) if each in ports]
    name = name or (usual[0] if usual else "")
    if name not in ports:
        seen = (
            f"none of its inputs {', '.join(ports)} is called like {role}"
            if not name
            else f"it has no input {name!r:.80}"
        )
        raise BadRequest(f"file {path.name}", seen, f"name it: names={{{role!r}: ...}}, --names of a command")
    return ports[name]


def _port(path: Path, name: str, dtype: str, shape: tuple[int | str | None, ...]) -> Port:
    """Raises BadRequest for sizes that are open, but for the batch."""
    first, rest = (shape[0] if shape else 1), shape[1:]
    sizes = tuple(size for size in rest if isinstance(size, int) and size > 0)
    if sizes != rest:
        seen = f"{name} has the dynamic shape {[size or '?' for size in shape]}"
        raise BadRequest(f"file {path.name}", seen, AGAIN)
    if isinstance(first, int):
        return Port(name, dtype, (first, *sizes) if shape else (), batched=False)
    return Port(name, dtype, sizes)

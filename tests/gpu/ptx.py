"""Executes PTX without branches or shared memory on a CPU, all threads of all blocks at once, and watches the memory.

A register is an array of raw bits, one entry per thread. Accesses must lie within one buffer and be aligned, and no
thread may touch what another one writes. ex2 and div are exact here; a GPU's are within 2 ulp.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

NOBODY, MANY = -1, -2  # instead of a thread, of a byte that no thread or several threads read or wrote
APART = 1 << 40  # bytes between buffers, so that no wrong offset reaches the next one


class Fault(Exception):
    """What a device would not do, or not do reliably."""


@dataclass
class Buffer:
    """Memory that a parameter points into, and who read and wrote each of its bytes, and how often."""

    name: str
    data: np.ndarray  # uint8, changed in place
    reads: np.ndarray = field(init=False)
    writes: np.ndarray = field(init=False)
    reader: np.ndarray = field(init=False)
    writer: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.reads, self.writes = (np.zeros(self.data.size, np.int64) for _ in range(2))
        self.reader, self.writer = (np.full(self.data.size, NOBODY, np.int64) for _ in range(2))

    def load(self, at: np.ndarray, threads: np.ndarray) -> np.ndarray:
        """at [N, width]: bytes, per thread."""
        if ((self.writer[at] != NOBODY) & (self.writer[at] != threads)).any():
            raise Fault(f"race: a thread reads what another wrote to {self.name}")
        self.reads += np.bincount(at.ravel(), minlength=self.data.size)
        before = self.reader[at]
        self.reader[at] = threads
        alone = ((before == NOBODY) | (before == threads)) & (self.reader[at] == threads)
        self.reader[at[~alone]] = MANY
        return self.data[at]

    def store(self, at: np.ndarray, threads: np.ndarray, values: np.ndarray) -> None:
        if ((self.reader[at] != NOBODY) & (self.reader[at] != threads)).any():
            raise Fault(f"race: a thread writes what another read from {self.name}")
        before = self.writer[at]
        self.writer[at] = threads
        if ((before != NOBODY) & (before != threads)).any() or (self.writer[at] != threads).any():
            raise Fault(f"race: two threads write one byte of {self.name}")
        self.writes += np.bincount(at.ravel(), minlength=self.data.size)
        self.data[at] = values


class Memory:
    """Buffers far apart from each other."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []

    def place(self, name: str, data: np.ndarray) -> int:
        """The address of `data` (uint8), which stays the caller's."""
        self.buffers.append(Buffer(name, data))
        return len(self.buffers) * APART

    def __getitem__(self, name: str) -> Buffer:
        return next(buffer for buffer in self.buffers if buffer.name == name)

    def find(self, addresses: np.ndarray, width: int, access: str) -> tuple[Buffer, np.ndarray]:
        """The buffer, and [N, width] places in it."""
        if (addresses % width).any():
            raise Fault(f"misaligned {width}-byte {access}")
        index = int(addresses[0]) // APART - 1
        at = addresses - (index + 1) * APART
        if not 0 <= index < len(self.buffers):
            raise Fault(f"out of bounds: a {access} at {addresses[0]:#x}, where nothing is")
        buffer = self.buffers[index]
        if at.min() < 0 or at.max() + width > buffer.data.size:
            seen = f"bytes {at.min()} to {at.max() + width}, it has {buffer.data.size}"
            raise Fault(f"out of bounds: a {access} of {buffer.name} at {seen}")
        return buffer, at[:, None] + np.arange(width)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return (a.astype(np.float64) * b + c).astype(np.float32)


def bf16(values: np.ndarray) -> np.ndarray:
    """float32 -> the bits of the nearest bf16, even on a tie."""
    bits = values.view(np.uint32).astype(np.uint64)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), nearest)


def f16(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).view(np.uint16)


def pair(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low.astype(np.uint32) | (high.astype(np.uint32) << 16)


def wide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a.astype(np.int64) * b.astype(np.int64)


# opcode, what it computes, the types that it reads its operands as; f32x2 is two of f32 in a 64-bit register
RULES: list[tuple[str, Callable[..., np.ndarray], str]] = [
    ("neg.f32", np.negative, "f4"),
    ("ex2.approx.f32", np.exp2, "f4"),
    ("div.full.f32", np.divide, "f4 f4"),
    ("max.f32", np.fmax, "f4 f4"),
    ("add.s32", np.add, "i4 i4"),
    ("add.s64", np.add, "i8 i8"),
    ("mul.lo.s64", np.multiply, "i8 i8"),
    ("mad.lo.s64", lambda a, b, c: a * b + c, "i8 i8 i8"),
    ("mul.wide.s32", wide, "i4 i4"),
    ("mul.wide.u32", wide, "u4 u4"),
    ("mad.wide.u32", lambda a, b, c: wide(a, b) + c, "u4 u4 i8"),
    ("mad.wide.s32", lambda a, b, c: wide(a, b) + c, "i4 i4 i8"),
    ("shl.b32", np.left_shift, "u4 u4"),
    ("shl.b64", np.left_shift, "u8 u8"),
    ("and.b32", np.bitwise_and, "u4 u4"),
    ("or.b32", np.bitwise_or, "u4 u4"),
    ("setp.lt.s32", np.less, "i4 i4"),
    ("cvt.s64.s32", lambda a: a.astype(np.int64), "i4"),
    ("cvt.u64.u32", lambda a: a.astype(np.uint64), "u4"),
    ("cvt.f32.f16", lambda a: a.astype(np.float32), "f2"),
    ("cvt.f32.bf16", lambda a: a.astype(np.uint32) << 16, "u2"),
    ("cvt.rn.f16.f32", f16, "f4"),
    ("cvt.rn.bf16.f32", bf16, "f4"),
    ("cvt.rn.f16x2.f32", lambda high, low: pair(f16(low), f16(high)), "f4 f4"),
    ("cvt.rn.bf16x2.f32", lambda high, low: pair(bf16(low), bf16(high)), "f4 f4"),
    ("max.f32", lambda a, b, c: np.fmax(np.fmax(a, b), c), "f4 f4 f4"),
    ("add.f32", np.add, "f4 f4"),
    ("sub.f32", np.subtract, "f4 f4"),
    ("mul.f32", np.multiply, "f4 f4"),
    ("mul.f32x2", np.multiply, "f4 f4"),
    ("fma.rn.f32", fma, "f4 f4 f4"),
    ("fma.rn.f32x2", fma, "f4 f4 f4"),
]
OPCODES = {(opcode, len(types.split())): (function, types.split()) for opcode, function, types in RULES}
REGISTERS = {"%p": "?", "%rs": "u2", "%r": "u4", "%rd": "u8"}

INSTRUCTION = re.compile(r"(?:@(?P<guard>!?%p\d+)\s+)?(?P<opcode>[a-z][\w.:]*)\s*(?P<operands>.*?);")
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")


class Threads:
    """The registers of all threads of a launch, and what the instructions do to them."""

    def __init__(self, grid: tuple[int, int], of_a_block: int, parameters: dict[str, int], memory: Memory) -> None:
        self.count = grid[0] * grid[1] * of_a_block
        self.parameters, self.memory = parameters, memory
        block, thread = np.divmod(np.arange(self.count), of_a_block)
        special = {"%tid.x": thread, "%ctaid.x": block % grid[0], "%ctaid.y": block // grid[0]}
        special |= {"%nctaid.x": np.full(self.count, grid[0]), "%nctaid.y": np.full(self.count, grid[1])}
        self.registers = {name: value.astype(np.uint32) for name, value in special.items()}
        self.families = {"ld.param": self.parameter, "ld.global": self.load, "st.global": self.store, "mov": self.move}

    def execute(self, line: str, opcode: str, operands: list[str], guard: str | None) -> None:
        family = next((name for name in self.families if opcode.startswith(f"{name}.")), None)
        if family and (guard is None or family != "ld.param"):
            self.families[family](opcode, operands, self.active(guard))
        elif (opcode, len(operands) - 1) in OPCODES and guard is None:
            target, *sources = operands
            function, types = OPCODES[opcode, len(sources)]
            self.write(target, function(*map(self.value, sources, types)))
        else:
            raise NotImplementedError(f"no rule for the PTX instruction {line!r}")

    def active(self, guard: str | None) -> np.ndarray:
        if guard is None:
            return np.ones(self.count, bool)
        return self.registers[guard.lstrip("!")] ^ guard.startswith("!")

    def value(self, operand: str, kind: str) -> np.ndarray:
        if operand.startswith("%"):
            return self.registers[operand].view(kind)
        if operand.startswith("0f"):
            return np.full(self.count, int.from_bytes(bytes.fromhex(operand[2:])), np.uint32).view(kind)
        if not operand.lstrip("-")[:1].isdigit():
            raise NotImplementedError(f"{operand} is no register and no number; shared memory is not modelled")
        return np.full(self.count, int(operand, 0) & (1 << 64) - 1, np.uint64).astype(kind)

    def write(self, register: str, value: np.ndarray, active: np.ndarray | None = None) -> None:
        bits = np.ascontiguousarray(value).view(REGISTERS[register.rstrip("0123456789")])
        assert bits.shape == (self.count,), f"{register} is not as wide as what is written to it"
        if active is not None and not active.all():
            bits = np.where(active, bits, self.registers[register])
        self.registers[register] = bits

    def parameter(self, opcode: str, operands: list[str], active: np.ndarray) -> None:
        """A register may be wider than the parameter; .s32 then extends its sign."""
        kind = opcode.rsplit(".", 1)[1]
        sign, width = "i" if kind.startswith("s") else "u", int(kind[1:]) // 8
        value = np.full(self.count, self.parameters[operands[1].strip("[] ")]).astype(f"{sign}{width}")
        register = np.dtype(REGISTERS[operands[0].rstrip("0123456789")])
        self.write(operands[0], value.astype(f"{sign}{register.itemsize}"))

    def move(self, opcode: str, operands: list[str], active: np.ndarray) -> None:
        """Also packs registers into a wider one, and unpacks one."""
        target, source = operands
        width = int(opcode[-2:]) // 8
        if target.startswith("{"):
            parts = names(target)
            whole = self.value(source, f"u{width}").view(f"u{width // len(parts)}").reshape(self.count, -1)
            for part, values in zip(parts, whole.T, strict=True):
                self.write(part, values, active)
        elif source.startswith("{"):
            parts = names(source)
            stacked = np.stack([self.value(part, f"u{width // len(parts)}") for part in parts], axis=1)
            self.write(target, stacked.view(f"u{width}")[:, 0], active)
        else:
            self.write(target, self.value(source, f"u{width}"), active)

    def load(self, opcode: str, operands: list[str], active: np.ndarray) -> None:
        registers, pointer = operands
        width = access_width(opcode)
        raw = np.zeros((self.count, width * len(names(registers))), np.uint8)
        if active.any():
            buffer, at = self.memory.find(self.address(pointer)[active], raw.shape[1], "load")
            raw[active] = buffer.load(at, np.flatnonzero(active)[:, None])
        for register, values in zip(names(registers), raw.view(f"u{width}").T, strict=True):
            self.write(register, values, active)

    def store(self, opcode: str, operands: list[str], active: np.ndarray) -> None:
        pointer, registers = operands
        width = access_width(opcode)
        values = np.stack([self.value(register, f"u{width}") for register in names(registers)], axis=1)
        raw = values.view(np.uint8)[active]
        if active.any():
            buffer, at = self.memory.find(self.address(pointer)[active], raw.shape[1], "store")
            buffer.store(at, np.flatnonzero(active)[:, None], raw)

    def address(self, pointer: str) -> np.ndarray:
        register, _, offset = pointer.strip("[] ").partition("+")
        return self.value(register.strip(), "i8") + int(offset or 0)


def names(operand: str) -> list[str]:
    """Of a vector, `{ %r1, %r2 }`, or of one register."""
    return [name.strip() for name in operand.strip("{}").split(",")]


def access_width(opcode: str) -> int:
    """Bytes per register of `ld.global.v4.b32` and the like."""
    return int(opcode.rsplit(".", 1)[1][1:]) // 8


def execute(ptx: str, grid: tuple[int, int], parameters: Sequence[int], memory: Memory) -> None:
    """Runs the only kernel in `ptx`; scratch pointers, which Triton adds to the parameters, are 0."""
    declared = re.findall(r"\.param [^,)]*?(\w+_param_\d+)", ptx)
    of_a_block = re.search(r"\.reqntid (\d+)", ptx)
    assert of_a_block is not None
    assert len(parameters) <= len(declared)
    given = dict.fromkeys(declared, 0) | dict(zip(declared, parameters, strict=False))
    threads = Threads(grid, int(of_a_block[1]), given, memory)
    with np.errstate(all="ignore"):
        for line in ptx[ptx.index("\n{") :].splitlines():
            code = line.split("//")[0].strip()
            if not code or code[0] in ".{}$":  # directives, scopes and labels
                continue
            parts = INSTRUCTION.match(code)
            assert parts is not None, f"cannot read {code!r}"
            if parts["opcode"] == "ret":
                return
            threads.execute(code, parts["opcode"], OPERAND.findall(parts["operands"]), parts["guard"])

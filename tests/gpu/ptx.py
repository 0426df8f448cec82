"""Executes PTX on a CPU, all threads of all blocks at once, and watches the memory.

A register is an array of raw bits, one entry per thread. Accesses must lie within one buffer and be aligned, and no
thread may touch what another one writes, in shared memory until the next barrier. All threads take the same branches.
ex2, div and rsqrt are exact here; a GPU's are within 2 ulp. So are products of matrices, but for their rounding to fp32.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.gpu import warps

# Instead of a thread, of a byte that no thread, threads of several warps, several threads of warp w, or threads of warp w
# before its own barrier read or wrote: the last two less 2 w.
NOBODY, MANY, SEVERAL, SETTLED = -1, -2, -11, -10
APART = 1 << 40  # bytes between buffers, so that no wrong offset reaches the next one


class Fault(Exception):
    """What a device would not do, or not do reliably."""


@dataclass
class Buffer:
    """Memory that a parameter points into, and who read and wrote each of its bytes, and how often."""

    name: str
    data: np.ndarray  # uint8, changed in place
    agreed: bool = False  # whether several threads may write a byte if they write the same
    reads: np.ndarray = field(init=False)
    writes: np.ndarray = field(init=False)
    reader: np.ndarray = field(init=False)
    writer: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.reads, self.writes = (np.zeros(self.data.size, np.int64) for _ in range(2))
        self.reader, self.writer = (np.full(self.data.size, NOBODY, np.int64) for _ in range(2))

    def load(self, at: np.ndarray, threads: np.ndarray) -> np.ndarray:
        """at [N, width]: bytes, per thread."""
        if self.strangers(self.writer[at], threads).any():
            raise Fault(f"race: a thread reads what another wrote to {self.name}")
        self.reads += np.bincount(at.ravel(), minlength=self.data.size)
        self.note(self.reader, at, threads)
        return self.data[at]

    def store(self, at: np.ndarray, threads: np.ndarray, values: np.ndarray) -> None:
        if self.strangers(self.reader[at], threads).any():
            raise Fault(f"race: a thread writes what another read from {self.name}")
        before, data = self.writer[at], self.data[at]
        several = self.note(self.writer, at, threads)
        self.writes += np.bincount(at.ravel(), minlength=self.data.size)
        self.data[at] = values
        if several and not (self.agreed and self.agree(at, values, before, data)):
            raise Fault(f"race: two threads write one byte of {self.name}")

    def strangers(self, who: np.ndarray, threads: np.ndarray) -> np.ndarray:
        """Where an access is neither this thread's nor one of its warp's before their barrier."""
        return (who != NOBODY) & (who != threads) & (who != SETTLED - 2 * (threads // warps.LANES))

    def note(self, who: np.ndarray, at: np.ndarray, threads: np.ndarray) -> bool:
        """That these threads accessed these bytes; whether one was accessed by several."""
        before = who[at]
        who[at] = threads
        several = self.strangers(before, threads) | (who[at] != threads)
        own = threads // warps.LANES
        others = ((before != NOBODY) & (warp_of(before) != own)) | (warp_of(who[at]) != own)
        who[at[several]] = np.broadcast_to(SEVERAL - 2 * own, at.shape)[several]
        who[at[several & others]] = MANY
        return bool(several.any())

    def agree(self, at: np.ndarray, values: np.ndarray, before: np.ndarray, data: np.ndarray) -> bool:
        """Whether all who write a byte write the same, which on a device is then there."""
        return bool(((before == NOBODY) | (data == values)).all() and (self.data[at] == values).all())

    def barrier(self, of_warps: bool = False) -> None:
        """What was read and written before may be by all after, or by all of the warp."""
        for who in (self.reader, self.writer):
            warp = warp_of(who)
            who[:] = np.where(warp >= 0, SETTLED - 2 * warp, who) if of_warps else NOBODY


def warp_of(who: np.ndarray) -> np.ndarray:
    """-1 where it is none or several."""
    return np.where(who >= 0, who // warps.LANES, np.where(who <= SETTLED, (SETTLED - who) // 2, -1))


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


def single(bits: np.ndarray) -> np.ndarray:
    """Of bf16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f16(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).view(np.uint16)


def pair(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low.astype(np.uint32) | (high.astype(np.uint32) << 16)


def wide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a.astype(np.int64) * b.astype(np.int64)


def quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Towards 0."""
    return np.where((a < 0) ^ (b < 0), -(np.abs(a) // np.abs(b)), np.abs(a) // np.abs(b)).astype(a.dtype)


def field_of(a: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
    """`length` bits from `position` on; of a signed type their sign is extended."""
    left = (64 - position.astype(np.int64) - length).astype(np.uint64)
    right = (64 - length.astype(np.int64)).astype(np.uint64)
    if a.dtype.kind == "u":
        return (a.astype(np.uint64) << left >> right).astype(a.dtype)
    return (a.astype(np.int64) << left.astype(np.int64) >> right.astype(np.int64)).astype(a.dtype)


def permuted(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """prmt in its default mode: four bytes of the eight of b and a, without a sign to repeat."""
    eight = np.stack([a, b], axis=1).view(np.uint8)
    chosen = selector[:, None] >> np.arange(0, 16, 4, dtype=np.uint32) & 0xF
    assert (chosen < 8).all(), "a selector that repeats a sign is not modelled"
    return np.take_along_axis(eight, chosen.astype(np.int64), axis=1).copy().view(np.uint32)[:, 0]


def chosen(a: np.ndarray, b: np.ndarray, p: np.ndarray) -> np.ndarray:
    return np.where(p, a, b)


def rsqrt(a: np.ndarray) -> np.ndarray:
    return 1 / np.sqrt(a)


def unknown(like: np.ndarray) -> np.ndarray:
    """What is in registers and shared memory that nobody has written: in every floating-point type not a number."""
    return np.full(like.nbytes, 0xFF, np.uint8).view(like.dtype)


COMPARISONS = {"lt": np.less, "gt": np.greater, "le": np.less_equal, "ge": np.greater_equal, "eq": np.equal}
COMPARISONS["ne"] = np.not_equal


ARITHMETIC = {"add": np.add, "sub": np.subtract, "mul": np.multiply}

# opcode, what it computes, the types that it reads its operands as; f32x2 is two of f32 in a 64-bit register
RULES: list[tuple[str, Callable[..., np.ndarray], str]] = [
    ("neg.f32", np.negative, "f4"),
    ("ex2.approx.f32", np.exp2, "f4"),
    ("ex2.approx.ftz.f32", np.exp2, "f4"),
    ("rsqrt.approx.f32", rsqrt, "f4"),
    ("rsqrt.approx.ftz.f32", rsqrt, "f4"),
    ("div.full.f32", np.divide, "f4 f4"),
    ("max.f32", np.fmax, "f4 f4"),
    ("min.f32", np.fmin, "f4 f4"),
    ("min.s32", np.minimum, "i4 i4"),
    ("max.s32", np.maximum, "i4 i4"),
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
    *((f"setp.{name}.s32", compare, "i4 i4") for name, compare in COMPARISONS.items()),
    *((f"setp.{name}.u32", compare, "u4 u4") for name, compare in COMPARISONS.items()),
    *((f"setp.{name}.f32", COMPARISONS[name], "f4 f4") for name in ("lt", "gt", "le", "ge")),  # false of no number
    *((f"setp.{name}.b32", COMPARISONS[name], "u4 u4") for name in ("eq", "ne")),
    *((f"setp.{name}.b64", COMPARISONS[name], "u8 u8") for name in ("eq", "ne")),
    ("and.pred", np.logical_and, "? ?"),
    ("not.pred", np.logical_not, "?"),
    ("or.pred", np.logical_or, "? ?"),
    ("selp.b16", chosen, "u2 u2 ?"),
    ("selp.b32", chosen, "u4 u4 ?"),
    ("selp.f32", chosen, "f4 f4 ?"),
    ("prmt.b32", permuted, "u4 u4 u4"),
    ("bfe.u32", field_of, "u4 u4 u4"),
    ("bfe.s32", field_of, "i4 u4 u4"),
    ("neg.s32", np.negative, "i4"),
    ("sub.s32", np.subtract, "i4 i4"),
    ("mul.lo.s32", np.multiply, "i4 i4"),
    ("mad.lo.s32", lambda a, b, c: a * b + c, "i4 i4 i4"),
    ("div.s32", quotient, "i4 i4"),
    ("rem.s32", lambda a, b: a - quotient(a, b) * b, "i4 i4"),
    ("shr.u32", np.right_shift, "u4 u4"),
    ("shr.s32", np.right_shift, "i4 i4"),
    ("xor.b32", np.bitwise_xor, "u4 u4"),
    ("or.b64", np.bitwise_or, "u8 u8"),
    ("cvt.u32.u64", lambda a: a.astype(np.uint32), "u8"),
    ("cvt.u32.u16", lambda a: a.astype(np.uint32), "u2"),
    ("cvt.u16.u32", lambda a: a.astype(np.uint16), "u4"),
    ("cvt.rn.f32.s32", lambda a: a.astype(np.float32), "i4"),
    ("cvt.s64.s32", lambda a: a.astype(np.int64), "i4"),
    ("cvt.u64.u32", lambda a: a.astype(np.uint64), "u4"),
    ("cvt.f32.f16", lambda a: a.astype(np.float32), "f2"),
    ("cvt.f32.bf16", single, "u2"),
    ("sub.rn.f32.f16", lambda a, b: a.astype(np.float32) - b, "f2 f4"),
    ("sub.rn.f32.bf16", lambda a, b: single(a) - b, "u2 f4"),
    ("add.rn.f32.f16", lambda a, b: a.astype(np.float32) + b, "f2 f4"),
    ("add.rn.f32.bf16", lambda a, b: single(a) + b, "u2 f4"),
    ("cvt.rn.f16.f32", f16, "f4"),
    ("cvt.rn.bf16.f32", bf16, "f4"),
    ("cvt.rn.f16x2.f32", lambda high, low: pair(f16(low), f16(high)), "f4 f4"),
    ("cvt.rn.bf16x2.f32", lambda high, low: pair(bf16(low), bf16(high)), "f4 f4"),
    ("max.f32", lambda a, b, c: np.fmax(np.fmax(a, b), c), "f4 f4 f4"),
    *((f"{name}.{kind}", function, "f4 f4") for name, function in ARITHMETIC.items() for kind in ("f32", "f32x2")),
    *((f"{name}.rn.{kind}", function, "f4 f4") for name, function in ARITHMETIC.items() for kind in ("f32", "f32x2")),
    ("fma.rn.f32", fma, "f4 f4 f4"),
    ("fma.rn.f32x2", fma, "f4 f4 f4"),
]
OPCODES = {(opcode, len(types.split())): (function, types.split()) for opcode, function, types in RULES}
REGISTERS = {"%p": "?", "%rs": "u2", "%r": "u4", "%rd": "u8"}

SHARED = "global_smem"  # Triton's name of the block's memory

INSTRUCTION = re.compile(r"(?:@(?P<guard>!?%p\d+)\s+)?(?P<opcode>[a-z][\w.:]*)\s*(?P<operands>.*?);")
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")


class Threads:
    """The registers of all threads of a launch, and what the instructions do to them."""

    def __init__(
        self, grid: tuple[int, int], of_a_block: int, parameters: dict[str, int], memory: Memory, shared: int
    ) -> None:
        self.count, self.of_a_block = grid[0] * grid[1] * of_a_block, of_a_block
        self.parameters, self.memory = parameters, memory
        self.block, thread = np.divmod(np.arange(self.count), of_a_block)
        special = {"%tid.x": thread, "%ctaid.x": self.block % grid[0], "%ctaid.y": self.block // grid[0]}
        special |= {
            "%ctaid.z": np.zeros(self.count),
            "%nctaid.x": np.full(self.count, grid[0]),
            "%nctaid.y": np.full(self.count, grid[1]),
        }
        self.registers = {name: value.astype(np.uint32) for name, value in special.items()}
        self.shared = Buffer("shared memory", unknown(np.empty(grid[0] * grid[1] * shared, np.uint8)), agreed=True)
        self.of_shared = shared
        self.executed: Counter[str] = Counter()  # opcode -> by how many threads
        self.families = {
            "ld.param": self.parameter,
            "ld.global": self.load,
            "st.global": self.store,
            "ld.shared": self.load,
            "st.shared": self.store,
            "mov": self.move,
            "bar": self.barrier,
            "shfl.sync": self.shuffle,
            "ldmatrix.sync.aligned.m8n8": self.load_matrix,
            "stmatrix.sync.aligned.m8n8": self.store_matrix,
            "mma.sync.aligned.m16n8k16.row.col": self.multiply,
        }

    def execute(self, line: str, opcode: str, operands: list[str], guard: str | None) -> None:
        active = self.active(guard)
        self.executed[opcode] += int(active.sum())
        family = next((name for name in self.families if opcode.startswith(f"{name}.")), None)
        if family and (guard is None or family in GUARDED):
            self.families[family](opcode, operands, active)
        elif (opcode, len(operands) - 1) in OPCODES and guard is None:
            target, *sources = operands
            function, types = OPCODES[opcode, len(sources)]
            self.write(target, function(*map(self.value, sources, types)))
        else:
            raise NotImplementedError(f"no rule for the PTX instruction {line!r}")

    def branches(self, guard: str | None) -> bool:
        """Whether all go elsewhere."""
        active = self.active(guard)
        if active.any() != active.all():
            raise NotImplementedError("threads that take different branches are not modelled")
        return bool(active.all())

    def active(self, guard: str | None) -> np.ndarray:
        if guard is None:
            return np.ones(self.count, bool)
        return self.registers[guard.lstrip("!")] ^ guard.startswith("!")

    def value(self, operand: str, kind: str) -> np.ndarray:
        if operand.startswith("%"):
            return self.register(operand).view(kind)
        if operand.startswith("0f"):
            return np.full(self.count, int.from_bytes(bytes.fromhex(operand[2:])), np.uint32).view(kind)
        if operand == SHARED:
            return np.zeros(self.count, kind)
        if not operand.lstrip("-")[:1].isdigit():
            raise NotImplementedError(f"{operand} is no register and no number")
        return np.full(self.count, int(operand.rstrip("U"), 0) & (1 << 64) - 1, np.uint64).astype(kind)

    def register(self, name: str) -> np.ndarray:
        if name not in self.registers:
            self.registers[name] = unknown(np.empty(self.count, REGISTERS[name.rstrip("0123456789")]))
        return self.registers[name]

    def write(self, register: str, value: np.ndarray, active: np.ndarray | None = None) -> None:
        if register == "_":  # nobody wants it
            return
        bits = np.ascontiguousarray(value).view(REGISTERS[register.rstrip("0123456789")])
        assert bits.shape == (self.count,), f"{register} is not as wide as what is written to it"
        if active is not None and not active.all():
            bits = np.where(active, bits, self.register(register))
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
        if opcode == "mov.pred":
            self.write(target, np.full(self.count, int(source) != 0))
            return
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
            buffer, at = self.place(opcode, pointer, active, raw.shape[1])
            raw[active] = buffer.load(at, np.flatnonzero(active)[:, None])
        for register, values in zip(names(registers), raw.view(f"u{width}").T, strict=True):
            self.write(register, values, active)

    def store(self, opcode: str, operands: list[str], active: np.ndarray) -> None:
        pointer, registers = operands
        width = access_width(opcode)
        values = np.stack([self.value(register, f"u{width}") for register in names(registers)], axis=1)
        raw = values.view(np.uint8)[active]
        if active.any():
            buffer, at = self.place(opcode, pointer, active, raw.shape[1])
            buffer.store(at, np.flatnonzero(active)[:, None], raw)

    def place(self, opcode: str, pointer: str, active: np.ndarray, width: int) -> tuple[Buffer, np.ndarray]:
        """The buffer, and [N, width] places in it."""
        access = "load" if opcode.startswith("ld") else "store"
        if ".shared" not in opcode:
            return self.memory.find(self.address(pointer, "i8")[active], width, access)
        at = self.address(pointer, "i4")[active].astype(np.int64)
        if (at % width).any():
            raise Fault(f"misaligned {width}-byte {access}")
        if at.min() < 0 or at.max() + width > self.of_shared:
            seen = f"bytes {at.min()} to {at.max() + width}, it has {self.of_shared}"
            raise Fault(f"out of bounds: a {access} of shared memory at {seen}")
        return self.shared, (self.block[active] * self.of_shared + at)[:, None] + np.arange(width)

    def address(self, pointer: str, kind: str) -> np.ndarray:
        register, _, offset = pointer.strip("[] ").partition("+")
        return self.value(register.strip(), kind) + np.array(int(offset or 0), kind)

    def barrier(self, opcode: str, operands: list[str], active: np.ndarray) -> None:
        if opcode not in ("bar.sync", "bar.warp.sync"):
            raise NotImplementedError(f"no rule for {opcode}")
        self.shared.barrier(of_warps=opcode == "bar.warp.sync")

    def shuffle(self, opcode: str, operands: list[str], active: np.ndarray) -> None:
        target, source, distance, _, _ = operands
        if opcode != "shfl.sync.bfly.b32":
            raise NotImplementedError(f"no rule for {opcode}")
        self.write(target, warps.butterfly(self.value(source, "u4"), self.value(distance, "i4")))

    def load_matrix(self, opcode: str, operands: list[str], active: np.ndarray) -> None:
        """Each thread brings the address of a row; row i of matrix m is thread 8 m + i's."""
        registers, pointer = operands
        buffer, at = self.place(opcode, pointer, active, warps.ROW)
        taken = warps.rows_of(at, len(names(registers)))
        owned = warps.owned(taken, ".trans" in opcode)
        for register, places in zip(names(registers), owned, strict=True):
            values = buffer.load(places, np.arange(self.count)[:, None])
            self.write(register, values.copy().view(np.uint32)[:, 0])

    def store_matrix(self, opcode: str, operands: list[str], active: np.ndarray) -> None:
        pointer, registers = operands
        buffer, at = self.place(opcode, pointer, active, warps.ROW)
        owned = warps.owned(warps.rows_of(at, len(names(registers))), ".trans" in opcode)
        for register, places in zip(names(registers), owned, strict=True):
            values = self.value(register, "u4")[:, None].view(np.uint8)
            buffer.store(places, np.arange(self.count)[:, None], values)

    def multiply(self, opcode: str, operands: list[str], active: np.ndarray) -> None:
        target, *sources = operands
        kind = re.fullmatch(r".*\.f32\.(f16|bf16)\.\1\.f32", opcode)
        if kind is None:
            raise NotImplementedError(f"no rule for {opcode}")
        a, b, c = (np.stack([self.value(name, "u4") for name in names(part)], axis=1) for part in sources)
        convert, (of_halves,) = OPCODES[f"cvt.f32.{kind[1]}", 1]
        numbers = (convert(x.view(np.uint16).view(of_halves)).view(np.float32) for x in (a, b))
        results = warps.multiplied(*numbers, c.view(np.float32))
        for register, values in zip(names(target), results.T, strict=True):
            self.write(register, values)


GUARDED = {"ld.global", "st.global", "ld.shared", "st.shared"}


def names(operand: str) -> list[str]:
    """Of a vector, `{ %r1, %r2 }`, or of one register."""
    return [name.strip() for name in operand.strip("{}").split(",")]


def access_width(opcode: str) -> int:
    """Bytes per register of `ld.global.v4.b32` and the like."""
    return int(opcode.rsplit(".", 1)[1][1:]) // 8


@dataclass(frozen=True)
class Instruction:
    line: str
    opcode: str
    operands: list[str]
    guard: str | None


def parsed(ptx: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions of the only kernel in `ptx`, and before which of them labels stand."""
    found, labels = [], {}
    for line in ptx[ptx.index("\n{") :].splitlines():
        code = line.split("//")[0].strip()
        if code.startswith("$") and code.endswith(":"):
            labels[code[:-1]] = len(found)
        if not code or code[0] in ".{}$":  # directives, scopes and labels
            continue
        parts = INSTRUCTION.match(code)
        assert parts is not None, f"cannot read {code!r}"
        found.append(Instruction(code, parts["opcode"], OPERAND.findall(parts["operands"]), parts["guard"]))
    return found, labels


def execute(
    ptx: str, grid: tuple[int, int], parameters: Sequence[int], memory: Memory, shared: int = 0
) -> Counter[str]:
    """Runs the only kernel in `ptx` with so many bytes of shared memory; how many threads executed each opcode.

    Scratch pointers, which Triton adds to the parameters, are 0.
    """
    declared = re.findall(r"\.param [^,)]*?(\w+_param_\d+)", ptx)
    of_a_block = re.search(r"\.reqntid (\d+)", ptx)
    assert of_a_block is not None
    assert len(parameters) <= len(declared)
    given = dict.fromkeys(declared, 0) | dict(zip(declared, parameters, strict=False))
    threads = Threads(grid, int(of_a_block[1]), given, memory, shared)
    code, labels = parsed(ptx)
    at = 0
    with np.errstate(all="ignore"):
        while (now := code[at]).opcode != "ret":
            at += 1
            if now.opcode in ("bra", "bra.uni"):
                if now.operands[0] not in labels:
                    raise NotImplementedError(f"no label for {now.line!r}")
                at = labels[now.operands[0]] if threads.branches(now.guard) else at
            else:
                threads.execute(now.line, now.opcode, now.operands, now.guard)
    return threads.executed

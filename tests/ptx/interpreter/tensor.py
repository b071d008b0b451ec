"""Tensor cores: ldmatrix, stmatrix, mma.sync, wgmma (PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions"
and "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions"), and setmaxnreg.

The operands of wgmma are read and its results written as late as the wait allows; until then nobody may use the
registers or overwrite the tiles."""
import re
from dataclasses import dataclass, field

from . import numbers
from .barriers import swizzle
from .errors import PtxError
from .parse import Reg

KINDS = ("ldmatrix", "stmatrix", "mma", "wgmma", "setmaxnreg")
SWIZZLE_BITS = {0: 0, 1: 3, 2: 2, 3: 1}  # of a descriptor's bits 62-63: none, 128, 64, 32 bytes
ELEMENT_BYTES = {"f16": 2, "bf16": 2, "tf32": 4}
FILE_REGISTERS = 65536


@dataclass
class Warpgroup:
    open: list = field(default_factory=list)
    committed: list = field(default_factory=list)
    registers: int = 0  # of each thread, once it has asked


def threads_of(i) -> int:
    return 128 if i.parts[0] in ("wgmma", "setmaxnreg") else 32


def perform(block, i, threads: list):
    {"ldmatrix": _ldmatrix, "stmatrix": _stmatrix, "mma": _mma, "wgmma": _wgmma, "setmaxnreg": _setmaxnreg}[
        i.parts[0]](block, i, threads)


# ---- of a warp ----

def _rows(i, threads, place, count):
    """Addresses of the rows of `count` matrices: lane 8 m + r has row r of matrix m."""
    rows = []
    for t in threads[:8 * count]:
        t.memory("shared", t.address(place), 16, 16)
        rows.append(t.address(place))
    return rows


def _places(i, lane: int):
    """Row and column in a matrix of the two halves of the register of a lane."""
    row, column = lane // 4, lane % 4 * 2
    both = [(row, column), (row, column + 1)]
    return [(c, r) for r, c in both] if "trans" in i.parts else both


def _ldmatrix(block, i, threads):
    to, place = i.operands
    rows = _rows(i, threads, place, len(to))
    for address, t in zip(rows, threads):
        block.check_defined(t, address, 16)
    for t in threads:
        for m, register in enumerate(to):
            halves = [block.shared[rows[8 * m + r] + 2 * c:rows[8 * m + r] + 2 * c + 2] for r, c in _places(i, t.lane)]
            t.r[register.index] = int.from_bytes(halves[0] + halves[1], "little")


def _stmatrix(block, i, threads):
    place, source = i.operands
    rows = _rows(i, threads, place, len(source))
    for t in threads:
        for m, register in enumerate(source):
            for half, (r, c) in enumerate(_places(i, t.lane)):
                t.store("shared", rows[8 * m + r] + 2 * c, 2, 1, t.r[register.index] >> 16 * half & 0xFFFF)


def _shape(i):
    found = next(re.fullmatch(r"m(\d+)n(\d+)k(\d+)", p) for p in i.parts if re.match(r"m\d+n\d+k", p))
    return tuple(map(int, found.groups()))


def _mma(block, i, threads):
    """Element numbers as the tables of fragments count them."""
    m, n, k = _shape(i)
    kinds = i.parts[i.parts.index("col") + 1:]
    if (m, n) != (16, 8) or kinds[0] != "f32" or kinds[3] != "f32" or kinds[1] != kinds[2]:
        raise PtxError(f"`{i.text}` is not modelled")
    decode, per = numbers.DECODE[kinds[1]], 4 // ELEMENT_BYTES[kinds[1]]
    to, first, second, added = i.operands
    if (len(first) * per * 32, len(second) * per * 32) != (16 * k, 8 * k):
        raise PtxError(f"`{i.text}`: {len(first)} and {len(second)} registers")
    a, b = [[0.0] * k for _ in range(16)], [[0.0] * 8 for _ in range(k)]
    for t in threads:
        group, inside = t.lane >> 2, t.lane & 3
        for e in range(len(first) * per):
            x = decode(t.r[first[e // per].index] >> 16 * (e % per))
            if per == 2:
                row, column = group + 8 * (e % 4 >= 2), inside * 2 + (e & 1) + 8 * (e >= 4)
            else:
                row, column = group + 8 * (e & 1), inside + 4 * (e >= 2)
            a[row][column] = x
        for e in range(len(second) * per):
            x = decode(t.r[second[e // per].index] >> 16 * (e % per))
            row = inside * 2 + (e & 1) + 8 * (e >= 2) if per == 2 else inside + 4 * e
            b[row][group] = x
    for t in threads:
        group, inside = t.lane >> 2, t.lane & 3
        start = [numbers.f32(t.get(o)) for o in added]
        for e in range(4):
            row, column = group + 8 * (e >= 2), inside * 2 + (e & 1)
            total = start[e] + sum(a[row][q] * b[q][column] for q in range(k))
            t.r[to[e].index] = numbers.f32_bits(total)


# ---- of a warpgroup ----

def _setmaxnreg(block, i, threads):
    number = i.operands[0].bits
    if number % 8 or not 24 <= number <= 256:
        threads[0].fail(f"setmaxnreg of {number}")
    group = block.groups[threads[0].linear // 128]
    limit = FILE_REGISTERS // len(block.threads) // 8 * 8  # of each thread at the launch, at most
    before = group.registers or limit
    if (number > before) if i.parts[1] == "dec" else (number < before):
        threads[0].fail(f"setmaxnreg.{i.parts[1]} from {before} to {number}")
    group.registers = number
    asked = [g.registers for g in block.groups.values() if g.registers]
    if sum(asked) * 128 > limit * len(block.threads):  # those of the launch
        threads[0].fail(f"setmaxnreg: warpgroups ask for {asked} registers")


def _wgmma(block, i, threads):
    group = block.groups[threads[0].linear // 128]
    if i.parts[1] == "fence":
        for t in threads:
            t.fenced = True
    elif i.parts[1] == "commit_group":
        group.committed.append(group.open)
        group.open = []
    elif i.parts[1] == "wait_group":
        while len(group.committed) > i.operands[0].bits:
            for product in group.committed.pop(0):
                product.finish(block)
        busy = frozenset().union(*(p.registers for batch in group.committed + [group.open] for p in batch))
        for t in threads:
            t.in_flight = busy
    else:
        product = Product(i, threads)
        group.open.append(product)
        for t in threads:
            t.in_flight = t.in_flight | product.registers


class Product:
    """One wgmma.mma_async: d = a b [+ d]."""

    def __init__(self, i, threads):
        self.i, self.threads = i, threads
        _, self.n, self.k = _shape(i)
        self.kind, other = i.parts[-2:]
        if i.parts[-3] != "f32" or other != self.kind or self.kind not in ELEMENT_BYTES:
            raise PtxError(f"`{i.text[:80]}` is not modelled")
        self.d, self.a, self.b, scale_d, scale_a, scale_b, *transposed = i.operands
        if len(self.d) * 2 != self.n or self.k * ELEMENT_BYTES[self.kind] != 32:
            raise PtxError(f"`{i.text[:80]}`: {len(self.d)} accumulators")
        if any(not t.fenced for t in threads):
            threads[0].fail("no wgmma.fence since the registers were last used otherwise")
        same = [self.b, scale_d] + ([] if isinstance(self.a, list) else [self.a])
        for operand in same:
            if len({t.get(operand) for t in threads}) != 1:
                threads[0].fail("the threads of a warpgroup pass different operands")
        first = threads[0]
        self.accumulate = bool(first.get(scale_d))
        self.sign = numbers.signed(scale_a.bits & 0xFF, 8) * numbers.signed(scale_b.bits & 0xFF, 8)
        transposed = [o.bits for o in transposed] or [0, 0]
        self.transpose_a, self.transpose_b = transposed if len(transposed) == 2 else (0, transposed[0])
        self.b_descriptor = first.get(self.b)
        self.a_descriptor = None if isinstance(self.a, list) else first.get(self.a)
        self.a_registers = [[t.r[o.index] for o in self.a] for t in threads] if isinstance(self.a, list) else None
        used = self.d + (self.a if isinstance(self.a, list) else [])
        self.registers = frozenset(o.index for o in used if isinstance(o, Reg))

    def finish(self, block):
        decode = numbers.DECODE[self.kind]
        size = ELEMENT_BYTES[self.kind]
        read = lambda descriptor, rows, transposed: [
            [decode(x) for x in row] for row in operand_tile(block, descriptor, rows, self.k, size, transposed)]
        a = self._a_from_registers(decode) if self.a_registers else read(self.a_descriptor, 64, self.transpose_a)
        b = read(self.b_descriptor, self.n, self.transpose_b)
        for number, t in enumerate(self.threads):
            warp, lane = divmod(number, 32)
            for e, register in enumerate(self.d):
                row, column = 16 * warp + lane // 4 + 8 * (e // 2 % 2), 8 * (e // 4) + 2 * (lane % 4) + e % 2
                total = self.sign * sum(x * y for x, y in zip(a[row], b[column]))
                if self.accumulate:
                    total += numbers.f32(t.r[register.index])
                t.r[register.index] = numbers.f32_bits(total)

    def _a_from_registers(self, decode):
        per = 4 // ELEMENT_BYTES[self.kind]
        a = [[0.0] * self.k for _ in range(64)]
        for number, registers in enumerate(self.a_registers):
            warp, lane = divmod(number, 32)
            for e in range(4 * per):
                if per == 2:
                    row, column = lane // 4 + 8 * (e // 2 % 2), 2 * (lane % 4) + e % 2 + 8 * (e // 4)
                else:
                    row, column = lane // 4 + 8 * (e % 2), lane % 4 + 4 * (e // 2)
                a[16 * warp + row][column] = decode(registers[e // per] >> 16 * (e % per))
        return a


def operand_tile(block, descriptor: int, rows: int, k: int, size: int, transposed: int) -> list:
    """Bits of elements (row, k) of an operand in shared memory. Fields of a descriptor, in units of 16 bytes: start in
    bits 0-13, leading offset in 16-29, stride in 32-45; base offset in 49-51, swizzle in 62-63; the rest is 0."""
    start, leading, stride = ((descriptor >> bit & 0x3FFF) << 4 for bit in (0, 16, 32))
    base, mode = descriptor >> 49 & 7, descriptor >> 62
    if base:
        raise PtxError(f"descriptor {descriptor:#x}: a base offset is not modelled")
    if descriptor & ~(0x3FFF | 0x3FFF << 16 | 0x3FFF << 32 | 7 << 49 | 3 << 62):
        raise PtxError(f"descriptor {descriptor:#x} sets reserved bits")
    bits = SWIZZLE_BITS[mode]
    per_part, parts = 16 // size, 1 << bits  # elements of 16 bytes, and parts of a swizzled row

    def offset(row: int, depth: int) -> int:
        if not transposed:  # k along the rows: cores of 8 rows of 16 bytes, side by side in a swizzled row
            part = depth // per_part
            return row % 8 * parts * 16 + row // 8 * stride + part * (16 if mode else leading) + depth % per_part * size
        if not mode:  # rows along the rows of cores
            return row % per_part * size + row // per_part * stride + depth % 8 * 16 + depth // 8 * leading
        return (row % per_part * size + row // per_part % parts * 16 + row // (per_part * parts) * leading +
                depth % 8 * parts * 16 + depth // 8 * stride)

    tile, checked = [], set()
    for row in range(rows):
        elements = []
        for depth in range(k):
            at = swizzle(start + offset(row, depth), bits)
            if at // 16 not in checked:
                block.check_async_read(at // 16 * 16, 16, "a product")
                checked.add(at // 16)
            elements.append(int.from_bytes(block.shared[at:at + size], "little"))
        tile.append(elements)
    return tile

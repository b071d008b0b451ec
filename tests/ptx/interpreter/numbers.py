"""Numbers as registers hold them: from bits to Python's float or int, and back with one rounding."""
import math
import struct


def signed(bits: int, width: int) -> int:
    return bits - (1 << width) if bits >> (width - 1) & 1 else bits


def f32(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits & 0xFFFFFFFF))[0]


def f32_bits(x: float) -> int:
    try:
        return struct.unpack("<I", struct.pack("<f", x))[0]
    except OverflowError:
        return 0x7F800000 if x > 0 else 0xFF800000


def f64(bits: int) -> float:
    return struct.unpack("<d", struct.pack("<Q", bits))[0]


def f64_bits(x: float) -> int:
    return struct.unpack("<Q", struct.pack("<d", x))[0]


def f16(bits: int) -> float:
    return struct.unpack("<e", struct.pack("<H", bits & 0xFFFF))[0]


def f16_bits(x: float) -> int:
    try:
        return struct.unpack("<H", struct.pack("<e", x))[0]
    except OverflowError:
        return 0x7C00 if x > 0 else 0xFC00


def bf16(bits: int) -> float:
    return f32((bits & 0xFFFF) << 16)


def bf16_bits(x: float) -> int:
    if x != x:
        return 0x7FFF
    bits = f32_bits(x)
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 & 0xFFFF


def tf32(bits: int) -> float:
    """Tensor cores do not see the 13 lowest bits."""
    return f32(bits & 0xFFFFE000)


DECODE = {"f32": f32, "f64": f64, "f16": f16, "bf16": bf16, "tf32": tf32}
ENCODE = {"f32": f32_bits, "f64": f64_bits, "f16": f16_bits, "bf16": bf16_bits}


def fma32(a: float, b: float, c: float) -> float:
    """a b + c so that rounding it to fp32 rounds once: the double's last bit says if something is missing."""
    product = a * b  # exact: 48 bits
    total = product + c
    if not math.isfinite(total):
        return total
    rest = total - product
    missing = (product - (total - rest)) + (c - rest)
    if missing and not f64_bits(total) & 1:
        total = math.nextafter(total, math.inf if missing > 0 else -math.inf)
    return total


def minimum(a: float, b: float) -> float:
    """A NaN loses; -0 is below +0."""
    if a != a or b != b:
        return b if a != a else a
    return min(a, b, key=lambda x: (x, math.copysign(1, x)))


def maximum(a: float, b: float) -> float:
    if a != a or b != b:
        return b if a != a else a
    return max(a, b, key=lambda x: (x, math.copysign(1, x)))


def compare(x: float, y: float, sign: str, unordered: bool) -> bool:
    if x != x or y != y:
        return unordered
    return {"==": x == y, "!=": x != y, "<": x < y, "<=": x <= y, ">": x > y, ">=": x >= y}[sign]


def divide(a: float, b: float) -> float:
    if b:
        return a / b
    return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


def root(x: float) -> float:
    return math.sqrt(x) if x >= 0 else math.nan


def divide_int(a: int, b: int) -> int:
    """Towards zero; what a division by zero gives is unspecified."""
    if b == 0:
        return -1
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


ROUND = {"rzi": math.trunc, "rni": round, "rmi": math.floor, "rpi": math.ceil}


def to_int(x: float, rounding: str, low: int, high: int) -> int:
    if x != x:
        return 0
    if math.isinf(x):
        return high if x > 0 else low
    return max(low, min(high, ROUND[rounding](x)))


def permute(a: int, b: int, selector: int) -> int:
    """prmt: each nibble of the selector names a byte of b:a, or with its high bit that byte's sign."""
    source = (b << 32 | a).to_bytes(8, "little")
    result = 0
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = source[nibble & 7]
        if nibble & 8:
            byte = 255 if byte & 128 else 0
        result |= byte << 8 * i
    return result


def lop3(a: int, b: int, c: int, table: int) -> int:
    result = 0
    for i in range(8):
        if table >> i & 1:
            result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return result & 0xFFFFFFFF


def extract(a: int, start: int, length: int, width: int, is_signed: bool) -> int:
    """bfe."""
    start, length = start & 255, length & 255
    if length == 0:
        return 0
    value = (signed(a, width) if is_signed else a) >> start
    if length >= width:
        return value & ((1 << width) - 1)
    field = value & ((1 << length) - 1)
    return (signed(field, length) if is_signed else field) & ((1 << width) - 1)


def insert(a: int, b: int, start: int, length: int, width: int) -> int:
    """bfi: the low bits of a into b."""
    mask = ((1 << (length & 255)) - 1) << (start & 255) & ((1 << width) - 1)
    return (a << (start & 255) & mask) | (b & ~mask)


def find_leading(a: int, width: int, is_signed: bool, as_shift: bool) -> int:
    """bfind."""
    if is_signed and a >> (width - 1) & 1:
        a = ~a & ((1 << width) - 1)
    position = a.bit_length() - 1
    if position < 0:
        return 0xFFFFFFFF
    return width - 1 - position if as_shift else position


def reverse(a: int, width: int) -> int:
    return int(format(a, f"0{width}b")[::-1], 2)

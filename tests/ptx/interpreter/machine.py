"""Threads, memory and the scheduler: one block after another, its threads one after another until each suspends.

Warps take turns in an order that a seed draws. Bulk copies arrive late, at a moment that it draws, too."""
import random
from collections import Counter, defaultdict
from dataclasses import dataclass

from . import barriers, numbers, tensor, warp
from .barriers import DEFINED, IN_FLIGHT, UNDEFINED
from .compile import EXIT, SUSPEND, WINDOW, Compiled
from .errors import PtxError
from .parse import Imm, Mem, Reg, Special

ROUNDS = 20_000  # of the scheduler without an end


@dataclass
class Array:
    """Memory of the device."""
    data: bytearray


@dataclass
class TensorMap:
    """As make_tensor_map(data, rows, columns, box_rows): a matrix of 16-bit elements, boxes of 64 columns."""
    data: bytes
    rows: int
    columns: int
    box_rows: int


class Device:
    def __init__(self):
        self.arrays, self.end = [], 1 << 36

    def place(self, data: bytearray) -> int:
        begin, self.end = self.end, self.end + -(-len(data) // 4096) * 4096 + 4096
        self.arrays.append((begin, data))
        return begin

    def find(self, address: int, size: int):
        for begin, data in self.arrays:
            if begin <= address and address + size <= begin + len(data):
                return data, address - begin
        return None, 0


class Thread:
    def __init__(self, block, linear: int):
        self.block, self.linear, self.r = block, linear, [0] * len(block.kernel.registers)
        self.next, self.at = 0, None  # function to run; instruction it waits in
        self.copies, self.copy_groups = [], []
        self.bulk_stores, self.bulk_groups = 0, []
        self.unfenced = set()  # words of shared memory that the asynchronous proxy may not see yet
        self.in_flight, self.fenced = frozenset(), False
        self.told, self.passed = None, Counter()  # the phase that has not ended yet; those that have
        self.local = bytearray(block.kernel.local_bytes)

    @property
    def lane(self) -> int:
        return self.linear % 32

    def fail(self, problem: str):
        text = f", `{self.block.kernel.instructions[self.at].text[:100]}`" if self.at is not None else ""
        raise PtxError(f"{problem} (thread {self.linear} of block {self.block.index}{text})")

    def special(self, name: str) -> int:
        block, (name, _, axis) = self.block, name.partition(".")
        n = "xyz".find(axis)
        x, y, _ = block.shape
        if name == "tid":
            return (self.linear % x, self.linear // x % y, self.linear // (x * y))[n]
        lanes = {"lanemask_eq": 1 << self.lane, "lanemask_lt": (1 << self.lane) - 1,
                 "lanemask_le": (2 << self.lane) - 1, "lanemask_gt": 0xFFFFFFFF & -(2 << self.lane),
                 "lanemask_ge": 0xFFFFFFFF & -(1 << self.lane)}
        known = {"ntid": block.shape[n], "ctaid": block.index[n], "nctaid": block.grid[n], "laneid": self.lane,
                 "warpid": self.linear // 32, "dynamic_smem_size": block.shared_bytes, **lanes}
        return known[name] if name in known else self.fail(f"%{name} is not modelled")

    def get(self, operand) -> int:
        if isinstance(operand, Reg):
            return self.r[operand.index]
        return operand.bits if isinstance(operand, Imm) else self.special(operand.name)

    def address(self, operand: Mem) -> int:
        return self.get(operand.base) + operand.offset

    # ---- memory ----

    def space(self, address: int):
        for name in ("local", "param", "shared"):
            if address >= WINDOW[name]:
                return name, address - WINDOW[name]
        return "global", address

    def memory(self, space: str, address: int, size: int, align: int):
        """The bytes and the place in them."""
        if space == "generic":
            space, address = self.space(address)
        if address % align:
            self.fail(f"misaligned access of {align} bytes at {address:#x} of {space} memory")
        if space == "global":
            data, at = self.block.device.find(address, size)
        else:
            data = {"shared": self.block.shared, "param": self.block.parameters, "local": self.local}[space]
            at = address
        if data is None or at < 0 or at + size > len(data):
            self.fail(f"access of {size} bytes at {address:#x} is out of {space} memory")
        return data, at

    def load(self, space: str, address: int, size: int, count: int) -> int:
        data, at = self.memory(space, address, size * count, size * count)
        if data is self.block.shared:
            self.block.check_defined(self, at, size * count)
        return int.from_bytes(data[at:at + size * count], "little")

    def store(self, space: str, address: int, size: int, count: int, bits: int):
        data, at = self.memory(space, address, size * count, size * count)
        data[at:at + size * count] = bits.to_bytes(size * count, "little")
        if data is self.block.shared:
            self.block.define(self, at, size * count)

    def atomic(self, space: str, change: str, kind: str, address: int, operand: int, other: int = 0) -> int:
        width = int("".join(c for c in kind if c.isdigit()))
        before = self.load(space, address, width // 8, 1)
        if kind in numbers.ENCODE:
            decode, encode = numbers.DECODE[kind], numbers.ENCODE[kind]
            after = encode(decode(before) + decode(operand)) if change == "add" else operand
        else:
            read = (lambda x: numbers.signed(x, width)) if kind[0] == "s" else (lambda x: x)
            after = {"add": before + operand, "exch": operand, "cas": other if before == operand else before,
                     "and": before & operand, "or": before | operand, "xor": before ^ operand,
                     "inc": 0 if before >= operand else before + 1, "min": min(before, operand, key=read),
                     "max": max(before, operand, key=read)}[change]
        self.store(space, address, width // 8, 1, after & ((1 << width) - 1))
        return before

    def fence_proxy(self):
        for word in self.unfenced:
            self.block.unfenced[word] -= 1
        self.unfenced.clear()

    # ---- cp.async: done when the thread waits, and not before ----

    def start_copy(self, to: int, source: int, size: int, given: int):
        self.memory("shared", to, size, size)
        if given:
            self.memory("global", source, given, size)
        self.block.state[to // 4:(to + size) // 4] = bytes([IN_FLIGHT]) * (size // 4)
        self.copies.append((to, source, size, min(given, size)))

    def commit_copies(self):
        self.copy_groups.append(self.copies)
        self.copies = []

    def wait_for_copies(self, pending: int):
        while len(self.copy_groups) > pending:
            for to, source, size, given in self.copy_groups.pop(0):
                data, at = self.memory("global", source, given, 1) if given else (b"", 0)
                self.block.shared[to:to + size] = bytes(data[at:at + given]) + bytes(size - given)
                self.block.define(self, to, size)

    def commit_bulk_stores(self):
        self.bulk_groups.append(self.bulk_stores)
        self.bulk_stores = 0

    def wait_for_bulk_stores(self, pending: int):
        if len(self.bulk_groups) > pending:
            self.block.finish_stores_of(self)
            del self.bulk_groups[:len(self.bulk_groups) - pending]


class Block(barriers.Barriers):
    def __init__(self, compiled: Compiled, device: Device, index, grid, shape, shared_bytes, parameters, maps, seed):
        super().__init__()
        self.compiled, self.kernel, self.device = compiled, compiled.kernel, device
        self.index, self.grid, self.shape, self.shared_bytes = index, grid, shape, shared_bytes
        self.parameters, self.maps = parameters, maps
        size = self.kernel.dynamic_begin + shared_bytes
        self.shared, self.state = bytearray(size), bytearray(-(-size // 4))
        self.unfenced = Counter()  # threads that have stored to a word without a fence, by word
        self.random = random.Random(f"{seed} {index}")
        self.threads = [Thread(self, n) for n in range(shape[0] * shape[1] * shape[2])]
        self.groups = defaultdict(tensor.Warpgroup)
        self.arrived = Counter()  # at named barriers without waiting

    # ---- shared memory, in words ----

    def check_defined(self, thread, at: int, size: int):
        states = self.state[at // 4:(at + size + 3) // 4]
        if IN_FLIGHT in states:
            thread.fail(f"read of shared memory at {at:#x} that a copy is still to write")
        if UNDEFINED in states:
            thread.fail(f"read of shared memory at {at:#x} that nobody has written")

    def check_async_read(self, at: int, size: int, what: str):
        """By the asynchronous proxy: TMA and wgmma."""
        if at < 0 or at + size > len(self.shared):
            raise PtxError(f"{what} reads outside of shared memory at {at:#x}")
        self.check_defined(self.threads[0], at, size)
        for word in range(at // 4, (at + size) // 4):
            if self.unfenced[word]:
                raise PtxError(f"{what} reads shared memory at {4 * word:#x}, stored without fence.proxy.async")

    def define(self, thread, at: int, size: int):
        for word in range(at // 4, (at + size + 3) // 4):
            self.state[word] = DEFINED
            if word not in thread.unfenced:
                thread.unfenced.add(word)
                self.unfenced[word] += 1

    # ---- scheduler ----

    def run(self):
        for _ in range(ROUNDS):
            live = [t for t in self.threads if t.next != EXIT]
            if not live:
                return self._end()
            progress = False
            warps = sorted({t.linear // 32 for t in live if t.at is None}, key=lambda _: self.random.random())
            for number in warps:
                for thread in self.threads[32 * number:32 * number + 32]:
                    if thread.next != EXIT and thread.at is None:
                        self._advance(thread)
                        progress = True
            progress = self._meet() or progress
            if self.copies_in_flight and (not progress or self.random.random() < 0.3):
                self.finish_copy(self.random.choice(self.copies_in_flight))
                progress = True
            if not progress:
                self._deadlock(live)
        raise PtxError(f"block {self.index} does not end")

    def _advance(self, thread):
        functions, registers = self.compiled.functions, self.compiled.registers
        for _ in range(1_000_000):
            touched = registers[thread.next]
            if thread.in_flight and not touched.isdisjoint(thread.in_flight):
                thread.fail("registers of a product in flight are used")
            if not touched.isdisjoint(self.compiled.accumulators):
                thread.fenced = False
            following = functions[thread.next](thread, thread.r)
            if following == SUSPEND:
                return
            thread.next = following
            if following == EXIT:
                return
        thread.fail("does not come to an end")

    def resume(self, thread):
        thread.next, thread.at = self.compiled.after[thread.at], None

    def _meet(self) -> bool:
        """Lets threads that have come together go on; whether any did."""
        waiting = defaultdict(list)  # by instruction and warp or warpgroup
        at_barriers = defaultdict(list)
        progress = False
        for thread in self.threads:
            if thread.next == EXIT or thread.at is None:
                continue
            i = self.kernel.instructions[thread.at]
            if i.parts[0] in ("bar", "barrier") and i.parts[1] != "warp":
                at_barriers[thread.get(i.operands[0]) if i.operands else 0].append(thread)
            elif i.parts[0] == "mbarrier":
                progress = self.try_wait(thread, i) or progress
            else:
                waiting[thread.at, thread.linear // tensor.threads_of(i)].append(thread)
        for (at, _), threads in waiting.items():
            i = self.kernel.instructions[at]
            together = warp.partners(self, i, threads)
            if together:
                if any(not i.registers.isdisjoint(t.in_flight) for t in together) and i.parts[0] != "wgmma":
                    together[0].fail("registers of a product in flight are used")
                (tensor if i.parts[0] in tensor.KINDS else warp).perform(self, i, together)
                for thread in together:
                    self.resume(thread)
                progress = True
        return warp.pass_barriers(self, at_barriers) or progress

    def _deadlock(self, live):
        where = Counter((self.kernel.instructions[t.at].text[:80] if t.at is not None else "?") for t in live)
        raise PtxError(f"deadlock in block {self.index}: " + "; ".join(f"{n} threads in `{text}`" for text, n in
                                                                      where.items()))

    def _end(self):
        for thread in self.threads:
            if thread.copies or any(thread.copy_groups):
                thread.fail("ends before it has waited for its copies")
            if thread.bulk_stores or any(thread.bulk_groups):
                thread.fail("ends before it has waited for its bulk stores")
        if self.copies_in_flight:
            raise PtxError("the block ends while bulk copies are in flight")
        if any(group.open or group.committed for group in self.groups.values()):
            raise PtxError("the block ends while products are in flight")


def run_grid(compiled: Compiled, grid, block, shared_bytes: int, arguments: list, seed: int) -> list:
    kernel, device = compiled.kernel, Device()
    if len(arguments) != len(kernel.parameters):
        raise PtxError(f"{kernel.name} takes {len(kernel.parameters)} arguments, not {len(arguments)}")
    parameters, maps = bytearray(kernel.parameter_bytes), {}
    for argument, (at, size) in zip(arguments, kernel.parameters.values()):
        if isinstance(argument, TensorMap):
            maps[at] = argument, device.place(bytearray(argument.data))
            continue
        if isinstance(argument, Array):
            argument = device.place(argument.data)
        bits = numbers.f32_bits(argument) if isinstance(argument, float) else argument
        parameters[at:at + size] = (bits & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    for z in range(grid[2]):
        for y in range(grid[1]):
            for x in range(grid[0]):
                Block(compiled, device, (x, y, z), grid, block, shared_bytes, parameters, maps, seed).run()
    return [bytes(a.data) for a in arguments if isinstance(a, Array)]

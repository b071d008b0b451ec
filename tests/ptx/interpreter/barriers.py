"""mbarrier objects and copies of boxes (PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier"
and "Data Movement and Conversion Instructions: cp.async.bulk.tensor")."""
from dataclasses import dataclass

from .errors import PtxError

UNDEFINED, DEFINED, IN_FLIGHT = 0, 1, 2  # a word of shared memory
ROW_BYTES = 128  # of a box: 64 columns
SPINS = 1000  # answers that a phase has ended, to one thread


@dataclass
class MBarrier:
    expected: int
    pending: int
    bytes: int = 0  # to come, less come
    shown: bool = False  # to the asynchronous proxy
    phases: int = 0  # that have ended

    def end_phase_if_complete(self):
        if self.pending == 0 and self.bytes == 0:
            self.phases += 1
            self.pending = self.expected


def swizzle(address: int, bits: int) -> int:
    """Of a pattern that repeats after 8 rows of 16 << bits bytes: address bits 4.. are xored with bits 7.. """
    return address ^ (address >> 7 & ((1 << bits) - 1)) << 4


class Barriers:
    """What a block knows of them."""

    def __init__(self):
        self.barriers, self.copies_in_flight = {}, []

    def _barrier(self, thread, address: int) -> MBarrier:
        if address not in self.barriers:
            thread.fail(f"mbarrier at {address:#x} is not initialised")
        return self.barriers[address]

    def init_barrier(self, thread, address: int, count: int):
        thread.store("shared", address, 8, 1, 0)
        if address in self.barriers:
            thread.fail("mbarrier is initialised twice")
        if not 1 <= count < 1 << 20:
            thread.fail(f"mbarrier for {count} arrivals")
        self.barriers[address] = MBarrier(count, count)

    def fence_barrier_init(self):
        for barrier in self.barriers.values():
            barrier.shown = True

    def forget_barrier(self, thread, address: int):
        self._barrier(thread, address)
        del self.barriers[address]

    def arrive(self, thread, address: int, arrivals: int, expected_bytes: int):
        barrier = self._barrier(thread, address)
        if barrier.pending < arrivals:
            thread.fail(f"more arrivals than the {barrier.expected} of a phase")
        barrier.pending -= arrivals
        barrier.bytes += expected_bytes
        barrier.end_phase_if_complete()

    def try_wait(self, thread, i) -> bool:
        """Whether the thread goes on: the phase has ended, or it is told that it has not, once for each phase, so that
        the loop around it is seen to work."""
        to, place, parity = i.operands
        address = thread.address(place)
        barrier = self._barrier(thread, address)
        if barrier.phases % 2 == thread.get(parity) & 1:
            if thread.told == (address, barrier.phases):
                return False
            thread.told = address, barrier.phases
            self._answer(thread, to, 0)
            return True
        thread.passed[address, barrier.phases] += 1
        if thread.passed[address, barrier.phases] > SPINS:
            thread.fail("spins on an mbarrier whose phase has ended")
        self._answer(thread, to, 1)
        return True

    def _answer(self, thread, to, done: int):
        thread.r[to.index] = done
        self.resume(thread)

    # ---- boxes ----

    def start_box(self, thread, tile: int, map_address: int, row: int, column: int, barrier: int):
        """A load, or a store where barrier is None."""
        space, at = thread.space(map_address)
        if space != "param" or at not in self.maps:
            thread.fail(f"there is no tensor map at {map_address:#x}")
        tensor, begin = self.maps[at]
        size = tensor.box_rows * ROW_BYTES
        if tile % 1024:
            thread.fail(f"tile at {tile:#x}: with a swizzle of 128 bytes the pattern repeats every 1024")
        if tile < 0 or tile + size > len(self.shared):
            thread.fail(f"tile at {tile:#x} is out of shared memory")
        if barrier is None:
            thread.bulk_stores += 1
        else:
            if not self._barrier(thread, barrier).shown:
                thread.fail("a bulk copy counts on an mbarrier without fence.mbarrier_init")
            self.state[tile // 4:(tile + size) // 4] = bytes([IN_FLIGHT]) * (size // 4)
        self.copies_in_flight.append((thread, tensor, begin, tile, row, column, barrier))

    def finish_stores_of(self, thread):
        for copy in [c for c in self.copies_in_flight if c[0] is thread and c[-1] is None]:
            self.finish_copy(copy)

    def finish_copy(self, copy: tuple):
        self.copies_in_flight.remove(copy)
        _, tensor, begin, tile, row, column, barrier = copy
        for r in range(tensor.box_rows):
            for part in range(ROW_BYTES // 16):
                at = swizzle(tile + r * ROW_BYTES + 16 * part, 3)
                elements = []
                for e in range(8):
                    y, x = row + r, column + 8 * part + e
                    inside = 0 <= y < tensor.rows and 0 <= x < tensor.columns
                    elements.append(begin + 2 * (y * tensor.columns + x) if inside else None)
                if barrier is None:
                    self._store_part(at, elements)
                else:
                    self._load_part(at, elements)
        if barrier is not None:
            if barrier not in self.barriers:
                raise PtxError(f"a bulk copy counts on an mbarrier at {barrier:#x} that is gone")
            self.barriers[barrier].bytes -= tensor.box_rows * ROW_BYTES  # rows outside, too
            self.barriers[barrier].end_phase_if_complete()

    def _load_part(self, at: int, elements: list):
        for e, address in enumerate(elements):
            bits = b"\0\0"
            if address is not None:
                data, place = self.device.find(address, 2)
                bits = data[place:place + 2]
            self.shared[at + 2 * e:at + 2 * e + 2] = bits
        for word in range(at // 4, at // 4 + 4):
            self.state[word] = DEFINED
            if self.unfenced[word]:  # written by the asynchronous proxy itself
                for thread in self.threads:
                    thread.unfenced.discard(word)
                self.unfenced[word] = 0

    def _store_part(self, at: int, elements: list):
        self.check_async_read(at, 16, "a bulk store")
        for e, address in enumerate(elements):
            if address is not None:
                data, place = self.device.find(address, 2)
                data[place:place + 2] = self.shared[at + 2 * e:at + 2 * e + 2]

"""A PTX text and its kernels."""
import re

from .compile import Compiled, compile_kernel
from .errors import PtxError
from .machine import run_grid
from .parse import Kernel


class Module:
    """The kernels of a PTX text."""

    def __init__(self, text: str):
        text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.S)
        text = re.sub(r"^[ \t]*\.(loc|file|pragma|section)\b[^\n]*$", "", text, flags=re.M)
        dynamic = set(re.findall(r"\.extern\s+\.shared\s+\.align \d+\s+\.b8\s+(\w+)\[\];", text))
        shared = re.findall(r"\.shared\s+\.align (\d+)\s+\.b8\s+(\S+?)\[(\d+)\];", text)
        self.kernels = {}
        for match in re.finditer(r"\.entry\s+(\w+)\s*\((.*?)\)(.*?)\{", text, re.S):
            end, depth = match.end(), 1
            while depth:
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                end += 1
            self.kernels[match[1]] = (match[2], text[match.end():end - 1])
        self._shared, self._dynamic, self._compiled = shared, dynamic, {}

    def kernel(self, name: str) -> Compiled:
        """The one of this name, or whose mangled name contains it as a whole identifier, else as a part."""
        tests = (lambda n: n == name, lambda n: f"{len(name)}{name}" in n, lambda n: name in n)
        names = next(filter(None, ([n for n in self.kernels if test(n)] for test in tests)), [])
        if len(names) != 1:
            raise PtxError(f"{len(names)} kernels are named {name}: {names or list(self.kernels)}")
        found = names[0]
        if found not in self._compiled:
            parameters, body = self.kernels[found]
            self._compiled[found] = compile_kernel(Kernel(found, parameters, body, self._shared, self._dynamic))
        return self._compiled[found]

    def run(self, name: str, grid, block, shared_bytes: int, arguments: list, seed: int = 1) -> list:
        """Arguments: an Array (of the device; what it holds afterwards is returned in this order), an int, a float
        or a TensorMap. Throws PtxError."""
        return run_grid(self.kernel(name), grid, block, shared_bytes, arguments, seed)

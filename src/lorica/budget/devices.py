"""Devices by name: memory and the published rate of 16-bit matrix products, dense, summed in float32.

    rate = SMs x products a clock and SM x 2 x boost clock        512 on Turing, Ampere's GA10x and Ada; half of it on
                                                                  GeForce, which sums in float32 at half speed

`memory` is what the maker prints, in GiB where the chips come in powers of two, as decimal bytes; of a unified memory
the system keeps its share (`usable`).  `tflops` is None where the maker prints none and no such product is known.
"""

from dataclasses import dataclass

from lorica.errors import RequestError, did_you_mean

GIB = 1 << 30
AMPERE = "NVIDIA Ampere GA102 GPU architecture whitepaper, version 2.0, appendices A and C"
ADA = "NVIDIA Ada GPU architecture whitepaper, version 2.01, appendix A"
TURING = "NVIDIA Turing GPU architecture whitepaper, 2018, appendix A"
BY_CLOCK = "SMs and boost clock of NVIDIA's product page"
DATA_CENTRE = "NVIDIA data sheet of the card; SMs and boost clock give the same"
APPLE = "Apple's technical specifications; Metal lets a process hold about three quarters"
INSTALLED = "memory as it is installed; the system and other programs keep some"


@dataclass(frozen=True)
class Device:
    """usable: the share of the memory that a process can hold.  bfloat16: whether products of it are fast."""

    name: str
    kind: str
    memory: int
    tflops: float | None
    source: str
    usable: float = 1.0
    bfloat16: bool = True

    @property
    def available(self) -> int:
        return int(self.memory * self.usable)


def _nvidia(name: str, gib: float, tflops: float | None, source: str, bfloat16: bool = True) -> Device:
    return Device(name, "cuda", int(gib * GIB), tflops, source, bfloat16=bfloat16)


def _cpu(gib: int) -> Device:
    return Device(f"CPU {gib} GB", "cpu", gib * GIB, None, INSTALLED, usable=0.85)


def _apple(chip: str, gib: int) -> Device:
    return Device(f"Apple {chip} {gib} GB", "mps", gib * GIB, None, APPLE, usable=0.75)


UNIFIED = {
    "M1": (8, 16),
    "M1 Pro": (16, 32),
    "M1 Max": (32, 64),
    "M1 Ultra": (64, 128),
    "M2": (8, 16, 24),
    "M2 Pro": (16, 32),
    "M2 Max": (32, 64, 96),
    "M2 Ultra": (64, 128, 192),
    "M3": (8, 16, 24),
    "M3 Pro": (18, 36),
    "M3 Max": (36, 48, 64, 96, 128),
    "M4": (16, 24, 32),
    "M4 Pro": (24, 48, 64),
    "M4 Max": (36, 48, 64, 128),
}
"""Laptops and desktops of Apple: chip -> sizes of the memory, of which all or parts can be had."""
DEVICES: tuple[Device, ...] = (
    _nvidia("RTX 2060", 6, 25.8, BY_CLOCK, bfloat16=False),
    _nvidia("RTX 2080 Ti", 11, 53.8, TURING, bfloat16=False),
    _nvidia("RTX 3060", 12, 25.5, BY_CLOCK),
    _nvidia("RTX 3060 Ti", 8, 32.4, BY_CLOCK),
    _nvidia("RTX 3070", 8, 40.6, AMPERE),
    _nvidia("RTX 3080", 10, 59.5, AMPERE),
    _nvidia("RTX 3090", 24, 71.0, AMPERE),
    _nvidia("RTX A6000", 48, 154.8, AMPERE),
    _nvidia("RTX 4060", 8, 30.2, BY_CLOCK),
    _nvidia("RTX 4060 Ti 16 GB", 16, 44.1, BY_CLOCK),
    _nvidia("RTX 4070", 12, 58.3, BY_CLOCK),
    _nvidia("RTX 4070 Ti", 12, 80.2, ADA),
    _nvidia("RTX 4080", 16, 97.5, ADA),
    _nvidia("RTX 4090", 24, 165.2, ADA),
    _nvidia("RTX 5090", 32, 209.5, BY_CLOCK),
    _nvidia("T4", 16, 65.0, DATA_CENTRE, bfloat16=False),
    _nvidia("V100 16 GB", 16, 125.0, DATA_CENTRE, bfloat16=False),
    _nvidia("V100 32 GB", 32, 125.0, DATA_CENTRE, bfloat16=False),
    _nvidia("A10", 24, 125.0, DATA_CENTRE),
    _nvidia("A100 40 GB", 40, 312.0, DATA_CENTRE),
    _nvidia("A100 80 GB", 80, 312.0, DATA_CENTRE),
    _nvidia("L4", 24, 121.0, DATA_CENTRE),
    _nvidia("L40S", 48, 362.0, DATA_CENTRE),
    Device("H100 80 GB", "cuda", 80_000_000_000, 989.0, DATA_CENTRE),
    Device("H200", "cuda", 141_000_000_000, 989.0, DATA_CENTRE),
    *(_apple(chip, size) for chip, sizes in UNIFIED.items() for size in sizes),
    *(_cpu(size) for size in (8, 16, 32, 64, 128)),
)


def device(name: str) -> Device:
    """By its name, spaces and case aside, with or without its maker's.  RequestError with the nearest names."""
    found = [each for each in DEVICES if _plain(name) in (_plain(each.name), _plain(each.name).removeprefix("apple"))]
    if found:
        return found[0]
    sizes = [each.name for each in DEVICES if _plain(each.name).startswith(_plain(name))]
    near = f"; there are {', '.join(sizes)}" if sizes else _near(name)
    raise RequestError(f"--device: no device is called {name!r}{near or '; give its memory instead, as --memory 24GB'}")


def _near(name: str) -> str:
    upper = {each.name.upper(): each.name for each in DEVICES}
    told = did_you_mean(name.upper(), upper, 3)
    for loud, usual in upper.items():
        told = told.replace(repr(loud), repr(usual))
    return told


def _plain(name: str) -> str:
    words = name.lower().replace("nvidia", "").replace("geforce", "").replace("gib", "gb")
    return "".join(character for character in words if character.isalnum())


def memory_in_bytes(given: str) -> int:
    """`8`, `8GB` (10^9) or `8GiB` (2^30).  RequestError where it is no amount of memory."""
    text = given.strip().lower()
    unit = next((unit for unit in UNITS if unit and text.endswith(unit)), "")
    try:
        size = float(text.removesuffix(unit)) * UNITS[unit]
    except ValueError:
        size = 0.0
    if not LEAST <= size <= MOST:
        raise RequestError(f"--memory: {given!r} is no amount of memory; give decimal GB, as in 24 or 24GB, or 24GiB")
    return int(size)


UNITS = {"gib": float(GIB), "mib": float(1 << 20), "tb": 1e12, "gb": 1e9, "mb": 1e6, "": 1e9}
LEAST, MOST = 1e6, 1e15

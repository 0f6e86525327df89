"""A cost model of kernels by the sizes of their tiles, and the published times to which it is fitted.

The time of a call is a sum of products: a count that follows from the shape and the tiles (`COUNTS`), times a rate of the device
that is not negative. The rates of each device, kernel and direction are fitted to relative errors by least squares.
"""

import collections
import csv
import dataclasses
import hashlib
import io
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from zoo.errors import BadInput
from zoo.file_access import read_regular_text

Tile = tuple[int, ...]
DEVICES = {
    "tpu_v5": "TPU v5p",
    "tpu_v6_lite": "TPU v6e",
    "tpu7x": "TPU7x",
    "nvidia_h100_80gb_hbm3": "NVIDIA H100",
}
"""Device of a published row -> its name. Those of v5e and B200 have too few rows."""
ATTENTION = {"pallas_mosaic_tpu_flash_attention": "splash", "pallas_triton_flash_attention": "flash_gpu"}
EXPERTS = {"pallas_mosaic_tpu_ragged_dot": "grouped_product_tpu", "pallas_triton_ragged_dot": "grouped_product_gpu"}
"""Published implementation -> the zoo's kernel of the same form."""
DIRECTIONS = {"forward(m,k)x(g,k,n)": "rows", "dlhs(m,n)x(g,k,n)^T": "rows", "drhs(m,k)^T x(m,n)->(g,k,n)": "weights"}
"""Kind of a published product of experts -> the zoo's kernel: `multiply_rows` or `weight_gradients`."""
COMPUTE = (128, 256, 512, 1024)
"""Keys that the Mosaic kernel multiplies at once, of those of its tile."""
LANES = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimedTile:
    """A published time of a kernel with some tile."""

    device: str
    kernel: str
    direction: str
    """forward or vjp of attention, rows or weights of experts."""
    shape: tuple[int, ...]
    """B, T, S, N, K, H of attention; rows, contracted axis, columns and groups of experts."""
    tile: Tile
    """Queries, keys, and keys at once of attention on a TPU; queries, keys and warps on a GPU; sizes along rows, contracted axis
    and columns of experts."""
    micros: float
    causal: bool = False
    extra: bool = False
    """Attention also writes the log-sum-exp of rows, or has a bias on a GPU; a product of experts has an activation."""
    has_bias: bool = False

    @property
    def group(self) -> tuple[str, str, str]:
        return self.device, self.kernel, self.direction

    @property
    def is_held_out(self) -> bool:
        """Return whether the row is for judging, by a hash of its shape: no shape is in both halves, whatever the device."""
        text = f"{self.kernel.partition('_')[0] == 'grouped'} {self.shape} {self.causal}"
        return hashlib.sha256(text.encode()).digest()[0] % 2 == 1


def read_attention(path: Path) -> list[TimedTile]:
    """Return the times of the Pallas kernels in the newest revision of the file of attention.

    Raises:
        BadInput: the file is missing, or has not the columns.
    """
    timed = []
    for row in _read_rows(path, ATTENTION, ("q_shape", "k_shape", "causal", "bias", "return_residuals", "direction")):
        q, k = (tuple(map(int, row[name].split("x"))) for name in ("q_shape", "k_shape"))
        names = ("block_q", "block_kv|block_k", "block_kv_compute|num_warps")
        if row["direction"] == "vjp":
            names = ("block_q_dkv|block_m1", "block_kv_dkv|block_n1", "block_kv_dkv_compute|num_warps")
        timed.append(
            TimedTile(
                device=DEVICES[row["device"]],
                kernel=ATTENTION[row["implementation"]],
                direction=row["direction"],
                shape=(math.prod(q[:-3]), q[-3], k[-3], q[-2], k[-2], q[-1]),
                tile=_tile(row["config"], names),
                micros=float(row["time_us_median"]),
                causal=row["causal"] == "1",
                extra=row["return_residuals"] == "1",
                has_bias=bool(row["bias"]),
            )
        )
    return timed


def read_experts(path: Path) -> list[TimedTile]:
    """Return the times of products of experts in the newest revision, without those that have a group for each row.

    Raises:
        BadInput: the file is missing, or has not the columns.
    """
    timed = []
    for row in _read_rows(path, EXPERTS, ("lhs_shape", "rhs_shape", "kind", "num_groups", "group_stats", "activation")):
        lhs, rhs = (tuple(map(int, row[name].split("x"))) for name in ("lhs_shape", "rhs_shape"))
        groups, stats = int(row["num_groups"]), re.search(r"empty=(\d+)", row["group_stats"])
        if groups == lhs[0]:
            continue
        tile = _tile(row["config"], ("tile_m|block_m", "tile_k|block_k", "tile_n|block_n"))
        if row["device"] == "tpu_v5" and row["kind"].startswith("dlhs"):
            tile = tile[0], tile[2], tile[1]  # its revision names the axes of the weights as in the forward pass
        timed.append(
            TimedTile(
                device=DEVICES[row["device"]],
                kernel=EXPERTS[row["implementation"]],
                direction=DIRECTIONS[row["kind"]],
                shape=(*lhs, rhs[2] if row["kind"].startswith("forward") else rhs[1], groups - int(stats[1] if stats else 0)),
                tile=tile,
                micros=float(row["time_us_median"]),
                extra=bool(row["activation"]),
            )
        )
    return timed


def _read_rows(path: Path, implementations: Mapping[str, str], columns: Iterable[str]) -> list[dict[str, str]]:
    if not path.is_file():
        raise BadInput(f"{path}: there is no such file; give the folder of attention_times.csv and experts_times.csv")
    rows = list(csv.DictReader(io.StringIO(read_regular_text(path))))
    needed = (*columns, "device", "implementation", "config", "time_us_median", "at_head")
    if missing := [name for name in needed if not rows or name not in rows[0]]:
        raise BadInput(f"{path}: it has no column {', '.join(missing)}; give the folder of the published times")
    return [
        row for row in rows if row["implementation"] in implementations and row["device"] in DEVICES and row["at_head"] == "1"
    ]


def _tile(config: str, names: Sequence[str]) -> Tile:
    values = dict(part.split("=") for part in config.split(";"))
    return tuple(int(next(values[name] for name in alternatives.split("|") if name in values)) for alternatives in names)


# --- the counts of which a time is a sum ----------------------------------------------------------------------------------------


def active_tiles(t: int, s: int, block_q: int, block_k: int, causal: bool) -> tuple[int, int]:
    """Return the number of tiles that have a pair, and of those that are on the diagonal of causal attention."""
    num_q, num_k = -(-t // block_q), -(-s // block_k)
    if not causal:
        return num_q * num_k, 0
    full = sum(min(num_k, (i * block_q + 1) // block_k) for i in range(num_q))
    active = sum(min(num_k, (min(t, (i + 1) * block_q) - 1) // block_k + 1) for i in range(num_q))
    return active, active - full


def splash_counts(row: TimedTile, tile: Tile) -> dict[str, float]:
    """Return the counts of a call of the Mosaic kernel; those of scores and numbers are in millions."""
    (b, t, s, n, _, h), (block_q, block_k, compute) = row.shape, tile
    active, diagonal = active_tiles(t, s, block_q, block_k, row.causal)
    area, wide = b * n * block_q * block_k / 1e6, max(h, LANES) / LANES
    num_q, num_k = -(-t // block_q), -(-s // block_k)
    rows = b * n * active * block_q * (block_k // min(compute, block_k)) / 1e6
    return {
        "call": 1.0,
        "grid steps": b * n * num_q * num_k,
        "scores": active * area,
        "products": active * area * wide,
        "rescaled rows": rows,
        "rescaled sums": rows * wide,
        "masked scores": diagonal * area,
        "numbers read": b * n * (2 * active * block_k + 2 * t) * h / 1e6,
        "log-sum-exp": b * n * t * LANES / 1e6 if row.extra else 0.0,
    }


def flash_gpu_counts(row: TimedTile, tile: Tile) -> dict[str, float]:
    """Return the counts of a call of the Triton kernel, in millions."""
    (b, t, s, n, _, h), (block_q, block_k, _) = row.shape, tile
    active, diagonal = active_tiles(t, s, block_q, block_k, row.causal)
    padded, area = 1 << (h - 1).bit_length(), b * n * block_q * block_k / 1e6
    return {
        "call": 1.0,
        "programs": b * n * -(-t // block_q) / 1e6,
        "steps": b * n * active / 1e6,
        "scores": active * area,
        "products": active * area * padded / LANES,
        "numbers read": 2 * b * n * active * block_k * padded / 1e6,
        "rescaled sums": b * n * active * block_q * padded / 1e6,
        "bias": active * area if row.has_bias else 0.0,
        "numbers written": b * n * t * h / 1e6,
        "masked scores": diagonal * area,
    }


def grouped_counts(row: TimedTile, tile: Tile) -> dict[str, float]:
    """Return the counts of a product of experts. A tile of rows with two groups is computed for both."""
    (m, k, n, groups), (tile_m, tile_k, tile_n) = row.shape, tile
    num_m, num_k, num_n = -(-m // tile_m) + groups - 1, -(-k // tile_k), -(-n // tile_n)
    steps = num_m * num_k * num_n
    if row.direction == "weights":
        read, sums = num_m * tile_m * (tile_k + tile_n) * num_k * num_n + groups * k * n, steps * tile_k * tile_n
    else:
        # Weights stay in the fast memory from tile to tile of a group if they have all of the contracted axis.
        weights = (groups if num_k == 1 else num_m) * k * n
        read, sums = num_m * tile_m * k * num_n + weights + m * n, steps * tile_m * tile_n if num_k > 1 else 0
    return {
        "call": 1.0,
        "grid steps": steps,
        "products": steps * math.prod(tile) / 1e9,
        "numbers read": read / 1e6,
        "sums": sums / 1e6,
        "activations": m * n / 1e6 if row.extra else 0.0,
        # The grid of the Triton kernel goes over all tiles for every group.
        "empty programs": groups * -(-m // tile_m) * num_n / 1e6 if row.kernel == "grouped_product_gpu" else 0.0,
    }


COUNTS: dict[str, Callable[[TimedTile, Tile], dict[str, float]]] = {
    "splash": splash_counts,
    "flash_gpu": flash_gpu_counts,
    "grouped_product_tpu": grouped_counts,
    "grouped_product_gpu": grouped_counts,
}
Rates = Mapping[str, float]


def fit_rates(rows: Sequence[TimedTile]) -> Rates:
    """Return the microseconds of each count that fit the times of rows of one group best."""
    counts = [COUNTS[row.kernel](row, row.tile) for row in rows]
    relative = np.array([[value / row.micros for value in named.values()] for named, row in zip(counts, rows, strict=True)])
    scale = np.maximum(relative.max(0), 1e-30)  # nnls works with numbers of about one size
    rates, _ = nnls(relative / scale, np.ones(len(rows)))
    return dict(zip(counts[0], (rates / scale).tolist(), strict=True))


def predicted_micros(rates: Rates, row: TimedTile, tile: Tile) -> float:
    """Return the predicted time of a row with some tile."""
    return sum(rates[name] * count for name, count in COUNTS[row.kernel](row, tile).items())


# --- orders of tiles ------------------------------------------------------------------------------------------------------------


def candidates(fitted: Sequence[TimedTile], row: TimedTile) -> list[Tile]:
    """Return the tiles that are ordered for a row: sizes between the smallest and largest of recorded best ones, or these.

    The tuner's candidates are not published. On a TPU, those of attention are all powers of two, of at most as many scores as the
    largest recorded tile, and those of experts as few equal blocks of the axes, of at most as many numbers. On a GPU they are the
    recorded tiles.
    """
    tiles = {other.tile for other in fitted}
    if row.kernel == "splash":
        _, t, s, *_ = row.shape
        limit = max(block_q * block_k for block_q, block_k, _ in tiles)
        powers = [[1 << e for e in range(7, 13) if low <= 1 << e <= high] for low, high in _ranges(tiles)[:2]]
        pairs = [(q, k) for q, k in itertools.product(*powers) if q <= t and k <= s and q * k <= limit]
        return [(*pair, compute) for pair in pairs for compute in COMPUTE if compute <= pair[1]]
    if row.kernel == "grouped_product_tpu":
        _, k, n, _ = row.shape
        limit = max(map(_numbers_of_blocks, tiles))
        sizes = [sorted({min(-(-axis // (parts * LANES)) * LANES, axis) for parts in range(1, 17)}) for axis in (k, n)]
        rows = sorted({tile[0] for tile in tiles})
        return [tile for tile in itertools.product(rows, *sizes) if _numbers_of_blocks(tile) <= limit]
    return sorted(tiles)


def _numbers_of_blocks(tile: Tile) -> int:
    tile_m, tile_k, tile_n = tile
    return tile_m * tile_k + tile_k * tile_n + tile_m * tile_n


def _ranges(tiles: Iterable[Tile]) -> list[tuple[int, int]]:
    return [(min(sizes), max(sizes)) for sizes in zip(*tiles, strict=True)]


def main_sizes(row: TimedTile, tile: Tile) -> Tile:
    """Return the sizes that are compared with the recorded best ones: of attention queries and keys, of experts all."""
    if row.kernel in ("splash", "flash_gpu"):
        return tile[:2]
    return (tile[0], *(min(size, axis) for size, axis in zip(tile[1:], row.shape[1:3], strict=True)))


def order_by_model(rates: Rates, fitted: Sequence[TimedTile], row: TimedTile) -> list[Tile]:
    """Return the sizes in the order of their predicted times, each with the best of its other parameters."""
    times: dict[Tile, float] = collections.defaultdict(lambda: math.inf)
    for tile in candidates(fitted, row):
        sizes = main_sizes(row, tile)
        times[sizes] = min(times[sizes], predicted_micros(rates, row, tile))
    return sorted(times, key=lambda sizes: times[sizes])


def order_by_record(fitted: Sequence[TimedTile], row: TimedTile) -> list[Tile]:
    """Return the sizes that were recorded as best, those of the most similar shapes first."""

    def distance(other: TimedTile) -> tuple[float, ...]:
        logarithms = [abs(math.log(one / two)) for one, two in zip(row.shape, other.shape, strict=True)]
        if row.kernel not in ("splash", "flash_gpu"):
            return (sum(logarithms),)
        unlike = [float(getattr(other, name) != getattr(row, name)) for name in ("has_bias", "causal", "extra")]
        return unlike[0], logarithms[5], unlike[1], logarithms[1], unlike[2]

    tiles = (main_sizes(other, other.tile) for other in sorted(fitted, key=distance))
    axes = row.shape[1:3] if row.kernel == "splash" else ()
    return [sizes for sizes in dict.fromkeys(tiles) if all(size <= axis for size, axis in zip(sizes, axes, strict=False))]

"""Write the lines of `auto` for accelerators from published times, and judge them by figures that they were not made from.

`python -m benchmarks.attention.auto_from_figures attention_times.csv --lines zoo/attention/auto_lines.json > RESULT.md` writes
the file of the lines from one half of the figures, and prints how they do on the other half. The half of a case follows from a
hash of its arguments, so that no set of arguments is in both.

A line is used from the length on at which the fewest cases are more than `NEAR` slower than the best of the two, it and `xla`; of
equally good lengths from the longest. It is left out if by the median it is not `NEAR` times as fast as `xla` there. What nobody
has measured is written in `tpu_plans` and `gpu_plans` with what it is derived from.
"""

import argparse
import collections
import dataclasses
import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.attention.published_attention import Case, ratios, read_cases, supports
from zoo.attention.auto import DeviceLines, Line, matching_line
from zoo.errors import BadInput

NEAR = 1.1
"""A choice is right if its time is at most this times that of the fastest one."""
TOKAMAX = "openxla/tokamax@783ea95704a5:tokamax/data/autotuning"
AXLEARN = "apple/axlearn@096379280e78:axlearn/common/flash_attention/gpu_attention_benchmark.py"
AXLEARN_TPU = "apple/axlearn@0728da175498:axlearn/common/flash_attention/tpu_attention_benchmark.py"
COMPILED_TPU = "benchmarks/results/compiled-attention_tpu-v5e_2026-11-28.md"
COMPILED_GPU = "benchmarks/results/compiled-attention_h100_2026-11-29.md"
COMPILED_STEPS = "benchmarks/results/compiled-steps_2026-11-29.md"
FOLDERS = {"TPU v5p": "tpu_v5", "TPU v6e": "tpu_v6_lite", "TPU7x": "tpu7x", "NVIDIA H100": "nvidia_h100_80gb_hbm3"}
KINDS = {
    "TPU v5p": ("TPU v5", "TPU v5p"),
    "TPU v6e": ("TPU v6 lite", "TPU v6e"),
    "TPU7x": ("TPU7x",),
    "NVIDIA H100": ("NVIDIA H100",),
}
HALF = frozenset({"bfloat16", "float16"})
ARRAYS = frozenset({"dense bias", "explicit mask", "relative bias", "bucket bias", "segments", "positions", "ranks"})
"""Features that `cudnn` gets as arrays [B, N, T, S]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinePlan:
    """A line whose lengths and times follow from figures, or that is derived from something else."""

    line: Line
    """Without lengths and time if they follow from figures."""
    form: str = ""
    """The form of the cases that decide, as in `Case.requests`; "": the line is complete."""


def tpu_plans(device: str, crossing: int) -> list[LinePlan]:
    """Return the lines of a TPU. `splash` is measured, and `flash_tpu` is compared with it by the compiler's schedule.

    Args:
        crossing: the length from which on a fused kernel is used.
    """
    source = f"{TOKAMAX}/{FOLDERS[device]}"
    fused: dict[str, Any] = {"queries": crossing, "keys": crossing, "dtypes": frozenset({"bfloat16"})}
    xlnet = {**fused, "queries": 64, "features": frozenset({"relative bias"})}
    steps = "compiled for v5e: a step of XLNet base with it moves 36 GB in place of 150 with xla"
    tiles = "compiled for v5e: tiles of {} bundles forward and {} backward, beside 1,196 and 3,418 of splash"
    bias = "on a TPU v4 a kernel that reads a bias took 0.33 to 0.40 of dense's time forward, 0.72 to 0.75 with the backward pass"
    return [
        LinePlan(line=Line(implementation="splash", source=source, dtypes=fused["dtypes"]), form="no bias"),
        LinePlan(line=Line(implementation="flash_tpu", source=f"{steps} ({COMPILED_STEPS})", **xlnet)),
        LinePlan(
            line=Line(
                implementation="flash_tpu",
                features=frozenset({"bucket bias"}),
                source=f"{tiles.format('1,110', '2,408')} ({COMPILED_TPU}); {bias} ({AXLEARN_TPU})",
                **fused,
            )
        ),
        LinePlan(
            line=Line(
                implementation="flash_tpu",
                features=frozenset({"dropout"}),
                source=f"{tiles.format('1,483', '3,070')} ({COMPILED_TPU})",
                **fused,
            )
        ),
        LinePlan(
            line=Line(implementation="flash_tpu", source=f"{tiles.format('1,088', '2,496')} ({COMPILED_TPU})", **fused),
        ),
        LinePlan(
            line=Line(implementation="blocked", features=frozenset({"dense bias", "explicit mask"}), source=source, dtypes=HALF),
            form="array",
        ),
        LinePlan(line=Line(implementation="blocked", source=source, dtypes=HALF), form="no bias"),
    ]


def gpu_plans(device: str, crossing: int, cases: Sequence[Case]) -> list[LinePlan]:
    """Return the lines of a GPU. What is an array for `cudnn`, `flash_gpu` computes from a rule.

    Args:
        crossing: the length from which on `flash_gpu` is used.
    """
    source = f"{TOKAMAX}/{FOLDERS[device]}"
    fused: dict[str, Any] = {"queries": crossing, "keys": crossing, "dtypes": HALF}
    window = "a window of 1,024 among 8,192 keys as an array took cudnn 4.1 times as long as a kernel that has its rule"
    rule = f"cudnn gets an array of the mask; {window}, 5.2 times with the backward pass"
    xlnet = "compiled for H100: both streams of XLNet base have 505 MiB of temporaries in place of 1,276 with xla"
    bias = f"{_ranges(ratios(cases, 'bias of T5', 'flash_gpu', 'cudnn'))} of cudnn's"
    dropout = f"without dropout {_ranges(ratios(cases, 'no bias', 'flash_gpu', 'xla'))} of xla's time"
    return [
        LinePlan(
            line=Line(implementation="flash_gpu", features=frozenset({"bucket bias"}), dtypes=HALF, source=f"{bias}; {source}"),
            form="bias of T5",
        ),
        LinePlan(
            line=Line(
                implementation="flash_gpu",
                features=frozenset({"segments", "positions", "ranks"}),
                source=f"{rule} ({AXLEARN})",
                **fused,
            )
        ),
        LinePlan(
            line=Line(
                implementation="flash_gpu",
                features=frozenset({"relative bias"}),
                source=f"{xlnet} ({COMPILED_GPU})",
                **fused,
            )
        ),
        LinePlan(line=Line(implementation="cudnn", features=ARRAYS, dtypes=HALF, source=source), form="array"),
        LinePlan(
            line=Line(
                implementation="cudnn",
                queries=256,
                keys=256,
                dtypes=HALF,
                source=f"{source}; at 256, and with the backward pass: 0.16 to 0.57 by {AXLEARN}",
            ),
            form="no bias",
        ),
        LinePlan(
            line=Line(
                implementation="flash_gpu",
                source=f"{dropout} ({source}); compiled with dropout no kernel spills registers ({COMPILED_GPU})",
                **fused,
            )
        ),
    ]


def plans(device: str, crossing: int, cases: Sequence[Case]) -> list[LinePlan]:
    """Return the lines of a device in their order."""
    return tpu_plans(device, crossing) if device.startswith("TPU") else gpu_plans(device, crossing, cases)


def fit_lines(device: str, cases: Sequence[Case]) -> tuple[Line, ...]:
    """Return the lines of a device by its cases. A line that never pays is left out."""
    first = plans(device, 0, cases)[0]
    crossing = fit_crossing(first, cases)
    if crossing is None:
        raise BadInput(f"{device}: {first.line.implementation} never pays by these figures; change the order of the lines")
    lines = []
    for plan in plans(device, crossing, cases):
        length = fit_crossing(plan, cases) if plan.form else 0
        if length is not None:
            lines.append(_measured_line(plan, length, cases) if plan.form else plan.line)
    return (*lines, Line(implementation="xla"))


def fit_crossing(plan: LinePlan, cases: Sequence[Case]) -> int | None:
    """Return the length from which on the line costs the fewest cases; None if that is no length, or if it gains little there."""
    pairs = []
    for case in cases:
        times = case.zoo_times(request) if (request := case.requests().get(plan.form)) else {}
        if request and plan.line.is_for(request) and {plan.line.implementation, "xla"} <= set(times):
            pairs.append((case.shape[1], times[plan.line.implementation], times["xla"]))

    def misses(length: int | float) -> int:
        return sum((name if at >= length else xla) > NEAR * min(name, xla) for at, name, xla in pairs)

    best = min([float("inf"), *sorted({at for at, _, _ in pairs}, reverse=True)], key=misses)
    gains = [xla / name for at, name, xla in pairs if at >= best]
    return int(best) if gains and statistics.median(gains) > NEAR else None


def _measured_line(plan: LinePlan, length: int, cases: Sequence[Case]) -> Line:
    long_cases = [case for case in cases if case.shape[1] >= length]
    name = plan.line.implementation
    time = _ranges(ratios(long_cases, plan.form, name, "xla"))
    shortest = {"queries": plan.line.queries, "keys": plan.line.keys} if plan.line.queries > 1 else {}
    return dataclasses.replace(plan.line, **({"queries": length, "keys": length} | shortest), time=time)


def _ranges(by_direction: Mapping[str, Sequence[float]]) -> str:
    """Return the median, the smallest and the largest ratio of each direction."""
    names = {"forward": "forward", "vjp": "backward"}
    return ", ".join(
        f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) {names[direction]}"
        for direction, values in sorted(by_direction.items())
    )


# --- judging --------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """A choice for a request of a case, beside the fastest implementation."""

    case: Case
    form: str
    chosen: str
    in_zoo: float | None
    """Its time relative to that of the zoo's fastest one; None: it is not measured, or is the only one."""
    of_all: float | None
    """Likewise, of all that were measured."""


def judge(lines: tuple[Line, ...], cases: Iterable[Case]) -> list[Verdict]:
    """Return a verdict for every request of every case of one device."""
    verdicts = []
    for case in cases:
        for form, request in case.requests().items():
            line = matching_line(lines, request, lambda name, r=request, p=case.platform: supports(name, r, p))
            times = case.zoo_times(request)
            time = times.get(line.implementation)
            verdicts.append(
                Verdict(
                    case=case,
                    form=form,
                    chosen=line.implementation,
                    in_zoo=None if time is None or len(times) < 2 else time / min(times.values()),
                    of_all=None if time is None or len(case.times) < 2 else time / min(case.times.values()),
                )
            )
    return verdicts


def share(values: Iterable[float | None]) -> str:
    """Return how many of the values that are not None are at most `NEAR`, as "48 of 50 (96 %)"."""
    judged = [value for value in values if value is not None]
    right = sum(value <= NEAR for value in judged)
    return f"{right} of {len(judged)} ({100 * right / len(judged):.1f} %)" if judged else "-"


def result_page(verdicts: Sequence[Verdict], earlier: Sequence[Verdict]) -> str:
    """Return the page of results: shares by device, form and direction, and every miss.

    Args:
        earlier: the verdicts on the lines that were used before there were figures.
    """
    head = ["device", "form", "direction", "cases", "no figure of the choice", "the zoo's", "all", "before, the zoo's"]
    rows = [head, ["---"] * 3 + ["---:"] * 5]
    groups: dict[tuple[str, str, str], list[tuple[Verdict, Verdict]]] = collections.defaultdict(list)
    for new, old in zip(verdicts, earlier, strict=True):
        groups[new.case.device, new.form, new.case.direction].append((new, old))
    for key, pairs in [*sorted(groups.items()), (("all", "", ""), list(zip(verdicts, earlier, strict=True)))]:
        new, old = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        missing = sum(v.in_zoo is None and v.of_all is None and len(v.case.times) > 1 for v in new)
        shares = share(v.in_zoo for v in new), share(v.of_all for v in new), share(v.in_zoo for v in old)
        rows.append([*key, str(len(new)), str(missing), *shares])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    misses = [v for v in verdicts if v.in_zoo is not None and v.in_zoo > NEAR]
    listed = "\n".join(
        f"- {v.case.device}, {v.form}, {v.case.direction}{'' if v.case.is_newest else ', older revision'}, "
        f"{' '.join(value for value in v.case.arguments if value)}: {v.chosen}, {v.in_zoo:.2f} times the fastest"
        for v in sorted(misses, key=lambda v: (v.case.device, v.form, v.case.direction, v.case.arguments))
    )
    return f"{table}\n\n## Misses among the zoo's\n\n{listed or 'None.'}\n"


PAGE = f"""\
# How often `auto` takes the fastest attention, by published times

Made by `python -m benchmarks.attention.auto_from_figures attention_times.csv`. The figures are those of the autotuning files of
tokamax ({TOKAMAX}), medians of five runs on one device, forward and backward
timed apart. A case is a set of arguments on a device. The lines of `auto` (docs/attention.md) were made from one half of the
cases and are judged here by the other half; the half follows from a hash of the arguments. Lengths and times of the lines follow
from the first half alone, their order and what is derived were written with all figures in view.

"The zoo's" are the cases in which the choice takes at most {NEAR:g} times as long as the fastest implementation that has the form
of one of the zoo's and supports the request. "All" also counts `pallas_mosaic_gpu_flash_attention`, which has no counterpart that
`auto` may use, and what the zoo's implementation of that form does not support. "No figure of the choice": the case has several
times, and none of the choice: of `cudnn` there is no backward pass and no forward pass with residuals, and `flash_tpu` is counted
as not measured. "Before": `cudnn` on a GPU and `xla` on a TPU. A case with a bias is judged twice, as T5's bias and as an array.
The backward pass of `xla` includes its forward pass, that of the others does not.
"""


def lines_before(platform: str) -> tuple[Line, ...]:
    """Return the lines that `auto` had before there were figures."""
    return tuple(Line(implementation=name) for name in (("cudnn", "xla") if platform == "gpu" else ("xla",)))


# --- the file of lines ----------------------------------------------------------------------------------------------------------

NEAREST = {"tpu": "TPU7x", "gpu": "NVIDIA H100"}
"""Platform -> the device whose lines an unknown kind has: the newest one with figures."""
WITHOUT_FIGURES = (
    DeviceLines(
        device="TPU v5e",
        platform="tpu",
        kinds=("TPU v5 lite", "TPU v5e"),
        like="TPU v5p",
        because="which has the same generation of matrix unit, 128 x 128",
    ),
    DeviceLines(
        device="TPU v4",
        platform="tpu",
        kinds=("TPU v4",),
        like="TPU v5p",
        because="which has the same size of matrix unit, 128 x 128",
    ),
    DeviceLines(
        device="NVIDIA H200",
        platform="gpu",
        kinds=("NVIDIA H200",),
        like="NVIDIA H100",
        because="which is the same chip with another memory",
    ),
    *(
        DeviceLines(device=name, platform="gpu", kinds=(name,), like="NVIDIA H100", because="which is the only GPU with figures")
        for name in ("NVIDIA A100", "NVIDIA B200")
    ),
    *(
        DeviceLines(device=name, platform=platform, kinds=kinds, lines=(Line(implementation="xla", source=why),))
        for name, platform, kinds, why in (
            ("TPU v2 and v3", "tpu", ("TPU v2", "TPU v3"), "the kernels have not been compiled for it"),
            ("GPUs before Ampere", "gpu", ("Tesla", "Quadro"), "cudnn and flash_gpu need compute capability 8.0"),
            ("AMD GPUs", "gpu", ("AMD", "gfx"), "cudnn is NVIDIA's, and flash_gpu has not been compiled for it"),
        )
    ),
)
"""Devices with the lines of the nearest one that has figures, and those on which `auto` is `xla`."""


def lines_json(by_device: dict[str, tuple[Line, ...]]) -> str:
    """Return the text of the file of lines, without the fields that are at their defaults."""
    measured = [
        DeviceLines(device=device, platform="tpu" if device.startswith("TPU") else "gpu", kinds=KINDS[device], lines=lines)
        for device, lines in by_device.items()
    ]
    table = {
        "about": "Generated by `python -m benchmarks.attention.auto_from_figures attention_times.csv --lines FILE`; do not edit.",
        "nearest": NEAREST,
        "devices": [*measured, *WITHOUT_FIGURES],
    }
    return json.dumps(table, indent=1, default=_json_value) + "\n"


def _json_value(value: Any) -> list[str] | dict[str, Any]:
    if isinstance(value, frozenset):
        return sorted(value)
    fields = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {field.name: content for field, content in fields.items() if content != field.default}


def main(arguments: Sequence[str]) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("times", type=Path, help="attention_times.csv of the published figures")
    parser.add_argument("--lines", type=Path, help="write the file of lines here")
    options = parser.parse_args(arguments)
    cases = read_cases(options.times)
    by_device, verdicts, earlier = {}, [], []
    for device in FOLDERS:
        own = [case for case in cases if case.device == device]
        lines = fit_lines(device, [case for case in own if case.is_newest and not case.is_held_out])
        by_device[device] = lines
        held_out = [case for case in own if case.is_held_out]
        verdicts += judge(lines, held_out)
        earlier += judge(lines_before(own[0].platform), held_out)
    if options.lines:
        options.lines.write_text(lines_json(by_device), encoding="utf-8")
    print(PAGE + "\n" + result_page(verdicts, earlier), end="")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BadInput as error:
        print(error, file=sys.stderr)
        sys.exit(2)

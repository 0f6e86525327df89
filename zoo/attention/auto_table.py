"""The lines of `auto` for accelerators, by kind of device. Generated; do not edit.

`python -m benchmarks.attention.auto_from_figures attention_times.csv --lines zoo/attention/auto_table.py` writes this file from
published measurements of kernels of the same form; see docs/attention.md. Where a backward pass is compared, that of `xla`
includes its forward pass and that of the kernels does not.
"""

from zoo.attention.auto_table_types import DeviceLines, Line

NEAREST = {"tpu": "TPU7x", "gpu": "NVIDIA H100"}
"""Platform -> the device whose lines an unknown kind has: the newest one with figures."""

DEVICES = (
    DeviceLines(
        device="TPU v5p",
        platform="tpu",
        kinds=("TPU v5", "TPU v5p"),
        lines=(
            Line(
                implementation="splash",
                queries=512,
                keys=512,
                dtypes=frozenset({"bfloat16"}),
                time="0.41 (0.14 to 0.79) forward",
                source="openxla/tokamax@783ea95704a5:tokamax/data/autotuning/tpu_v5",
            ),
            Line(
                implementation="flash_tpu",
                features=frozenset({"relative bias"}),
                queries=64,
                keys=512,
                dtypes=frozenset({"bfloat16"}),
                source=(
                    "compiled for v5e: a step of XLNet base with it moves 36 GB in place of 150 with xla "
                    "(benchmarks/results/compiled-steps_2026-11-29.md)"
                ),
            ),
            Line(
                implementation="flash_tpu",
                features=frozenset({"bucket bias"}),
                queries=512,
                keys=512,
                dtypes=frozenset({"bfloat16"}),
                source=(
                    "compiled for v5e: tiles of 1,110 bundles forward and 2,408 backward, beside 1,196 and 3,418 of splash "
                    "(benchmarks/results/compiled-attention_tpu-v5e_2026-11-28.md); on a TPU v4 a kernel that reads a bias took "
                    "0.33 to 0.40 of dense's time forward, 0.72 to 0.75 with the backward pass "
                    "(apple/axlearn@0728da175498:axlearn/common/flash_attention/tpu_attention_benchmark.py)"
                ),
            ),
            Line(
                implementation="flash_tpu",
                features=frozenset({"dropout"}),
                queries=512,
                keys=512,
                dtypes=frozenset({"bfloat16"}),
                source=(
                    "compiled for v5e: tiles of 1,483 bundles forward and 3,070 backward, beside 1,196 and 3,418 of splash "
                    "(benchmarks/results/compiled-attention_tpu-v5e_2026-11-28.md)"
                ),
            ),
            Line(
                implementation="flash_tpu",
                queries=512,
                keys=512,
                dtypes=frozenset({"bfloat16"}),
                source=(
                    "compiled for v5e: tiles of 1,088 bundles forward and 2,496 backward, beside 1,196 and 3,418 of splash "
                    "(benchmarks/results/compiled-attention_tpu-v5e_2026-11-28.md)"
                ),
            ),
            Line(
                implementation="xla",
            ),
        ),
    ),
    DeviceLines(
        device="TPU v6e",
        platform="tpu",
        kinds=("TPU v6 lite", "TPU v6e"),
        lines=(
            Line(
                implementation="splash",
                queries=512,
                keys=512,
                dtypes=frozenset({"bfloat16"}),
                time="0.22 (0.09 to 0.73) forward",
                source="openxla/tokamax@783ea95704a5:tokamax/data/autotuning/tpu_v6_lite",
            ),
            Line(
                implementation="flash_tpu",
                features=frozenset({"relative bias"}),
                queries=64,
                keys=512,
                dtypes=frozenset({"bfloat16"}),
                source=(
                    "compiled for v5e: a step of XLNet base with it moves 36 GB in place of 150 with xla "
                    "(benchmarks/results/compiled-steps_2026-11-29.md)"
                ),
            ),
            Line(
                implementation="flash_tpu",
                features=frozenset({"bucket bias"}),
                queries=512,
                keys=512,
                dtypes=frozenset({"bfloat16"}),
                source=(
                    "compiled for v5e: tiles of 1,110 bundles forward and 2,408 backward, beside 1,196 and 3,418 of splash "
                    "(benchmarks/results/compiled-attention_tpu-v5e_2026-11-28.md); on a TPU v4 a kernel that reads a bias took "
                    "0.33 to 0.40 of dense's time forward, 0.72 to 0.75 with the backward pass "
                    "(apple/axlearn@0728da175498:axlearn/common/flash_attention/tpu_attention_benchmark.py)"
                ),
            ),
            Line(
                implementation="flash_tpu",
                features=frozenset({"dropout"}),
                queries=512,
                keys=512,
                dtypes=frozenset({"bfloat16"}),
                source=(
                    "compiled for v5e: tiles of 1,483 bundles forward and 3,070 backward, beside 1,196 and 3,418 of splash "
                    "(benchmarks/results/compiled-attention_tpu-v5e_2026-11-28.md)"
                ),
            ),
            Line(
                implementation="flash_tpu",
                queries=512,
                keys=512,
                dtypes=frozenset({"bfloat16"}),
                source=(
                    "compiled for v5e: tiles of 1,088 bundles forward and 2,496 backward, beside 1,196 and 3,418 of splash "
                    "(benchmarks/results/compiled-attention_tpu-v5e_2026-11-28.md)"
                ),
            ),
            Line(
                implementation="blocked",
                features=frozenset({"dense bias", "explicit mask"}),
                queries=1792,
                keys=1792,
                dtypes=frozenset({"bfloat16", "float16"}),
                time="0.78 (0.61 to 3.54) forward",
                source="openxla/tokamax@783ea95704a5:tokamax/data/autotuning/tpu_v6_lite",
            ),
            Line(
                implementation="blocked",
                queries=4096,
                keys=4096,
                dtypes=frozenset({"bfloat16", "float16"}),
                time="0.42 (0.29 to 1.11) forward",
                source="openxla/tokamax@783ea95704a5:tokamax/data/autotuning/tpu_v6_lite",
            ),
            Line(
                implementation="xla",
            ),
        ),
    ),
    DeviceLines(
        device="TPU7x",
        platform="tpu",
        kinds=("TPU7x",),
        lines=(
            Line(
                implementation="splash",
                queries=512,
                keys=512,
                dtypes=frozenset({"bfloat16"}),
                time="0.37 (0.19 to 1.11) forward, 0.30 (0.16 to 0.73) backward",
                source="openxla/tokamax@783ea95704a5:tokamax/data/autotuning/tpu7x",
            ),
            Line(
                implementation="flash_tpu",
                features=frozenset({"relative bias"}),
                queries=64,
                keys=512,
                dtypes=frozenset({"bfloat16"}),
                source=(
                    "compiled for v5e: a step of XLNet base with it moves 36 GB in place of 150 with xla "
                    "(benchmarks/results/compiled-steps_2026-11-29.md)"
                ),
            ),
            Line(
                implementation="flash_tpu",
                features=frozenset({"bucket bias"}),
                queries=512,
                keys=512,
                dtypes=frozenset({"bfloat16"}),
                source=(
                    "compiled for v5e: tiles of 1,110 bundles forward and 2,408 backward, beside 1,196 and 3,418 of splash "
                    "(benchmarks/results/compiled-attention_tpu-v5e_2026-11-28.md); on a TPU v4 a kernel that reads a bias took "
                    "0.33 to 0.40 of dense's time forward, 0.72 to 0.75 with the backward pass "
                    "(apple/axlearn@0728da175498:axlearn/common/flash_attention/tpu_attention_benchmark.py)"
                ),
            ),
            Line(
                implementation="flash_tpu",
                features=frozenset({"dropout"}),
                queries=512,
                keys=512,
                dtypes=frozenset({"bfloat16"}),
                source=(
                    "compiled for v5e: tiles of 1,483 bundles forward and 3,070 backward, beside 1,196 and 3,418 of splash "
                    "(benchmarks/results/compiled-attention_tpu-v5e_2026-11-28.md)"
                ),
            ),
            Line(
                implementation="flash_tpu",
                queries=512,
                keys=512,
                dtypes=frozenset({"bfloat16"}),
                source=(
                    "compiled for v5e: tiles of 1,088 bundles forward and 2,496 backward, beside 1,196 and 3,418 of splash "
                    "(benchmarks/results/compiled-attention_tpu-v5e_2026-11-28.md)"
                ),
            ),
            Line(
                implementation="blocked",
                features=frozenset({"dense bias", "explicit mask"}),
                queries=1792,
                keys=1792,
                dtypes=frozenset({"bfloat16", "float16"}),
                time="0.83 (0.37 to 0.95) forward",
                source="openxla/tokamax@783ea95704a5:tokamax/data/autotuning/tpu7x",
            ),
            Line(
                implementation="xla",
            ),
        ),
    ),
    DeviceLines(
        device="NVIDIA H100",
        platform="gpu",
        kinds=("NVIDIA H100",),
        lines=(
            Line(
                implementation="flash_gpu",
                features=frozenset({"bucket bias"}),
                queries=384,
                keys=384,
                dtypes=frozenset({"bfloat16", "float16"}),
                time="0.13 (0.11 to 0.15) forward, 0.23 (0.18 to 0.26) backward",
                source=(
                    "0.40 (0.33 to 0.49) forward of cudnn's; "
                    "openxla/tokamax@783ea95704a5:tokamax/data/autotuning/nvidia_h100_80gb_hbm3"
                ),
            ),
            Line(
                implementation="flash_gpu",
                features=frozenset({"positions", "ranks", "segments"}),
                queries=384,
                keys=384,
                dtypes=frozenset({"bfloat16", "float16"}),
                source=(
                    "cudnn gets an array of the mask; a window of 1,024 among 8,192 keys as an array took cudnn 4.1 times as long"
                    " as a kernel that has its rule, 5.2 times with the backward pass "
                    "(apple/axlearn@096379280e78:axlearn/common/flash_attention/gpu_attention_benchmark.py)"
                ),
            ),
            Line(
                implementation="flash_gpu",
                features=frozenset({"relative bias"}),
                queries=384,
                keys=384,
                dtypes=frozenset({"bfloat16", "float16"}),
                source=(
                    "compiled for H100: both streams of XLNet base have 505 MiB of temporaries in place of 1,276 with xla "
                    "(benchmarks/results/compiled-attention_h100_2026-11-29.md)"
                ),
            ),
            Line(
                implementation="cudnn",
                features=frozenset(
                    {"bucket bias", "dense bias", "explicit mask", "positions", "ranks", "relative bias", "segments"}
                ),
                queries=384,
                keys=384,
                dtypes=frozenset({"bfloat16", "float16"}),
                time="0.34 (0.28 to 0.42) forward",
                source="openxla/tokamax@783ea95704a5:tokamax/data/autotuning/nvidia_h100_80gb_hbm3",
            ),
            Line(
                implementation="cudnn",
                queries=256,
                keys=256,
                dtypes=frozenset({"bfloat16", "float16"}),
                time="0.12 (0.04 to 0.30) forward",
                source=(
                    "openxla/tokamax@783ea95704a5:tokamax/data/autotuning/nvidia_h100_80gb_hbm3; at 256, and with the backward "
                    "pass: 0.16 to 0.57 by apple/axlearn@096379280e78:axlearn/common/flash_attention/gpu_attention_benchmark.py"
                ),
            ),
            Line(
                implementation="flash_gpu",
                queries=384,
                keys=384,
                dtypes=frozenset({"bfloat16", "float16"}),
                source=(
                    "without dropout 0.15 (0.06 to 0.62) forward, 0.23 (0.08 to 1.07) backward of xla's time "
                    "(openxla/tokamax@783ea95704a5:tokamax/data/autotuning/nvidia_h100_80gb_hbm3); compiled with dropout no "
                    "kernel spills registers (benchmarks/results/compiled-attention_h100_2026-11-29.md)"
                ),
            ),
            Line(
                implementation="xla",
            ),
        ),
    ),
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
    DeviceLines(
        device="NVIDIA A100",
        platform="gpu",
        kinds=("NVIDIA A100",),
        like="NVIDIA H100",
        because="which is the only GPU with figures",
    ),
    DeviceLines(
        device="NVIDIA B200",
        platform="gpu",
        kinds=("NVIDIA B200",),
        like="NVIDIA H100",
        because="which is the only GPU with figures",
    ),
    DeviceLines(
        device="TPU v2 and v3",
        platform="tpu",
        kinds=("TPU v2", "TPU v3"),
        lines=(
            Line(
                implementation="xla",
                source="the kernels have not been compiled for it",
            ),
        ),
    ),
    DeviceLines(
        device="GPUs before Ampere",
        platform="gpu",
        kinds=("Tesla", "Quadro"),
        lines=(
            Line(
                implementation="xla",
                source="cudnn and flash_gpu need compute capability 8.0",
            ),
        ),
    ),
    DeviceLines(
        device="AMD GPUs",
        platform="gpu",
        kinds=("AMD", "gfx"),
        lines=(
            Line(
                implementation="xla",
                source="cudnn is NVIDIA's, and flash_gpu has not been compiled for it",
            ),
        ),
    ),
)

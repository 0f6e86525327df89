"""Parameters of the published sizes, as their sources print them or counted tensor by tensor from the released shapes."""

from zoo import configs

GPT = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "distilgpt2": 81_912_576,
    "gpt3-small": 125_226_240,
    "gpt3-medium": 355_871_744,
    "gpt3-large": 760_300_032,
    "gpt3-xl": 1_315_723_264,
    "gpt3-xl-literal": 1_517_123_584,
    "gpt3-2.7b": 2_651_553_280,
    "gpt3-6.7b": 6_658_404_352,
    "gpt3-13b": 12_853_386_240,
    "gpt3-13b-literal": 12_936_488_380,
    "gpt3-175b": 174_604_259_328,
    "turing-nlg": 17_176_845_728,
    "megatron-8.3b": 8_314_143_744,
}
"""Counted tensor by tensor from the papers' shapes; the four of GPT-2 are also those of the released checkpoints."""

ENCODERS = {
    "bert-base-uncased": (109_482_240, 110_106_428, 109_514_298),
    "bert-base-cased": (108_310_272, 108_932_934, 108_340_804),
    "bert-large-uncased": (335_141_888, 336_226_108, 335_174_458),
    "bert-large-cased": (333_579_264, 334_661_958, 333_610_308),
    "bert-base-multilingual-cased": (177_853_440, 178_566_653, 177_974_523),
    "bert-base-chinese": (102_267_648, 102_882_442, 102_290_312),
    "bert-tiny": (4_385_920, 4_433_468, 4_416_698),
    "bert-mini": (11_170_560, 11_267_900, 11_201_594),
    "bert-small": (28_763_648, 29_058_876, 28_795_194),
    "bert-medium": (41_373_184, 41_668_412, 41_404_730),
    "roberta-base": (124_645_632, None, 124_697_433),
    "roberta-large": (355_359_744, None, 355_412_057),
    "distilroberta-base": (82_118_400, None, 82_170_201),
    "xlm-roberta-base": (278_043_648, None, 278_295_186),
    "xlm-roberta-large": (559_890_432, None, 560_142_482),
    "distilbert-base-uncased": (66_362_880, None, 66_985_530),
    "distilbert-base-cased": (65_190_912, None, 65_812_036),
}
"""Counted tensor by tensor from the released shapes: the body, with the two pretraining heads of BERT, with the masked head."""

MODERNBERT = {
    "modernbert-base": (149_014_272, 149_655_232),
    "modernbert-large": (394_781_696, 395_881_664),
    "ettin-encoder-17m": (16_797_440, 16_913_600),
    "ettin-encoder-32m": (31_883_136, 32_081_344),
    "ettin-encoder-68m": (68_144_640, 68_457_664),
    "ettin-encoder-150m": (149_014_272, 149_655_232),
    "ettin-encoder-400m": (394_781_696, 395_881_664),
    "ettin-encoder-1b": (1_028_050_688, 1_031_314_112),
}
"""The body, and with the masked head, whose table is that of the body."""

ETTIN_DECODER = {
    "ettin-decoder-17m": 16_913_600,
    "ettin-decoder-32m": 32_081_344,
    "ettin-decoder-68m": 68_457_664,
    "ettin-decoder-150m": 149_655_232,
    "ettin-decoder-400m": 395_881_664,
    "ettin-decoder-1b": 1_031_314_112,
}
"""The body and the head of words, whose table is that of the body; as many as the encoder of the same size has."""

LLAMA = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
}
"""Counted tensor by tensor from the released shapes, a tied table once."""

GPT_OSS = {"gpt-oss-20b": (20_914_757_184, 3_608_307_264), "gpt-oss-120b": (116_829_156_672, 5_132_849_472)}
"""All parameters, and those of which a token uses each; the model card says 20.91B, 3.61B, 116.83B and 5.13B."""

NANOCHAT = {"nanochat-d20": 560_988_160, "nanochat-d32": 1_879_048_192}
"""Two tables of 65,536 tokens, and 12 squares of the width in each layer; the repository says 561M and 1.9B."""

XLNET = {"xlnet-base-cased": (116_718_336, 116_750_336), "xlnet-large-cased": (360_268_800, 360_300_800)}
"""The body, and with the bias of the words."""

ENCODER_DECODERS = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "t5-v1.1-small": 76_961_152,
    "t5-v1.1-base": 247_577_856,
    "t5-v1.1-large": 783_150_080,
    "t5-v1.1-xl": 2_849_757_184,
    "t5-v1.1-xxl": 11_135_332_352,
    "mt5-small": 300_176_768,
    "mt5-base": 582_401_280,
    "mt5-large": 1_229_581_312,
    "mt5-xl": 3_742_619_648,
    "mt5-xxl": 12_921_057_280,
    "ul2": 19_591_209_984,
    "flan-ul2": 19_591_209_984,
    "byt5-small": 299_637_760,
    "byt5-base": 581_653_248,
    "byt5-large": 1_228_183_552,
    "byt5-xl": 3_737_801_728,
    "byt5-xxl": 12_906_899_328,
    "umt5-small": 306_601_984,
    "umt5-base": 592_043_520,
    "umt5-xl": 3_768_356_864,
    "umt5-xxl": 12_972_531_712,
    "transformer-base": 63_045_632,
    "transformer-big": 214_171_648,
}
"""Counted tensor by tensor from the released shapes; of T5 1.1 and its successors with the output's own table."""
FLAN = {f"flan-t5-{size}": f"t5-v1.1-{size}" for size in ("small", "base", "large", "xl", "xxl")}
ENCODER_DECODERS |= {name: ENCODER_DECODERS[size] for name, size in FLAN.items()}

ONE_TABLE = {
    f"t5-v1.1-{size}": ENCODER_DECODERS[f"t5-v1.1-{size}"] - 32_128 * width
    for size, width in {"small": 512, "base": 768, "large": 1024, "xl": 2048, "xxl": 4096}.items()
}
"""T5 1.1 without that table."""

BIASED = {"transformer-base": 63_082_496, "transformer-big": 214_245_376}
"""With biases in attention, of which the paper says nothing."""

GRID = {f"bert-uncased-l{layers}-h{width}": (layers, width) for layers in range(2, 13, 2) for width in (128, 256, 512, 768)}
NAMED = {"bert-tiny": (2, 128), "bert-mini": (4, 256), "bert-small": (4, 512), "bert-medium": (8, 512)}

TABLE_2_1 = {
    "gpt3-small": (12, 768, 12, 64),
    "gpt3-medium": (24, 1024, 16, 64),
    "gpt3-large": (24, 1536, 16, 96),
    "gpt3-xl": (24, 2048, 24, 128),
    "gpt3-2.7b": (32, 2560, 32, 80),
    "gpt3-6.7b": (32, 4096, 32, 128),
    "gpt3-13b": (40, 5140, 40, 128),
    "gpt3-175b": (96, 12288, 96, 128),
}
"""Brown et al. 2020: layers, width, heads, size of a head, as printed."""

SIZES = {name: size for family in configs.families() for name, size in configs.family(family).SIZES.items()}

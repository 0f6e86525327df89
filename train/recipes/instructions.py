"""The recipe that fine-tunes a language model to follow instructions."""

from train.config.data_options import DialogueData, PairData
from train.config.objectives import InstructionOptions, TextToTextOptions
from train.config.run_config import Checkpoint, Log, Optim, Run, Tokenizer
from train.weights import pretrained_config
from zoo import configs


def sft(init: str = "") -> Run:
    """Fine-tune a model that writes text on instructions with responses, or on conversations (supervised fine-tuning).

    Command: zoo train sft --init DIR --data.paths train.jsonl
    Hardware: 2 CPU cores, float32.
    Time: 7 minutes for 400 steps of 32 rows of 80, on one core of a busy machine.
    Expect: 86.8, 84.2, 85.6 % of TREC's 500 test labels generated exactly, gpt-nano, --optim.lr 1e-3, those steps, three seeds.
    """
    model = pretrained_config.read_generator_config(init) if init else configs.find_size("gpt2")[1].config
    # Encoder-decoders learn the same files as pairs of texts, with Adafactor as in T5's paper, and so does a decoder-only T5. A
    # family without learned positions has no `context`.
    reads_pairs = model.is_encoder_decoder or configs.family_of(model) == "t5"
    length = min(512, configs.longest_row(model) or 512)
    return Run(
        recipe="sft",
        model=model,
        options=TextToTextOptions() if reads_pairs else InstructionOptions(),
        init=init,
        steps=1_000,
        data=PairData(length=length, batch=16, pack=model.is_encoder_decoder)
        if reads_pairs
        else DialogueData(length=length, batch=16),
        tokenizer=Tokenizer(kind="sentencepiece" if reads_pairs else "gpt", vocab=model.vocab),
        optim=Optim(name="adafactor", lr=1e-3, warmup=0, schedule="constant", weight_decay=0.0, clip=0.0)
        if reads_pairs
        else Optim(lr=2e-5, warmup=0.05, schedule="linear", final=0.0, b2=0.999, weight_decay=0.01),
        checkpoint=Checkpoint(every=200),
        log=Log(every=10, validate_every=100, validate_rows=256, samples=4),
    )

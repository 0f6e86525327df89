"""Wrong input is refused in one line that names the key, the value and a fix, and no file is touched."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import published
from tests.support.commands import TINY, assert_refused, call, finished, in_folder, snapshot, words
from tests.support.processes import Ended, run_python
from zoo.cli import main
from zoo.cli.commands import models
from zoo.cli.option_parser import SYNONYMS, nearest_option, whole_number

COMMAND_LINES = {
    "trian": "there is no command 'trian'; the nearest is train; choose models, recipes, train, eval, .*doctor",
    "bench": "bench: choose one of attention, step, growth, feedback, embed, compare, as in `zoo bench attention`",
    "train gpt-nano --stpes 3": "there is no option --stpes; the nearest is --steps; zoo train gpt-nano --help lists the options",
    "train gpt-nano --batch_size=3": "there is no option --batch_size; the nearest is --data.batch",
    "train gpt-nano --Epochs 3": "there is no option --Epochs; the nearest is --steps",
    "train gpt-nano --mesh.stage 2": "there is no option --mesh.stage: the layers are not divided into the stages of a pipeline, "
    "and benchmarks/results/pipelines_2026-12-01.md says why; choose --mesh.fsdp, --mesh.tensor or --mesh.sequence",
    "plan gpt2 --target h100:8 --mesh.stage=2": "there is no option --mesh.stage: .*pipelines_2026-12-01.md",
    "train gpt-nano --xyzzy 1": "there is no option --xyzzy; zoo train gpt-nano --help",
    "train gpt-nano --masking.rate 0.2": "there is no option --masking.rate for the objective causal; it belongs to masked",
    "train gpt-nano --data.no-pack": "there is no option --data.no-pack for the objective causal; it belongs to .*text_to_text",
    "train bert-nano --labelled.stride=3": "there is no option --labelled.stride for the objective masked; it belongs to span",
    "data inspect t5-nano --data.rows packed": "there is no option --data.rows for the objective denoising; it belongs to causal",
    "plan gpt2 --masking.rate 0.2": "there is no option --masking.rate for the objective causal; it belongs to masked, distilled",
    "train bert-nano --objective causal --masking.rate 0.2": "there is no option --masking.rate for the objective causal",
    "train bert-nano --masking.rate 2.0": "--masking.rate 2.0: choose",
    "train bert-nano --masking.rate nan": "--masking.rate nan: choose",
    "train bert-nano --data.short 2.0": "--data.short 2.0: choose",
    "train bert-nano --data.short nan": "--data.short nan: choose",
    "train bert-nano --data.rows pages": "--data.rows pages: choose windows, packed, full_sentences",
    "train t5-nano --denoising.density 0.0": "--denoising.density 0.0: choose",
    "train xlnet-nano --permutation.longest 0": "--permutation.longest 0: choose",
    "train grpo --rollout.samples 1": "--rollout.samples 1: the rewards of a prompt's responses are compared .*; choose 2",
    "train sft --distillation.on-policy 1.5": "--distillation.on-policy 1.5: choose a share from 0 ",
    "train grpo --rollout.temperature 0": "--rollout.temperature 0.0: responses are sampled; choose a number above 0",
    "train transformer-nano --data.target-length -1": "--data.target-length -1: choose",
    "train gpt-nano book.txt": "book.txt belongs to no option",
    "eval": "RUN is missing: Folder of a run.* zoo eval --help lists the options",
    "eval --xyzzy 3": "there is no option --xyzzy; zoo eval --help lists the options",
    "eval --step 3": "RUN is missing: Folder of a run.* zoo eval --help lists the options",
    "eval --run runs/done": "there is no option --run; write its value without one: zoo eval RUN;",
    "train --recipe gpt-nano": "there is no option --recipe; write its value without one: zoo train RECIPE;",
    "generate --model runs/done --prompt a": r"there is no option --model; .*: zoo generate RUN\|DIR --prompt TEXT;",
    "predict runs/done --text a": r"there is no option --text; write its value without one: zoo predict RUN\|DIR TEXT;",
    "export": r"RUN is missing: Folder of a run\. zoo export --help lists the options$",
    "data": r"data: write zoo data inspect \[RECIPE\|RUN\]",
    "data inspect gpt-nona": "no recipe is called 'gpt-nona'",
    "data inspect gpt-nano --rows 0": "--rows 0: choose 1 or more",
    "data inspect gpt-nano --first -1": "--first -1: choose 0 or more",
    "plan": "plan: name a size",
    "plan gpt2 --target h100": "--target h100: say how many, 1 to 8 or a multiple of it .* for example h100:64$",
    "plan gpt2 --target v5e:8by8": "--target v5e:8by8: say the slice of a v5e, one of v5e:1x1",
    "plan gpt2 --target v5e:2x2*two": r"--target v5e:2x2\*two: write the number of slices after \*, 1 to 999, for example ",
    "plan gpt2 --target cpu:0": "--target cpu:0: say how many devices to simulate",
    "plan gpt2 --target cpu:8 --devices 8": "--devices 8: choose --target cpu:8 instead$",
    "plan gpt2 --target cpu:8 --search --page x.html": "--page x.html: --search writes no page",
    "plan gpt2 --target cpu:8 --seq 2048": "--data.length 2,?048: the model has 1024 positions",
    "train gpt-nano --steps many": "--steps: many is not a whole number",
    "train gpt-nano --steps 1.5": "--steps: 1.5 is not a whole number",
    "train gpt-nano --steps 1e999999999": "--steps: 1e999999999 is not a whole number",
    "train gpt-nano --steps nan": "--steps: nan is not a whole number",
    "train gpt-nano --steps 1e12": "--steps 1000000000000: choose 1 to",
    "train gpt-nano --width-transfer 100": "--width-transfer 100: heads 6 of width 192 would not be a whole number in proportion",
    "train gpt-nano --width-transfer gpt-2": "no model is called 'gpt-2'; the nearest is 'gpt2'",
    "train gpt-nano --width-transfer gpt2": "--width-transfer gpt2: its heads have head 64 and those of the model 32; choose",
    "train gpt-nano --width-transfer 96 --optim.name sgd": "--optim.name sgd: --width-transfer has no rule .*; choose one of",
    "train bert-nano --width-transfer gpt2": "--width-transfer gpt2: it is a gpt; choose a size of bert, or a width",
    "train gpt-nano --optim.lr fast": "--optim.lr: fast is not a number; write one, as 0.001 or 1e-3",
    "train gpt-nano --optim.warmup fast": "--optim.warmup: fast is not a number; write one, as 0.001 or 1e-3",
    "train gpt-nano --optim.lr": "--optim.lr: its value is missing",
    "train gpt-nano --precision float16": "--precision float16: choose auto, float32, bfloat16",
    "train gpt-nano --mesh.expert 2": "there is no option --mesh.expert",
    "train gpt-oss-nano --mesh.expert 0": "--mesh.expert 0: choose 1 or more devices",
    "train gpt-nano --model.labels a": "there is no option --model.labels",
    "train gpt-nano --selection.metric accuracy": "there is no option --selection.metric",
    "train gpt-nano --tokenizer.no-lowercase": "there is no option --tokenizer.no-lowercase",
    "train bert-nano --model.multi-label": "there is no option --model.multi-label",
    "plan gpt2 --model.labels a": "there is no option --model.labels",
    "data inspect gpt-nano --tokenizer.lowercase": "there is no option --tokenizer.lowercase",
    "train gpt-nano --init-positions interpolate": "--init-positions: only a run that begins with the parameters of a model has",
    "train gpt-nano --adapter a": "--adapter: only a run that begins with the parameters of a model has it; name one with --init",
    "train gpt-nano --lora.rank=2": "--lora.rank: only a run that begins with the parameters of a model has it",
    "train gpt-nano --optim.freeze-layers 1": "--optim.freeze-layers: only a run that begins with the parameters of a model",
    "train gpt-nano --optim.no-freeze-embeddings": "--optim.no-freeze-embeddings: only a run that begins with the parameters",
    "train gpt-nano --init runs/done --optim.layer-decay 0.0": "--optim.layer-decay 0.0: choose",
    "train gpt-nano --init runs/done --optim.layer-decay 1.1": "--optim.layer-decay 1.1: choose",
    "train gpt-nano --init runs/done --optim.freeze-layers -1": "--optim.freeze-layers -1: choose",
    "train gpt-nano --init runs/done --optim.freeze-layers 99": "--optim.freeze-layers 99: .*choose",
    "train gpt-nano --data.paths missing.txt": "missing.txt: no such file",
    "train gpt-nano --name done --data.paths missing.txt": "missing.txt: no such file",
    "train gpt-nano --data.valid-paths book.txt missing.txt": "missing.txt: no such file",
    "train gpt-nano --tokenizer.path missing": "--tokenizer.path missing: no such folder",
    "train gpt-nano --init missing": "--init missing: no such folder; name a run",
    "train finetune-span --init missing": "--init missing: no such folder; name a run",
    "train sft --init runs/gpt-nano": "--init runs/gpt-nano: no such folder; `zoo train gpt-nano` trains this run",
    "train distilbert-nano": "--distillation.teacher runs/bert-nano: no such folder; `zoo train bert-nano` trains this run",
    "train bert-nano --init runs/done": "--init runs/done: a gpt, and the recipe trains a bert; choose a recipe of gpt,",
    "train gpt-nano --init unsaved": "--init unsaved/checkpoints: no checkpoint yet",
    "train gpt-nano --out book.txt": "book.txt/gpt-nano cannot be written .*Not a directory.*; choose another --out",
    "train transformer-nano --pairs.source missing.txt --pairs.target book.txt": "missing.txt: no such file",
    "data inspect gpt-nano --data.paths missing.txt": "missing.txt: no such file",
    "eval missing": "missing is not a run: no such folder; name a folder that `zoo train` wrote",
    "eval runs": "runs is not a run: there is no config.json in it; name a folder that `zoo train` wrote",
    "generate runs --prompt a": "runs/config.json: no such file; name a folder that has one: a run, or published weights",
    "eval missing --task blimp --files book.txt": "missing: no such folder; name a run",
    "eval runs/done --task perplexity --files missing.txt": "--files missing.txt: no such file",
    "eval runs/done --step -2": "--step -2: choose the step of a checkpoint, or -1 for the newest one",
    "eval runs/done --step 7": ".*00000007: COMMIT.json is missing; steps that can be read: 2",
    "generate missing --prompt a": "missing: no such folder; name a run",
    "generate book.txt --prompt a": "book.txt: not a folder",
    "import bert/model.safetensors": "bert/model.safetensors: not a folder; name the folder that it is in: bert$",
    "import bert/config.json": "bert/config.json: not a folder; name the folder that it is in: bert$",
    "import book.txt": "book.txt: not a folder; name a run, a folder of published weights, or hub:ID",
    "import empty.txt": "empty.txt: not a folder; name a run, a folder of published weights, or hub:ID",
    "import nothing": "nothing/config.json: no such file; name a folder that has one",
    "import runs": "runs/config.json: no such file; name a folder that has one",
    "import runs/done": "runs/done: a run, not published weights; `zoo export runs/done DIR` converts it",
    "import runs/done --explain": "runs/done: a run, not published weights; `zoo export runs/done DIR` converts it",
    "import unsaved": "unsaved: a run, not published weights; `zoo export unsaved DIR` converts it",
    "import bert": "bert: holds no tokenizer.json and .*; copy the tokenizer of the model there",
    "import no-weights": "no-weights: contains neither model.safetensors nor .*; copy the weights of the model there",
    "import cut-weights": "cut-weights/model.safetensors: damaged: a header of .* in a file of 4; download it again",
    "import cut-config": "cut-config/config.json: not strict JSON .*; correct it, or download it again",
    "import bert --name a/b": "--name a/b: choose up to 100 letters",
    "import bert --out . --name runs": "runs: already exists; choose another name",
    "import bert --out book.txt": "book.txt/bert: cannot be written .*Not a directory.*; choose another folder",
    "generate bert/config.json --prompt a": "bert/config.json: not a folder; name the folder that it is in: bert$",
    "generate runs/done --prompts-file missing.txt": "--prompts-file missing.txt: no such file",
    "generate runs/done --prompts-file nothing": "--prompts-file nothing: a folder; name a file",
    "predict bert --files empty.txt": "empty.txt: holds no text; write some, or remove the file",
    "predict no-weights a": "no-weights: contains neither model.safetensors nor .*; copy the weights of the model there",
    "predict runs/done a": "runs/done: this model writes text; use it with `zoo generate runs/done",
    "predict bert a --out nothing/x/y.csv": "--out nothing/x/y.csv: its folder does not exist; create it, or name another",
    "fill-mask bert --files nothing": "nothing: no files in it; put some there, or name another folder",
    "fill-mask bert --text a": "bert: holds no tokenizer.json and .*; copy the tokenizer of the model there",
    "fill-mask cut-weights --text a": "cut-weights/model.safetensors: damaged: .*; download it again",
    "embed bert --files empty.txt": "empty.txt: holds no text; write some, or remove the file",
    "embed bert --text a --out nothing": "--out nothing: it is a folder; name a file",
    "export bert out": "bert: holds no tokenizer.json and .*; copy the tokenizer of the model there",
    "export runs/done book.txt/out": "book.txt/out: cannot be written .*Not a directory.*; choose another folder",
    "train gpt-nano --init bert": "--init bert: a bert, and the recipe trains a gpt; choose a recipe of bert, or name a gpt",
    "train sft --init bert": "--init bert: a bert does not generate text; name a model that does, such as a GPT",
    "train dpo --init bert": "--init bert: a bert does not generate text; name a model that does, such as a GPT",
    "train bert-nano --init no-weights": "--init no-weights: contains neither model.safetensors nor .*; copy the weights",
    "train gpt-nano --tokenizer.path nothing": "nothing: holds no tokenizer.json and .*; copy the tokenizer",
    "plan gpt2 --target cpu:2 --page nothing": "--page nothing: it is a folder; name a file",
    "plan gpt2 --target cpu:2 --page no/x.html": "--page no/x.html: its folder does not exist; create it, or name another",
    "data arithmetic book.txt": "book.txt: is a file; name a folder",
    "bench compare missing book.txt": "missing: no such file; ",
    "bench compare nothing book.txt": "nothing: no files in it; put some there, or name another folder",
    "bench growth gpt-nona": "no model is called 'gpt-nona'",
    "bench feedback gpt-nona": "no model is called 'gpt-nona'",
    "compare bert": "bert is not a run: it holds published weights; name a folder that `zoo train` wrote",
    "eval bert": "bert is not a run: it holds published weights; name a folder that `zoo train` wrote",
    "eval book.txt": "book.txt is not a run: it is a file; name a folder that `zoo train` wrote",
    "eval runs/done --task masked --files book.txt": "runs/done: a gpt reads from left to right; choose an encoder",
    "eval runs/done --task labelled --files book.txt": "--task labelled: runs/done has no labels; fine-tune it first",
    "eval runs/done --task perplexity --files empty.txt": "empty.txt: holds no text; write some, or remove the file",
    "eval no-weights --task masked --files book.txt": "no-weights: contains neither model.safetensors nor .*; copy",
    "train gpt-nano --data.paths book1.txt": "book1.txt: no such file; the nearest is book.txt$",
    "train gpt-nano --data.paths no/such/book.txt": "no/such/book.txt: no such file; there is no folder no$",
    "train gpt-nano --data.paths book.txt/x": "book.txt/x: no such file; there is no folder book.txt$",
    "train gpt-nano --data.paths nothing": "nothing: no files in it; put some there, or name another folder",
    "train gpt-nano --check --data.paths cut.jsonl": "cut.jsonl:2: invalid JSON at column 10 .*; write one object per line",
    "fill-mask runs/done --text a": "runs/done: a gpt reads from left to right; choose an encoder .*zoo generate runs/done",
    "embed runs/done --text a": "runs/done: a gpt reads from left to right; choose an encoder .*zoo generate runs/done",
    "generate bert --prompt a": "bert: a bert does not generate text; `zoo fill-mask bert --text ...` predicts",
    "fill-mask missing --text a": "missing: no such folder",
    "embed missing --text a": "missing: no such folder",
    "export missing out": "missing: no such folder",
    "export unsaved out": "unsaved/checkpoints: no checkpoint yet",
    "export runs/done runs": "runs: already exists",
    "export runs/done out --shard 0": "--shard 0.0: choose the size of the largest file",
    "export runs/done out --shard nan": "--shard nan: choose",
    "export runs/done out --last -1": "--last -1: choose 0",
    "export runs/done out --onnx": "--onnx: gpt has no ONNX files; these families have: bert, distilbert, ",
    "export runs/done out --onnx --gguf": "--gguf: there is --onnx too; choose one form",
    "export runs/done out --dtype float16": "--dtype float16: a published folder has the dtype that rounds nothing; leave it out",
    "export runs/done out --last 2 --step 2": "--last 2: this averages the newest checkpoints; leave out --step",
    "compare missing": "missing is not a run",
    "compare": "name the folders of the runs to compare",
    "models gpt-4": "the architecture of gpt-4 is unpublished",
    "generate": r"RUN\|DIR is missing: Folder of a run",
    "generate runs/done": r"--prompt is not given: write RUN\|DIR, and then one of",
    "generate --prompt a": r"--prompt is not given: write RUN\|DIR, and then one of",
    "bench growth --layers 1.5": "--layers: '1.5' cannot be parsed; zoo bench growth --help lists the possible values",
    "fill-mask runs/done": "--text is not given: give either --text or --files",
    "doctor now": "now belongs to no option; zoo doctor --help lists the options",
    "data look": r"data look: write zoo data inspect \[RECIPE\|RUN\]",
    "eval runs/done --words": "--words True: it needs a --task",
    "eval runs/done --beams 2": "--beams and its options: they need --task text_to_text",
    "eval runs/done --task nope --files book.txt": "--task nope: no task has this name",
    "eval unsaved": "unsaved/checkpoints: no checkpoint yet; train the run first",
    "eval runs/done --stride 33": "--stride 33: choose 1 to 32 tokens, or 0 for half a row",
    "eval runs/done --batch 0": "--batch 0: choose 1 or more rows",
    "eval runs/done --task blimp": "--files",
    "eval runs/done --files book.txt": "--files book.txt: it needs a --task",
    "eval runs/done --suite blimp": "--suite blimp: name the folder of its files with --suite-data DIR",
    "eval runs/done --suite babylm --suite-data runs --words": "--words True: has no effect on --suite babylm; remove it",
    "eval runs/done --suite babylm --suite-data runs": r"--suite babylm: runs lacks all of its files: blimp \(blimp_filtered/\*",
    "eval runs --suite glue-files --suite-data runs --partial": r".*runs lacks CoLA/dev.tsv .* named cola, sst2, .*; put",
    "generate runs/done --prompt a --limit 32": "prompt 1 of 1: its 1 tokens and --limit 32 are more than the model's "
    "32 positions; choose --limit 31 or less, or shorten the prompt$",
    "generate runs/done --prompts-file empty.txt": "empty.txt: ",
    "generate runs/done --examples cut.jsonl --template {a}{b} --query a=1": "cut.jsonl:",
    "chat runs/done": "runs/done: no chat template; models that were trained on conversations have one",
    "chat runs/done --template builtin --beams 2": "--beams 2: a text is sent while it is sampled; choose --beams 1",
    "serve runs/done --port 70000": "--port 70000: choose 1 to 65,535, or 0",
    "serve runs/done --host no.such.name.invalid": "--host no.such.name.invalid: no such address; choose 127.0.0.1",
    "serve runs/done --port 0 --processes 2": "--processes 2: this command runs in one process; leave the option out",
    "generate runs/done --prompt a --mesh.tensor 8": "--mesh.tensor 8: it does not divide layers/attention/out/kernel",
}
NUMBERS = """
--steps 0|--steps 99999999999999999999|--seed -1|--seed 4294967296|--accumulate 0|--accumulate 3|--label-smoothing nan
--loss-chunk 5|--max-skipped 0|--optim.lr nan|--optim.lr inf|--optim.lr -0.1|--optim.warmup -1|--optim.final 1.5
--optim.b1 1.0|--optim.b2 nan|--optim.eps 0.0|--optim.weight-decay -1.0|--optim.clip inf|--data.valid-fraction nan
--data.batch 0|--data.batch 99999999|--data.length 0|--data.length 2000000|--data.length 33|--tokenizer.vocab 256
--model.vocab 9999999|--model.layers -1|--model.width 0|--model.dropout nan|--model.eps nan|--model.compute.unroll 0
--model.window 8|--checkpoint.every 0|--checkpoint.keep 0|--log.validate-rows 0|--log.samples -1|--mesh.fsdp 0
--devices -1|--processes 0|--process 1|--profile -1|--z-loss -0.1|--z-loss nan
--label-smoothing -0.1|--label-smoothing 1.0|--loss-chunk -1|--max-skipped -1|--accumulate -2|--optim.lr 0.0|--optim.final -0.1
--optim.final nan|--optim.b1 -1.0|--optim.b2 1.5|--optim.eps nan|--optim.weight-decay nan|--optim.weight-decay 11.0
--optim.clip -1.0|--optim.clip nan|--optim.schedule step|--optim.name adam|--optim.momentum 1.0|--optim.decay-steps 1.5
--optim.rates embed|--optim.refresh 0|--data.valid-fraction 0.0|--data.valid-fraction 1.0
--data.rows segment_pairs|--data.take 0.0|--data.take 1.5|--data.weights 0|--data.weights nan
--data.weights inf|--data.split a/b|--tokenizer.kind bpe|--model.heads 0|--model.ffn 0|--model.vocab 0|--model.dropout 1.0
--model.dropout -0.1|--model.compute.remat some|--model.compute.attention fast
--selection.patience -1|--checkpoint.every -1|--checkpoint.keep -1|--mesh.slices -1
--log.every 0|--data.weights 1 2|--log.validate-every -1|--log.samples 1001|--log.sinks comet|--mesh.fsdp -1|--mesh.tensor 0
--mesh.data 0|--mesh.data -2|--devices 5000|--processes -1|--process -1|--engine xla|--objective next|--precision fp8
--distillation.top-k -1|--distillation.temperature nan
"""
DRAWS = """
--temperature -1.0|--temperature nan|--temperature 1e-09|--top-k -1|--top-p 0.0|--top-p 1.1|--top-p nan|--min-p -0.1|--min-p 2.0
--repetition-penalty 0.0|--repetition-penalty inf|--limit 0|--limit -1|--samples 0|--beams 0|--beams 2000|--length-penalty nan
--search-until late|--seed -1|--precision int8|--no-repeat-ngram -1|--source-no-repeat-ngram -1|--min-tokens -1
"""
COMBINED = {
    "--log.ledger yes": "--log.ledger yes: it takes no value; write --log.ledger alone; zoo train gpt-nano --help",
    "--log.ledger=yes": "--log.ledger yes: it takes no value; write --log.ledger alone; zoo train gpt-nano --help",
    "--seed 3 4": "4 belongs to no option; zoo train gpt-nano --help lists the options",
    "--seed --steps 3": "--seed: its value is missing; write one after it",
    "--out /dev/null": "/dev/null/other cannot be written .*; choose another --out",
    "--name .hidden": "--name '.hidden': choose up to 100 letters",
    "--data.paths empty.txt": "empty.txt: holds no text",
    "--data.paths cut.jsonl": "cut.jsonl:2: invalid JSON at column 10 .*; write one object per line",
    "--objective text_to_text": "--objective text_to_text: gpt is trained with causal, instruction, preference, dpo, .*; choose",
    "--tokenizer.path runs/done/tokenizer --model.vocab 299": "--model.vocab 299: the tokenizer has 300 entries.*; choose 300 or",
    "--mesh.tensor 8": r"--mesh\.tensor 8: it does not divide the [24] heads; choose one of 1, 2",
    "--data.batch 6": r"--data\.batch 6: 6 rows do not divide over data x fsdp = 8 devices; choose a multiple of 8",
    "--mesh.slices 3": r"--mesh\.slices 3: it does not divide the 8 devices; choose one of 1, 2, 4, 8$",
    "--data.paths book.txt book.txt": r"--data\.paths book\.txt: named twice; name it once",
    "--mesh.data 3": "--mesh data=3 .*: does not multiply to the 8 devices; valid: data=8,fsdp=1,tensor=1; data=4",
    "--name done --steps 3 --model.layers 1": "runs/done holds another run: .*steps: 2 before, 3 now.*; "
    r"choose another --name \(--init runs/done begins with the parameters of this run\), or these values",
}
"""Options of a run named `other` -> the whole line."""
RUN = ("train", "gpt-nano", *TINY)
GENERATE = ("generate", "runs/done", "--prompt", "a")
FIX = "(choose|it must divide|keep at least|give)"
TABLES = {
    "command lines": {line: (words(line), message) for line, message in COMMAND_LINES.items()},
    "numbers": {line: ((*RUN, *words(line)), f"{re.escape(line)}: .*{FIX}") for line in re.split(r"[|\n]", NUMBERS.strip())},
    "draws": {line: ((*GENERATE, *words(line)), f"{re.escape(line)}: choose") for line in re.split(r"[|\n]", DRAWS.strip())},
    "combined": {line: ((*RUN, "--name", "other", *words(line)), message) for line, message in COMBINED.items()},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("place")
    finished(folder)
    (folder / "empty.txt").touch()
    (folder / "nothing").mkdir()
    published.write(folder / "bert", published.config("bert", "masked"))
    for name in ("no-weights", "cut-weights", "cut-config"):
        shutil.copytree(folder / "bert", folder / name)
    (folder / "no-weights" / "model.safetensors").unlink()
    (folder / "cut-weights" / "model.safetensors").write_bytes(b"ABCD")
    (folder / "cut-config" / "config.json").write_text('{"model_type": "bert",')
    (folder / "cut.jsonl").write_text('{"text": "a"}\n{"text": "b')
    shutil.copytree(folder / "runs" / "done", folder / "unsaved", ignore=shutil.ignore_patterns("checkpoints"))
    with in_folder(folder):
        yield folder


@pytest.mark.parametrize("table", TABLES)
def test_wrong_input_is_refused_in_one_line(table: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, place, TABLES[table])


PROGRAM = """
import json, sys
from importlib.abc import MetaPathFinder
from zoo.cli import main

class ImportsJax(BaseException):
    pass

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "jax":
            raise ImportsJax

sys.meta_path.insert(0, Refuse())
late = []
for line in json.loads(sys.argv[1]):
    try:
        main.main(line.split())
    except ImportsJax:
        late.append(line)
print(json.dumps(late))
"""
LATE = {
    *("compare", "data inspect gpt-nano --rows 0", "data inspect gpt-nano --first -1"),
    *("eval runs/done --step 7", "eval runs/done --stride 33", "train gpt-nano --check --data.paths cut.jsonl"),
    *("generate runs/done --prompt a --limit 32", "generate runs/done --prompt a --mesh.tensor 8"),
    "generate runs/done --examples cut.jsonl --template {a}{b} --query a=1",
    *("chat runs/done", "chat runs/done --template builtin --beams 2", "serve runs/done --host no.such.name.invalid"),
}
"""Command lines that are refused after JAX is imported: most by the content of data, a checkpoint, a tokenizer or the devices."""


@pytest.mark.full
def test_what_names_and_first_bytes_show_is_refused_without_jax(place: Path) -> None:
    ended = run_python("-P", "-c", PROGRAM, json.dumps(list(COMMAND_LINES)), cwd=place, env={"COLUMNS": "80"})
    assert set(json.loads(ended.stdout or "[]")) == LATE, ended


@pytest.mark.planted
def test_a_damaged_run_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "broken").mkdir()
    (place / "broken" / "config.json").write_text('{"family": "gpt",')
    assert_refused(capsys, place, {"broken": (("eval", "broken"), "broken/config.json is not valid JSON")})


def test_a_run_fits_the_axes_that_are_not_named_to_its_devices(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a notice, and only if an axis is named: a recipe for 512 devices does not begin on 8 by itself."""
    ended = call(capsys, *RUN, "--name", "fitted", "--mesh.data", "4")
    notice = "! --mesh.fsdp 1 of gpt-nano does not fit --mesh.data 4 on 8 devices; --mesh.fsdp 2 instead"
    assert ended.code == 0 and notice in ended.stderr.splitlines()
    mesh = json.loads((place / "runs" / "fitted" / "config.json").read_text())["mesh"]
    assert (mesh["data"], mesh["fsdp"], mesh["tensor"]) == (4, 2, 1)
    ended = call(capsys, "train", "gpt3-175b", "--data.paths", "book.txt", "--steps", "1")
    assert ended.code == 2 and "--mesh data=-1 fsdp=64 tensor=8: does not multiply to the 8 devices" in ended.stderr


@pytest.mark.parametrize("line", ["trian", "train gpt-nano --stpes 3"])
def test_the_command_refuses_wrong_input_in_a_process_too(line: str, zoo: Callable[..., Ended], place: Path) -> None:
    before = snapshot(place)
    ended = zoo(*words(line), cwd=place)
    assert snapshot(place) == before
    assert (ended.code, ended.stdout) == (2, "")
    assert re.fullmatch(f"zoo: {COMMAND_LINES[line]}.*\n", ended.stderr)


FOR_SOME = (
    *("mesh.expert", "adapter", "lora.rank", "optim.freeze-layers", "spikes.sigmas", "selection.metric"),
    *("model.labels", "model.head-dropout", "tokenizer.lowercase"),
)
"""Options that only some runs list."""
LISTED = {
    "gpt-nano": "spikes.sigmas",
    "gpt-nano --tokenizer.kind wordpiece": "spikes.sigmas tokenizer.lowercase",
    "gpt-nano --init runs/done": "adapter lora.rank optim.freeze-layers spikes.sigmas",
    "gpt-oss-nano": "mesh.expert spikes.sigmas",
    "bert-nano": "spikes.sigmas selection.metric tokenizer.lowercase",
    "distilbert-nano": "optim.freeze-layers spikes.sigmas selection.metric tokenizer.lowercase",
    "finetune-tagging": "adapter lora.rank optim.freeze-layers spikes.sigmas selection.metric model.labels model.head-dropout",
    "finetune-span": "adapter lora.rank optim.freeze-layers spikes.sigmas selection.metric model.head-dropout",
    "grpo": "adapter lora.rank optim.freeze-layers",
    "reward-model": "adapter lora.rank optim.freeze-layers spikes.sigmas selection.metric model.labels",
}
"""Recipe -> those of them that its help lists."""


@pytest.mark.parametrize("line", LISTED)
def test_options_that_a_run_cannot_use_are_not_listed(line: str, capsys: pytest.CaptureFixture[str], place: Path) -> None:
    text = call(capsys, "train", *words(line), "--help").stdout
    options = re.findall(r"^\W*--([\w.-]+)", text, re.MULTILINE)
    assert [name for name in FOR_SOME if name in options] == [name for name in FOR_SOME if name in words(LISTED[line])]
    assert ("With --init FOLDER, --help also lists" in " ".join(text.split())) == ("adapter" not in options)


def test_every_synonym_stands_for_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    commands = ("train gpt-nano", "generate", "fill-mask", "eval", "embed")
    listed = {option for line in commands for option in re.findall(r"--([\w.-]+)", call(capsys, *words(line), "--help").stdout)}
    assert {option for options in SYNONYMS for option in words(options)} <= listed
    names = [name for names in SYNONYMS.values() for name in words(names)]
    assert len(names) == len(set(names)) > 100
    assert all(nearest_option(f"--{name}=1", [*listed]) for name in names)


@pytest.mark.parametrize(("text", "number"), [("7", 7), ("-1", -1), ("1e9", 10**9), ("2.50e2", 250), ("3.0", 3), ("1_000", 1000)])
def test_whole_numbers(text: str, number: int) -> None:
    assert whole_number(text) == number


def test_no_command_at_all_shows_the_usage_as_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    ended = call(capsys)
    assert (ended.code, ended.stdout, ended.stderr) == (2, "", main.USAGE)


def test_other_exceptions_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "models", lambda args: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main.main(["models"])

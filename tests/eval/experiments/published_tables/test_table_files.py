"""Published tables as files: the forms that are read, and what is refused in one line."""

import json
from pathlib import Path

import pytest

from eval.experiments.published_tables import measurements
from tests.support.commands import assert_refused, call, in_folder
from zoo.errors import BadInput

SEEDS = range(5)
LONG = "".join(f"{row},{seed},loss,{base + 0.01 * seed}\n" for row, base in (("a", 1.0), ("b", 2.0)) for seed in SEEDS)
HEAD = "row,seed,metric,value\n"
CLAIM = ("--claim", "a < b on loss")


def table(name: str, *lines: str) -> None:
    Path(name).write_text("\n".join(lines) + "\n")


def test_the_same_values_in_every_form_are_judged_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [line.split(",") for line in LONG.splitlines()]
    with in_folder(tmp_path):
        Path("long.csv").write_text(f"\ufeff{HEAD}{LONG}", encoding="utf-8")
        table("wide.tsv", "Model\tRun\tloss\tnote", *(f"{row}\trun {seed}\t{value}\t-" for row, seed, _, value in rows))
        table("lines.jsonl", *(json.dumps({"model": a, "seed": int(s), "metric": m, "score": float(v)}) for a, s, m, v in rows))
        table("named.csv", "system,s,step,loss", *(f"{a},{s},{step},{v}" for a, s, _, v in rows for step in (1, 2)))
        named = ("named.csv", "--columns", "row=system", "seed=s", "--where", "step=2")
        half = len(LONG) // 2
        for name, part in (("first.csv", LONG[:half]), ("second.csv", LONG[half:])):
            Path(name).write_text(HEAD + part)
        assert LONG[half - 1] == "\n"
        files = (["long.csv"], ["wide.tsv"], ["lines.jsonl"], named, ["first.csv", "second.csv"])
        outputs = {call(capsys, "judge", *names, *CLAIM).stdout for names in files}
    (output,) = outputs
    first, numbers, note = output.splitlines()
    assert first == "reproduced, exploratory: a < b on loss"
    assert numbers.startswith("  difference -1.0000, 95% interval -1.0278 to -0.9722, 5 and 5 seeds; a difference beyond 0.0000")
    assert note.startswith("Not registered here: the claims were written after the data were published")


def test_the_loss_of_word_frequencies_is_a_floor_in_both_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [line.split(",") for line in LONG.splitlines()]
    with in_folder(tmp_path):
        table("wide.csv", "row,seed,loss,unigram_loss", *(f"{row},{seed},{value},0.9" for row, seed, _, value in rows))
        Path("long.csv").write_text(HEAD + LONG + "".join(f"{row},{seed},unigram_loss,0.9\n" for row, seed, _, _ in rows))
        outputs = {call(capsys, "judge", name, *CLAIM).stdout for name in ("wide.csv", "long.csv")}
    (output,) = outputs
    assert output.startswith("not testable, exploratory: a < b on loss") and "unigram loss (0.9)" in output


def test_the_page_is_like_that_of_an_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with in_folder(tmp_path):
        Path("t.csv").write_text(HEAD + LONG + "c,x,loss,1\n")
        claims = [{"kind": "less", "metric": "loss", "row": "a", "reference": ["b"], "margin": 0.1, "pilot_deviation": 0.2}]
        Path("claims.json").write_text(json.dumps(claims))
        ended = call(
            capsys, "judge", str(tmp_path / "t.csv"), "--claims", "claims.json", "--source", "A paper, table 2", "--out", "o"
        )
        assert ended.code == 0 and ended.stdout.endswith("wrote o/experiment.html\n")
        # The same command writes the page again.
        assert call(capsys, "judge", "t.csv", "--claims", "claims.json", "--out", "o").code == 0
    result = json.loads((tmp_path / "o" / "experiment.json").read_text())
    text = (tmp_path / "o" / "experiment.md").read_text()
    html = (tmp_path / "o" / "experiment.html").read_text()
    assert str(tmp_path) not in html and str(tmp_path) not in text
    assert "# Claims about t.csv" in text and "- **reproduced (exploratory)**: a < b on loss." in text
    assert "before the first run" not in text and text.count("written after the data were published") == 3
    assert html.count("<svg") >= 4 and "not sealed" not in text and "Options" not in text and "Every seed" in html
    assert result["table"]["files"].keys() == {"t.csv"} and result["claims"][0]["seed_error"] == pytest.approx(0.2 * 0.4**0.5)


@pytest.mark.planted(19)
def test_wrong_tables_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with in_folder(tmp_path):
        Path("t.csv").write_text(HEAD + LONG)
        table("no_seed.csv", "model,accuracy", "a,0.5", "b,0.6")
        table("no_value.csv", "model,seed,metric,mean", "a,0,loss,1")
        Path("twice.csv").write_text(f"{HEAD}{LONG}a,0,loss,1.5\n")
        Path("text.csv").write_text(f"{HEAD}{LONG}a,7,loss,84.5%\n")
        Path("comma.tsv").write_text("row\tseed\tloss\na\t0\t0,5\n")
        Path("empty.jsonl").write_text('{"row": "a", "seed": 0, "metric": "loss", "value": null}\n')
        Path("short.csv").write_text(f"{HEAD}a,0,loss\n")
        Path("quote.csv").write_text(f'{HEAD}a,0,loss,"1\n')
        Path("list.jsonl").write_text("[1]\n")
        Path("nothing.csv").write_text("")
        table("header.csv", "row,seed,loss,loss", "a,0,1,2")
        Path("table.xlsx").write_bytes(b"PK")
        Path("latin.csv").write_bytes(b"row,seed,loss\n\xe9,0,1\n")
        cases = {
            "no seeds": (
                ("no_seed.csv", "--claim", "a < b on accuracy"),
                r"no_seed\.csv: there is no column seed or run; a single ",
            ),
            "no values": (
                ("no_value.csv", *CLAIM),
                r"no_value\.csv: there is no column value or score; name it by --columns value=",
            ),
            "two values": (("twice.csv", *CLAIM), r"row a, seed 0, loss: two values, twice\.csv:2 and twice\.csv:12; leave one"),
            "text": (
                ("text.csv", *CLAIM),
                r'text\.csv:12: column value has "84\.5%", which is no number; correct it, or write nan',
            ),
            "a decimal comma": (("comma.tsv", *CLAIM), r'comma\.tsv:2: column loss has "0,5", which is no number'),
            "null": (("empty.jsonl", *CLAIM), r"empty\.jsonl:1: column value has nothing, which is no number"),
            "a short line": (("short.csv", *CLAIM), r"short\.csv:2: has 3 cells, and the header has 4; correct the line"),
            "an open quote": (("quote.csv", *CLAIM), r"quote\.csv:2: cannot be parsed \("),
            "no object": (("list.jsonl", *CLAIM), r"list\.jsonl:1: is not a JSON object"),
            "an empty file": (("nothing.csv", *CLAIM), r"nothing\.csv: has no lines"),
            "a column twice": (("header.csv", *CLAIM), r"header\.csv: two columns are called 'loss'; rename one"),
            "a workbook": (("table.xlsx", *CLAIM), r"table\.xlsx: only \.csv, \.tsv, \.jsonl tables and folders"),
            "another encoding": (("latin.csv", *CLAIM), r"latin\.csv: is not UTF-8; convert it"),
            "no file": (("no.csv", *CLAIM), r"no\.csv: no such file; the nearest is t\.csv"),
            "an empty folder": ((".", *CLAIM), r"\.: has no results_\*\.json of lm-eval and no task-\*-metrics\.json of OLMES"),
            "no such column": (
                ("t.csv", *CLAIM, "--columns", "row=system"),
                r"t\.csv: --columns row=system: there is no such column",
            ),
            "no such meaning": (
                ("t.csv", *CLAIM, "--columns", "rows=row"),
                "--columns rows=row: there is no such meaning of a column",
            ),
            "no pair": (("t.csv", *CLAIM, "--columns", "row"), "--columns row: write NAME=VALUE"),
            "no such line": (("t.csv", *CLAIM, "--where", "seed=9"), r"t\.csv: no line has seed=9; change --where"),
        }
        assert_refused(capsys, tmp_path, {name: (("judge", *argv), pattern) for name, (argv, pattern) in cases.items()})


@pytest.mark.planted(22)
def test_wrong_claims_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with in_folder(tmp_path):
        Path("t.csv").write_text(HEAD + LONG)
        rows = [line.split(",") for line in LONG.splitlines()]
        budget = [f"{a},{s},{m},{v},{1000 if a == 'a' else 2000},{512},x" for a, s, m, v in rows]
        table("budget.csv", "row,seed,metric,value,budget,vocab,item", *budget)
        vocabulary = [f"{a},{s},{v},{v},{512 if a == 'a' else 2048}" for a, s, _, v in rows]
        table("vocabulary.csv", "row,seed,loss,bits_per_byte,vocab", *vocabulary)
        items = [f"{a},{s},{m},{v},{i + (a == 'b')}" for a, s, m, v in rows for i in range(2)]
        table("items.csv", "row,seed,metric,value,item", *items)
        for name, content in (
            ("bad", "{"),
            ("shape", [{"row": "a"}]),
            ("field", [dict(kind="less", metric="loss", row="a", reference="b", margn=1)]),
            ("alone", [dict(kind="less", metric="loss", row="a", reference=[])]),
        ):
            Path(f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
        Path("done").mkdir()
        Path("done/experiment.json").write_text("{}")

        def claim(text: str, *more: str, file: str = "t.csv") -> tuple[str, ...]:
            return (file, "--claim", text, *more)

        cases = {
            "other budgets": (
                claim("a < b on loss", file="budget.csv"),
                'claim "a < b on loss": its rows differ in their budget: a has 1000, b has 2000; ',
            ),
            "other vocabularies": (
                claim("a < b on loss", file="vocabulary.csv"),
                "claim .*: its rows differ in their vocabulary: a has 512, b has 2048; .* or in bits_per_byte",
            ),
            "other items": (
                claim("a < b on loss", file="items.csv"),
                'claim "a < b on loss": item 0 is not in all seeds of a and b; ',
            ),
            "no such row": (
                claim("a < c on loss"),
                r'claim "a < c on loss": row c: there is no such row; the nearest is \w \(all: a, b\)',
            ),
            "no such metric": (
                claim("a < b on los"),
                r"claim on los: there is no such metric; the nearest is loss \(all: loss\)",
            ),
            "no such control": (claim("a < b on loss", "--control", "x"), "--control x: there is no such row"),
            "one row": (claim("a < a on loss"), 'claim "a < a on loss": compares a with itself; name two rows'),
            "no reference": (
                ("t.csv", "--claims", "alone.json"),
                'claim "a <  on loss": reference is empty; name at least one row to compare a with',
            ),
            "a reference twice": (
                claim("a < b, b on loss"),
                'claim "a < b, b on loss": reference has b twice; leave one out',
            ),
            "no form": (claim("a better than b"), "--claim 'a better than b': write \"ROW < ROW on METRIC margin NUMBER"),
            "no number": (claim("a < b on loss margin x"), "--claim 'a < b on loss margin x': margin x is no number"),
            "no margin": (claim("a = b on loss"), 'claim "a = b on loss": margin 0: an equivalence needs a margin above 0'),
            "a negative margin": (claim("a < b on loss margin -1"), 'claim "a < b on loss": margin -1: a margin is 0 or more'),
            "twice": (claim("a < b on loss", "--claim", "a < b on loss"), 'claim "a < b on loss": it is stated twice'),
            "no claim": (("t.csv",), "--claim: state at least one claim"),
            "no direction": (
                claim("a < b on x", file="x.csv"),
                'claim "a < b on x": whether lower or higher x is better is not known; add',
            ),
            "no JSON": (("t.csv", "--claims", "bad.json"), r"--claims bad\.json: is invalid JSON"),
            "another shape": (("t.csv", "--claims", "shape.json"), r"--claims shape\.json: has unexpected content \("),
            "no such field": (
                ("t.csv", "--claims", "field.json"),
                r"--claims field\.json: claim 1, margn: there is no such field; the nearest is margin",
            ),
            "an experiment": (
                claim("a < b on loss", "--out", "done"),
                "--out done: has the results of an experiment; name another folder",
            ),
            "two sources": (claim("a < b on loss", "--registration", "x"), "--registration: it has the claims and the control"),
            "no registration": (
                ("t.csv", "--registration", "done"),
                "done is not an experiment: registration.json cannot be read",
            ),
        }
        Path("x.csv").write_text("row,seed,x\n" + "".join(f"{a},{s},{v}\n" for a, s, _, v in rows))
        assert_refused(capsys, tmp_path, {name: (("judge", *argv), pattern) for name, (argv, pattern) in cases.items()})
        assert call(capsys, "judge", *claim("a < b on bits_per_byte", file="vocabulary.csv")).code == 0


def test_a_diverged_seed_counts_as_one_that_did_not_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with in_folder(tmp_path):
        Path("t.csv").write_text(HEAD + LONG.replace("a,0,loss,1.0", "a,0,loss,nan"))
        output = call(capsys, "judge", "t.csv", *CLAIM).stdout
    assert output.startswith("not shown, exploratory") and "4 of 5 seeds of a and 5 of 5 seeds of b learned" in output
    assert "a: seed 0 diverged" in output


@pytest.mark.planted
def test_a_value_for_all_items_beside_one_for_an_item_is_refused() -> None:
    line = measurements.Measurement(where="t:1", row="a", seed="0", metric="loss", value=1.0)
    other = measurements.Measurement(where="t:2", row="a", seed="0", metric="loss", value=1.0, item="7")
    with pytest.raises(BadInput, match="row a, seed 0, loss, item 7: two values, values for items and one without and t:2"):
        measurements.require_single_values([line, other])

"""Data sets of the Hugging Face library: folders of them, and the hub from the cache; without a network, refused at once."""

import json

import pytest

from tests.support.processes import ROOT, run_python
from train.config import Data
from train.sources import sources
from zoo.errors import BadInput


def read(path, **options):
    data = Data(paths=(str(path),), **options)
    (source,) = sources(data.paths, data)
    return [(document.name, document.text) for document in source.read()]


def refusal(path, **options):
    with pytest.raises(BadInput) as refused:
        read(path, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture(scope="module")
def datasets():
    import datasets

    datasets.disable_progress_bars()
    return datasets


def test_a_folder_of_a_data_set_is_its_rows(datasets, tmp_path):
    rows = datasets.Dataset.from_dict({"id": [1, 2, 3], "body": ["one", "", "three \U0001f433"]})
    one, several = tmp_path / "one", tmp_path / "several"
    rows.save_to_disk(one, num_shards=2)
    # Saved as chosen and sorted: the files behind it hold other rows.
    datasets.DatasetDict(train=rows.select([2, 0]), test=rows).save_to_disk(several)
    assert read(one, field="body") == [("one:1", "one"), ("one:3", "three \U0001f433")]
    assert [text for _, text in read(several, field="body")] == ["three \U0001f433", "one"]
    assert [text for _, text in read(several, field="body", split="test")] == ["one", "three \U0001f433"]
    # What it does not have is refused with what it has.
    assert 'one: no column "text"; it has "id", "body": choose one with --data.field' in refusal(one)
    assert 'several: no split dev; it has "train", "test": choose one with --data.split' in refusal(several, split="dev")
    assert "--data.split dev: " in refusal(one, split="dev")
    with pytest.raises(BadInput, match=r"--data\.split train\[:10%\]: give its name alone"):
        Data(split="train[:10%]")
    (tmp_path / "dataset_info.json").write_text("{")
    assert f"{tmp_path}: cannot be loaded" in refusal(tmp_path)


def test_the_hub_is_read_from_the_cache_without_a_network(datasets, tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text(json.dumps({"text": "cached"}))
    builder = datasets.load_dataset_builder("json", data_files=f"{tmp_path}/a.json", cache_dir=str(tmp_path))
    builder.dataset_name = "my_name"
    builder.download_and_prepare(str(tmp_path / "cache" / "some-Org___my_name" / "default" / "0.0.0" / "hash"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert read("hub:some-Org/MyName") == [("some-Org/MyName:1", "cached")]
    assert read("hub:some-Org/my_name", subset="default") == [("some-Org/my_name:1", "cached")]
    assert 'no split test; it has "train"' in refusal("hub:some-Org/MyName", split="test")
    assert "for config 'other' Available configs in the cache: ['default']" in refusal("hub:some-Org/MyName", subset="other")


def test_what_is_no_hub_id_is_refused():
    for name in ("hub:", "hub:name", "hub:../x", "hub:a/b/c", "hub:a b/c"):
        assert "no hub id; write hub:ORGANISATION/NAME" in refusal(name)


@pytest.mark.parametrize(("offline", "message"), [("0", "the hub does not answer"), ("1", "HF_HUB_OFFLINE forbids to fetch it")])
def test_a_hub_out_of_reach_is_reported_without_importing_datasets(offline, message):
    """In a new process, with its own settings of the library; no server answers at port 9."""
    child = (
        "import sys; from train.config import Data; from train.sources import sources; from zoo.errors import BadInput\n"
        "try: sources(('hub:no-organisation/nothing',), Data())\n"
        "except BadInput as error: print(error)\n"
        "assert 'datasets' not in sys.modules"
    )
    environment = {"HF_HUB_OFFLINE": offline, "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = run_python("-c", child, env=environment, cwd=ROOT)
    assert done.stdout.startswith("hub:no-organisation/nothing: not in the local cache, and ") and message in done.stdout
    assert done.code == 0, done.stderr

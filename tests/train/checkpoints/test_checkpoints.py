"""Checkpoints against real files: round trips onto any mesh, and every way a step can be damaged."""

import asyncio
import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile.case_types import forge_manifest
from tests.support.runs import PATIENCE
from tests.support.states import META, Log, Spec, abstract, bits, make, mesh_of, restored, save_all
from train.checkpoints.checkpoints import Checkpoints
from train.checkpoints.manifest import FORMAT, NAME, DamagedCheckpoint, Manifest, manifest_differences
from train.engine.state import State
from zoo.errors import BadInput


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    save_all(folder, 1, 2)
    return folder


@pytest.fixture
def damaged(two_steps: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of a folder with steps 1 and 2 to damage, and its newest step. All must notice and fall back to step 1."""
    shutil.copytree(two_steps, tmp_path / "copy")
    return tmp_path / "copy", tmp_path / "copy" / "00000002"


@pytest.mark.parametrize(("shape", "spec"), [((8,), None), ((2, 4), Spec("b", "a")), ((1,), Spec()), ((2, 2), Spec(("a", "b")))])
def test_round_trip_onto_any_mesh(folder: Path, shape: tuple[int, ...], spec: Spec | None) -> None:
    state = make(7)
    with Checkpoints(folder, 1, notify=pytest.fail) as checkpoints:
        checkpoints.save(state, META)
    assert Checkpoints(folder, 1, notify=pytest.fail).latest() == 7

    mesh = mesh_of(*shape)

    def place(leaf: jax.Array) -> jax.sharding.Sharding:
        if spec is None:
            return leaf.sharding
        return jax.NamedSharding(mesh, spec if leaf.shape == (16, 64) else Spec())

    wanted = abstract(state, place)
    again, meta = Checkpoints(folder, 1, notify=pytest.fail).restore(wanted)
    assert meta == META
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert bits(again) == bits(state)
    for leaf, asked in zip(jax.tree.leaves(again), jax.tree.leaves(wanted), strict=True):
        assert (leaf.dtype, leaf.sharding) == (asked.dtype, asked.sharding)


def test_keeps_the_newest_and_never_more_than_one_beyond(folder: Path) -> None:
    assert Checkpoints(folder, 2, notify=pytest.fail).restore(abstract(make(0))) is None
    assert not folder.exists()
    with Checkpoints(folder, 2, notify=pytest.fail) as checkpoints:
        for step in range(1, 5):
            checkpoints.save(make(step), META)
            deadline = time.monotonic() + PATIENCE
            while checkpoints.latest() != step or len(os.listdir(folder)) > 2:
                checkpoints.poll()
                assert len(os.listdir(folder)) <= 3
                assert time.monotonic() < deadline
    assert sorted(os.listdir(folder)) == ["00000003", "00000004"]


def test_a_committed_step_is_not_saved_again_and_an_older_one_is_refused(folder: Path) -> None:
    with Checkpoints(folder, 2, notify=pytest.fail) as checkpoints:
        checkpoints.save(make(5), META)
        checkpoints.wait()
        before = (folder / "00000005" / NAME).stat()
        checkpoints.save(make(5), META)
        assert checkpoints.wait()
        assert (folder / "00000005" / NAME).stat() == before
        with pytest.raises(BadInput, match="step 5 is already here"):
            checkpoints.save(make(4), META)


def test_buffers_may_be_donated_at_once(folder: Path) -> None:
    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: State) -> State:
        return jax.tree.map(lambda leaf: leaf + 1, state)

    state = make(0, width=1 << 14)
    aliased = 0
    with Checkpoints(folder, 1, notify=pytest.fail) as checkpoints:
        for _ in range(6):
            state = step(state)
            expected = bits(state)
            checkpoints.save(state, META)
            for _ in range(3):
                before = state.params["embed"]["table"].addressable_shards[0].data.unsafe_buffer_pointer()
                state = step(state)
                aliased += state.params["embed"]["table"].addressable_shards[0].data.unsafe_buffer_pointer() == before
            jax.block_until_ready(state)
            again, _ = checkpoints.restore(abstract(state))
            assert bits(again) == expected
    # Without donation in place this test would prove nothing.
    assert aliased > 0


def test_saves_where_an_event_loop_runs(folder: Path) -> None:
    async def notebook() -> None:
        save_all(folder, 1)

    asyncio.run(notebook())
    restored(Checkpoints(folder, 1, notify=pytest.fail))


def test_a_deletion_that_stops_half_way_leaves_no_damaged_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_all(folder, 1)
    # As if the process was killed after the first file.
    monkeypatch.setattr("train.checkpoints.step_folders.shutil.rmtree", lambda path, **_: (path / "_METADATA").unlink())
    with Checkpoints(folder, 1, notify=pytest.fail) as checkpoints:
        checkpoints.save(make(2), META | {"step": 2})
    monkeypatch.undo()
    assert len(os.listdir(folder)) == 2
    with Checkpoints(folder, 1, notify=pytest.fail) as checkpoints:
        assert restored(checkpoints).step == 2
    assert os.listdir(folder) == ["00000002"]


def files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def mutations(original: bytes, rng: np.random.Generator, every_byte: bool) -> Iterator[tuple[str, bytes | None]]:
    """Changed contents of a file, every one different from the original; None is deletion."""
    size = len(original)
    # One byte of each sixteenth of the file, its first and its last.
    sampled = {0, size - 1, *(int(rng.integers(part * size // 16, -(-(part + 1) * size // 16))) for part in range(16))}
    for byte in range(size) if every_byte else sampled:
        changed = bytearray(original)
        changed[byte] ^= 1 << rng.integers(8)
        yield f"byte {byte}", bytes(changed)
    for length in {0, size // 2, size - 1}:
        yield f"cut to {length}", original[:length]
    yield "one more", original + b"\0"
    for tail in (16, 4096):
        if (zeroed := original[:-tail] + bytes(min(tail, size))) != original:
            yield f"tail of {tail} zeroed", zeroed
    yield "deleted", None


@pytest.mark.planted(300)
def test_every_changed_byte_is_noticed(damaged: tuple[Path, Path], rng: np.random.Generator) -> None:
    """Every byte of COMMIT.json, and some of each part of every other file."""
    _, newest = damaged
    count = 0
    for file in files(newest):
        path, original = file.relative_to(newest).as_posix(), file.read_bytes()
        for what, changed in mutations(original, rng, path == NAME):
            assert changed != original
            file.unlink()
            if changed is not None:
                file.write_bytes(changed)
            with pytest.raises(DamagedCheckpoint) as noticed:
                Manifest.read(newest, 2).check_content(newest)
            assert path in str(noticed.value), what
            count += 1
        file.write_bytes(original)
    Manifest.read(newest, 2).check_content(newest)
    assert count >= 300


def rewrite(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))


def data_of(folder: Path) -> Path:
    """The largest file of arrays."""
    return max(folder.rglob("d/*"), key=lambda file: file.stat().st_size)


HARMS: dict[str, Callable[[Path], Any]] = {
    "half copied": lambda newest: [file.unlink() for file in files(newest)[::2]],
    "cut short": lambda newest: rewrite(data_of(newest), lambda content: content[:-1]),
    "with another bit": lambda newest: rewrite(data_of(newest), lambda content: content[:-1] + bytes([content[-1] ^ 1])),
    "emptied": lambda newest: (shutil.rmtree(newest), newest.mkdir()),
    "with the marker of another step": lambda newest: shutil.copy(newest.parent / "00000001" / NAME, newest / NAME),
    "under another number": lambda newest: (shutil.rmtree(newest), shutil.copytree(newest.parent / "00000001", newest)),
    "with a file more": lambda newest: (newest / "more").write_bytes(b""),
    "with a marker that is a folder": lambda newest: ((newest / NAME).unlink(), (newest / NAME).mkdir()),
    "with a forged meta": lambda newest: rewrite(newest / NAME, lambda text: text.replace(b'"layers": 2', b'"layers": 3')),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.planted
def test_a_step_that_is_not_what_was_saved_is_set_aside(damaged: tuple[Path, Path], harm: str) -> None:
    folder, newest = damaged
    HARMS[harm](newest)
    (folder / "00000002.corrupt-1").mkdir()

    # A reader passes it over and touches nothing.
    log = Log()
    reader = Checkpoints(folder, 9, notify=log)
    assert reader.latest() == (2 if harm == "with another bit" else 1)  # digests are compared when a step is read
    assert restored(reader).step == 1
    assert "skipped" in log[0]
    assert newest.exists()

    log.clear()
    with Checkpoints(folder, 9, notify=log) as writer:
        assert restored(writer).step == 1
        assert len(log) == 1
        assert "00000002.corrupt-2" in log[0]
        assert not newest.exists()
        writer.save(make(2), META | {"step": 2})
        writer.wait()
        assert restored(writer).step == 2


FORGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    r"the field evil": lambda content: content.update(evil=1),
    r"no step": lambda content: content.pop("step"),
    r"files: list instead of dict": lambda content: content.update(files=[]),
    r"no files\._METADATA\.size": lambda content: content["files"].update(_METADATA={"sha256": "x"}),
    r"no files\._METADATA\.sha256": lambda content: content["files"].update(_METADATA={"size": 1}),
    r"leaves\.params: int": lambda content: content["leaves"].update(params=3),
    r"meta: list instead of dict": lambda content: content.update(meta=[]),
    r"meta\.tokenizer: int": lambda content: content["meta"].update(tokenizer=4),
    r"meta\.config: int instead of dict": lambda content: content["meta"].update(config=3),
    r"meta\.parents: int instead of dict": lambda content: content["meta"].update(parents=5),
    r"no meta\.counts\.input_tokens": lambda content: content["meta"].update(counts={"x": 1}),
    r"meta\.value: an integer of more than 64 bits": lambda content: content["meta"].update(value=10**400),
}


@pytest.mark.parametrize("problem", FORGED)
@pytest.mark.planted
def test_a_manifest_of_another_shape_with_the_right_digest_is_damage(damaged: tuple[Path, Path], problem: str) -> None:
    folder, newest = damaged
    forge_manifest(newest, FORGED[problem])
    with pytest.raises(DamagedCheckpoint, match=rf"COMMIT\.json has unexpected content \({problem}\)"):
        Manifest.read(newest, 2)
    assert Checkpoints(folder, 2, notify=pytest.fail).latest() == 1
    with pytest.raises(BadInput, match="steps that can be read: 1"):
        Checkpoints(folder, 2, notify=pytest.fail).meta(2)


@pytest.mark.planted
def test_a_damaged_step_in_the_way_of_a_save_is_set_aside(damaged: tuple[Path, Path]) -> None:
    folder, newest = damaged
    (newest / NAME).unlink()
    log = Log()
    with Checkpoints(folder, 2, notify=log) as checkpoints:
        checkpoints.save(make(2), META | {"step": 2})
    assert "blocks a save" in log[0]
    assert restored(Checkpoints(folder, 2, notify=log)).step == 2


def test_other_files_are_ignored_and_reported_once(damaged: tuple[Path, Path]) -> None:
    folder, newest = damaged
    for name in ("99999", "notes", "0000002a", "000000003", "tmp"):
        (folder / name).mkdir()
    (folder / "00000098").write_text("a file")
    (folder / "00000099").symlink_to(newest)
    (folder / "00000097.tmp").symlink_to(newest)
    (folder / "00000004.tmp").mkdir()
    log = Log()
    with Checkpoints(folder, 1, notify=log) as checkpoints:
        assert not (folder / "00000004.tmp").exists()
        for _ in range(3):
            assert checkpoints.latest() == 2
        assert restored(checkpoints).step == 2
        checkpoints.save(make(3), META | {"step": 3})
    assert len(log) == 8
    assert all("is not a checkpoint" in message for message in log)
    assert len(os.listdir(folder)) == 9
    assert restored(Checkpoints(folder, 1, notify=log)).step == 3


@pytest.mark.planted(2)
def test_nothing_intact_is_refused_however_often_it_is_asked(damaged: tuple[Path, Path]) -> None:
    folder, _ = damaged
    for step in ("00000001", "00000002"):
        file = next(file for file in (folder / step / "ocdbt.process_0" / "d").iterdir())
        file.write_bytes(bytes(file.stat().st_size))
    log, message = Log(), r"00000001\.corrupt-1.*delete the folder"
    for _ in range(2):
        with Checkpoints(folder, 2, notify=log) as checkpoints, pytest.raises(BadInput, match=message):
            checkpoints.restore(abstract(make(0)))
    assert len(log) == 2


@pytest.mark.planted
def test_a_chosen_step_is_read_or_refused(damaged: tuple[Path, Path]) -> None:
    folder, newest = damaged
    checkpoints = Checkpoints(folder, 2, notify=pytest.fail)
    assert restored(checkpoints, step=1).step == 1
    assert checkpoints.meta(2) == META | {"step": 2}
    with pytest.raises(BadInput, match="steps that can be read: 2, 1"):
        checkpoints.restore(abstract(make(0)), step=3)
    rewrite(data_of(newest), lambda content: content[::-1])
    with pytest.raises(BadInput, match="other content than was saved"):
        checkpoints.restore(abstract(make(0)), step=2)
    assert newest.exists()


def test_another_format_is_refused_and_not_called_damaged(damaged: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, newest = damaged
    monkeypatch.setattr("train.checkpoints.manifest.FORMAT", FORMAT + 1)
    Manifest(step=2, meta={}, leaves={}).write(newest)
    monkeypatch.undo()
    with pytest.raises(BadInput, match=f"format {FORMAT + 1}"):
        Checkpoints(folder, 2, notify=pytest.fail).restore(abstract(make(0)))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"file.*choose another --out"), Checkpoints(tmp_path / "file", 1, notify=pytest.fail):
        pass


def with_params(state: State, **more: Any) -> State:
    return State(**{**vars(state), "params": {**state.params, **more}})


def test_other_leaves_are_refused_by_name(two_steps: Path) -> None:
    table = make(0).params["embed"]["table"].astype(jnp.bfloat16).T
    other = with_params(State(**{**vars(make(0)), "opt_state": ()}), head=make(0).key, embed={"table": table})
    with pytest.raises(BadInput) as refused:
        Checkpoints(two_steps, 1, notify=pytest.fail).restore(abstract(other))
    for part in (
        'opt_state/0/mu/embed/table: "float32[16,64]" in the checkpoint, nothing now',
        'params/embed/table: "float32[16,64]" in the checkpoint, "bfloat16[64,16]" now',
        'params/head: nothing in the checkpoint, "uint32[2]" now',
    ):
        assert part in str(refused.value)


def test_a_leaf_without_a_sharding_and_two_leaves_of_one_path_are_value_errors(two_steps: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="without a sharding: step"):
        Checkpoints(two_steps, 1, notify=pytest.fail).restore(abstract(make(0), lambda _: None))
    clash = with_params(make(1), **{"embed/table": make(1).key})
    with Checkpoints(folder, 1, notify=pytest.fail) as checkpoints, pytest.raises(ValueError, match="the same path"):
        checkpoints.save(clash, META)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
TREES = st.dictionaries(st.text(max_size=3), VALUES, max_size=4)


# A busy machine takes seconds for an example.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TREES, TREES)
def test_compare_is_empty_only_for_the_same(saved: dict[str, Any], asked: dict[str, Any]) -> None:
    assert manifest_differences(saved, json.loads(json.dumps(saved))) == []
    # An empty dict against none has no leaf to name.
    one, other = (json.dumps(tree, sort_keys=True) for tree in (saved, asked))
    same, same_leaves = one == other, one.replace("{}", "") == other.replace("{}", "")
    assert (manifest_differences(saved, asked) == []) == same or same_leaves
    assert manifest_differences(saved, asked, saved.keys() | asked.keys()) == []


def test_compare_names_the_difference() -> None:
    saved = {"a": 1, "b": 2, "c": {"a": 1}, "d": 1, "e": [1, 2], "f": True}
    asked = {"a": 2, "b": 3, "c": {"a": 2}, "e": (1, 2), "f": 1, "g": "x"}
    assert manifest_differences(saved, asked, ("a",)) == [
        "b: 2 in the checkpoint, 3 now",
        "c.a: 1 in the checkpoint, 2 now",
        "d: 1 in the checkpoint, nothing now",
        "f: true in the checkpoint, 1 now",
        'g: nothing in the checkpoint, "x" now',
    ]

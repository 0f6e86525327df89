"""Checkpoints against real files, real kills, a real limit on file sizes and real processes."""

import asyncio
import collections
import functools
import inspect
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import clean_environment, run_python
from hypothesis import given
from hypothesis import strategies as st

from train import arrays
from train.checkpoint import Checkpoints
from train.marker import FORMAT, NAME, Marker, by_path, compare
from train.state import State
from zoo.errors import BadInput

Spec = jax.sharding.PartitionSpec
ROOT = Path(__file__).parents[1]
META = {"model": {"layers": 2, "rate": 0.1}, "tokenizer": "ab12", "names": ["a", "b"]}
TX = optax.adamw(1e-3)


def mesh_of(*shape: int) -> jax.sharding.Mesh:
    devices = jax.devices()[: math.prod(shape)]
    return jax.make_mesh(shape, ("a", "b")[: len(shape)], axis_types=(jax.sharding.AxisType.Auto,) * len(shape), devices=devices)


def make(step: int, mesh: jax.sharding.Mesh | None = None, width: int = 64) -> State:
    """A state as a run has it: sharded and replicated leaves, of several dtypes, different at every step."""
    mesh = mesh or mesh_of(8)
    rng = np.random.default_rng(step)

    def place(value: np.ndarray, spec: Spec = Spec()) -> jax.Array:  # noqa: B008
        return jax.make_array_from_callback(value.shape, jax.NamedSharding(mesh, spec), lambda index: value[index])

    params = {
        "embed": {"table": place(rng.standard_normal((16, width), np.float32), Spec("a"))},
        "blocks": {
            "scale": place(rng.standard_normal((3, 16)).astype(jnp.bfloat16)),
            "bias": place(rng.standard_normal(16, np.float32)),
        },
    }
    moments = optax.ScaleByAdamState(
        count=place(np.array(step, np.int32)), mu=jax.tree.map(lambda p: p * 2, params), nu=jax.tree.map(lambda p: p * p, params)
    )
    carry = {"memory": place(rng.integers(0, 255, (8, 4), np.uint8), Spec("a"))}
    key = place(rng.integers(0, 1 << 32, 2, np.uint32))
    return State(
        step=place(np.array(step, np.int32)), params=params, opt_state=(moments, optax.EmptyState()), carry=carry, key=key
    )


def abstract(state: State, change: Callable[[jax.Array], jax.sharding.Sharding | None] = lambda leaf: leaf.sharding) -> State:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=change(leaf)), state)


def bits(state: State) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


class Log(list[str]):
    """Takes the messages of a `Checkpoints`."""

    def __call__(self, message: str) -> None:
        assert "\n" not in message
        self.append(message)


def save_all(folder: Path, *steps: int, keep: int = 9) -> None:
    with Checkpoints(folder, keep, notify=pytest.fail) as checkpoints:
        for step in steps:
            checkpoints.save(make(step), META | {"step": step})
            assert checkpoints.wait()


def restored(checkpoints: Checkpoints, **options: Any) -> State:
    result = checkpoints.restore(abstract(make(0)), **options)
    assert result is not None
    state, meta = result
    assert meta == META | {"step": int(state.step)}
    assert bits(state) == bits(make(int(state.step)))
    return state


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


# Round trips.


@pytest.mark.parametrize(
    ("shape", "spec"),
    [((8,), None), ((2, 4), Spec("b", "a")), ((4,), Spec(None, "a")), ((1,), Spec()), ((2, 2), Spec(("a", "b"))), ((8,), Spec())],
)
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

    result = Checkpoints(folder, 1, notify=pytest.fail).restore(abstract(state, place))
    assert result is not None
    again, meta = result
    assert meta == META
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert bits(again) == bits(state)
    for leaf, wanted in zip(jax.tree.leaves(again), jax.tree.leaves(abstract(state, place)), strict=True):
        assert (leaf.dtype, leaf.sharding) == (wanted.dtype, wanted.sharding)


def test_nothing_saved_is_none(folder: Path) -> None:
    checkpoints = Checkpoints(folder, 1, notify=pytest.fail)
    assert checkpoints.latest() is None
    assert checkpoints.restore(abstract(make(0))) is None
    assert not folder.exists()


def test_keeps_the_newest_and_never_more_than_one_beyond(folder: Path) -> None:
    with Checkpoints(folder, 2, notify=pytest.fail) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(make(step), META)
            deadline = time.monotonic() + 30
            while checkpoints.latest() != step or len(os.listdir(folder)) > 2:
                checkpoints.poll()
                assert len(os.listdir(folder)) <= 3
                assert time.monotonic() < deadline
    assert sorted(os.listdir(folder)) == ["00000004", "00000005"]


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
            expected, number = bits(state), int(state.step)
            checkpoints.save(state, META)
            for _ in range(3):
                before = state.params["embed"]["table"].addressable_shards[0].data.unsafe_buffer_pointer()
                state = step(state)
                aliased += state.params["embed"]["table"].addressable_shards[0].data.unsafe_buffer_pointer() == before
            jax.block_until_ready(state)
            result = checkpoints.restore(abstract(state))
            assert result is not None
            assert int(result[0].step) == number
            assert bits(result[0]) == expected
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
    monkeypatch.setattr("train.checkpoint.shutil.rmtree", lambda path, **_: (path / "_METADATA").unlink())
    with Checkpoints(folder, 1, notify=pytest.fail) as checkpoints:
        checkpoints.save(make(2), META | {"step": 2})
    monkeypatch.undo()
    assert len(os.listdir(folder)) == 2
    with Checkpoints(folder, 1, notify=pytest.fail) as checkpoints:
        assert restored(checkpoints).step == 2
    assert os.listdir(folder) == ["00000002"]


# Damage.


def mutations(original: bytes, rng: np.random.Generator) -> Iterator[tuple[str, bytes | None]]:
    """Changed contents of a file, every one different from the original; None is deletion."""
    size = len(original)
    for bit in {0, 8 * size - 1, *rng.integers(0, 8 * size, 24).tolist()}:
        changed = bytearray(original)
        changed[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit}", bytes(changed)
    for length in {0, size // 2, size - 1}:
        yield f"cut to {length}", original[:length]
    yield "one more", original + b"\0"
    for tail in (16, 4096):
        if (zeroed := original[:-tail] + bytes(min(tail, size))) != original:
            yield f"tail of {tail} zeroed", zeroed
    yield "deleted", None


def test_every_changed_byte_is_noticed(damaged: tuple[Path, Path], rng: np.random.Generator) -> None:
    folder, newest = damaged
    counts: collections.Counter[str] = collections.Counter()
    wanted = abstract(make(0))
    for file in sorted(file for file in newest.rglob("*") if file.is_file()):
        path, original = file.relative_to(newest), file.read_bytes()
        for what, changed in mutations(original, rng):
            assert changed != original
            file.unlink()
            if changed is not None:
                file.write_bytes(changed)
            log = Log()
            with Checkpoints(folder, 9, notify=log) as checkpoints:
                result = checkpoints.restore(wanted)
            assert result is not None
            assert int(result[0].step) == 1, f"{path}: {what}"
            assert len(log) == 1
            assert "00000002 IS DAMAGED" in log[0]
            assert path.as_posix() in log[0]
            (folder / "00000002.corrupt-1").rename(newest)
            file.write_bytes(original)
            counts[path.parts[0]] += 1
    assert restored(Checkpoints(folder, 9, notify=pytest.fail)).step == 2
    assert counts.total() >= 300, counts
    print(f"{counts.total()} mutations: {dict(counts)}")


def half_copied(newest: Path) -> None:
    for file in sorted(newest.rglob("*"))[::2]:
        if file.is_file():
            file.unlink()


def cut_short(newest: Path) -> None:
    data = max(newest.rglob("d/*"), key=lambda file: file.stat().st_size)
    data.write_bytes(data.read_bytes()[:-1])


def emptied(newest: Path) -> None:
    shutil.rmtree(newest)
    newest.mkdir()


def with_the_marker_of_another_step(newest: Path) -> None:
    shutil.copy(newest.parent / "00000001" / NAME, newest / NAME)


def under_another_number(newest: Path) -> None:
    shutil.copytree(newest.parent / "00000001", newest, dirs_exist_ok=True)
    for file in newest.rglob("*"):
        if file.is_file() and not (newest.parent / "00000001" / file.relative_to(newest)).exists():
            file.unlink()


def with_a_file_more(newest: Path) -> None:
    (newest / "ocdbt.process_1").mkdir()
    (newest / "ocdbt.process_1" / "manifest.ocdbt").write_bytes(b"")


def with_a_marker_that_is_a_folder(newest: Path) -> None:
    (newest / NAME).unlink()
    (newest / NAME).mkdir()


def with_a_forged_meta(newest: Path) -> None:
    marker = json.loads((newest / NAME).read_text())
    marker["meta"]["model"]["layers"] = 3
    (newest / NAME).write_text(json.dumps(marker, sort_keys=True, indent=1) + "\n")


@pytest.mark.parametrize(
    "harm",
    [
        half_copied,
        cut_short,
        emptied,
        with_the_marker_of_another_step,
        under_another_number,
        with_a_file_more,
        with_a_marker_that_is_a_folder,
        with_a_forged_meta,
    ],
)
def test_a_step_that_is_not_what_was_saved_is_set_aside(damaged: tuple[Path, Path], harm: Callable[[Path], None]) -> None:
    folder, newest = damaged
    harm(newest)
    (folder / "00000002.corrupt-1").mkdir()

    # A reader passes it over and touches nothing.
    log = Log()
    reader = Checkpoints(folder, 9, notify=log)
    assert reader.latest() == 1
    assert restored(reader).step == 1
    assert "passed over" in log[0]
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


def test_junk_is_ignored_and_reported_once(damaged: tuple[Path, Path]) -> None:
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


def test_a_damaged_step_in_the_way_of_a_save_is_set_aside(damaged: tuple[Path, Path]) -> None:
    folder, newest = damaged
    (newest / NAME).unlink()
    log = Log()
    with Checkpoints(folder, 2, notify=log) as checkpoints:
        checkpoints.save(make(2), META | {"step": 2})
    assert "in the way" in log[0]
    assert restored(Checkpoints(folder, 2, notify=log)).step == 2


def test_nothing_intact_is_refused_however_often_it_is_asked(damaged: tuple[Path, Path]) -> None:
    folder, _ = damaged
    for step in ("00000001", "00000002"):
        file = next(file for file in (folder / step / "ocdbt.process_0" / "d").iterdir())
        file.write_bytes(bytes(file.stat().st_size))
    log = Log()
    for _ in range(2):
        with (
            Checkpoints(folder, 2, notify=log) as checkpoints,
            pytest.raises(BadInput, match=r"00000001\.corrupt-1.*delete the folder"),
        ):
            checkpoints.restore(abstract(make(0)))
    assert len(log) == 2


def test_a_chosen_step_is_read_or_refused(damaged: tuple[Path, Path]) -> None:
    folder, newest = damaged
    checkpoints = Checkpoints(folder, 2, notify=pytest.fail)
    assert restored(checkpoints, step=1).step == 1
    assert checkpoints.meta(2) == META | {"step": 2}
    with pytest.raises(BadInput, match="steps that can be read: 2, 1"):
        checkpoints.restore(abstract(make(0)), step=3)
    data = max(newest.rglob("d/*"), key=lambda file: file.stat().st_size)
    data.write_bytes(data.read_bytes()[::-1])
    with pytest.raises(BadInput, match="other content than was saved"):
        checkpoints.restore(abstract(make(0)), step=2)
    assert newest.exists()


def test_another_format_is_refused_and_not_called_damaged(damaged: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, newest = damaged
    monkeypatch.setattr("train.marker.FORMAT", FORMAT + 1)
    marker = Marker(step=2, meta={}, leaves={})
    marker.write(newest)
    monkeypatch.undo()
    with pytest.raises(BadInput, match=f"format {FORMAT + 1}"):
        Checkpoints(folder, 2, notify=pytest.fail).restore(abstract(make(0)))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"file.*choose another --out"), Checkpoints(tmp_path / "file", 1, notify=pytest.fail):
        pass


# Other states.


def without(state: State, name: str) -> State:
    return State(**{**vars(state), "params": {key: value for key, value in state.params.items() if key != name}})


def with_params(state: State, **more: Any) -> State:
    return State(**{**vars(state), "params": {**state.params, **more}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "embed"), r'params/embed/table: "float32\[16,64\]" in the checkpoint, nothing asked'),
        (lambda s: with_params(s, head=s.key), r'params/head: nothing in the checkpoint, "uint32\[2\]" asked'),
        (
            lambda s: with_params(s, embed={"table": s.params["embed"]["table"].astype(jnp.bfloat16)}),
            r'table: .*, "bfloat16\[16,64\]" asked',
        ),
        (lambda s: with_params(s, embed={"table": s.params["embed"]["table"][:8]}), r'table: .*, "float32\[8,64\]" asked'),
        (lambda s: with_params(s, embed={"table": s.params["embed"]["table"].T}), r'table: .*, "float32\[64,16\]" asked'),
        (lambda s: State(**{**vars(s), "carry": {}}), r"carry/memory: .*, nothing asked"),
        (lambda s: State(**{**vars(s), "opt_state": ()}), r"opt_state/0/count: .*opt_state/0/mu/embed/table: "),
    ],
)
def test_other_leaves_are_refused_by_name(two_steps: Path, change: Callable[[State], State], message: str) -> None:
    other = change(make(0))
    with pytest.raises(BadInput, match=message):
        Checkpoints(two_steps, 1, notify=pytest.fail).restore(abstract(other))


def test_a_leaf_without_a_sharding_and_two_leaves_of_one_path_are_our_mistake(two_steps: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="without a sharding: step"):
        Checkpoints(two_steps, 1, notify=pytest.fail).restore(abstract(make(0), lambda _: None))
    clash = with_params(make(1), **{"embed/table": make(1).key})
    with Checkpoints(folder, 1, notify=pytest.fail) as checkpoints, pytest.raises(ValueError, match="one path"):
        checkpoints.save(clash, META)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
DICT = st.dictionaries(st.text(max_size=3), JSON, max_size=4)


@given(DICT, DICT)
def test_compare_is_empty_only_for_the_same(saved: dict[str, Any], asked: dict[str, Any]) -> None:
    assert compare(saved, json.loads(json.dumps(saved))) == []
    same = json.dumps(saved, sort_keys=True) == json.dumps(asked, sort_keys=True)
    # An empty dict against none has no leaf to name.
    leaves = lambda tree: json.dumps(tree, sort_keys=True).replace("{}", "")  # noqa: E731
    assert (compare(saved, asked) == []) == same or leaves(saved) == leaves(asked)
    assert compare(saved, asked, saved.keys() | asked.keys()) == []


@pytest.mark.parametrize(
    ("saved", "asked", "ignored", "lines"),
    [
        ({"model": {"layers": 4}}, {"model": {"layers": 6}}, (), ["model.layers: 4 in the checkpoint, 6 asked"]),
        ({"a": 1, "b": 2}, {"a": 2, "b": 3}, ("a",), ["b: 2 in the checkpoint, 3 asked"]),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ("b",), ["a.b: 1 in the checkpoint, 2 asked"]),
        ({"a": 1}, {}, (), ["a: 1 in the checkpoint, nothing asked"]),
        ({}, {"a": "nothing"}, (), ['a: nothing in the checkpoint, "nothing" asked']),
        ({"a": {}}, {"a": 1}, (), ["a: {} in the checkpoint, 1 asked"]),
        ({"a": [1, 2]}, {"a": (1, 2)}, (), []),
        ({"a": True}, {"a": 1}, (), ["a: true in the checkpoint, 1 asked"]),
        (
            {"a": "x" * 200},
            {"a": "x" * 199 + "y"},
            (),
            ["a: " + '"' + "x" * 59 + "... (202 characters) in the checkpoint, " + '"' + "x" * 59 + "... (202 characters) asked"],
        ),
    ],
)
def test_compare_names_the_difference(saved: Any, asked: Any, ignored: Any, lines: list[str]) -> None:
    assert compare(saved, asked, ignored) == lines


# Faults, in processes of their own.


# What they need to make the same states: the content is a function of the step.
COMMON = """
import json, math, os, random, resource, signal, sys, time
from collections.abc import Callable
import jax, jax.numpy as jnp, numpy as np, optax
from train.checkpoint import Checkpoints
from train.state import State
from zoo.errors import BadInput
from zoo import runtime
Spec = jax.sharding.PartitionSpec
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def limit(bytes): resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, resource.RLIM_INFINITY))
""" + "\n".join(inspect.getsource(function) for function in (mesh_of, make, abstract, bits))


FULL_DISK = (
    COMMON
    + """
runtime.prepare(devices=8)
folder, report = sys.argv[1], []
told = []
with Checkpoints(folder, 2, notify=told.append) as checkpoints:
    checkpoints.save(make(1, width=32768), {})
    assert checkpoints.wait()
    # Below the size of one shard, which is written in one piece.
    for step, bytes in enumerate((200_000, 20_000, 3000, 300, 0), start=2):
        limit(bytes)
        checkpoints.save(make(step, width=32768), {})
        while checkpoints._pending is not None:
            checkpoints.poll()
            assert checkpoints.latest() == 1
        left = os.listdir(folder)
        limit(resource.RLIM_INFINITY)
        report.append([bytes, left, checkpoints.latest(), told[:]])
        told.clear()
        # Space is back: the next save works, and is taken back so that the next failure is again a first one.
        checkpoints.save(make(step, width=32768), {})
        assert checkpoints.wait() and checkpoints.latest() == step
        os.rename(f"{folder}/{step:08d}", f"{folder}/../{step}")
    limit(1000)
    checkpoints.save(make(10, width=32768), {})
    assert not checkpoints.wait()
    checkpoints.save(make(11, width=32768), {})
    try:
        while True:
            checkpoints.poll()
            time.sleep(0.01)
    except BadInput as error:
        report.append([str(error), os.listdir(folder)])
limit(resource.RLIM_INFINITY)
print(json.dumps(report))
"""
)


def test_a_full_disk_costs_a_checkpoint_and_two_end_the_run(folder: Path) -> None:
    ended = run_python("-c", FULL_DISK, str(folder), cwd=ROOT)
    assert ended.code == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    *failures, (error, left) = json.loads(ended.stdout)
    for _, remaining, latest, told in failures:
        assert remaining == ["00000001"]
        assert latest == 1
        assert len(told) == 1
        assert "FAILED and was removed" in told[0]
        assert "File too large" in told[0]
        assert "The run goes on; the newest is of step 1" in told[0]
    assert left == ["00000001"]
    for part in (str(folder), "two checkpoints in a row", "needs 6,", "free (", "make room"):
        assert part in error


# Forked after the imports and before JAX starts: a second per kill. Each child checks what the killed one left.
KILLS = (
    COMMON
    + """
runtime.prepare(devices=8)
folder, kills, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)

def train(say):
    with Checkpoints(folder, 1, notify=lambda message: say(f"told {message}")) as checkpoints:
        result = checkpoints.restore(abstract(make(0, width=2048)))
        step = 0
        if result is not None:
            step = int(result[0].step)
            assert bits(result[0]) == bits(make(step, width=2048)), f"step {step} came back changed"
        say(f"restored {step}")
        while True:
            step += 1
            checkpoints.save(make(step, width=2048), {"step": step})
            say(f"saving {step}")
            if step % 3 == 0:
                checkpoints.wait()
                say(f"committed {step}")

def spawn():
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            train(lambda line: os.write(write, line.encode() + b"\\n"))
        except BaseException as error:
            os.write(write, f"failed {type(error).__name__} {error}\\n".encode())
        os._exit(1)
    os.close(write)
    return pid, os.fdopen(read)

committed, leftovers, lost = 0, 0, []
for kill in range(kills + 1):
    pid, lines = spawn()
    saves = 1 + chance.randrange(4)
    dispatched = 0
    for line in lines:
        what, _, rest = line.strip().partition(" ")
        assert what not in ("failed", "told"), line
        if what == "restored":
            assert int(rest) >= committed, f"step {committed} was committed, {rest} came back"
        if what == "committed":
            committed = int(rest)
        if what == "saving":
            dispatched += 1
            if dispatched == saves:
                break
    time.sleep(chance.random() * 0.12)
    os.kill(pid, signal.SIGKILL)
    for line in lines:
        assert line.split()[0] not in ("failed", "told"), line
        if line.startswith("committed "):
            committed = int(line.split()[1])
    os.waitpid(pid, 0)
    assert dispatched == saves
    leftovers += any(name.endswith(".tmp") for name in os.listdir(folder))
print(json.dumps({"kills": kills + 1, "committed": committed, "leftovers": leftovers}))
"""
)


@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_leaves_a_valid_checkpoint(folder: Path, kills: int) -> None:
    ended = run_python("-W", "ignore", "-c", KILLS, str(folder), str(kills), "1", cwd=ROOT, timeout=900)
    assert ended.code == 0, ended.stderr
    counts = json.loads(ended.stdout)
    print(counts, f"{ended.seconds:.1f} s")
    assert counts["committed"] > kills // 2
    # Kills that never strike during a save would prove nothing.
    assert counts["leftovers"] > 0


PROCESSES = (
    COMMON
    + """
runtime.prepare(devices=2)
folder, number, port = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, number, coordinator_bind_address=f"127.0.0.1:{port}")
mesh = mesh_of(4)
told, report = [], {}
with Checkpoints(folder, 2, notify=told.append) as checkpoints:
    assert checkpoints.restore(abstract(make(0, mesh))) is None
    for step in (1, 2, 3):
        checkpoints.save(make(step, mesh), {"step": step})
        for _ in range(10):
            checkpoints.poll()
    assert checkpoints.wait()
    if number == 0:
        marker = f"{folder}/00000003/COMMIT.json"
        open(marker, "a").write(" ")
    state, meta = checkpoints.restore(abstract(make(0, mesh)))
    same = [np.asarray(a.addressable_shards[0].data).tobytes() == np.asarray(b.addressable_shards[0].data).tobytes()
            for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(make(2, mesh)))]
    report["restored"] = [meta, all(same), told[:]]
    told.clear()
    # The disk of one process is full.
    if number == 1:
        limit(100)
    checkpoints.save(make(4, mesh), {})
    report["failed"] = [checkpoints.wait(), told[:], checkpoints.latest(), sorted(os.listdir(folder))]
    checkpoints.save(make(5, mesh), {})
    try:
        checkpoints.wait()
    except BadInput as error:
        report["refused"] = str(error)
    limit(resource.RLIM_INFINITY)
    checkpoints._failed.clear()
    checkpoints.save(make(6, mesh), {"step": 6})
print(json.dumps(report))
jax.distributed.shutdown()
"""
)


def test_two_processes_agree_and_one_restores(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESSES, str(folder), str(number), str(port)],
            env=clean_environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        ended = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], ended
    first, second = (json.loads(stdout.splitlines()[-1]) for stdout, _ in ended)
    assert first["restored"][:2] == second["restored"][:2] == [{"step": 2}, True]
    assert "00000003 IS DAMAGED" in first["restored"][2][0]
    assert second["restored"][2] == []
    for report in (first, second):
        assert report["failed"][0] is False
        assert report["failed"][2:] == [2, ["00000002", "00000003.corrupt-1"]]
        assert "two checkpoints in a row failed" in report["refused"]
    assert "process 1 could not write its part" in first["failed"][1][0]
    assert "File too large" in second["failed"][1][0]

    with Checkpoints(folder, 2, notify=pytest.fail) as checkpoints:
        result = checkpoints.restore(abstract(make(0)))
    assert result is not None
    assert bits(result[0]) == bits(make(6))


def test_orbax_alone_does_not_notice(folder: Path) -> None:
    """Why there are digests. Should this fail, Orbax has learnt to check its data, and they could go."""
    state = make(1, width=4096)
    with Checkpoints(folder, 1, notify=pytest.fail) as checkpoints:
        checkpoints.save(state, META)
    data = max(folder.rglob("d/*"), key=lambda file: file.stat().st_size)
    middle = data.stat().st_size // 2
    with data.open("r+b") as file:
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 1]))
    read = arrays.read(folder / "00000001", by_path(abstract(state)))
    assert {path: np.asarray(leaf).tobytes() for path, leaf in read.items()} != {
        path: np.asarray(leaf).tobytes() for path, leaf in by_path(state).items()
    }

"""What comes from outside is data: files run no code, names lead nowhere else, and nobody is let in from a network."""

import ast
import contextlib
import functools
import ipaddress
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import jax
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import toy

import raylingvo
from raylingvo import config
from raylingvo.actors.logdir import Logdir, read_experiment, read_info
from raylingvo.actors.offline import read_checkpoints
from raylingvo.actors.spill import SpillFolder
from raylingvo.actors.variant import Variant
from raylingvo.data import token_store
from raylingvo.data.prepare import prepare
from raylingvo.data.records import open_records
from raylingvo.errors import RequestError
from raylingvo.experiment import Checkpoints, Experiment, Reading
from raylingvo.monitor.decode_compare import compare_outputs
from raylingvo.monitor.runs import load_run
from raylingvo.training import checkpoints, checksums
from raylingvo.training.checkpoints import CheckpointWriter
from raylingvo.training.state import init_state

EXPERIMENT = toy.experiment()
PACKAGE = Path(raylingvo.__file__).parent


class Bomb:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@pytest.fixture
def bomb(tmp_path):
    """A pickle. When the test has passed, nobody has loaded it."""
    made = tmp_path / "boom"
    yield pickle.dumps(Bomb(made))
    assert not made.exists()


@pytest.fixture
def object_array(tmp_path):
    """An array that NumPy can only save and load as a pickle, which is not loaded."""
    made = tmp_path / "boom"
    yield np.array([Bomb(made)], dtype=object)
    assert not made.exists()


_noting: list[list[str]] = []


@functools.cache  # Python has no way to remove one
def _install_hook():
    def note(event, arguments):
        if event == "pickle.find_class":
            for noted in _noting:
                noted.append(".".join(map(str, arguments)))

    sys.addaudithook(note)


@contextlib.contextmanager
def noted_pickles():
    """The names that pickles refer to while this is open, as Python itself reports them, whoever loads them."""
    _install_hook()
    _noting.append([])
    try:
        yield _noting[-1]
    finally:
        _noting.pop()


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    home = Logdir(tmp_path_factory.mktemp("evaluated"), EXPERIMENT)
    home.begin(["raylingvo"])
    home.close()
    state = jax.tree.map(np.asarray, init_state(EXPERIMENT, toy.batches(1)[0]))
    with contextlib.closing(CheckpointWriter(home.path, Checkpoints(), lambda line: None)) as writer:
        writer.save(4, state, {"input": {}}, on_saved=lambda: None)
    for kind in ("eval", "decode"):
        read_checkpoints(kind, home.path)
    return home.path


@pytest.fixture
def logdir(evaluated, tmp_path):
    """A run with a checkpoint that has been evaluated and decoded."""
    return shutil.copytree(evaluated, tmp_path / "run")


# --- no pickles ---


def test_the_bomb_would_go_off(tmp_path):
    """Else the tests below would prove nothing."""
    with noted_pickles() as noted:
        pickle.loads(pickle.dumps(Bomb(tmp_path / "a")))
        np.save(tmp_path / "b.npy", np.array([Bomb(tmp_path / "b")], object), allow_pickle=True)
        np.load(tmp_path / "b.npy", allow_pickle=True)
    assert (tmp_path / "a").exists()
    assert (tmp_path / "b").exists()
    assert noted.count("pathlib.Path.touch") + noted.count("builtins.getattr") >= 2


def test_a_whole_logdir_is_read_without_a_pickle(logdir):
    state = jax.eval_shape(lambda: init_state(EXPERIMENT, toy.batches(1)[0]))
    with noted_pickles() as noted:
        assert read_experiment(logdir) == EXPERIMENT
        assert read_info(logdir)
        checkpoints.restore(logdir, 4, state)
        checkpoints.restore_weights(logdir, 4, state.weights)
        assert load_run(logdir).series.keys() == {"eval_test", "decode_test"}
        assert compare_outputs([logdir]).examples
    assert noted == []


# The files' owner can make the sums right. Orbax's threads complain to stderr when they find no array.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("as_array", [False, True])
def test_a_pickle_in_the_place_of_a_file_of_a_checkpoint_is_not_loaded(logdir, tmp_path, bomb, object_array, as_array):
    state = jax.eval_shape(lambda: init_state(EXPERIMENT, toy.batches(1)[0]))
    folder = logdir / checkpoints.DIRECTORY / "4"
    np.save(tmp_path / "evil.npy", object_array, allow_pickle=True)
    evil = (tmp_path / "evil.npy").read_bytes() if as_array else bomb
    refused = 0
    with noted_pickles() as noted:
        for file in [path for path in folder.rglob("*") if path.is_file() and path.name != checksums.FILE]:
            good = file.read_bytes()
            file.write_bytes(evil)
            checksums.seal(folder)
            for read, what in ((checkpoints.restore, state), (checkpoints.restore_weights, state.weights)):
                try:
                    read(logdir, 4, what)
                except RequestError:
                    refused += 1
            file.write_bytes(good)
    assert refused
    assert noted == []


@pytest.mark.parametrize("name", ["decode_test/decoder_out-00000004.jsonl", "decode_test/signatures.json"])
def test_a_pickle_in_the_place_of_a_decode_file_is_refused(logdir, bomb, name):
    (logdir / name).write_bytes(bomb)
    with pytest.raises(RequestError, match=Path(name).name):
        compare_outputs([logdir])


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "eval_test/metrics.jsonl"])
def test_a_pickle_in_the_place_of_a_record_of_the_run_is_refused(logdir, bomb, name):
    # In the middle of the metrics: what is at their end and no line is taken for one that was cut short.
    (logdir / name).write_bytes(bomb + b"\n{}\n")
    for read in (lambda: read_checkpoints("eval", logdir), lambda: (load_run(logdir).config, load_run(logdir).series)):
        with pytest.raises(RequestError):
            read()


def test_a_pickle_among_spilled_snapshots_is_refused(tmp_path, object_array, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with contextlib.closing(SpillFolder("token")) as spill:
        folder = spill.write(3, 0.0, [([np.zeros(2)], None, {})])
        (file,) = folder.glob("*.npy")
        np.save(file, object_array, allow_pickle=True)
        with pytest.raises(ValueError, match="allow_pickle"):
            spill.read(folder)


def test_a_pickle_in_a_dataset_is_refused(tmp_path, object_array, monkeypatch):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path))
    np.savez(tmp_path / "evil.npz", x=object_array)
    with pytest.raises(RequestError, match=r"evil\.npz is not a readable \.npz of plain arrays"):
        open_records("evil.npz")


def test_a_pickle_in_the_cache_of_tokens_is_not_loaded(tmp_path, object_array):
    np.save(tmp_path / "length.npy", object_array, allow_pickle=True)
    (tmp_path / "facts.json").write_text('{"facts": {}, "problems": []}')
    with noted_pickles() as noted:
        assert token_store._load(tmp_path, []) is None  # it is made again
    assert noted == []


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_column_of_pickles_is_bytes(tmp_path, bomb, ending, monkeypatch):
    """Ray has types of columns that are unpickled. They are known where `ray.data` is imported: not here."""
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path))
    marks = {b"ARROW:extension:name": b"ray.data.arrow_pickled_object", b"ARROW:extension:metadata": bomb}
    schema = pa.schema([pa.field("x", pa.large_binary(), metadata=marks)])
    table = pa.table([pa.array([bomb], pa.large_binary())], schema=schema)
    file = tmp_path / f"evil.{ending}"
    if ending == "parquet":
        pq.write_table(table, file)
    else:
        with pa.ipc.new_file(file, schema) as writer:
            writer.write_table(table)
    with noted_pickles() as noted:
        (record,) = open_records(f"evil.{ending}").read(np.array([0]))
    assert record == {"x": bomb}
    assert noted == []


def test_a_sweep_forgets_the_types_that_are_unpickled():
    """Its driver and its trials import Ray Tune, which brings them."""
    script = (
        "import pyarrow as pa, sys\n"
        "from raylingvo.tune import sweep, trainable\n"
        "assert 'ray.data' in sys.modules\n"
        "try: pa.unregister_extension_type('ray.data.arrow_pickled_object')\n"
        "except KeyError: print('forgotten')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "forgotten\n"


def test_no_role_imports_the_types_that_are_unpickled():
    script = (
        "import sys\n"
        "from raylingvo.actors import decoder, evaler, run, trainer\n"
        "print([name for name in sys.modules if name.startswith('ray.data')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- YAML, and the classes that it names ---

APPLY = "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.PosixPath [{}]]"


@pytest.mark.parametrize("evil", [APPLY, "!!python/name:os.system", "!!python/module:antigravity", "!!binary aGVsbG8="])
def test_yaml_that_would_run_code_is_refused(logdir, tmp_path, evil):
    evil = evil.format(tmp_path / "boom")
    text = (logdir / "config.yaml").read_text()
    (logdir / "config.yaml").write_text(text.replace("name: toy.Regression", f"name: {evil}"))
    readers = [
        lambda: read_experiment(logdir),
        lambda: config.load((logdir / "config.yaml").read_text(), Experiment),
        lambda: config.override(EXPERIMENT, {"train.early_stop": f"{{metric: {evil}}}"}),
    ]
    if "python" in evil:
        readers.append(lambda: load_run(logdir).config)
    for read in readers:
        with pytest.raises(RequestError):
            read()
    assert not (tmp_path / "boom").exists()


MODULE = """
import dataclasses
from pathlib import Path

@dataclasses.dataclass(frozen=True, kw_only=True)
class NoTask:
    dropout: float = 0.0
    dtype: str = ""
    statistics: bool = True
    def __post_init__(self):
        Path({boom!r}).touch()

class NoDataclass:
    def __init__(self, **fields):
        Path({boom!r}).touch()

def function(**fields):
    Path({boom!r}).touch()
"""


@pytest.mark.parametrize("name", ["NoTask", "NoDataclass", "function", "Path.touch", "dataclasses.make_dataclass"])
def test_what_is_no_config_of_the_field_is_not_called(logdir, tmp_path, monkeypatch, name):
    (tmp_path / "outside.py").write_text(MODULE.format(boom=str(tmp_path / "boom")))
    monkeypatch.syspath_prepend(tmp_path)
    text = (logdir / "config.yaml").read_text()
    assert "class: toy.Regression" in text
    (logdir / "config.yaml").write_text(text.replace("class: toy.Regression", f"class: outside.{name}"))
    with pytest.raises(RequestError, match=r"task\.class: expected the name of a dataclass that is a raylingvo.*Task"):
        read_experiment(logdir)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    "name", ["antigravity.Task", "os.system", "subprocess.Popen", "pip.__main__.Task", "__main__.T"]
)
def test_modules_that_do_things_when_they_are_imported_are_not(logdir, name):
    text = (logdir / "config.yaml").read_text()
    (logdir / "config.yaml").write_text(text.replace("class: toy.Regression", f"class: {name}"))
    before = set(sys.modules)
    with pytest.raises(RequestError, match=r"task\.class: cannot import"):
        read_experiment(logdir)
    assert not {"antigravity", "pip", "pip.__main__"} & (set(sys.modules) - before)


# --- names ---


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc", "..", "", "a\0b", "a b"])
def test_a_dataset_has_no_name_that_leads_elsewhere(name):
    for field in ("eval", "decode"):
        with pytest.raises(ValueError, match=r"is not a name of letters, digits and _"):
            Experiment(
                name="toy.Regression",
                task=EXPERIMENT.task,
                datasets={**EXPERIMENT.datasets, name: EXPERIMENT.datasets["test"]},
                learner=EXPERIMENT.learner,
                train=EXPERIMENT.train,
                **{field: {name: Reading()}},
            )


@pytest.mark.parametrize("name", ["../x", "/etc", ".."])
def test_what_asks_for_a_dataset_by_name_leaves_the_logdir_and_all_else_alone(logdir, name):
    before = sorted(logdir.parent.rglob("*"))
    for ask in (
        lambda: read_checkpoints("eval", logdir, datasets=[name]),
        lambda: read_checkpoints("eval", logdir, checkpoint=name),
        lambda: compare_outputs([logdir], name),
        lambda: prepare(name),
        lambda: prepare(f"mnist/{name}"),
    ):
        with pytest.raises(RequestError, match=r"no |--dataset"):
            ask()
    assert sorted(logdir.parent.rglob("*")) == before


@pytest.mark.parametrize("value", ["../../../x", "/etc/passwd", "..", "a\0b", "x" * 300, "\n"])
def test_a_folder_of_other_settings_is_one_below_variants(tmp_path, value):
    for key in ("task.name", "task.../.."):
        folder = Variant(overrides={key: value}).folder(tmp_path)
        assert folder.resolve().parent == tmp_path.resolve() / "variants"
        assert folder.name not in ("", ".", "..")


# --- archives ---


@pytest.mark.parametrize(
    ("recipe", "suffix"),
    [("librispeech", ".tar.gz"), ("lm1b", ".tar.gz"), ("multi30k", ".tar.gz"), ("wmt14_ende", ".tgz")],
)
def test_a_member_of_an_archive_is_not_written_elsewhere(tmp_path, monkeypatch, recipe, suffix):
    root = tmp_path / "a" / "b" / "data"
    monkeypatch.setenv("RAYLINGVO_DATA", str(root))
    archive = tmp_path / "evil.tar.gz"
    content = tmp_path / "content"
    content.write_text("1-2-0001 EVIL\n")
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("../evil", "/tmp/raylingvo-evil", "LibriSpeech/../../dev-x/1/2/1-2.trans.txt"):
            info = tar.gettarinfo(content)
            info.name = name
            with content.open("rb") as opened:
                tar.addfile(info, opened)
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("LibriSpeech/dev-clean/1/2/1-2.trans.txt")
            link.type, link.linkname = kind, "../../../../../../etc/passwd"
            tar.addfile(link)
    before = sorted(path for path in tmp_path.rglob("*") if root not in path.parents)
    with pytest.raises(RequestError):
        prepare(recipe, archive)
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - set(before)
    assert written == set()
    assert not Path("/tmp/raylingvo-evil").exists()


# --- the package as a whole ---


def _calls():
    """(file, line, the function as it is written, the call) of every call in the package."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                yield f"{file.relative_to(PACKAGE)}:{node.lineno}", ast.unparse(node.func), node


def _keywords(call):
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


def test_no_module_imports_what_unpickles():
    forbidden = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "torch", "jsonpickle"}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            parts = {part for name in names for part in name.split(".")}
            assert not parts & forbidden, f"{file}:{node.lineno}"


def test_no_call_loads_pickles_runs_text_unpacks_archives_or_waits_for_connections():
    found = []
    for place, function, call in _calls():
        name, keywords = function.rpartition(".")[2], _keywords(call)
        if function in ("np.load", "np.save", "numpy.load") and keywords.get("allow_pickle") != "False":
            found.append(f"{place}: {function} without allow_pickle=False")
        if function in ("yaml.load", "yaml.load_all") and ast.unparse(call.args[1]) != "_Loader":
            found.append(f"{place}: {function}")
        if name in ("unsafe_load", "full_load", "extractall", "unpack_archive") or function in ("eval", "exec"):
            found.append(f"{place}: {function}")
        if function in ("os.system", "os.popen", "subprocess.getoutput") or keywords.get("shell", "False") != "False":
            found.append(f"{place}: {function}")
        if name in ("extract", "listen", "serve_forever", "start_server"):
            found.append(f"{place}: {function}")
    assert found == []


# --- the network ---


def _listening():
    """(command, address) of every socket on which a process of ours waits for connections."""
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            for socket in process.net_connections("inet"):
                if socket.status == psutil.CONN_LISTEN:
                    yield " ".join(process.cmdline()), socket.laddr.ip


def _is_loopback(address):
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


@pytest.mark.ray
def test_a_cluster_of_our_own_is_for_this_machine_and_for_who_has_its_token():
    import grpc
    import ray

    from raylingvo.actors.cluster import connected

    def worker():
        return os.getpid()

    with connected(None) as cluster:
        assert ray.get(ray.remote(worker).remote(), timeout=60) != os.getpid()  # which listens too
        listening = list(_listening())
        commands = " ".join(command for command, _ in listening)
        assert all(name in commands for name in ("gcs_server", "raylet", "dashboard", "ray::"))
        assert [(command[-40:], ip) for command, ip in listening if not _is_loopback(ip)] == []

        # The control plane, asked without a token, with a wrong one, and with that of this user.
        keys = "/ray.rpc.InternalKVGcsService/InternalKVKeys"
        token = (Path.home() / ".ray" / "auth_token").read_text().strip()
        with grpc.insecure_channel(ray.get_runtime_context().gcs_address) as channel:
            for metadata in ((), (("authorization", f"Bearer {'0' * len(token)}"),)):
                with pytest.raises(grpc.RpcError) as raised:
                    channel.unary_unary(keys)(b"", metadata=metadata, timeout=60)
                assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
            assert channel.unary_unary(keys)(b"", metadata=(("authorization", f"Bearer {token}"),), timeout=60)

        # And the dashboard, which can start jobs.
        jobs = f"http://{cluster.dashboard}/api/jobs/"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(jobs, timeout=60)
        request = urllib.request.Request(jobs, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=60) as response:
            assert response.status == 200
            assert json.load(response)

"""Two runs at once, full and read-only disks, photos of every bad kind, wrong set-ups: what is said, and what stays."""

import ctypes
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config_mask import config as defaults
from Data_loader import Data_loader_facenet_mask as loaders
from Data_loader.lfw_pairs import prepare_pairs
from Data_preprocessing import Image_processing, Kill_img, Make_csv_file_mask, create_pairs
from Data_preprocessing import align_photos as step
from Data_preprocessing.manifest import read_manifest
from Script_tools import run_lock
from Script_tools.files import DataError, remove_stale, temporary_name, write_whole
from Script_tools.processes import Process, numbering, this_machine, this_process
from Script_tools.run_lock import BusyError, locked
from tests.conftest import ROOT
from tests.Data_preprocessing.test_Image_processing import dead_pid, make_photos, no_dlib, options, run, tree  # noqa: F401

SIZE = 64


def dead_lock() -> str:
    """What a run of this machine that was killed has left in its lock."""
    return f"{dead_pid()} {platform.node()} {this_machine()}"


# --- whose a file is -------------------------------------------------------------------------------------------------


def test_a_process_is_over_only_if_that_is_sure():
    me = this_process()
    assert not me.has_ended() and me.start
    assert me._replace(start=str(int(me.start) + 1)).has_ended()  # the number belongs to another process now
    assert not me._replace(start="").has_ended()
    assert not Process(dead_pid(), "another-machine", "").has_ended()
    assert Process(dead_pid(), numbering(), "").has_ended()
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 20
    while not Process(zombie.pid, numbering(), "").has_ended():  # it has ended, nobody has asked for its code yet
        assert time.monotonic() < deadline
        time.sleep(0.05)
    zombie.wait()


def test_a_file_that_another_container_of_this_name_writes_stays(tmp_path):
    """Its process has a number that here nobody has, or someone who began at another time."""
    name = "print(__import__('Script_tools.files').files.temporary_name(__import__('pathlib').Path('index.csv')).name)"
    alone = [[], ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]]
    runs = [
        subprocess.run([*way, sys.executable, "-c", name], cwd=ROOT, capture_output=True, text=True) for way in alone
    ]
    if runs[1].returncode:
        pytest.skip(f"no process numbers of one's own to be had here: {runs[1].stderr.strip()}")
    mine, others = ((tmp_path / run.stdout.strip()) for run in runs)
    for path in (mine, others):
        path.touch()
    remove_stale(tmp_path, "index.csv")
    assert others.exists() and not mine.exists()


def test_temporary_files_of_dead_runs_only_are_removed(tmp_path):
    mine = temporary_name(tmp_path / "index.csv")
    pid = f"-{os.getpid()}-"
    dead = mine.with_name(mine.name.replace(pid, f"-{dead_pid()}-"))
    elsewhere = dead.with_name(dead.name.replace(dead.name.split("-")[0][-8:], "00000000"))
    other = dead.with_name(dead.name.replace("index", "other"))
    old = elsewhere.with_name(elsewhere.name.replace("00000000", "00000001"))
    for path in (mine, dead, elsewhere, other, old, tmp_path / ".index.csv.tmp"):
        path.touch()
    os.utime(old, (time.time() - 8 * 24 * 3600,) * 2)
    write_whole(tmp_path / "index.csv", "x")
    assert (
        not dead.exists()
        and not old.exists()
        and all(path.exists() for path in (mine, elsewhere, other, tmp_path / ".index.csv.tmp"))
    )
    remove_stale(tmp_path, "oth")
    assert not other.exists()


# --- two runs at once ------------------------------------------------------------------------------------------------


def test_a_second_kill_img_is_refused(tmp_path):
    data = make_photos(tmp_path / "set")
    lock = tmp_path / "set_killed.lock"
    arguments = ["--data_path", str(data), "--min_size", "35"]
    with locked(lock):
        before = tree(tmp_path)
        with pytest.raises(BusyError, match=f"Another run .process {os.getpid()} .*Wait for it, or stop it"):
            Kill_img.main(arguments)
        assert tree(tmp_path) == before
        assert Kill_img.main([*arguments, "--dry_run"])["killed"] == 13  # looks only
    lock.write_text(dead_lock())
    assert Kill_img.main(arguments)["killed"] == 13 and not lock.exists()
    with locked(lock), pytest.raises(BusyError):
        Kill_img.main([*arguments, "--restore"])
    assert Kill_img.main([*arguments, "--restore"])["restored"] == 14 and not lock.exists()


def test_two_real_runs_at_once(tmp_path):
    """One of two scripts started together does the work, the other ends with a sentence, and no lock stays."""
    data = tmp_path / "set"
    for person in range(30):
        for photo in range(20):
            (data / str(person)).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (person, photo, 9)).save(data / str(person) / f"{photo}.jpg")
    Image.new("RGB", (300, 300)).save(data / "0" / "large.jpg")  # stays, for a run that begins when the other has ended
    (tmp_path / "set_killed.lock").write_text(dead_lock())  # both have to take it over
    command = [sys.executable, str(ROOT / "Data_preprocessing" / "Kill_img.py"), "--data_path", str(data)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outcomes = sorted((process.wait(60), process.communicate()) for process in runs)
    assert outcomes[0][0] == 0 and "killed" in outcomes[0][1][0]
    assert outcomes[1][0] in (0, 2) and (outcomes[1][0] == 0 or "Another run" in outcomes[1][1][1])
    assert len(list((tmp_path / "set_killed").rglob("*.jpg"))) == 600
    assert sorted(os.listdir(tmp_path)) == ["set", "set_killed", "set_killed.csv"]


def test_only_one_of_many_gets_a_lock(tmp_path):
    """Threads that find the same dead run's lock: never two of them hold it at once."""
    lock, inside, most, refused = tmp_path / "x.lock", [], [], []
    lock.write_text(dead_lock())
    barrier = threading.Barrier(8)

    def work():
        barrier.wait()
        for _ in range(20):
            try:
                with locked(lock):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.0005)
                    inside.pop()
            except BusyError:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and len(most) + len(refused) == 160 and os.listdir(tmp_path) == []


HOLD = """
import os, sys, time
from pathlib import Path
from Script_tools.run_lock import locked
with locked(Path(sys.argv[1])):
    child = os.fork() if sys.argv[2] == "fork" else 1
    if sys.argv[2] == "alone" or not child:  # a forked process has let go of the lock once it runs
        print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_a_killed_run_holds_nothing_at_once(tmp_path, how):
    """Nor do the processes that it has forked, which may live on for seconds."""
    lock = tmp_path / "x.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock), how],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=f"process {holder.pid} on"), locked(lock):
            pass
        holder.kill()
        holder.wait()
        started = time.monotonic()
        with locked(lock):
            assert time.monotonic() - started < 1
    finally:
        with suppress(ProcessLookupError):
            os.killpg(holder.pid, signal.SIGKILL)
        holder.stdout.close()
    assert not lock.exists()


@contextmanager
def touched(lock):
    """While the block runs, someone touches the lock."""
    ended = threading.Event()
    thread = threading.Thread(target=lambda: [os.utime(lock) for _ in iter(lambda: ended.wait(0.1), True)])
    thread.start()
    yield
    ended.set()
    thread.join()


def test_another_machines_lock_is_held_as_long_as_it_is_touched(tmp_path, monkeypatch):
    """A container of the same name on another machine too. Once nobody touches it, a job that was put into the queue
    again goes on by itself."""
    monkeypatch.setattr(run_lock, "WAIT", 0.05)
    monkeypatch.setattr(run_lock, "LEASE", 0.6)
    lock, name = tmp_path / "x.lock", f"1 {platform.node()} 5c0e7a1f-another-kernel"
    for holder in (name, f"{os.getpid()} {platform.node()} 4711"):
        lock.write_text(holder)
        with touched(lock):
            with pytest.raises(BusyError, match=f"process {holder.split()[0]} on {platform.node()}"), locked(lock):
                pass
            with pytest.raises(BusyError):
                run_lock.refuse_if_held(lock)
        started = time.monotonic()
        with locked(lock):
            assert time.monotonic() - started > 0.5 and lock.read_text().split()[0] == str(os.getpid())
        assert not lock.exists()
    lock.write_text(name)
    run_lock.refuse_if_held(lock)
    assert not lock.exists()


def test_what_was_taken_over_is_not_removed(tmp_path):
    """The run that stood still leaves its block before it has seen that another has the lock."""
    lock = tmp_path / "x.lock"
    with locked(lock):
        lock.write_text("7 other-machine 4711")
    assert lock.read_text() == "7 other-machine 4711"


def test_a_run_that_ends_while_it_is_looked_at_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "WAIT", 0.05)
    lock = tmp_path / "x.lock"
    lock.write_text("7 other-machine 4711")
    threading.Timer(0.2, lock.unlink).start()
    with locked(lock):
        assert lock.read_text().split()[0] == str(os.getpid())


def test_a_lock_of_another_user_can_be_read_only(tmp_path, monkeypatch):
    """Of a run that has ended it is replaced, of one that goes on it holds."""
    lock, real = tmp_path / "x.lock", open

    def no_writing(path, mode="r", **how):
        if mode == "r+":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, mode, **how)

    with locked(lock):
        monkeypatch.setattr(run_lock, "open", no_writing, raising=False)
        for attempt in (lambda: locked(lock).__enter__(), lambda: run_lock.refuse_if_held(lock)):
            with pytest.raises(BusyError, match="Another run"):
                attempt()
    lock.write_text(dead_lock())
    with locked(lock):
        assert lock.read_text().split()[0] == str(os.getpid())
    lock.write_text(dead_lock())
    run_lock.refuse_if_held(lock)
    assert not lock.exists()


def test_without_flock_the_lease_decides(tmp_path, monkeypatch):
    """As on Windows and on some network disks."""
    monkeypatch.setattr(run_lock, "fcntl", None)
    monkeypatch.setattr(run_lock, "WAIT", 0.05)
    monkeypatch.setattr(run_lock, "LEASE", 0.6)
    monkeypatch.setattr(run_lock, "BEAT", 0.1)
    lock = tmp_path / "x.lock"
    with locked(lock), pytest.raises(BusyError), locked(lock):
        pass
    assert not lock.exists()
    lock.write_text(dead_lock())
    with locked(lock):
        pass
    assert not lock.exists()


def test_a_run_whose_lock_was_taken_over_ends(tmp_path):
    """It stood still for longer than the lease: the other one writes now."""
    lock = tmp_path / "x.lock"
    fast = HOLD.replace("with locked", "from Script_tools import run_lock\nrun_lock.BEAT = 0.1\nwith locked")
    holder = subprocess.Popen(
        [sys.executable, "-c", fast, str(lock), "alone"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert holder.stdout.readline() == "held\n"
    lock.write_text("7 other-machine 4711")
    assert holder.wait(20) == 1 and "7 other-machine 4711 has taken over" in holder.communicate()[1]
    assert lock.read_text() == "7 other-machine 4711"


def face_cache(tmp_path):
    for person in ("Ann", "Bob"):
        for number in (1, 2):
            path = tmp_path / "lfw" / person / f"{person}_{number:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (90 + number, 80, 70)).save(path)
    (tmp_path / "pairs.txt").write_text("1\t1\nAnn\t1\t2\nAnn\t1\tBob\t1\n")
    return lambda: prepare_pairs(tmp_path / "pairs.txt", tmp_path / "lfw", tmp_path / "cache", SIZE, 0, "none", 1)


def test_the_face_cache_waits_for_another_run(tmp_path, no_dlib, monkeypatch, capsys):  # noqa: F811
    prepare = face_cache(tmp_path)
    lock = tmp_path / "cache" / f"lfw-{SIZE}px-seed0" / "test_manifest.lock"
    monkeypatch.setattr(run_lock, "WAIT", 0.05)
    monkeypatch.setattr(run_lock, "PATIENCE", 0.2)
    with locked(lock):
        with pytest.raises(BusyError, match="Wait for it, or stop it"):
            prepare()
        assert capsys.readouterr().out.count("waiting for test faces") == 1
    monkeypatch.setattr(run_lock, "PATIENCE", 20)
    with ExitStack() as held:
        held.enter_context(locked(lock))
        threading.Timer(0.2, held.pop_all().close).start()
    assert len(prepare().index) == 2
    assert "waiting for test faces" in capsys.readouterr().out


# --- full and read-only disks ----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can only be mounted by root; test_a_file_size_limit holds the same elsewhere")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk, leave):
    """Fill the disk but for about ``leave`` bytes; returns the file to remove."""
    (disk / "filler").write_bytes(b"\1" * max(0, shutil.disk_usage(disk).free - leave))
    return disk / "filler"


def test_image_processing_on_a_full_disk(small_disk, tmp_path, no_dlib, monkeypatch, capsys):  # noqa: F811
    data = make_photos(tmp_path / "set")
    run(data, tmp_path / "whole")
    filler = fill(small_disk, 90_000)
    with pytest.raises(DataError, match=r"Not enough space: about 0\.2 MB are needed in .*disk, 0\.1 MB are free"):
        run(data, small_disk)  # before it has written anything
    assert os.listdir(small_disk) == ["filler"]
    monkeypatch.setattr(step, "CHUNK", 2)
    filler.unlink()
    filler = fill(small_disk, 130_000)
    with pytest.raises(DataError) as caught:
        run(data, small_disk)
    assert "space may run out" in capsys.readouterr().out
    for words in ("No space left on device", str(small_disk), "MB are free there", "MB are needed", "start again"):
        assert words in str(caught.value)
    done, wanted = tree(small_disk), tree(tmp_path / "whole")
    images = [path for path in done if path.endswith(".jpg")]
    assert images and all(done[path] == wanted[path] for path in images) and not [p for p in done if "tmp" in p]
    filler.unlink()
    no_dlib.clear()
    assert run(data, small_disk) == (12, 1, 1)
    assert tree(small_disk) == wanted and 0 < len(no_dlib) < 13  # what was done was kept


def test_the_space_needed_is_told_before_anything_is_done(tmp_path, no_dlib, capsys):  # noqa: F811
    data = make_photos(tmp_path / "set")
    for told in (True, False):  # the second time nothing is to be done
        run(data, tmp_path / "out")
        assert ("space: about 0.2 MB are needed in" in capsys.readouterr().out) == told


def test_kill_img_on_a_full_disk(small_disk, tmp_path):
    data = make_photos(small_disk / "set", people=4, photos=8)
    for folder in (small_disk / "set", tmp_path / "whole"):
        if not folder.exists():
            shutil.copytree(data, folder / "set")
    arguments = ["--min_size", "35", "--data_path"]
    Kill_img.main([*arguments, str(tmp_path / "whole" / "set")])
    before = tree(small_disk)
    filler = fill(small_disk, 0)
    with pytest.raises(DataError, match=r"No space left on device: .*set_killed.* MB are free there.*start again"):
        Kill_img.main([*arguments, str(data)])
    filler.unlink()
    assert tree(small_disk) == before
    Kill_img.main([*arguments, str(data)])
    assert tree(small_disk) == tree(tmp_path / "whole")


def test_single_files_on_a_full_disk(small_disk, tmp_path):
    faces = tmp_path / "faces"
    for person in range(40):
        (faces / f"n{person}").mkdir(parents=True)
        for number in range(1, 6):
            (faces / f"n{person}" / f"n{person}_{number:04d}.jpg").touch()
    scripts = {
        "index.csv": lambda path: Make_csv_file_mask.main(["--data_path", str(faces), "--csv_path", str(path)]),
        "pairs.txt": lambda path: create_pairs.main(
            ["--data_path", str(faces), "--pairs_path", str(path), "--folds", "2", "--pairs", "150", "--overwrite"]
        ),
    }
    for name, script in scripts.items():
        path = small_disk / name
        path.write_text("id,name,class\n")
        filler = fill(small_disk, 0)
        with pytest.raises(DataError, match=rf"No space left .*{name}.*MB are free there, 0\.1 MB are needed"):
            script(path)
        assert path.read_text() == "id,name,class\n" and sorted(os.listdir(small_disk)) == sorted({name, "filler"})
        filler.unlink()
        script(path)
        assert len(path.read_text().splitlines()) > 200
        path.unlink()


def test_a_file_size_limit(tmp_path):
    """What a full disk does, where no disk can be mounted: a file that may not grow."""
    write_whole(tmp_path / "index.csv", "old")
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1])\n"
        "from Script_tools.script import run_script\n"
        "from Script_tools.files import file_errors, write_whole\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "def main():\n"
        "    with file_errors(sys.argv[2]): write_whole(sys.argv[2], b'x' * 600_000)\n"
        "run_script(main)"
    )
    command = [sys.executable, "-c", code, str(ROOT), str(tmp_path / "index.csv")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "File too large" in done.stderr and "0.6 MB are needed" in done.stderr
    assert os.listdir(tmp_path) == ["index.csv"] and (tmp_path / "index.csv").read_text() == "old"


def drop_root_rights():
    """In the child: root may read and write everything, whatever the rights say; take that from it."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP: gone after the next exec


def script_without_root(name, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / name), *map(str, arguments)],
        capture_output=True, text=True, preexec_fn=drop_root_rights if os.geteuid() == 0 else None,
    )  # fmt: skip


@pytest.fixture
def rights_count(tmp_path):
    """Skips where a file without rights can be read all the same."""
    (tmp_path / "probe").touch(0o000)
    code = "import sys; open(sys.argv[1])"
    probe = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "probe")],
        capture_output=True, preexec_fn=drop_root_rights if os.geteuid() == 0 else None,
    )  # fmt: skip
    (tmp_path / "probe").unlink()
    if probe.returncode == 0:
        pytest.skip("rights cannot be taken away here")


def test_folders_that_may_not_be_written(tmp_path, rights_count):
    data = make_photos(tmp_path / "ro" / "set")
    (tmp_path / "ro").chmod(0o555)
    before = tree(tmp_path / "ro")
    common = ("--data_path", data)
    for name, more in (
        ("Kill_img.py", ()),
        ("Image_processing.py", ("--image_size", "64", "--workers", "1")),
        ("Make_csv_file_mask.py", ()),
        ("create_pairs.py", ()),
    ):
        if name == "create_pairs.py":
            for path in (data / "p0", data / "p1", data / "p2"):
                shutil.rmtree(path)
            for person in ("p0", "p1", "p2"):
                for number in range(1, 5):
                    (data / person).mkdir(exist_ok=True)
                    (data / person / f"{person}_{number:04d}.jpg").touch()
            more, before = ("--folds", "1", "--pairs", "2"), tree(tmp_path / "ro")
        done = script_without_root(f"Data_preprocessing/{name}", *common, *more)
        assert done.returncode == 2 and "Traceback" not in done.stderr, (name, done.stderr)
        assert "Permission denied" in done.stderr and f"{tmp_path}/ro" in done.stderr, (name, done.stderr)
        assert tree(tmp_path / "ro") == before
    (tmp_path / "ro").chmod(0o755)
    assert script_without_root("Data_preprocessing/create_pairs.py", *common, *more).returncode == 0


# --- bad photos ------------------------------------------------------------------------------------------------------


def bad_photos(folder: Path) -> dict[str, str]:
    """Make photos of every bad or strange kind; returns 'person/file' -> status, or the start of the reason."""
    person = folder / "ann"
    person.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(60, 256, (300, 260, 3), np.uint8)
    good = Image.fromarray(noise)
    good.save(person / "good.jpg")
    whole = (person / "good.jpg").read_bytes()
    (person / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (person / "header.jpg").write_bytes(whole[:200])
    (person / "zero.jpg").touch()
    (person / "text.jpg").write_text("this is no photo")
    Image.new("RGB", (1, 1), "white").save(person / "one.png")
    Image.new("RGB", (20_000, 1), "white").save(person / "line.jpg")
    Image.new("L", (1, 20_000), 200).save(person / "column.png")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(person / "grey16.png")
    good.convert("CMYK").save(person / "cmyk.jpg")
    good.save(person / "moving.png", "GIF", save_all=True, append_images=[good.rotate(90)])
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        good.save(person / f"turn{turn}.jpg", exif=exif)
    for name in ("two words.jpg", "zoë 顔.jpg", "new\nline.jpg"):
        shutil.copyfile(person / "good.jpg", person / name)
    (person / "link.jpg").symlink_to("nowhere")
    shutil.copyfile(person / "good.jpg", person / "secret.jpg")
    (person / "secret.jpg").chmod(0)
    bomb = Image.new("1", (20_000, 20_000))
    bomb.save(person / "bomb.png")
    (person / "folder.jpg").mkdir()
    values = noise[..., 0].astype(np.float32)
    values[100, 100] = np.nan
    Image.fromarray(values).save(person / "nan.jpg", "TIFF")
    reasons = {
        "cut": "OSError", "header": "OSError", "zero": "UnidentifiedImageError", "text": "UnidentifiedImageError",
        "link": "No such file", "secret": "Permission denied", "bomb": "more than the 89 million pixels",
        "nan": "ValueError: it holds values that are no numbers", "folder": "Is a directory",
    }  # fmt: skip
    return {f"ann/{entry.name}": reasons.get(entry.name.split(".")[0], "") for entry in os.scandir(person)}


def test_bad_photos_stop_nothing_and_are_all_listed(tmp_path, rights_count):
    """dlib itself looks at what can be decoded; noise shows it no face."""
    expected = bad_photos(tmp_path / "set")
    arguments = ("--data_path", tmp_path / "set", "--image_size", "64", "--workers", "1", "--out_dir", tmp_path / "out")
    texts = []
    for _ in range(2):
        done = script_without_root("Data_preprocessing/Image_processing.py", *arguments)
        assert done.returncode == 0, done.stderr[-2000:]
        texts.append((tmp_path / "out" / "set_manifest.csv").read_bytes())
    assert texts[0] == texts[1]
    rows = read_manifest(tmp_path / "out" / "set_manifest.csv")
    assert set(rows) == set(expected)
    for source, row in rows.items():
        assert row.status == ("unreadable" if expected[source] else "no_face"), (source, row.reason)
        assert row.reason.startswith(expected[source]) and "\n" not in row.reason and "0x" not in row.reason
    done = script_without_root("Data_preprocessing/Kill_img.py", "--data_path", tmp_path / "set", "--dry_run")
    num_files = len(expected) - 1  # folder.jpg is no photo
    assert done.returncode == 0 and f"all {num_files}" in done.stdout
    lists = []
    for _ in range(2):  # and again with everything back in its place
        for more in ((), ("--restore",)):
            done = script_without_root("Data_preprocessing/Kill_img.py", "--data_path", tmp_path / "set", *more)
            assert done.returncode == 0, done.stderr[-2000:]
            lists.append((tmp_path / "set_killed.csv").read_text(encoding="utf-8"))
    assert lists[:2] == lists[2:]
    assert not (tmp_path / "set_killed").exists()
    for name in ("zero.jpg", "text.jpg"):
        assert f"ann/{name},,,unreadable,moved" in lists[0]
    for name in ("link.jpg", "secret.jpg"):  # another time they may be read
        assert f"ann/{name},,,no access,failed" in lists[0]
    assert "ann/line.jpg,20000,1,small,moved" in lists[0]
    index = tmp_path / "index.csv"
    arguments = ("--data_path", tmp_path / "set", "--csv_path", index)
    done = script_without_root("Data_preprocessing/Make_csv_file_mask.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert index.read_text().count(",ann,") == sum(source.endswith(".jpg") for source in expected) - 1


# --- wrong set-ups ---------------------------------------------------------------------------------------------------


def training(tmp_path, counts=(2, 2), **settings):
    """A config of prepared faces of ``counts`` photos a person, indexed."""
    image = Image.new("RGB", (SIZE, SIZE), "grey")
    rows = ["id,name,class"]
    for person, count in enumerate(counts):
        for folder in ("faces", "targets"):
            (tmp_path / folder / f"p{person}").mkdir(parents=True)
            for number in range(count):
                image.save(tmp_path / folder / f"p{person}" / f"{number}.jpg")
        rows += [f"{number},p{person},{person}" for number in range(count)]
    (tmp_path / "faces.csv").write_text("\n".join(rows) + "\n")
    paths = {"train_data_path": "faces", "mask_data_path": "targets", "train_data_index": "faces.csv"}
    paths = {key: str(tmp_path / name) for key, name in paths.items()}
    return {**defaults, **paths, "image_size": SIZE, "num_train_triplets": 8, "num_workers": 0, **settings}


def test_no_photos(tmp_path):
    (tmp_path / "set" / "ann").mkdir(parents=True)
    data = str(tmp_path / "set")
    with pytest.raises(DataError, match=r"There are no photos \(jpg, png, .*\) in the 1 folder of .*set"):
        Image_processing.main(["--data_path", data])
    with pytest.raises(DataError, match=r"There are no photos \(jpg, png, .*\) in the 1 folder of .*set"):
        Make_csv_file_mask.main(["--data_path", data])
    with pytest.raises(DataError, match=r"There are no photos \(jpg, png, .*\) in the 1 folder of .*set"):
        Kill_img.main(["--data_path", data, "--dry_run"])
    (tmp_path / "set" / "ann" / "1.png").touch()
    with pytest.raises(DataError, match=r"set has no \.jpg file in any sub-folder"):
        Make_csv_file_mask.main(["--data_path", data])


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ((5,), "1 person to train on; a triplet needs two people"),
        ((1, 1, 1), "nobody has two photos; anchor and positive are two photos of one person"),
    ],
    ids=["one person", "nobody with two photos"],
)
def test_people_that_make_no_triplet(tmp_path, counts, sentence):
    with pytest.raises(DataError, match=sentence):
        loaders.V9_train_dataloader(training(tmp_path, counts))


def test_an_index_that_names_missing_faces(tmp_path):
    config = training(tmp_path, (6, 6))
    for number in range(6):
        (tmp_path / "faces" / "p0" / f"{number}.jpg").unlink()
    with pytest.raises(DataError, match=r"6 of the 12 faces .* missing in .*faces: p0/0\.jpg, .*p0/4\.jpg, \.\.\."):
        loaders.V9_train_dataloader(config)


def test_attention_targets_that_are_missing_or_do_not_match(tmp_path):
    config = training(tmp_path, (3, 3))
    (tmp_path / "targets" / "p1" / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of the 6 faces of the index are missing in .*targets: p1/2\.jpg"):
        loaders.V9_train_dataloader(config)
    shutil.rmtree(tmp_path / "targets")
    with pytest.raises(DataError, match=r"There is no folder .*targets.*Image_processing\.py"):
        loaders.V9_train_dataloader(config)


@pytest.mark.parametrize(
    ("layout", "hint"),
    [
        ("lfw/Ann/Ann_0001.jpg", r"there are folders in lfw: perhaps .*photos/lfw is meant"),
        ("Cyd/0001.jpg", r"there are photos such as Cyd/0001\.jpg"),
        ("Ann_0001.jpg", r"It must hold one folder a person with photos called <name>/<name>_0001\.jpg"),
    ],
)
def test_lfw_of_another_layout(tmp_path, layout, hint):
    (tmp_path / "photos" / layout).parent.mkdir(parents=True)
    (tmp_path / "photos" / layout).touch()
    (tmp_path / "pairs.txt").write_text("1\t1\nAnn\t1\t2\nAnn\t1\tBob\t1\n")
    with pytest.raises(DataError, match=f"Not one photo of .*{hint}"):
        prepare_pairs(tmp_path / "pairs.txt", tmp_path / "photos", tmp_path / "cache", SIZE, 0, "none")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1\t1\r\nAnn\t1\t2\r\nAnn\t1\tBob\t1\r\n", None),  # CRLF
        ("Ann\t1\t2\nAnn\t1\tBob\t1\n", None),  # no header
        ("1\t2\nAnn\t1\t2\nAnn\t1\tBob\t1\n", r"announces 1 x 2 x 2 = 4 pairs, but 2 follow; correct or delete"),
        ("1\t1\nAnn\t1\t2\nAnn\t2\t1\n", r"fold 1 has 2 same and 0 different pairs"),
        ("1\t1\nAnn\t1\t2\n../Ann\t1\tBob\t1\n", r"line 3: '\.\./Ann' is not the name of a person's folder"),
        ("1\t1\nAnn\t1\t2\n/etc\t1\tBob\t1\n", r"line 3: '/etc' is not the name of a person's folder"),
        ("1\t1\nAnn\t1\t2\n..\t1\tBob\t1\n", r"line 3: '\.\.' is not the name of a person's folder"),
    ],
)
def test_pairs_files(tmp_path, no_dlib, text, sentence):  # noqa: F811
    prepare = face_cache(tmp_path)
    (tmp_path / "pairs.txt").write_bytes(text.encode())
    if sentence is None:
        assert prepare().is_same.tolist() == [True, False]
    else:
        with pytest.raises(DataError, match=sentence):
            prepare()
        assert not (tmp_path / "cache").exists()

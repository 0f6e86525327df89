"""Install this checkout into .venv once, then run commands in it. Needs Python 3.11 or newer and nothing else.

python3 run.py train [...]    run `zoo train ...`; any other `zoo` command likewise
python3 run.py test           run the fast tests; arguments go to pytest
python3 run.py test --full    run all tests that need nothing special
python3 run.py --extra NAME ...    install for cuda12, cuda13, tpu or none, instead of the accelerator detected here, or add the
                                   optional packages data, eval, gcs, mlflow, ray, s3, sweep, tokamax, track or
                                   trackio
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent
ENV = ROOT / ".venv"
STAMP = ENV / "zoo-stamp.json"
PINNED = ROOT / "constraints-hashes.txt"
ACCELERATORS = ("cuda12", "cuda13", "tpu", "none")
OPTIONAL = ("data", "eval", "gcs", "mlflow", "ray", "s3", "sweep", "tokamax", "track", "trackio")


def main():
    if sys.version_info < (3, 11):  # noqa: UP036 - older versions get this message
        sys.exit(f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}")
    args = sys.argv[1:]
    done = json.loads(STAMP.read_text()) if STAMP.exists() else {}
    chosen, added = done.get("extra", ""), set(done.get("added", []))
    while "--extra" in args:
        index = args.index("--extra")
        name = "".join(args[index + 1 : index + 2])
        del args[index : index + 2]
        if name not in ACCELERATORS + OPTIONAL:
            sys.exit(f"--extra {name}: choose {', '.join(ACCELERATORS + OPTIONAL)}")
        if name in ACCELERATORS:
            chosen = name
        else:
            added.add(name)
    extra = chosen or accelerator()
    pinned = [(ROOT / "pyproject.toml").read_bytes(), PINNED.read_bytes()]
    key = hashlib.sha256(b"\0".join([*pinned, sys.version.encode(), extra.encode(), str(ROOT).encode()])).hexdigest()
    fresh = done.get("key") != key
    groups = ([] if fresh else done["groups"]) + ["test"] * (args[:1] == ["test"])
    if fresh or len(set(groups)) > len(done["groups"]) or added > set(done.get("added", [])):
        try:
            install([extra] * (extra != "none") + sorted(added), sorted(set(groups)), fresh)
        except subprocess.CalledProcessError as error:
            sys.exit(f"setting up .venv failed ({error}); fix the error shown above, and run the same command again")
        ready = STAMP.with_suffix(".new")
        ready.write_text(json.dumps({"key": key, "extra": chosen, "added": sorted(added), "groups": sorted(set(groups))}))
        ready.replace(STAMP)
    if args[:1] == ["test"]:
        os.chdir(ROOT)
        # A whole tier is divided among processes, a file at a time. Selected tests run in one process, which starts sooner. The
        # order of collection stays: tests/support/tiers.py puts the longest files first. A process that crashes ends the run: in
        # place of it pytest-xdist would start another, and wait for that one forever.
        whole_tier = args[1:] in ([], ["--full"])
        parallel = [
            "-n",
            str(min(os.cpu_count() or 1, 4)),
            "--dist",
            "loadfile",
            "--no-loadscope-reorder",
            "--max-worker-restart=0",
        ]
        args = ["pytest", *(parallel if whole_tier else []), *args[1:]]
    else:
        args = ["zoo", *args]
    os.execv(ENV / "bin" / args[0], args)


def install(extras, groups, fresh):
    """Install pinned versions into .venv, from files whose digests are listed only, also to build packages and to get uv itself.

    The stamp is written only after success, so a failed installation starts over.
    """
    print(f"setting up {ENV} ({', '.join(['zoo', *groups, *extras])}) ...", file=sys.stderr, flush=True)
    STAMP.unlink(missing_ok=True)
    python, uv = str(ENV / "bin" / "python"), [str(ENV / "bin" / "uv")]
    base = getattr(sys, "_base_executable", sys.executable)  # not the .venv that is about to be cleared
    if subprocess.run([base, "-c", "import ensurepip"], stderr=subprocess.DEVNULL).returncode == 0:
        if fresh:
            subprocess.run([base, "-m", "venv", "--clear", ENV], check=True)
            # pip compares digests in a file of requirements only, and then needs them for all of them.
            requirement = ENV / "uv-requirement.txt"
            requirement.write_text(re.findall(r"^uv==(?:.*\\\n)*.*\n", PINNED.read_text(), re.MULTILINE)[0])
            pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            subprocess.run([*pip, "-r", requirement], check=True)
    elif executable := shutil.which("uv"):
        uv = [executable]
        if fresh:
            subprocess.run([*uv, "venv", "-q", "--clear", "--python", base, ENV], check=True)
    else:
        sys.exit(f"{base} cannot make environments: install its venv package (Debian, Ubuntu: apt install python3-venv) or uv")
    project = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    group_args = [part for group in groups for part in ("--group", f"{ROOT / 'pyproject.toml'}:{group}")]
    pins = ["-c", str(PINNED), "--build-constraints", str(PINNED)]
    # Where Python may not store compiled modules, as in many containers, each start would compile all that it imports.
    pins += ["--compile-bytecode"] if sys.flags.dont_write_bytecode else []
    subprocess.run([*uv, "pip", "install", "-q", "--python", python, *pins, *group_args, "-e", project], check=True)


def accelerator():
    """Return the name of the extra for this machine's accelerator. CUDA 13 needs an NVIDIA driver of 580 or newer."""
    driver = pathlib.Path("/proc/driver/nvidia/version")
    text = driver.read_text() if driver.exists() else ""
    if not text and shutil.which("nvidia-smi"):  # the driver may be outside this system, as under WSL
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        text = subprocess.run(query, capture_output=True, text=True).stdout
    if version := re.search(r"\b(\d{3})\.\d+", text):
        return "cuda13" if int(version[1]) >= 580 else "cuda12"
    tpu = any(pathlib.Path("/dev").glob("accel[0-9]*")) or (
        os.path.exists("/dev/vfio/0") and any(name.startswith("TPU_") for name in os.environ)
    )
    return "tpu" if tpu else "none"


if __name__ == "__main__":
    main()

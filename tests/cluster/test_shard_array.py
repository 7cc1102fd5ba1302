"""`sbatch slurm/shard.sbatch` on a real SLURM makes the set that one process makes."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.cluster import Cluster
from tests.cluster.launched import SURROUNDED
from tests.conftest import elemdist, wait_until
from tests.data_prep.corpora import MANY, files_of, write_corpus


def submit(cluster: Cluster, corpus: Path, out: Path) -> str:
    """Submits a conversion in four parts; what sbatch said."""
    log = cluster.folder / "submit-%j.log"
    done = cluster.command(
        "sbatch", "--parsable", f"--output={log}", "--cpus-per-task=1",
        "slurm/shard.sbatch", str(corpus), "--out", str(out), *MANY,
        **{name: x for name, x in SURROUNDED.items() if not name.startswith("SBATCH_")},
        PARTS="4", ARRAY_OPTIONS=f"--cpus-per-task=1 --output={cluster.folder}/part-%A_%a.log",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def logs(cluster: Cluster) -> str:
    """All that the jobs wrote."""
    return "\n".join(path.read_text() for path in sorted(cluster.folder.glob("*-*.log")))


def test_array_and_merge(cluster: Cluster, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a corpus.jsonl", 6000)
    done = elemdist("shard", corpus, "--out", tmp_path / "one", "--processes", "1", *MANY)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "the array's set"
    submit(cluster, corpus, out)
    cluster.wait_until_empty(240)
    assert files_of(out) == files_of(tmp_path / "one"), logs(cluster)


def test_killed_parts_are_made_up_for(cluster: Cluster, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", 6000)
    done = elemdist("shard", corpus, "--out", tmp_path / "one", "--processes", "1", *MANY)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "set"
    submit(cluster, corpus, out)
    wait_until(lambda: list(out.glob(".elemdist/scan/*")), "a part has begun", 60)
    running = cluster.command("squeue", "-h", "-r", "-t", "R", "-o", "%i").stdout.split()
    for job in running[:2]:
        cluster.command("scancel", "--signal=KILL", "--full", job)
    cluster.wait_until_empty(240)
    if not (out / "train/index.json").exists():  # too late for the second pass: submit again
        submit(cluster, corpus, out)
        cluster.wait_until_empty(240)
    assert files_of(out) == files_of(tmp_path / "one"), logs(cluster)

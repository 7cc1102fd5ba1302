"""The command: ``elemdist VERB``. Each verb loads only what it needs."""

from __future__ import annotations

import sys
from collections.abc import Callable

from elemdist import __version__
from elemdist.errors import EXIT_USER_ERROR, UserError
from elemdist.other_words import verb_here
from elemdist.plain_text import printable


def shard(argv: list[str]) -> int:
    """convert text of any format into shards of byte rows, offline"""
    from data_prep.shard import ShardSettings, run
    from elemdist.commandline import parse

    run(parse(ShardSettings, argv, "elemdist shard", "inputs", shard.__doc__))
    return 0


def convert(argv: list[str]) -> int:
    """make shards out of shards, or text again: merge, select, append, cut anew"""
    from data_prep.convert.main import ConvertSettings, run
    from elemdist.commandline import parse

    run(parse(ConvertSettings, argv, "elemdist convert", "sets", convert.__doc__))
    return 0


def inspect(argv: list[str]) -> int:
    """show what a shard folder holds; advise on n and v for text"""
    from data_prep.inspect.main import InspectSettings, run
    from elemdist.commandline import parse

    run(parse(InspectSettings, argv, "elemdist inspect", "path", inspect.__doc__))
    return 0


def verify(argv: list[str]) -> int:
    """check a shard set wholly, name what is bad, and repair it"""
    from data_prep.verify.main import VerifySettings, run
    from elemdist.commandline import parse

    return run(parse(VerifySettings, argv, "elemdist verify", "path", verify.__doc__))


def train(argv: list[str]) -> int:
    """train with DeepSpeed on shards; starts its own ranks"""
    from launcher.train import run

    return run(argv, train.__doc__)


def plan(argv: list[str]) -> int:
    """tell what a recipe amounts to: parameters, memory, hours, without a GPU"""
    from launcher.plan import run

    return run(argv, plan.__doc__)


def evaluate(argv: list[str]) -> int:
    """figures of a checkpoint on held-out shards, as JSON"""
    from elemdist.commandline import parse
    from elemdist.eval_settings import EvalSettings

    settings = parse(EvalSettings, argv, "elemdist eval", "run", evaluate.__doc__)
    from elemdist.evaluation import run  # after the settings: it loads torch

    return run(settings)


def sample(argv: list[str]) -> int:
    """let a decoder go on with a text"""
    from elemdist.commandline import parse
    from elemdist.sample_settings import SampleSettings

    settings = parse(SampleSettings, argv, "elemdist sample", "run", sample.__doc__)
    from data_prep.segment import rows_of
    from elemdist.sample import run  # after the settings: it loads torch

    return run(settings, rows_of)


def predict(argv: list[str]) -> int:
    """labels of text by a trained classifier: files or standard input, as JSON Lines"""
    from elemdist.commandline import parse
    from elemdist.predict_settings import PredictSettings

    settings = parse(PredictSettings, argv, "elemdist predict", "inputs", predict.__doc__)
    from data_prep.pack import samples_of
    from data_prep.readers.stream import open_documents
    from elemdist.predict import run  # after the settings: it loads torch

    return run(settings, samples_of, open_documents)


def export(argv: list[str]) -> int:
    """write a trained model for transformers, and for ONNX, to be used without elemdist"""
    from elemdist.commandline import parse
    from elemdist.export_settings import ExportSettings

    settings = parse(ExportSettings, argv, "elemdist export", "run", export.__doc__)
    from data_prep.classes import alone
    from elemdist.export import run  # after the settings: it loads torch

    return run(settings, alone)


def robustness(argv: list[str]) -> int:
    """figures of classifiers on text with typing and scanning errors in it"""
    from elemdist.commandline import parse
    from elemdist.robustness_settings import RobustnessSettings

    settings = parse(RobustnessSettings, argv, "elemdist robustness", "runs", robustness.__doc__)
    from data_prep.pack import samples_of
    from data_prep.readers.stream import open_documents
    from elemdist.robustness import run  # after the settings: it loads torch

    return run(settings, samples_of, open_documents)


def compare(argv: list[str]) -> int:
    """train several models on one task within one budget, and test which is better"""
    from elemdist.commandline import parse
    from elemdist.compare_settings import CompareSettings

    settings = parse(CompareSettings, argv, "elemdist compare", None, compare.__doc__)
    from elemdist.compare import run  # after the settings: it loads torch

    return run(settings)


def plot(argv: list[str]) -> int:
    """curves of one or several runs, as PNG"""
    from elemdist.commandline import parse
    from elemdist.plot import PlotSettings, run

    run(parse(PlotSettings, argv, "elemdist plot", "runs", plot.__doc__))
    return 0


def report(argv: list[str]) -> int:
    """a page of HTML about runs, comparisons and figures, to be read anywhere"""
    from elemdist.commandline import parse
    from elemdist.report_settings import ReportSettings

    settings = parse(ReportSettings, argv, "elemdist report", "places", report.__doc__)
    from elemdist.report import run  # after the settings: it loads matplotlib

    return run(settings)


def launch(argv: list[str]) -> int:
    """check a run and submit it to SLURM, or run it here, until it is done"""
    from launcher.launch import run

    return run(argv, launch.__doc__)


def supervise(argv: list[str]) -> int:
    """begin a run again until it is done; what slurm/train.sbatch calls in a job"""
    from launcher.supervise import run

    return run(argv, supervise.__doc__)


def status(argv: list[str]) -> int:
    """how runs stand: step, loss, speed, checkpoint, time left, why they ended"""
    from launcher.status import run

    return run(argv, status.__doc__)


def logs(argv: list[str]) -> int:
    """what a rank of a run printed, or its jobs"""
    from launcher import runs

    return runs.logs(argv, logs.__doc__)


def cancel(argv: list[str]) -> int:
    """end a run, with a last checkpoint"""
    from launcher import runs

    return runs.cancel(argv, cancel.__doc__)


def resume(argv: list[str]) -> int:
    """go on with a run that was launched, on other nodes or with other options"""
    from launcher import runs

    return runs.resume(argv, resume.__doc__)


def doctor(argv: list[str]) -> int:
    """report what this machine has, what would run on it, and what is broken"""
    from elemdist.commandline import parse

    try:
        from launcher.doctor import DoctorSettings, run
    except ModuleNotFoundError as error:
        if error.name != "launcher.doctor":
            raise
        import launcher

        place = launcher.__file__ or next(iter(launcher.__path__))
        raise UserError(
            f"{place} is another package than elemdist's launcher and hides it;"
            " give elemdist an environment of its own"
        ) from None
    return run(parse(DoctorSettings, argv, "elemdist doctor", None, doctor.__doc__))


def bench(argv: list[str]) -> int:
    """compare with other packages on this machine; in a source checkout only"""
    from elemdist.bench import run

    return run(argv)


def completion(argv: list[str]) -> int:
    """make a shell complete verbs and settings: bash, zsh or fish"""
    from launcher.completion import run

    return run(argv, list(VERBS))


VERBS: dict[str, Callable[[list[str]], int]] = {
    "shard": shard,
    "convert": convert,
    "inspect": inspect,
    "verify": verify,
    "plan": plan,
    "train": train,
    "eval": evaluate,
    "sample": sample,
    "predict": predict,
    "export": export,
    "robustness": robustness,
    "compare": compare,
    "plot": plot,
    "report": report,
    "launch": launch,
    "status": status,
    "logs": logs,
    "cancel": cancel,
    "resume": resume,
    "supervise": supervise,
    "doctor": doctor,
    "completion": completion,
    "bench": bench,
}


def usage() -> str:
    """What `elemdist --help` prints."""
    verbs = "\n".join(f"  {name:10} {verb.__doc__}" for name, verb in VERBS.items())
    return (
        f"elemdist {__version__}: elementwise transformers on raw bytes\n\n"
        f"usage: elemdist VERB [argument ...] [--key value ...]\n\n{verbs}\n\n"
        "elemdist VERB --help lists every setting of a verb."
    )


def run_verb(name: str, argv: list[str]) -> int:
    """Run the verb of this name; its exit code. Raises UserError where there is none."""
    if name in ("", "-h", "--help", "help", "--version"):
        print(__version__ if name == "--version" else usage())
        return 0
    if name not in VERBS:
        raise UserError(f"unknown verb '{name}'{verb_here(name, VERBS)}; elemdist --help lists all")
    if name != "train":  # which may be a rank of others
        from elemdist.rank_variables import forget_ranks

        forget_ranks()
    return VERBS[name](argv)


def main() -> int:
    """Run a verb; 0, or 2 with one line on standard error for what the user can mend."""
    name = "".join(sys.argv[1:2])
    try:
        code = run_verb(name, sys.argv[2:])
        sys.stdout.flush()
        return code
    except UserError as error:
        told = str(error)
    except OSError as error:
        from elemdist.os_errors import is_of_the_machine, line_of

        if not is_of_the_machine(error):
            raise
        told = line_of(error)
    verb = f" {name}" if name in VERBS else ""
    print(f"elemdist{verb}: error: {printable(told)}", file=sys.stderr)
    return EXIT_USER_ERROR

"""usage: elemdist completion bash|zsh|fish

Prints what a shell needs to complete verbs and settings.

bash:  echo 'source <(elemdist completion bash)' >> ~/.bashrc
zsh:   echo 'source <(elemdist completion zsh)' >> ~/.zshrc     (after compinit)
fish:  elemdist completion fish > ~/.config/fish/completions/elemdist.fish
"""

from __future__ import annotations

import importlib
import typing
from collections.abc import Iterable

from elemdist.commandline import leaf_types
from elemdist.errors import UserError, nearest

SETTINGS = {
    "shard": "data_prep.shard:ShardSettings",
    "convert": "data_prep.convert.main:ConvertSettings",
    "inspect": "data_prep.inspect.main:InspectSettings",
    "verify": "data_prep.verify.main:VerifySettings",
    "plan": "launcher.plan:PlanSettings",
    "train": "elemdist.config:TrainSettings",
    "eval": "elemdist.eval_settings:EvalSettings",
    "sample": "elemdist.sample_settings:SampleSettings",
    "predict": "elemdist.predict_settings:PredictSettings",
    "export": "elemdist.export_settings:ExportSettings",
    "robustness": "elemdist.robustness_settings:RobustnessSettings",
    "compare": "elemdist.compare_settings:CompareSettings",
    "plot": "elemdist.plot:PlotSettings",
    "report": "elemdist.report_settings:ReportSettings",
    "launch": "launcher.settings:LaunchSettings",
    "status": "launcher.status:StatusSettings",
    "logs": "launcher.runs:LogsSettings",
    "cancel": "launcher.runs:CancelSettings",
    "resume": "launcher.settings:LaunchSettings",
    "supervise": "launcher.settings:LaunchSettings",
    "doctor": "launcher.doctor:DoctorSettings",
}
SHELLS = ("bash", "zsh", "fish")


def options_of(verb: str) -> dict[str, list[str]]:
    """Option -> the values it can have, where they are few; of a verb."""
    if verb not in SETTINGS:
        return {}
    module, _, name = SETTINGS[verb].partition(":")
    kinds = leaf_types(getattr(importlib.import_module(module), name))
    return {f"--{key.replace('_', '-')}": values_of(kind) for key, kind in kinds.items()}


def values_of(kind: object) -> list[str]:
    """The values that a type of setting can have, where they can be listed."""
    if kind is bool:
        return ["true", "false"]
    if typing.get_origin(kind) is typing.Literal:
        return [str(value) for value in typing.get_args(kind)]
    return []


def bash(verbs: Iterable[str]) -> str:
    """Also for zsh, which takes it after bashcompinit."""
    cases: list[str] = []
    values: dict[str, list[str]] = {}
    for verb in verbs:
        options = options_of(verb)
        values |= {option: found for option, found in options.items() if found}
        cases.append(f"        {verb}) words={' '.join(options)!r} ;;")
    choices = [f"        {name}) words={' '.join(found)!r} ;;" for name, found in values.items()]
    lines = [
        "_elemdist() {",
        '    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=""',
        '    if [ "$COMP_CWORD" = 1 ]; then',
        f"        words={' '.join(verbs)!r}",
        '    elif [[ "$before" == --* && "$word" != --* ]]; then',
        '        case "$before" in',
        *choices,
        "        esac",
        '    elif [[ "$word" == --* ]]; then',
        '        case "${COMP_WORDS[1]}" in',
        *cases,
        "        esac",
        "    fi",
        "    # Without words of ours: files, by the shell.",
        '    COMPREPLY=($(compgen -W "$words" -- "$word"))',
        "}",
        "complete -o default -F _elemdist elemdist",
    ]
    return "\n".join(lines) + "\n"


def zsh(verbs: Iterable[str]) -> str:
    """The script for zsh, which reads that of bash."""
    return "autoload -U +X bashcompinit && bashcompinit\n" + bash(verbs)


def fish(verbs: Iterable[str]) -> str:
    """The script for fish."""
    names = " ".join(verbs)
    first = f"not __fish_seen_subcommand_from {names}"
    lines = [f"complete -c elemdist -n {first!r} -a {names!r}"]
    for verb in verbs:
        for option, values in options_of(verb).items():
            seen = f"__fish_seen_subcommand_from {verb}"
            choices = f" -x -a {' '.join(values)!r}" if values else " -r"
            lines.append(f"complete -c elemdist -n {seen!r} -l {option[2:]}{choices}")
    return "\n".join(lines) + "\n"


def run(argv: list[str], verbs: list[str]) -> int:
    """``elemdist completion``; the exit code."""
    shell = argv[0] if argv else ""
    if shell in ("-h", "--help", ""):
        print(__doc__.strip())
        return 0
    if shell not in SHELLS:
        raise UserError(
            f"no completion for '{shell}'{nearest(shell, SHELLS)}; one of {', '.join(SHELLS)}"
        )
    print({"bash": bash, "zsh": zsh, "fish": fish}[shell](verbs), end="")
    return 0

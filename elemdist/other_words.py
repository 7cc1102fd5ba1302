"""What other programs of this field call a setting, a verb or a file, and what it is here."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from elemdist.errors import nearest
from elemdist.plain_text import shell_word

CONFIGS = Path(__file__).resolve().parent.parent / "configs"  # of a checkout
# Option -> the settings here, of which the first that the verb has is named.
RENAMED = {
    "batch_size": ("batch.global_samples", "batch_samples"),
    "global_batch_size": ("batch.global_samples",),
    "train_batch_size": ("batch.global_samples",),
    "micro_batch_size": ("batch.micro_samples",),
    "per_device_train_batch_size": ("batch.micro_samples",),
    "train_micro_batch_size_per_gpu": ("batch.micro_samples",),
    "lr": ("optim.lr",),
    "learning_rate": ("optim.lr",),
    "weight_decay": ("optim.weight_decay",),
    "warmup_steps": ("optim.warmup_steps",),
    "lr_scheduler_type": ("optim.decay",),
    "max_grad_norm": ("optim.grad_clip",),
    "gradient_clip_val": ("optim.grad_clip",),
    "gradient_checkpointing": ("memory.checkpoint_every",),
    "zero_stage": ("zero.stage",),
    "mixed_precision": ("precision",),
    "bf16": ("precision",),
    "fp16": ("precision",),
    "attn_implementation": ("attention",),
    "max_steps": ("steps",),
    "num_steps": ("steps",),
    "num_train_steps": ("steps",),
    "total_steps": ("steps",),
    "save_steps": ("checkpoint_every",),
    "eval_steps": ("eval_every",),
    "logging_steps": ("log_every",),
    "save_total_limit": ("keep_last",),
    "resume_from_checkpoint": ("resume",),
    "load_checkpoint": ("init_from", "run"),
    "checkpoint": ("run", "init_from"),
    "model_name_or_path": ("init_from", "run"),
    "output_dir": ("run_dir", "out"),
    "output": ("out", "run_dir"),
    "logging_dir": ("run_dir",),
    "save_dir": ("run_dir", "out"),
    "out_dir": ("out", "run_dir"),
    "train_data": ("data.train",),
    "data": ("data.train",),
    "dataset": ("data.train",),
    "data_dir": ("data.train",),
    "data_path": ("data.train",),
    "dataset_name": ("data.train",),
    "train_file": ("data.train",),
    "validation_file": ("data.eval",),
    "eval_data": ("data.eval",),
    "hidden_size": ("model.width",),
    "num_hidden_layers": ("model.layers",),
    "num_attention_heads": ("model.heads",),
    "intermediate_size": ("model.feedforward",),
    "nproc": ("ranks_per_node", "ranks"),
    "nproc_per_node": ("ranks_per_node", "ranks"),
    "num_processes": ("ranks_per_node", "ranks"),
    "num_gpus": ("ranks_per_node", "ranks"),
    "gpus": ("ranks_per_node", "ranks"),
    "devices": ("ranks_per_node", "ranks"),
    "nnodes": ("nodes",),
    "num_nodes": ("nodes",),
    "num_machines": ("nodes",),
    "accelerator": ("device",),
    "partition": ("slurm.partition",),
    "account": ("slurm.account",),
    "time": ("slurm.time",),
    "mem": ("slurm.memory",),
    "cpus_per_task": ("slurm.cpus_per_rank",),
    "report_to": ("wandb",),
}
STEPS = (
    "training is counted in steps: --steps N, which is epochs x samples / batch.global_samples"
    " (a run says at its start how many epochs its steps are)"
)
RECIPE = "a recipe is given as it is: elemdist train RECIPE.yaml"
CLUSTER = (
    "elemdist launch --nodes N submits a run to SLURM; without SLURM, torchrun elemdist/train.py"
)
SAID = {
    "config": RECIPE,
    "config_file": RECIPE,
    "c": RECIPE,
    "recipe": RECIPE,
    **dict.fromkeys(("epochs", "num_epochs", "max_epochs", "num_train_epochs"), STEPS),
    **dict.fromkeys(("hostfile", "node_rank", "machine_rank", "launcher", "master_addr"), CLUSTER),
    **dict.fromkeys(("master_port", "rdzv_endpoint", "rdzv_backend", "standalone"), CLUSTER),
    "gradient_accumulation_steps": "it follows from batch.global_samples, batch.micro_samples and"
    " the number of ranks",
    "world_size": "it follows from the ranks that are started: --ranks N",
    "do_train": "leave it out: elemdist train trains, elemdist eval evaluates",
    "do_eval": "leave it out: --data.eval evaluates while training, elemdist eval afterwards",
    "max_seq_length": "the rows of a sample (n) are those of the shards: elemdist shard --n",
    "max_length": "the rows of a sample (n) are those of the shards: elemdist shard --n",
}
VERBS = {
    "run": "train", "fit": "train", "pretrain": "train", "finetune": "train", "fine-tune": "train",
    "preprocess": "shard", "prepare": "shard", "tokenize": "shard", "encode": "shard",
    "pack": "shard", "import": "shard", "evaluate": "eval", "test": "eval", "validate": "eval",
    "score": "eval", "infer": "predict", "inference": "predict", "classify": "predict",
    "generate": "sample", "submit": "launch", "sbatch": "launch", "stop": "cancel",
    "kill": "cancel", "scancel": "cancel", "ps": "status", "list": "status", "squeue": "status",
    "log": "logs", "tail": "logs", "check": "doctor", "env": "doctor", "benchmark": "bench",
    "merge": "convert", "unshard": "convert", "show": "inspect", "info": "inspect",
    "save": "export", "visualize": "plot", "requeue": "resume", "continue": "resume",
}  # fmt: skip


def option_here(name: str, known: Collection[str]) -> str:
    """Return what an option that a verb does not have is here, as the end of a message."""
    key = name.replace("-", "_").lower()
    if (said := SAID.get(key)) is not None and "steps" in known:
        return f"; {said}"
    for setting in RENAMED.get(key, ()):
        if setting in known:
            return f"; here it is --{setting.replace('_', '-')}"
    return nearest(key, known).replace("_", "-")


def verb_here(name: str, known: Collection[str]) -> str:
    """Return what a verb that is not known is here, as the end of a message."""
    verb = VERBS.get(name.lower())
    return f"; here it is '{verb}'" if verb in known else nearest(name, known)


def recipe_here(path: str) -> str:
    """Return what to name in place of what is no recipe, as the end of a message."""
    place, word = Path(path), shell_word(path)
    if place.is_dir():
        sets = [one for one in (place, place / "train") if (one / "index.json").is_file()]
        if sets:
            return f"; a folder of shards is given by --data.train {shell_word(sets[0])}"
        if (own := place / "settings.yaml").is_file():
            return f"; a run goes on by --run-dir {word} --resume, or is a recipe: {own}"
        return f"; {RECIPE}"
    if not place.exists():
        folders = dict.fromkeys((place.parent, Path("configs"), CONFIGS))
        there = {str(file): file.stem for folder in folders for file in folder.glob("*.yaml")}
        same = [file for file, stem in there.items() if stem == place.stem]
        return f"; did you mean '{same[0]}'?" if same else nearest(path, there)
    if place.suffix in (".txt", ".jsonl", ".csv", ".tsv", ".parquet", ".zst", ".gz"):
        return f"; text becomes shards by `elemdist shard {word} --out DIR`: --data.train DIR"
    return ""


def shards_here(path: str) -> str:
    """Return how shards are made of what was named in their place; empty: it holds no text."""
    word = shell_word(path)
    if os.path.isfile(path):
        return f"it is a file: `elemdist shard {word} --out DIR` makes shards of it, to be named"
    if os.path.isdir(path) and os.listdir(path):
        return f"`elemdist shard {word} --out DIR` makes one of the text in it"
    return ""

"""What a run reads, opened and checked before torch is imported: a mistake costs no time."""

from __future__ import annotations

from pathlib import Path

from gpt2_ds.checkpoint.manifest import check_resumable, complete_checkpoints, saved_recipe
from gpt2_ds.config.errors import user_error
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.config.same_run import check_same_run
from gpt2_ds.data.format.dataset import Dataset
from gpt2_ds.data.format.tokenizer import load_tokenizer
from gpt2_ds.data.preparation.prepare import ensure_prepared, prepare
from gpt2_ds.data.preparation.request import Request
from gpt2_ds.data.reading.corpus import Corpus
from gpt2_ds.hosts.launcher import rank


def open_inputs(plan: RunPlan) -> Corpus:
    """What a run reads, made now if the recipe says how.

    Raises:
        UserError: the run directory holds another run; a dataset is missing, broken, made with
            another tokenizer or too small; this job cannot resume from the newest checkpoint.
    """
    recipe, loaded = plan.recipe, plan.loaded
    check_same_run(plan.run_dir, loaded)
    if recipe.data.prepare is not None:
        _prepare_once(plan)
    corpus = Corpus.open(recipe.data, loaded.where)
    _check_tokenizer(plan, corpus)
    for dataset in corpus.datasets.values():
        _check_sizes(plan, dataset)
    prompt = len(corpus.tokenizer.encode(recipe.evaluation.sample_prompt)) + 1
    if recipe.evaluation.sample_tokens and prompt > recipe.model.n_positions:
        raise user_error(
            loaded.where("evaluation.sample_prompt"),
            f"{prompt} tokens with end-of-text, and model.n_positions is "
            f"{recipe.model.n_positions}",
            "Shorten it.",
        )
    for path, manifest in complete_checkpoints(plan.run_dir)[:1]:
        check_resumable(
            path,
            manifest,
            stored=saved_recipe(path, manifest),
            loaded=loaded,
            data_fingerprint=corpus.fingerprint,
        )
    return corpus


def _check_sizes(plan: RunPlan, dataset: Dataset) -> None:
    """Refuse a dataset with too little to validate on, or nothing to train on."""
    recipe, loaded = plan.recipe, plan.loaded
    available = dataset.split("validation").n_windows(recipe.data.seq_length)
    if available < plan.derived.evaluation_windows:
        raise user_error(
            loaded.where("evaluation.tokens"),
            f"{recipe.evaluation.tokens} tokens, and the validation split of {dataset.address} "
            f"holds {available * recipe.data.seq_length} in windows of {recipe.data.seq_length}",
            f"Set it to at most {available * recipe.data.seq_length}."
            if available
            else "Prepare the data again with a larger validation fraction.",
        )
    if dataset.split("train").n_windows(recipe.data.seq_length) == 0:
        raise user_error(
            loaded.where("data.seq_length"),
            f"{recipe.data.seq_length} tokens, and no training shard of {dataset.address} is "
            "longer",
            "Prepare more text, or shorten it.",
        )


def _check_tokenizer(plan: RunPlan, corpus: Corpus) -> None:
    """Hold the recipe's tokenizer against the data's: the name, or for a file all it holds."""
    name, used = plan.recipe.tokenizer.name, corpus.tokenizer
    if Path(name).is_file():
        same = load_tokenizer(name).sha256 == used.sha256
    else:
        same = (name, plan.derived.vocab_size) == (used.name, used.n_vocab)
    if not same:
        address = next(iter(corpus.datasets.values())).address
        raise user_error(
            plan.loaded.where("tokenizer.name"),
            f"{name!r} has {plan.derived.vocab_size} tokens, and {address} was made with "
            f"{used.name!r}, which has {used.n_vocab}",
            "Name the tokenizer of the data, or prepare the data again.",
        )


def _prepare_once(plan: RunPlan) -> None:
    """Make the dataset unless it is there; of ranks started together, one works."""
    recipe = plan.recipe
    wanted = recipe.data.prepare
    assert wanted is not None
    assert recipe.data.path is not None  # config.sources refuses one without the other
    path = Path(recipe.data.path)

    def make() -> None:
        if path.exists():
            raise user_error(
                plan.loaded.where("data.path"),
                f"{path} is there, and holds no dataset",
                "Name another folder, or delete this one: it is made when missing.",
            )
        if rank() == 0:
            print(f"Preparing {', '.join(wanted.inputs)} into {path} ...", flush=True)
        prepare(
            Request(
                inputs=wanted.inputs,
                out=path,
                tokenizer=recipe.tokenizer.name,
                validation_fraction=wanted.validation_fraction,
            )
        )

    ensure_prepared(path, make)

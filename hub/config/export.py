"""Options of exports: what a finished model is written as, and how it is checked."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

from hub.config.option import AUTO, option

EXPORTERS = ("merged", "gguf", "ollama", "compressed", "hub")
"""The hub's own exporters. Plugins add others."""

QUANTS = ("q4_k_m",)
SCHEMES = ("w4a16", "w8a8_fp8", "w8a8_int8")
"""How `compressed` stores weights: 4-bit integers by GPTQ; 8-bit floating point; 8-bit integers."""

USERS = {
    "quant": ("gguf", "ollama"),
    "imatrix": ("gguf", "ollama"),
    "scheme": ("compressed",),
    "python": ("compressed",),
    "repo": ("hub",),
    "private": ("hub",),
}
"""Option -> the exporters that read it."""

TRAIN = "train"
NONE = "none"


@dataclass(kw_only=True)
class ExportConfig:
    """What a model is exported to, by `export` and at the end of `train`."""

    to: list[str] = field(default_factory=list)
    """What is written: merged (one plain model), gguf (llama.cpp), ollama (a Modelfile beside the GGUF), compressed (4 or 8
    bits for vLLM and SGLang), hub (pushed to the model hub), or those of plugins. In `train`: written at the end, and tried
    before the first step."""

    dtype: str = option(AUTO, choices=(AUTO, "bfloat16", "float16", "float32"))
    """Type of the weights of a merged model. auto: as the base has them. Sums are in float32 and rounded once."""

    merge_on: str = option(AUTO, choices=(AUTO, "full", "quantized"))
    """For an adapter that was trained on a 4-bit or 8-bit base: which weights it is merged into. full: the base's own.
    quantized: those that training saw, written in full. auto: quantized, which is the model that was trained."""

    quant: list[str] = field(default_factory=lambda: list(QUANTS))
    """Types of the weights in GGUF files, a file for each: f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m and others that
    llama.cpp has."""

    imatrix: str = NONE
    """Importance matrix for the quantization of GGUF files: train (measured on rows of the run's own training data), a GGUF
    file of llama.cpp's llama-imatrix, or none."""

    scheme: list[str] = field(default_factory=lambda: [SCHEMES[0]])
    """How `compressed` stores weights, a folder for each: w4a16 (4-bit integers by GPTQ), w8a8_fp8, w8a8_int8."""

    python: str | None = None
    """Python of another environment that has llmcompressor, for `compressed`. null: this one."""

    repo: str | None = None
    """Repository of the model hub for `hub`: OWNER/NAME. It is made if it does not exist."""

    private: bool = True
    """Whether a new repository can be seen by its owner only."""

    num_calibration_rows: int = option(256, ge=1)
    """Rows of the training data for `imatrix=train` and for `compressed`."""

    num_check_rows: int = option(32, ge=0)
    """Held-out rows on which each export is compared with the model that was trained. 0: nothing is compared, so the model need
    not fit into memory."""

    num_check_tokens: int = option(4096, ge=1)
    """Tokens of these rows at which the probabilities of all words are compared."""

    force: bool = False
    """Keep an export that fails its check. Its name and its card say so. The same as --force."""

    def problems(self, needs_target: bool = True) -> Iterator[str]:
        """One line for each clash of these options.

        Args:
            needs_target: whether `to` must name something.
        """
        if needs_target and not self.to:
            yield f"to= is missing. Type to=NAME, or several: to=merged,gguf. Allowed: {', '.join(EXPORTERS)}"
        for name in ("quant", "scheme"):
            if not getattr(self, name):
                yield f"export.{name}=[] names no type. Leave it out, or type {name}={getattr(type(self)(), name)[0]}"
        wrong = sorted(set(self.scheme) - set(SCHEMES))
        if wrong:
            yield f"export.scheme={','.join(wrong)} is not allowed. Allowed: {', '.join(SCHEMES)}"
        if "hub" in self.to and not self.repo:
            yield "export.to=hub needs a repository. Type repo=OWNER/NAME"
        for name, users in USERS.items():
            value = getattr(self, name)
            own = set(self.to) <= set(EXPORTERS)  # one of a plugin may read any of them
            if own and value != getattr(type(self)(), name) and not set(users) & set(self.to):
                shown = ",".join(value) if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else value
                yield f"export.{name}={shown} is for to={' or '.join(users)}. Leave it out, or add {users[0]} to export.to"

    def without_unused(self, names: Collection[str]) -> "ExportConfig":
        """These options, with the default in place of each of `names` that no kind of `to` reads."""
        unused = [name for name, users in USERS.items() if name in names and not set(users) & set(self.to)]
        fresh = type(self)()
        return replace(self, **{name: getattr(fresh, name) for name in unused})

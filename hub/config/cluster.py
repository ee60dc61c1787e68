"""Options of jobs on a cluster: an engine such as Slurm starts the run on its machines. They are part of `LaunchConfig`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields

from hub.config.option import option
from hub.errors import did_you_mean

CLUSTERS = ("slurm", "kubernetes", "skypilot")
"""The engines of clusters. Each is a module in hub/launch/clusters/ and a preset in conf/launch/."""

READ_BY = {
    "hours": ("slurm",),
    "partition": ("slurm",),
    "account": ("slurm",),
    "sbatch": ("slurm",),
    "image": ("kubernetes", "skypilot"),
    "volumes": ("kubernetes", "skypilot"),
    "namespace": ("kubernetes",),
    "accelerator": ("skypilot",),
    "infra": ("skypilot",),
    "spot": ("skypilot",),
}
"""Option -> the engines that read it. All engines read those that are missing here."""

SBATCH = (
    *("begin", "comment", "constraint", "cores-per-socket", "dependency", "distribution", "exclude", "exclusive", "gres"),
    *("gres-flags", "hint", "licenses", "mail-type", "mail-user", "mem", "mem-per-cpu", "mem-per-gpu", "network", "nice"),
    *("nodelist", "oversubscribe", "prefer", "priority", "qos", "reservation", "sockets-per-node", "switches"),
    *("threads-per-core", "tmp", "use-min-nodes", "wckey"),
)
"""The options of sbatch that `launch.sbatch` may set. None of them runs code or writes a file."""


@dataclass(kw_only=True)
class ClusterOptions:
    """A job that starts the run on the machines of a cluster."""

    cluster: str | None = option(None, choices=CLUSTERS)
    """Engine of a cluster that starts the run, as a job: `launch=slurm` sets it. The job asks for `nnodes` machines, goes on
    after a preemption, and this command ends once it is submitted. null: the run is started here."""

    dry_run: bool = False
    """With a cluster: print the job file, and submit nothing."""

    gpus_per_node: int | None = option(None, ge=0)
    """GPUs of each machine of the job. 0: a job without GPUs. null: `nproc_per_node`."""

    cpus_per_node: int | None = option(None, ge=1)
    """CPU cores of each machine of the job. null: what the cluster gives, on Slurm often a single one."""

    hours: float | None = option(None, gt=0)
    """Slurm: the time limit of the job. Before it is over the run saves, and the job is queued again. null: that of the
    partition."""

    partition: str | None = None
    """Slurm: the partition. null: the cluster's default."""

    account: str | None = None
    """Slurm: the account that pays. null: the user's default."""

    sbatch: dict[str, str] = field(default_factory=dict)
    """Slurm: further options of sbatch, as in `launch.sbatch.qos=high launch.sbatch.exclusive=true`."""

    image: str | None = None
    """Kubernetes and SkyPilot: the container image, with the hub in it. null: finetune-hub:cuda on Kubernetes, and on SkyPilot
    a machine on which the hub is installed."""

    volumes: dict[str, str] = field(default_factory=dict)
    """Kubernetes and SkyPilot: the folders of the run that outlive its machines -> the claim, the volume or the bucket
    (`s3://NAME`) of each: `'launch.volumes={/runs:runs,/data:data}'`."""

    namespace: str | None = None
    """Kubernetes: the namespace. null: the one that kubectl uses."""

    accelerator: str | None = None
    """SkyPilot: the kind of GPU, such as H100."""

    infra: str | None = None
    """SkyPilot: where, such as aws, gcp/us-central1 or k8s. null: the cheapest place that has it."""

    spot: bool = False
    """SkyPilot: spot instances. The run goes on when one is taken away."""

    def cluster_problems(self, mode: str, processes: int | str, of_the_job: Mapping[str, object]) -> Iterator[str]:
        """Yield a line for each clash of these options with each other and with the rest of `launch`.

        Args:
            mode: `launch.mode`.
            processes: `launch.nproc_per_node`.
            of_the_job: options that a job sets on each of its machines -> values, for those that are not at the default.
        """
        set_here = [item.name for item in fields(ClusterOptions) if getattr(self, item.name) not in (None, False, {})]
        set_here += ["gpus_per_node"] if self.gpus_per_node == 0 else []
        if self.cluster is None:
            for name in set_here:
                engines = " or ".join(f"launch={engine}" for engine in READ_BY.get(name, CLUSTERS))
                yield f"launch.{name}={_shown(getattr(self, name))} is for a job on a cluster. Type {engines}, or leave it out"
            return
        for name in set_here:
            if self.cluster not in (users := READ_BY.get(name, CLUSTERS)):
                value = _shown(getattr(self, name))
                yield f"launch.{name}={value} is for {' and '.join(users)}, not for {self.cluster}. Leave it out"
        if mode == "inline":
            yield f"launch.mode=inline runs in this process, and launch={self.cluster} on other machines. Leave one of them out"
        for name, given in of_the_job.items():
            yield f"launch.{name}={given} is set by the job on each of its machines. Leave it out"
        if self.gpus_per_node is None and not isinstance(processes, int):
            yield (
                f"launch={self.cluster} asks for machines, and nothing says how many GPUs each has. Type "
                "launch.gpus_per_node=8, or launch.gpus_per_node=0 for none"
            )
        if isinstance(processes, int) and 0 < (self.gpus_per_node or 0) < processes:
            yield (
                f"launch.nproc_per_node={processes} but launch.gpus_per_node={self.gpus_per_node}. Leave nproc_per_node out: "
                "there is a process for each GPU"
            )
        yield from self._text_problems()

    def _text_problems(self) -> Iterator[str]:
        """Yield a line for each text that would not stay one word in a job file."""
        for name in ("partition", "account", "namespace", "image", "accelerator", "infra"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[\w.,:/@+*-]+", value):
                yield f"launch.{name}={value!r} is not a name. Allowed: letters, digits and .,:/@+*-_ without spaces"
        for name, value in self.sbatch.items():
            if name not in SBATCH:
                near = did_you_mean(name, SBATCH) or " The job file may be changed by hand: launch.dry_run=true prints it"
                yield f"launch.sbatch.{name}={value}: this option of sbatch can't be set here.{near}"
            elif not re.fullmatch(r"[\w.,:/@+*&|()\[\]-]+", value):
                yield f"launch.sbatch.{name}={value!r} is not allowed. Allowed: a word of letters, digits and .,:/@+*&|()[]-_"
        for folder, name in self.volumes.items():
            if not re.fullmatch(r"/[\w./-]*\w", folder):
                yield f"launch.volumes: {folder!r} is no absolute folder. Type 'launch.volumes={{/FOLDER:{name}}}'"
            if not re.fullmatch(r"(\w+://)?[\w./-]+", name):
                yield f"launch.volumes: {folder}:{name!r} is not the name of a claim, a volume or a bucket"


def _shown(value: object) -> str:
    """A value as it is typed."""
    return str(value).lower() if isinstance(value, bool) else str(value)

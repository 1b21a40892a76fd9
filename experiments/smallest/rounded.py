r"""Round the matrices of a checkpoint to the values that a GGUF type such as q4_0 can store.

    python experiments/smallest/rounded.py CHECKPOINT q4_0 FOLDER

CHECKPOINT is the folder of a checkpoint. The script writes the rounded model to FOLDER, with the
dtype and the shapes of CHECKPOINT, so that flap can measure the answers of the rounded model. The
script prints how many bytes the weights would take in a GGUF file with matrices of this type.
"""

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).parents[1] / "bytes"))
from frontier import quantised


def main(checkpoint: Path, kind: str, folder: Path) -> None:
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.gguf"))
    num_bytes = 0
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for tensor in tensors.values():
            num_bytes += 2 * tensor.numel()
            if tensor.dim() == 2:
                num_bytes -= quantised(tensor, kind)
        save_file(tensors, file, metadata={"format": "pt"})
    print(f"{num_bytes:,} bytes in {kind}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))

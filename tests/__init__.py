"""The tests of flap. The folders of tests/ mirror the folders of flap/.

This file sets the environment variable HF_HUB_OFFLINE, so that no test can reach the Hugging Face
hub. The package huggingface_hub reads this variable when the package is first imported.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

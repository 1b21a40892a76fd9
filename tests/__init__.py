"""The tests of flap. The folders of tests/ mirror the folders of flap/.

This file sets HF_HUB_OFFLINE, so that no test can reach the Hugging Face hub. huggingface_hub reads
this variable when it is first imported.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

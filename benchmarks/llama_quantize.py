"""Call llama.cpp's quantiser through llama.cpp's library, without the program llama-quantize."""

import ctypes
from pathlib import Path

# Values of the enum llama_ftype in llama.h.
FTYPES = {"Q8_0": 7, "Q5_1": 9, "Q4_K_M": 15, "Q6_K": 18}


class QuantizeParams(ctypes.Structure):
    """The struct llama_model_quantize_params of llama.h, for the quantiser's options.

    The fields after `flags` are not used here, so `rest` only reserves space for them.
    """

    _fields_ = (
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int),
        ("output_tensor_type", ctypes.c_int),
        ("token_embedding_type", ctypes.c_int),
        ("flags", ctypes.c_bool * 8),
        ("rest", ctypes.c_void_p * 16),
    )


def quantise(libraries: Path, source: Path, target: Path, kind: str) -> None:
    """Quantise a GGUF file in f16 with llama.cpp's quantiser, as the program `llama-quantize` does.

    libraries: the folder of llama.cpp's shared libraries (libllama, libggml).
    kind: a key of FTYPES.
    """
    for name in ("libggml-base*", "libggml.*"):
        ctypes.CDLL(str(next(libraries.glob(name))), ctypes.RTLD_GLOBAL)
    llama = ctypes.CDLL(str(next(libraries.glob("libllama.*"))))
    llama.llama_model_quantize_default_params.restype = QuantizeParams
    llama.llama_model_quantize.argtypes = (
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.POINTER(QuantizeParams),
    )
    options = llama.llama_model_quantize_default_params()
    options.nthread = 1
    options.ftype = FTYPES[kind]
    part = target.with_suffix(".part")
    if llama.llama_model_quantize(str(source).encode(), str(part).encode(), ctypes.byref(options)):
        raise SystemExit(f"llama.cpp's quantiser could not make {target}")
    part.rename(target)

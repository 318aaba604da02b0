"""The one door to ddsp: needs TensorFlow.

ddsp 3.7 is written for Keras 2 and imports CREPE although only CREPE pitch needs it. CREPE
downloads weights while it installs, so where it is absent ddsp gets a stand-in that says so when
it is used.
"""

import os
import sys
import types
import warnings

import gin

THREADS_VARIABLE = "SWEEPS_THREADS"
"""Environment variable with the number of threads that TensorFlow may use; unset for all."""

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def _stand_in_for_crepe() -> types.ModuleType:
    module = types.ModuleType("crepe")
    module.__doc__ = "Stands in for CREPE, which is not installed."

    def unavailable(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError("CREPE pitch needs the crepe package: pip install crepe")

    module.__getattr__ = unavailable  # type: ignore[method-assign]
    return module


try:
    import crepe  # noqa: F401
except ImportError:
    sys.modules["crepe"] = _stand_in_for_crepe()

with warnings.catch_warnings(), gin.unlock_config():
    # ddsp and TensorFlow Probability use spellings that Python and NumPy have since deprecated,
    # and ddsp registers its classes with gin, also when a trial's configuration is final already.
    warnings.simplefilter("ignore")
    import ddsp
    import tensorflow as tf
    import tf_keras

if threads := int(os.environ.get(THREADS_VARIABLE, "0")):
    # Concurrent trials on one machine would otherwise each take all of its cores.
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)

__all__ = ["THREADS_VARIABLE", "ddsp", "tf", "tf_keras"]

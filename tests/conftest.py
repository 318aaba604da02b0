"""Shared by all tests: how hypothesis draws a decoder, and a dataset that is made in a second."""

import logging
import os
import sys
import tempfile
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from thesis.config import DecoderConfig, DilatedConvStackConfig, RnnFcConfig
from thesis.export import reference_onnx
from thesis.prepare import prepare_demo
from thesis.runtimes.onnx_runtime import Session

# librosa, an oracle of some tests, has numba keep compiled code. A process of its own fills it.
os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="numba-")

REAL_DATA = Path(os.environ.get("SWEEPS_DATA", Path(__file__).parents[2] / "shared" / "data"))

# Speed is a matter for benchmarks: on a busy machine any example may take its time.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

# `st.from_type(DecoderConfig)` draws small decoders of every kind, `st.from_type` of one kind draws
# those. One channel is left out: a norm over a single channel is a constant.
st.register_type_strategy(
    DilatedConvStackConfig,
    st.builds(
        DilatedConvStackConfig,
        channels=st.integers(2, 6),
        layers_per_stack=st.integers(1, 3),
        stacks=st.integers(1, 3),
        kernel_size=st.integers(1, 5),
        dilation_base=st.integers(1, 3),
        block=st.sampled_from(["plain", "inverted_bottleneck"]),
        expansion=st.integers(1, 3),
        causal=st.booleans(),
        norm=st.sampled_from(["none", "frame", "batch", "time"]),
        resample=st.sampled_from(["none", "downsample", "upsample"]),
        resample_stride=st.integers(2, 4),
        stacks_per_resample=st.integers(1, 3),
        resample_after_convolve=st.booleans(),
        conditioning=st.sampled_from(["none", "shift", "scale_and_shift"]),
    ),
)
st.register_type_strategy(
    RnnFcConfig,
    st.builds(
        RnnFcConfig,
        rnn_channels=st.integers(1, 6),
        channels=st.integers(2, 6),
        layers_per_stack=st.integers(0, 2),
    ),
)
st.register_type_strategy(
    DecoderConfig,
    st.one_of(st.from_type(DilatedConvStackConfig), st.from_type(RnnFcConfig)),
)


@pytest.fixture(scope="session", autouse=True)
def _denormals_stay_what_they_are():
    """Spends the switch that makes denormals zero on a thread of its own.

    ONNX Runtime throws it once, in the thread that makes the first session, and never back. In the
    thread of the tests it would have hypothesis refuse to draw numbers.
    """
    model = reference_onnx(sample_rate=16_000, hop_size=64)
    thread = Thread(target=Session, args=(model,))
    thread.start()
    thread.join()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Five clips of half a second of the synthetic string: three to train on, two to validate."""
    folder = tmp_path_factory.mktemp("data") / "strings"
    return prepare_demo(folder, n_train=3, n_validation=2, clip_seconds=0.5)


def real_recordings(instrument):
    folder = REAL_DATA / instrument
    if not folder.is_dir():
        pytest.skip(f"the real recordings are not at hand: no '{folder}', see CONTRIBUTING.md")
    return folder


@pytest.fixture
def violin():
    """The folder of violin clips with what the thesis's models made of them."""
    return real_recordings("violin")


@pytest.fixture
def cello():
    """The folder of cello recordings."""
    return real_recordings("cello")


@pytest.fixture(scope="session")
def weights_of():
    """A function: weights by name for a plan, as after training, none of them still new."""

    def weights_of(plan, seed=0):
        rng = np.random.default_rng(seed)

        def trained(kind, shape):
            if kind == "variance":
                return rng.uniform(0.2, 2.0, shape)
            return rng.normal(float(kind == "scale"), 0.5, shape)

        return {
            name: trained(name.rpartition("/")[2], shape).astype(np.float32)
            for node in plan
            for name, shape in (node.weight_shapes | node.moment_shapes).items()
        }

    return weights_of


@pytest.fixture(scope="session")
def small_run():
    """The run 'tiny' with a model and a training of seconds; trains four steps."""
    from sweeps.config import find_run, load_run

    return load_run(
        find_run("tiny"),
        [
            "STEPS=4",
            "MAX_F0_MISSED_SHARE=None",  # in four steps nothing learns to sing
            "BATCH_SIZE=2",
            "train.checkpoint_every=2",
            "Synth.n_harmonics=8",
            "Synth.n_noise_bands=9",
            "Synth.reverb_seconds=0.05",
            "measure.seconds=0.02",
            "measure.min_calls=10",
            "measure.max_calls=20",
        ],
    )


@pytest.fixture(scope="session")
def task_of(small_run, dataset):
    """A function: the task of evaluating the small run's baseline with some values replaced."""
    from sweeps.evaluate import Task

    def task_of(run=small_run, path=dataset.path, **values):
        base = {axis.name: axis.domain.values[0] for axis in run.space.axes}
        candidate = run.space.candidate({**base, **dict(run.space.baseline().values), **values})
        return Task("small", candidate, run.text_for(candidate), str(path))

    return task_of


@pytest.fixture(scope="session")
def completed(task_of, tmp_path_factory):
    """A trial that went through, nothing replaced by a fake, and its working folder."""
    from sweeps.evaluate import evaluate
    from thesis.measure import measure_rtf

    workdir = tmp_path_factory.mktemp("completed")
    return evaluate(task_of(channels=4), workdir=workdir, measure=measure_rtf), workdir


@pytest.fixture(scope="session")
def s3():
    """A function: the URI of a folder in a bucket of an S3 server on this machine.

    Other processes reach it too: the key is in the environment.
    """
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        bucket, _ = fs.FileSystem.from_uri(f"s3://?{options}&allow_bucket_creation=true")
        bucket.create_dir("bucket")
        yield lambda folder: f"s3://bucket/{folder}?{options}"
    server.stop()


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """The file that 'canary_module', which can be imported, leaves when it is."""
    left = tmp_path / "canary_ran"
    (tmp_path / "canary_module.py").write_text(f"open({str(left)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "canary_module", raising=False)
    return left

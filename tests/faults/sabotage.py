"""Faults of a site's command: imported by a copy of its job, does one thing wrong, once.

The file ``fault`` beside it names the fault. Only numpy and safetensors are imported.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

FOLDER = Path(sys.argv[1])


def _write(arrays: dict[str, np.ndarray]) -> None:
    save_file(arrays, FOLDER / "trained.safetensors")
    _report('{"num_examples": 100}')


def _report(text: str) -> None:
    (FOLDER / "result.json").write_text(text)
    sys.exit()


def _happen(kind: str) -> None:
    model = load_file(FOLDER / "model.safetensors")
    match kind:
        case "killed":
            os.killpg(0, signal.SIGKILL)
        case "fails":
            sys.exit("the data are gone: secret.csv")
        case "hangs":
            time.sleep(3600)
        case "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(3600)
        case "kills-the-worker":
            parent = int(Path(f"/proc/{os.getppid()}/stat").read_text().split()[3])
            os.kill(parent, signal.SIGKILL)
            time.sleep(3600)
        case "ends-without-result":
            os.kill(os.getppid(), signal.SIGTERM)
            sys.exit()
        case "no-model":
            _report('{"num_examples": 100}')
        case "damaged-model":
            (FOLDER / "trained.safetensors").write_bytes(b"\x10garbage")
            _report('{"num_examples": 100}')
        case "other-name":
            _write({"weight": model["1.weight"], "1.bias": model["1.bias"]})
        case "other-shape":
            _write({**model, "1.bias": np.zeros(11, np.float32)})
        case "other-dtype":
            _write({**model, "1.bias": np.zeros(10)})
        case "nan":
            _write({**model, "1.bias": np.full(10, np.nan, np.float32)})
        case "no-json":
            _report('{"num_examples": 10')
        case "no-object":
            _report("[1, 2]")
        case "no-examples":
            _report(json.dumps({"num_examples": "many: secret.csv"}))
        case "bad-metric":
            _report(json.dumps({"num_examples": 1, "metrics": {"secret.csv": 1.0}}))


if (_file := Path(__file__).with_name("fault")).is_file():
    _kind = _file.read_text()
    _file.unlink()
    _happen(_kind)

"""``report/polygraphy.sh`` of a TensorRT bundle: each plan against ONNX Runtime through NVIDIA's Polygraphy."""

from __future__ import annotations

import shutil
from pathlib import Path

from mm2c_runtime.manifest_tensorrt import TensorRTProgram

FOLDER = "report"
SCRIPT, INPUTS = "polygraphy.sh", "polygraphy_inputs.py"
# Of bf16 beside f32: networks replayed in their declared types leave 37 to 51 dB behind one layer; what eight layers
# round adds up to some 10 dB less. Experts that score alike and change places cost a token more. What is wrong in a
# graph (an axis, an input that is dropped) leaves less.
LEAST_SNR = 20


def write_polygraphy(stage: Path, program: TensorRTProgram) -> None:
    """Write the script and the file that makes its graphs and inputs into ``stage/report``."""
    folder = stage / FOLDER
    folder.mkdir(exist_ok=True)
    source = Path(__file__).with_name(INPUTS)
    shutil.copyfile(source, folder / INPUTS)
    script = folder / SCRIPT
    script.write_text(script_of(program), encoding="utf-8")
    script.chmod(0o755)


def comparisons(program: TensorRTProgram) -> list[tuple[str, int, int, int]]:
    """Every plan with each of its profiles once: (plan, profile, rank, first layer) of the first stage that runs it."""
    found: dict[tuple[int, int], tuple[str, int, int, int]] = {}
    for rank in program.ranks:
        for run in rank.runs:
            for stage in run.stages:
                name = program.plans[stage.plan].name
                found.setdefault(
                    (stage.plan, stage.profile), (name, stage.profile, rank.rank, stage.first_layer)
                )
    return [found[key] for key in sorted(found)]


def script_of(program: TensorRTProgram) -> str:
    rtx = program.kv.page == 0  # only TensorRT-RTX has rows
    values = {
        "EACH": "\n".join(" ".join(map(str, one)) for one in comparisons(program)),
        "RANKS": str(len(program.ranks)),
        "RTX": str(int(rtx)),
        "MODULE": "tensorrt_rtx" if rtx else "tensorrt",
        "PLUGINS": program.plugins.library if program.plugins else "",
        "SNR": str(LEAST_SNR),
    }
    text = _TEMPLATE
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


_TEMPLATE = r"""#!/usr/bin/env bash
# Each plan of this bundle against ONNX Runtime, through NVIDIA's Polygraphy: both get the same step.
#
#   report/polygraphy.sh [onnxrt|tensorrt|both] [PLAN [PROFILE]]
#
# onnxrt runs the plan's graph in f32 on the CPU, which needs no GPU; tensorrt runs the plan on the GPU and compares
# with what onnxrt left in $WORK; both is one after the other, and the default where there is a GPU. Without PLAN every
# plan is compared. An output passes where its signal-to-noise ratio is at least $SNR dB; bf16 rounds to about 30.
#
# Needs polygraphy, onnx, onnxruntime and torch, and for the plans @MODULE@ and libcudart.so in LD_LIBRARY_PATH.
# Variables: RANK whose weights (default: the first that runs the plan), LAYER which of its stages, ROWS and TOKENS of
# the step, SEED, SNR, WORK (a folder to keep; outputs hold whole KV caches), PYTHON, POLYGRAPHY.
#
# One rank runs alone. In a bundle of several, collectives are left out on both sides, so that a sum is of this rank's
# part alone and what is gathered is its part again and again; as the bundle's plans would wait for the other ranks,
# TensorRT first builds the same graph without them. The same is done where a plan is still to be built.
set -euo pipefail

half=${1:-}
only=${2:-}
if [ -z "$half" ]; then
  half=both
  if ! nvidia-smi -L >/dev/null 2>&1; then
    echo "no NVIDIA GPU is here: the half onnxrt alone" >&2
    half=onnxrt
  fi
fi
case "$half" in onnxrt | tensorrt | both) ;; *)
  sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
  exit 2
  ;;
esac

report=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bundle=$(dirname "$report")
inputs=$report/polygraphy_inputs.py
python=${PYTHON:-python3}
polygraphy=${POLYGRAPHY:-polygraphy}
snr=${SNR:-@SNR@}
rank_asked=${RANK:-} layer_asked=${LAYER:-}
ranks=@RANKS@
plugins=@PLUGINS@
export POLYGRAPHY_USE_TENSORRT_RTX=@RTX@ PYTHONDONTWRITEBYTECODE=1
if [ -n "${WORK:-}" ]; then
  work=$WORK
  mkdir -p "$work"
else
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
fi
if ! command -v "$polygraphy" >/dev/null; then
  echo "error: $polygraphy is not here; pip install polygraphy, or name it with POLYGRAPHY=" >&2
  exit 2
fi

run_onnxrt() { # NAME
  "$python" "$inputs" onnxrt "$work/$1.f32.onnx"
  "$polygraphy" run "$work/$1.f32.onnx" --onnxrt --data-loader-script "$inputs:onnxrt_inputs" \
    --save-outputs "$work/$1.json" --validate
}

run_tensorrt() { # NAME
  local engine=$bundle/plans/$PLAN.plan
  local options=(--trt --allocation-strategy profile --data-loader-script "$inputs:tensorrt_inputs"
    --load-outputs "$work/$1.json" --compare snr --snr-threshold "$snr" --validate)
  if [ ! -f "$work/$1.json" ]; then
    echo "error: $work/$1.json is not there: run the half onnxrt with the same WORK first" >&2
    return 2
  fi
  if [ "$ranks" = 1 ] && [ -f "$engine" ]; then
    "$polygraphy" run "$engine" --model-type engine --optimization-profile "$PROFILE" "${options[@]}"
    return
  fi
  "$python" "$inputs" tensorrt "$work/$1.onnx"
  local shapes
  shapes=$("$python" "$inputs" shapes)
  # shellcheck disable=SC2086  # one word a shape
  "$polygraphy" run "$work/$1.onnx" --strongly-typed --trt-npps "$inputs:postprocess" \
    --trt-min-shapes $shapes --trt-opt-shapes $shapes --trt-max-shapes $shapes \
    ${plugins:+--plugins "$bundle/$plugins"} "${options[@]}"
}

failed=()
compared=0
while read -r plan profile rank layer; do
  if [ -n "$only" ] && [ "$only" != "$plan" ]; then continue; fi
  if [ -n "${3:-}" ] && [ "$3" != "$profile" ]; then continue; fi
  compared=$((compared + 1))
  export PLAN=$plan PROFILE=$profile RANK=${rank_asked:-$rank} LAYER=${layer_asked:-$layer}
  name=$plan.$profile.rank$RANK
  echo "== $plan, profile $profile, rank $RANK, from layer $LAYER"
  status=0
  if [ "$half" != tensorrt ]; then run_onnxrt "$name" || status=1; fi
  if [ "$half" != onnxrt ] && [ $status = 0 ]; then run_tensorrt "$name" || status=1; fi
  if [ $status != 0 ]; then failed+=("$name"); fi
done <<'EACH'
@EACH@
EACH

if [ $compared = 0 ]; then
  echo "error: no plan is called $only${3:+ with a profile $3}" >&2
  exit 2
fi
if [ ${#failed[@]} -gt 0 ]; then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
echo "PASSED: $compared ($half)"
"""

#!/bin/sh
# What docs/verified.md asks for on an NVIDIA GPU, in its order and within ten minutes, without a network.
#
#   tools/verify_gpu.sh wheels DIR    fetch what the machine with the GPU needs into DIR (on a machine with a network)
#   tools/verify_gpu.sh run DIR OUT   install from DIR into a virtual environment of its own, run, leave all in OUT
#   tools/verify_gpu.sh check         say what `run` would do here, and try what needs no GPU
#
# CUDA=12 or 13 chooses CuPy (default 12). TORCH_INDEX is where a CUDA build of torch comes from. SECONDS_EACH bounds a
# step (default 75: seven steps and the installation fit in ten minutes).
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
cuda=${CUDA:-12}
each=${SECONDS_EACH:-75}
python=${PYTHON:-python3}

wheels() {
    mkdir -p "$1"
    "$python" -m pip wheel --quiet --wheel-dir "$1" "$here[cuda$cuda]" "nvidia-cuda-nvrtc-cu12>=12.8" setuptools
    if [ -n "${TORCH_INDEX:-}" ]; then
        "$python" -m pip download --quiet --dest "$1" --index-url "$TORCH_INDEX" torch
    fi
    ls "$1" | wc -l | sed 's/$/ wheels/'
}

# One step: its name, then the command. What it says goes to OUT/NAME.txt, how it ended to OUT/summary.txt. No step stops
# the others: minutes of a GPU are lent once.
step() {
    name=$1
    shift
    echo "== $name: $*"
    status=0
    timeout -k 5 "$each" "$@" >"$out/$name.txt" 2>&1 || status=$?
    echo "$name: exit $status" | tee -a "$out/summary.txt"
    tail -3 "$out/$name.txt"
}

# memcheck and racecheck come with CUDA's toolkit, and in no wheel.
sanitizer() {
    command -v compute-sanitizer >/dev/null || echo "no compute-sanitizer on PATH: memcheck and racecheck will end red"
}

steps() {
    step list opconform list
    step default opconform test --backend cuda --seed 1 --minutes 1 --report-dir "$out/default"
    for check in memcheck racecheck; do
        step "$check" env OPCONFORM_CUDA_CHECK=$check opconform test --backend cuda --sanitize --profile quick --seed 1 \
            --minutes 1 --report-dir "$out/$check"
    done
    step perf opconform perf --backend cuda --seconds 0.3 --output csv
    if python -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
        step torch opconform test --backend torch:cuda --seed 1 --minutes 1 --report-dir "$out/torch"
        step perf-torch opconform perf --backend torch:cuda --seconds 0.3 --output csv
    else
        echo "torch: left out, no CUDA build of torch here" | tee -a "$out/summary.txt"
    fi
}

run() {
    out=$2
    mkdir -p "$out"
    out=$(cd "$out" && pwd)
    : >"$out/summary.txt"
    sanitizer
    "$python" -m venv "$out/venv"
    "$out/venv/bin/pip" install --quiet --no-index --find-links "$1" "opconform[cuda$cuda]" nvidia-cuda-nvrtc-cu12
    "$out/venv/bin/pip" install --quiet --no-index --find-links "$1" torch 2>/dev/null || true
    PATH="$out/venv/bin:$PATH"
    export PATH
    cd "$out"
    { nvidia-smi || true; git -C "$here" rev-parse --short HEAD || true; opconform --version; } >"$out/machine.txt" 2>&1
    steps
    echo "rows for docs/verified.md: $out/summary.txt, $out/machine.txt and the last lines of each step"
}

check() {
    command -v "$python" >/dev/null || { echo "no $python"; exit 1; }
    command -v nvidia-smi >/dev/null && nvidia-smi -L || echo "no GPU here: only the way there is tried"
    sanitizer
    out=$(mktemp -d)
    : >"$out/summary.txt"
    trap 'rm -rf "$out"' EXIT
    step list opconform list
    step perf opconform perf --backend cuda-host --case cumsum/upstream-127 --seconds 0.05 --output csv
    grep -q '^list: exit 0$' "$out/summary.txt" && grep -q '^perf: exit 0$' "$out/summary.txt"
}

case ${1:-} in
wheels) wheels "${2:?a folder}" ;;
run) run "${2:?a folder of wheels}" "${3:?a folder for what comes out}" ;;
check) check ;;
*) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac

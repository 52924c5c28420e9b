#!/usr/bin/env bash
# Installs what Opconform and all its backends need, and makes .venv in the checkout. Run it again at any time: what is
# there already is kept, and a run with nothing to do takes no time.
#
#   PYTHON           the Python (3.10 or newer) to make .venv with; default python3
#   TORCH_SPEC       the torch to install; default torch==2.13.0
#   TORCH_INDEX_URL  the index to install it from; default: pip's own, or PyTorch's CPU index where pip's own would
#                    bring CUDA libraries along (several GB)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
TORCH_SPEC=${TORCH_SPEC:-torch==2.13.0}
TORCH_INDEX_URL=${TORCH_INDEX_URL:-}
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
KP_SPEC=kp==0.9.0
GGML_PACKAGE=@node-llama-cpp/linux-x64-vulkan

venv=$PWD/.venv
cache=$PWD/.cache
log=$cache/setup.log
stamp=$venv/.setup

# ggml builds: folder below .cache/ggml, package version, the tarball's integrity as npm publishes it.
ggml_builds=(
  "b6673  3.14.0 sha512-0Gp1VAbeWIFc7Hkbvs5yuWw5i1A3Yo+7Q6uWXDzNUg50m0PrrF8evQWL2arp/lZINkDxI0JfpEoc+jFvdj3a8g=="
  "b7836  3.15.1 sha512-CMsyQkGKpHKeOH9+ZPxo0hO0usg8jabq5/aM3JwdX9CiuXhXUa3nu3NH4RObiNi596Zwn/zWzlps0HRwcpL8rw=="
  "b8121  3.16.2 sha512-HDLAw4ZhwJuhKuF6n4x520yZXAQZahUOXtCGvPubjfpmIOElKrfDvCVlRsthAP0JwcwINzIQlVys3boMIXfBgw=="
  "v0.5.0 3.22.1 sha512-bBxqU+JOcBu1nb5Qj2zcMci+JByT1E8EajHvYodyNfVIPkEhXh+/HMwR1/BT7xP08YK0hks+kM8fglER0P8JEg=="
)

say() { printf '%s\n' "$*"; }
die() {
  printf 'setup: %s\n' "$@" >&2
  exit 1
}

# step TITLE COMMAND…: say what is being done, keep its output in the log, and show the end of it if it fails.
step() {
  local title=$1 begin=$SECONDS status
  shift
  printf '%s … ' "$title"
  printf '\n### %s: %s\n' "$title" "$*" >"$log.step"
  set +e # not `if (…)`: inside a condition errexit is off, and a function would run on past a failing command
  (
    set -e
    "$@"
  ) >>"$log.step" 2>&1 </dev/null
  status=$?
  set -e
  cat "$log.step" >>"$log"
  if ((status == 0)); then
    say "done ($((SECONDS - begin)) s)"
  else
    say "FAILED"
    tail -n 25 "$log.step" | sed 's/^/    /' >&2
    die "$title failed; all of its output is in ${log#"$PWD"/}"
  fi
}

fingerprint() {
  { cat tools/setup.sh pyproject.toml && say "$PWD $PYTHON $TORCH_SPEC $TORCH_INDEX_URL"; } | sha256sum | cut -d' ' -f1
}

is_linux_x64() { [[ $(uname -s) == Linux && $(uname -m) == x86_64 ]]; }

has_ggml() {
  local build
  is_linux_x64 || return 0
  for build in "${ggml_builds[@]}"; do
    [[ -e $cache/ggml/${build%% *}/libggml-base.so ]] || return 1
  done
}

is_done() {
  [[ -x $venv/bin/opconform && -e $stamp && $(<"$stamp") == "$(fingerprint)" ]] && has_ggml
}

# ---- system packages -------------------------------------------------------------------------------------------------

can_include() { printf '#include <%s>\n' "$1" | g++ -E -x c++ - >/dev/null 2>&1; }
can_load() { "$PYTHON" -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$1" >/dev/null 2>&1; }
has_icd() { compgen -G "/usr/share/vulkan/icd.d/$1" >/dev/null || compgen -G "/etc/vulkan/icd.d/$1" >/dev/null; }
has_validation_layer() { compgen -G "/usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json" >/dev/null; }
has_opencl_icd() { compgen -G '/etc/OpenCL/vendors/*.icd' >/dev/null; }
has_python_headers() { [[ -e $("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]]; }
has_browser() { command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; }
has_glsl_compiler() { command -v glslc >/dev/null || command -v glslangValidator >/dev/null; }

# What has to be there: the Debian package that brings it, a test for it, what it is for.
pieces=(
  "python3-venv|$PYTHON -c 'import ensurepip, venv'|virtual environments"
  "python3-dev|has_python_headers|building Kompute"
  "g++|command -v g++|building Kompute, and CUDA kernels for the CPU"
  "make|command -v make|building Kompute"
  "cmake|command -v cmake|building Kompute"
  "libfmt-dev|can_include fmt/core.h|building Kompute"
  "libvulkan-dev|can_include vulkan/vulkan.h|building Kompute"
  "libvulkan1|can_load libvulkan.so.1|the Vulkan loader"
  "mesa-vulkan-drivers|has_icd '*'|a Vulkan driver; Mesa's lavapipe runs on the CPU"
  "glslc|has_glsl_compiler|compiling the Vulkan shaders"
  "spirv-tools|command -v spirv-val|validating the compiled shaders"
  "ocl-icd-libopencl1|can_load libOpenCL.so.1|the OpenCL loader"
  "pocl-opencl-icd|has_opencl_icd|an OpenCL driver; PoCL runs on the CPU"
  "oclgrind|command -v oclgrind|checking OpenCL kernels (--sanitize)"
  "vulkan-validationlayers|has_validation_layer|checking Vulkan (--sanitize)"
  "npm|command -v npm|fetching prebuilt ggml libraries"
  "chromium|has_browser|a test that opens the HTML report"
  "chromium-driver|command -v chromedriver|the same"
)

# Sets `missing` (packages) and `wanted` (lines that say what each is for).
look_for_pieces() {
  local piece package test purpose
  missing=() wanted=()
  for piece in "${pieces[@]}"; do
    IFS='|' read -r package test purpose <<<"$piece"
    eval "$test" >/dev/null 2>&1 && continue
    missing+=("$package")
    wanted+=("$(printf '%-20s %s' "$package" "$purpose")")
  done
}

has_package() { [[ $(apt-cache policy "$1" 2>/dev/null) == *Candidate:* && $(apt-cache policy "$1") != *'Candidate: (none)'* ]]; }

install_system_packages() {
  local root=() index
  look_for_pieces
  ((${#missing[@]})) || return 0
  say "Missing from the system:"
  printf '  %s\n' "${wanted[@]}"
  if ! command -v apt-get >/dev/null; then
    say "There is no apt-get here."
  elif ((EUID == 0)); then
    root=(env)
  elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || { [[ -t 0 ]] && sudo -v; }; }; then
    root=(sudo)
  else
    say "Installing them takes root, and there is no sudo that may be used here."
  fi
  if ((${#root[@]})); then
    step "apt-get update" "${root[@]}" apt-get update
    for index in "${!missing[@]}"; do
      # Ubuntu before 24.04 has no package glslc, and calls Chromium's packages something else.
      has_package "${missing[index]}" && continue
      case ${missing[index]} in
        glslc) missing[index]=glslang-tools ;;
        chromium) missing[index]=chromium-browser ;;
        chromium-driver) missing[index]=chromium-chromedriver ;;
      esac
    done
    step "apt-get install ${missing[*]}" \
      "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
    look_for_pieces
    ((${#missing[@]})) || return 0
    die "these are still missing after the installation:" "${wanted[@]/#/  }"
  fi
  die "install these by hand, then run this again (the names are Debian's):" "${wanted[@]/#/  }" \
    "on Debian or Ubuntu: apt-get install ${missing[*]}"
}

# ---- the virtual environment -----------------------------------------------------------------------------------------

pip_install() { "$venv/bin/python" -m pip install --disable-pip-version-check --no-input "$@"; }

make_venv() {
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "$("$PYTHON" --version 2>&1) is too old; set PYTHON to 3.10 or newer"
  if [[ -x $venv/bin/python ]] && "$venv/bin/python" -c 'import pip' 2>/dev/null; then return; fi
  step "a virtual environment in .venv" "$PYTHON" -m venv --clear "$venv"
  step "pip 23.2 or newer, which reads what a package needs without fetching it" pip_install "pip>=23.2"
}

# Whether the torch that pip would choose by itself needs CUDA libraries on this machine.
torch_brings_cuda() {
  pip_install --dry-run --ignore-installed --no-deps --quiet --report "$cache/torch.json" "$TORCH_SPEC" || return 0
  "$venv/bin/python" - "$cache/torch.json" <<'PYTHON'
import json
import sys

from pip._vendor.packaging.requirements import Requirement

with open(sys.argv[1]) as file:
    metadata = json.load(file)["install"][0]["metadata"]
needs = [Requirement(line) for line in metadata.get("requires_dist", [])]
here = [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
sys.exit(not any(name.startswith(("nvidia-", "cuda-", "pytorch-triton", "triton")) for name in here))
PYTHON
}

has_torch() {
  "$venv/bin/python" - "$TORCH_SPEC" <<'PYTHON'
import importlib.metadata
import sys

from pip._vendor.packaging.requirements import Requirement

installed = importlib.metadata.version("torch")
sys.exit(not Requirement(sys.argv[1]).specifier.contains(installed, prereleases=True))
PYTHON
}

install_torch() {
  local index=$TORCH_INDEX_URL
  if has_torch 2>/dev/null; then return; fi
  if [[ -z $index ]] && torch_brings_cuda >>"$log" 2>&1; then index=$TORCH_CPU_INDEX; fi
  step "$TORCH_SPEC from ${index:-the index that pip is configured for}" \
    pip_install ${index:+--index-url "$index"} "$TORCH_SPEC"
}

# kp is a source package whose build fetches headers and libraries unless told otherwise. Its setup.py glues two CMake
# flags together when the version check is off, so that PYTHON_EXECUTABLE is lost; the toolchain file brings it back.
build_kp() {
  pip_install pybind11
  printf 'set(PYTHON_EXECUTABLE "%s" CACHE FILEPATH "" FORCE)\n' "$venv/bin/python" >"$cache/python.cmake"
  CMAKE_TOOLCHAIN_FILE=$cache/python.cmake \
    CMAKE_PREFIX_PATH=$("$venv/bin/python" -m pybind11 --cmakedir) \
    KOMPUTE_OPT_INSTALL=OFF \
    KOMPUTE_OPT_USE_BUILT_IN_VULKAN_HEADER=OFF \
    KOMPUTE_OPT_USE_BUILT_IN_FMT=OFF \
    KOMPUTE_OPT_USE_BUILT_IN_PYBIND11=OFF \
    KOMPUTE_OPT_DISABLE_VULKAN_VERSION_CHECK=ON \
    pip_install --no-deps "$KP_SPEC"
  "$venv/bin/python" -c 'import kp'
}

install_kp() {
  "$venv/bin/python" -c 'import kp' 2>/dev/null && return
  step "$KP_SPEC, built from source (1 to 2 minutes)" build_kp
}

# ---- prebuilt ggml ---------------------------------------------------------------------------------------------------

fetch_ggml() {
  local build=$1 version=$2 integrity=$3 work=$cache/ggml/$1.part
  rm -rf "$work"
  mkdir -p "$work"
  npm pack --ignore-scripts --loglevel=error --pack-destination "$work" "$GGML_PACKAGE@$version"
  "$PYTHON" - "$integrity" "$work"/*.tgz <<'PYTHON'
import base64
import hashlib
import sys

wanted, path = sys.argv[1:]
with open(path, "rb") as file:
    got = "sha512-" + base64.b64encode(hashlib.sha512(file.read()).digest()).decode()
if got != wanted:
    sys.exit(f"{path} is not the file that was pinned: its integrity is {got}, not {wanted}")
PYTHON
  tar -xzf "$work"/*.tgz -C "$work"
  rm -rf "${cache:?}/ggml/$build"
  mv "$work/package/bins/linux-x64-vulkan" "$cache/ggml/$build"
  rm -rf "$work"
}

install_ggml() {
  local line build version integrity
  if ! is_linux_x64; then
    say "ggml: the prebuilt libraries are for Linux on x86-64; give your own build with --ggml-lib"
    return
  fi
  for line in "${ggml_builds[@]}"; do
    read -r build version integrity <<<"$line"
    [[ -e $cache/ggml/$build/libggml-base.so ]] && continue
    step "ggml $build in .cache/ggml/$build ($GGML_PACKAGE@$version)" fetch_ggml "$build" "$version" "$integrity"
  done
}

# ----------------------------------------------------------------------------------------------------------------------

if (($#)); then # it takes no arguments; --help or anything else prints the lines at the top
  sed -n '2,/^set /s/^# \{0,1\}//p' tools/setup.sh
  [[ $1 == --help ]] && exit || exit 2
fi
if is_done; then exit; fi
mkdir -p "$cache/ggml"
: >"$log"
cat <<END
Setting up Opconform; what is already there is kept.
  system   compilers, a Vulkan and an OpenCL driver for the CPU, npm, Chromium (by apt-get; only what is missing)
  .venv    opconform itself with its tools, NVRTC, pyopencl, $TORCH_SPEC, $KP_SPEC
  .cache   four prebuilt ggml builds, 25 MB each to fetch, 75 MB each on disk
END
command -v "$PYTHON" >/dev/null || die "there is no $PYTHON; install python3 (3.10 or newer) or set PYTHON"
install_system_packages
make_venv
step "opconform, editable, with its development tools and pyopencl" pip_install -e ".[dev,opencl,xdist]"
install_torch
install_kp
install_ggml
step "all of it can be imported" "$venv/bin/python" -c 'import kp, opconform, pyopencl, torch'
rm -f "$log.step"
fingerprint >"$stamp"
say "Ready: .venv/bin/opconform list"

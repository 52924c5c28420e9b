#!/usr/bin/env bash
# Installs what Opconform and all its backends need, and makes .venv in the checkout. Run it again at any time: what is
# there already is kept, and a run with nothing to do takes no time. Where something cannot be had, the set-up names it,
# says what will be missing, and goes on, unless the backends need it. With CI=true it stops instead.
#
#   tools/setup.sh           set everything up
#   tools/setup.sh backends  print the options that name every backend which has been set up
#
#   PYTHON             the Python (3.10 or newer) to make .venv with; default python3
#   TORCH_SPEC         the torch to install; default torch==2.13.0
#   TORCH_INDEX_URL    the index to install it from; default: pip's own, or PyTorch's CPU index where pip's own would
#                      bring CUDA libraries along (several GB)
#   OPCONFORM_WITHOUT  what to do without, such as "torch oclgrind": it is not installed, and CI=true does not ask for it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
TORCH_SPEC=${TORCH_SPEC:-torch==2.13.0}
OPCONFORM_WITHOUT=${OPCONFORM_WITHOUT:-}
TORCH_INDEX_URL=${TORCH_INDEX_URL:-}
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
KP_SPEC=kp==0.9.0
GGML_PACKAGE=@node-llama-cpp/linux-x64-vulkan

venv=$PWD/.venv
cache=$PWD/.cache # may be a link to a folder that several checkouts share
stamp=$venv/.setup
absent=$venv/.absent # a line for each thing that was left out: its name, a colon, why, and what is missing

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

# attempt TITLE COMMAND…: say what is being done and keep its output in the log. Sets `failed`. It always returns 0, and
# the subshell stands in no condition: there bash ignores `set -e`, and a function would run on past a failing command.
attempt() {
  local title=$1 begin=$SECONDS
  shift
  printf '%s … ' "$title"
  printf '\n### %s: %s\n' "$title" "$*" >"$work/step"
  set +e
  (
    set -e
    "$@"
  ) >>"$work/step" 2>&1 </dev/null 9>&- # 9 is the lock, which nothing that was started may hold on to
  failed=$?
  set -e
  cat "$work/step" >>"$log"
  if ((failed)); then say "FAILED"; else say "done ($((SECONDS - begin)) s)"; fi
}

# step TITLE COMMAND…: an attempt that must succeed.
step() {
  attempt "$@"
  ((failed)) || return 0
  tail -n 25 "$work/step" | sed 's/^/    /' >&2
  die "$1 failed; all of its output is in ${log#"$PWD"/}"
}

does_without() { [[ " $OPCONFORM_WITHOUT " == *" $1 "* ]]; }

# leave_out NAME WHY LOST: note that something is left out. With CI=true only OPCONFORM_WITHOUT allows that.
leave_out() {
  if [[ ${CI:-} == true ]] && ! does_without "$1"; then
    demanded+=("  $1: $2")
  else
    left_out+=("$1: $2; missing without it: $3")
  fi
}

# Ends the set-up where something was left out that CI asks for.
stop_for_demands() {
  ((${#demanded[@]} == 0)) ||
    die "with CI=true these must be there, unless OPCONFORM_WITHOUT names them:" "${demanded[@]}" \
      "The log is ${log#"$PWD"/}."
}

# with_lock COMMAND…: one set-up at a time, of those that share .cache.
with_lock() {
  if command -v flock >/dev/null; then
    exec 9>"$cache/setup.lock"
    flock -n 9 || { say "Waiting for another set-up that shares .cache …" && flock 9; }
  fi
  "$@"
  exec 9>&-
}

fingerprint() {
  { cat tools/setup.sh pyproject.toml && say "$PWD $PYTHON $TORCH_SPEC $TORCH_INDEX_URL $OPCONFORM_WITHOUT"; } | sha256sum | cut -d' ' -f1
}

is_linux_x64() { [[ $(uname -s) == Linux && $(uname -m) == x86_64 ]]; }

has_ggml() {
  local build
  is_linux_x64 || return 0
  for build in "${ggml_builds[@]}"; do
    [[ -e $cache/ggml/${build%% *}/libggml-base.so ]] || return 1
  done
}

# Whether nothing was left out that CI asks for.
is_complete() {
  local name
  [[ ${CI:-} == true && -e $absent ]] || return 0
  while IFS=: read -r name _; do
    does_without "$name" || return 1
  done <"$absent"
}

is_done() {
  [[ -x $venv/bin/opconform && -e $stamp && $(<"$stamp") == "$(fingerprint)" ]] && has_ggml && is_complete
}

# ---- system packages -------------------------------------------------------------------------------------------------

can_include() { printf '#include <%s>\n' "$1" | g++ -E -x c++ - >/dev/null 2>&1; }
can_load() { "$PYTHON" -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$1" >/dev/null 2>&1; }
has_icd() { compgen -G "/usr/share/vulkan/icd.d/$1" >/dev/null || compgen -G "/etc/vulkan/icd.d/$1" >/dev/null; }
has_validation_layer() { compgen -G "/usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json" >/dev/null; }
has_opencl_icd() { compgen -G '/etc/OpenCL/vendors/*.icd' >/dev/null; }
has_python_headers() { [[ -e $("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]]; }
has_browser() { command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; }
can_fetch_ggml() { does_without ggml || has_ggml || command -v npm; }
has_glsl_compiler() { command -v glslc >/dev/null || command -v glslangValidator >/dev/null; }

# What has to be there: the Debian package that brings it (or other distributions' names for it), a test for it, what it
# is for, and what is missing without it. Where the last field is empty, the backends need it.
pieces=(
  "python3|command -v $PYTHON|Python; PYTHON names another one|"
  "python3-venv|$PYTHON -c 'import ensurepip, venv'|virtual environments|"
  "python3-dev|has_python_headers|building Kompute|"
  "g++|command -v g++|building Kompute, and CUDA kernels for the CPU|"
  "make|command -v make|building Kompute|"
  "cmake|command -v cmake|building Kompute|"
  "libfmt-dev|can_include fmt/core.h|building Kompute|"
  "libvulkan-dev|can_include vulkan/vulkan.h|building Kompute|"
  "libvulkan1|can_load libvulkan.so.1|the Vulkan loader|"
  "mesa-vulkan-drivers|has_icd '*'|a Vulkan driver; Mesa's lavapipe runs on the CPU|"
  "glslc glslang-tools|has_glsl_compiler|compiling the Vulkan shaders|"
  "ocl-icd-libopencl1|can_load libOpenCL.so.1|the OpenCL loader|"
  "pocl-opencl-icd|has_opencl_icd|an OpenCL driver; PoCL runs on the CPU|"
  "npm|can_fetch_ggml|fetching prebuilt ggml libraries|"
  "spirv-tools|command -v spirv-val|validating the compiled shaders|the test that validates the shaders"
  "oclgrind|command -v oclgrind|checking OpenCL kernels|--sanitize with OpenCL, and its tests"
  "vulkan-validationlayers|has_validation_layer|checking Vulkan|--sanitize with Vulkan, and its tests"
  "chromium|has_browser|a test that opens the HTML report|the test of the HTML report in a browser"
  "chromium-driver|command -v chromedriver|the same test|the test of the HTML report in a browser"
)
torch_lost="the backend torch, and the tests that need it"
ggml_lost="the backend ggml with prebuilt libraries, and the tests that need them"

# read_piece PIECE: sets packages, name (the first of them), test, purpose, lost.
read_piece() {
  IFS='|' read -r packages test purpose lost <<<"$1"
  name=${packages%% *}
}

# The names that OPCONFORM_WITHOUT may have.
optional() {
  local piece packages name test purpose lost
  for piece in "${pieces[@]}"; do
    read_piece "$piece"
    [[ -z $lost ]] || printf '%s ' "$name"
  done
  printf 'torch ggml'
}

check_names() {
  local name names
  names=$(optional)
  for name in $OPCONFORM_WITHOUT; do
    [[ " $names " == *" $name "* ]] || die "OPCONFORM_WITHOUT has '$name'; it may have: $names"
  done
}

# Sets `missing`: the pieces that are not there, and that OPCONFORM_WITHOUT does not name.
look_for_pieces() {
  local piece
  missing=()
  for piece in "${pieces[@]}"; do
    read_piece "$piece"
    does_without "$name" || eval "$test" >/dev/null 2>&1 || missing+=("$piece")
  done
}

# has_package NAME: whether apt-get can install it. On Ubuntu some packages are empty and stand for a snap, which
# containers and build machines cannot install.
has_package() {
  local version
  version=$(LC_ALL=C apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: //p')
  [[ -n $version && $version != "(none)" && $version != *snap* ]]
}

# Sets `root`: the words that run apt-get as root, or `hindrance`, why that cannot be.
find_root() {
  root=() hindrance=
  if ! command -v apt-get >/dev/null; then
    hindrance="there is no apt-get here"
  elif ((EUID == 0)); then
    root=(env)
  elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || { [[ -t 0 ]] && sudo -v; }; }; then
    root=(sudo)
  else
    hindrance="installing it takes root, and there is no sudo that may be used here"
  fi
}

# install HOW PACKAGE…: HOW is `step` or `attempt`.
install() {
  "$1" "apt-get install ${*:2}" "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -o DPkg::Lock::Timeout=600 install -y --no-install-recommends "${@:2}"
}

install_system_packages() {
  local piece package packages name test purpose lost needed=() wanted=() root hindrance
  for piece in "${pieces[@]}"; do
    read_piece "$piece"
    if does_without "$name" && ! eval "$test" >/dev/null 2>&1; then
      leave_out "$name" "OPCONFORM_WITHOUT names it" "$lost"
    fi
  done
  look_for_pieces
  ((${#missing[@]})) || return 0
  say "Missing from the system:"
  for piece in "${missing[@]}"; do
    read_piece "$piece"
    printf '  %-24s %s\n' "$name" "$purpose"
  done
  find_root
  if [[ -z $hindrance ]]; then
    step "apt-get update" "${root[@]}" apt-get update
    for piece in "${missing[@]}"; do
      read_piece "$piece"
      for package in $packages; do
        has_package "$package" || continue
        if [[ -z $lost ]]; then needed+=("$package"); else wanted+=("$package"); fi
        break
      done
    done
    if ((${#needed[@]})); then install step "${needed[@]}"; fi
    if ((${#wanted[@]})); then
      install attempt "${wanted[@]}"
      if ((failed)); then # perhaps for one of them only
        for package in "${wanted[@]}"; do install attempt "$package"; done
      fi
    fi
    look_for_pieces
  fi
  needed=()
  for piece in "${missing[@]}"; do
    read_piece "$piece"
    if [[ -z $lost ]]; then
      needed+=("$(printf '  %-24s %s' "$name" "$purpose")")
    elif [[ -n $hindrance ]]; then
      leave_out "$name" "$hindrance" "$lost"
    elif ! has_package "$name"; then
      leave_out "$name" "this distribution has no such package" "$lost"
    else
      leave_out "$name" "apt-get could not install it (the log says why)" "$lost"
    fi
  done
  if ((${#needed[@]})); then
    die "these are missing, and ${hindrance:-apt-get did not bring them}:" \
      "${needed[@]}" "The backends need them. Install them by hand, then run this again; the names are Debian's."
  fi
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
  pip_install --dry-run --ignore-installed --no-deps --quiet --report "$work/torch.json" "$TORCH_SPEC" || return 0
  "$venv/bin/python" - "$work/torch.json" <<'PYTHON'
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
  if does_without torch; then
    leave_out torch "OPCONFORM_WITHOUT names it" "$torch_lost"
    return
  fi
  if [[ -z $index ]] && torch_brings_cuda >>"$log" 2>&1; then index=$TORCH_CPU_INDEX; fi
  attempt "$TORCH_SPEC from ${index:-the index that pip is configured for}" \
    pip_install ${index:+--index-url "$index"} "$TORCH_SPEC"
  if ((failed)); then
    grep -E '^ERROR' "$work/step" | sed 's/^/    /' >&2 || true
    leave_out torch "pip could not install it (the log says why)" "$torch_lost"
  fi
}

# kp is a source package whose build fetches headers and libraries unless told otherwise. Its setup.py glues two CMake
# flags together when the version check is off, so that PYTHON_EXECUTABLE is lost; the toolchain file brings it back. Its
# debug layers do not compile with the headers of Vulkan 1.4; --sanitize turns the validation layer on without them.
build_kp() {
  pip_install pybind11
  printf 'set(PYTHON_EXECUTABLE "%s" CACHE FILEPATH "" FORCE)\n' "$venv/bin/python" >"$work/python.cmake"
  CMAKE_TOOLCHAIN_FILE=$work/python.cmake \
    CMAKE_PREFIX_PATH=$("$venv/bin/python" -m pybind11 --cmakedir) \
    KOMPUTE_OPT_INSTALL=OFF \
    KOMPUTE_OPT_USE_BUILT_IN_VULKAN_HEADER=OFF \
    KOMPUTE_OPT_USE_BUILT_IN_FMT=OFF \
    KOMPUTE_OPT_USE_BUILT_IN_PYBIND11=OFF \
    KOMPUTE_OPT_DISABLE_VULKAN_VERSION_CHECK=ON \
    KOMPUTE_OPT_DISABLE_VK_DEBUG_LAYERS=ON \
    pip_install --no-deps "$KP_SPEC"
  "$venv/bin/python" -c 'import kp'
}

install_kp() {
  "$venv/bin/python" -c 'import kp' 2>/dev/null && return
  step "$KP_SPEC, built from source (1 to 2 minutes)" build_kp
}

# ---- prebuilt ggml ---------------------------------------------------------------------------------------------------

# fetch_ggml BUILD VERSION INTEGRITY: the folder appears whole or not at all, since others may be using it.
fetch_ggml() {
  local build=$1 version=$2 integrity=$3 part=$work/$1 place=$cache/ggml/$1
  mkdir -p "$part"
  npm pack --ignore-scripts --loglevel=error --pack-destination "$part" "$GGML_PACKAGE@$version"
  "$PYTHON" - "$integrity" "$part"/*.tgz <<'PYTHON'
import base64
import hashlib
import sys

wanted, path = sys.argv[1:]
with open(path, "rb") as file:
    got = "sha512-" + base64.b64encode(hashlib.sha512(file.read()).digest()).decode()
if got != wanted:
    sys.exit(f"{path} is not the file that was pinned: its integrity is {got}, not {wanted}")
PYTHON
  tar -xzf "$part"/*.tgz -C "$part"
  [[ -e $place/libggml-base.so ]] || rm -rf "$place"
  mv -T "$part/package/bins/linux-x64-vulkan" "$place" || [[ -e $place/libggml-base.so ]] # another set-up was faster
  rm -rf "$part"
}

install_ggml() {
  local line build version integrity
  if ! is_linux_x64; then
    leave_out ggml "the prebuilt libraries are for Linux on x86-64; give your own build with --ggml-lib" "$ggml_lost"
    return
  fi
  if does_without ggml && ! has_ggml; then
    leave_out ggml "OPCONFORM_WITHOUT names it" "$ggml_lost"
    return
  fi
  for line in "${ggml_builds[@]}"; do
    read -r build version integrity <<<"$line"
    [[ -e $cache/ggml/$build/libggml-base.so ]] && continue
    step "ggml $build in .cache/ggml/$build ($GGML_PACKAGE@$version)" fetch_ggml "$build" "$version" "$integrity"
  done
}

# Every process that a run starts reads the compiled files, also where Python is told not to write any of its own
# (PYTHONDONTWRITEBYTECODE, as in many images of containers): to compile them each time is a third of the start.
compile_sources() { "$venv/bin/python" -m compileall -q opconform backends cases harness reports; }

# ---- what has been set up ----------------------------------------------------------------------------------------------

# Prints the backends as options, and on stderr a line for each that was left out.
name_backends() {
  local name
  printf ' --backend %s' vulkan opencl cuda-host
  for name in torch ggml; do
    if [[ -e $absent ]] && grep -q "^$name:" "$absent"; then
      sed -n "s/^$name:/Left out: &/p" "$absent" >&2
      continue
    fi
    printf ' --backend %s' "$name"
  done
  printf '\n'
}

# ----------------------------------------------------------------------------------------------------------------------

case $* in
  "") ;;
  backends) name_backends && exit ;;
  *) # --help or anything else prints the lines at the top
    sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' tools/setup.sh
    [[ $* == --help ]] && exit || exit 2
    ;;
esac
check_names
if is_done; then
  compile_sources
  exit
fi
mkdir -p "$cache/ggml"
find "$cache/" -maxdepth 1 -name 'setup-*' -mtime +7 -exec rm -rf {} + # of set-ups that failed or were ended
work=$(mktemp -d "$cache/setup-XXXXXX")
log=$(mktemp --suffix=.log "$cache/setup-XXXXXX")
trap 'rm -rf "$work"' EXIT
left_out=() demanded=()
cat <<END
Setting up Opconform; what is already there is kept.
  system   compilers, a Vulkan and an OpenCL driver for the CPU, npm, Chromium (by apt-get; only what is missing)
  .venv    opconform itself with its tools, NVRTC, pyopencl, $TORCH_SPEC, $KP_SPEC
  .cache   four prebuilt ggml builds, 25 MB each to fetch, 75 MB each on disk
END
with_lock install_system_packages
stop_for_demands
make_venv
step "opconform, editable, with its development tools and pyopencl" pip_install -e ".[dev,opencl,xdist]"
install_torch
stop_for_demands
install_kp
with_lock install_ggml
stop_for_demands
step "what was installed can be imported" "$venv/bin/python" -c 'import kp, opconform, pyopencl'
if [[ ${left_out[*]} != *torch:* ]]; then step "torch can be imported" "$venv/bin/python" -c 'import torch'; fi
mv -f "$log" "$cache/setup.log"
rm -f "$absent"
if ((${#left_out[@]})); then
  say "Left out:"
  printf '  %s\n' "${left_out[@]}"
  printf '%s\n' "${left_out[@]}" >"$absent"
  say "The log is .cache/setup.log. To try these again, remove .venv/.setup first."
fi
fingerprint >"$stamp"
compile_sources
say "Ready: .venv/bin/opconform list"

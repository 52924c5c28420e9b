#!/usr/bin/env bash
# Tries a checkout on a fresh machine: makes a bare tree of a distribution, copies the last commit into it, sets
# everything up there, and runs a command. Everything is removed at the end.
#
#   tools/fresh.sh DISTRIBUTION            make run, then make test
#   tools/fresh.sh DISTRIBUTION COMMAND …  the command, in the checkout, after make setup; `bash` to look around
#
#   DISTRIBUTION  debian:12 (bookworm), debian:13 (trixie) or ubuntu:24.04 (noble)
#   FRESH_BY      docker, podman or chroot (which takes root and debootstrap); default: the first that can be used here
#   FRESH_DIR     a folder for the tree of a chroot; it is kept, and used again the next time
#   MIRROR        where debootstrap takes the packages from; default: this machine's apt sources, or debootstrap's own
#
# CI, SEED, OPCONFORM_WITHOUT and TORCH_… count inside as they do outside. So does what this machine needs to reach the
# network: proxies, certificates, the settings of apt, and the indexes that pip and npm are configured for.
set -euo pipefail

say() { printf '%s\n' "$*"; }
die() {
  printf 'fresh: %s\n' "$*" >&2
  exit 2
}

usage() { sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }

case ${1:-} in
  "") usage >&2 && exit 2 ;;
  --help) usage && exit ;;
  debian:12 | bookworm) id=debian codename=bookworm image=debian:12 ;;
  debian:13 | trixie) id=debian codename=trixie image=debian:13 ;;
  ubuntu:24.04 | noble) id=ubuntu codename=noble image=ubuntu:24.04 ;;
  *) die "there is no distribution '$1' here; there are debian:12, debian:13 and ubuntu:24.04" ;;
esac
shift
if (($# == 0)); then set -- bash -c 'make run && make test'; fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# ---- how -------------------------------------------------------------------------------------------------------------

answers() { command -v "$1" >/dev/null && "$1" info >/dev/null 2>&1; }
can_chroot() { ((EUID == 0)) && command -v debootstrap >/dev/null && command -v unshare >/dev/null; }

by=${FRESH_BY:-}
case $by in
  "")
    if [[ -n ${FRESH_DIR:-} ]] && can_chroot; then
      by=chroot
    else
      for name in docker podman; do
        if [[ -z $by ]] && answers "$name"; then by=$name; fi
      done
      if [[ -z $by ]] && can_chroot; then by=chroot; fi
    fi
    [[ -n $by ]] || die "this takes docker or podman, or else root and debootstrap; none of them can be used here"
    ;;
  podman | docker) answers "$by" || die "FRESH_BY is $by, and \`$by info\` fails here" ;;
  chroot) can_chroot || die "FRESH_BY is chroot, which takes root, debootstrap and unshare" ;;
  *) die "FRESH_BY is '$by'; it may be docker, podman or chroot" ;;
esac
[[ -z ${FRESH_DIR:-} || $by == chroot ]] || die "FRESH_DIR is for a chroot, and FRESH_BY is $by"

# ---- what the tree gets from this machine ----------------------------------------------------------------------------

work=$(mktemp -d "${TMPDIR:-/tmp}/opconform-fresh-XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT # what is mounted in it is mounted in a namespace of its own
trap 'exit 130' INT
trap 'exit 143' TERM HUP
host=$work/host
mkdir -p "$host/files"
folders=() # to be seen inside under the same path

# export_variable NAME VALUE
export_variable() { printf 'export %s=%q\n' "$1" "$2" >>"$host/environment"; }

# show PATH: have a file or a folder of this machine inside, under the same path.
show() {
  local path
  path=$(realpath -e "$1" 2>/dev/null) || return 0
  if [[ -d $path ]]; then
    [[ " ${folders[*]} " == *" $path "* ]] || folders+=("$path")
  else
    mkdir -p "$host/files$(dirname "$1")"
    cp "$path" "$host/files$1"
  fi
}

# pip's settings, wherever they are written, as PIP_… variables.
pip_settings() {
  "${PYTHON:-python3}" -m pip --disable-pip-version-check config list 2>/dev/null | "${PYTHON:-python3}" -c '
import ast, sys
for line in sys.stdin:
    key, _, value = line.rstrip("\n").partition("=")
    section, _, name = key.partition(".")
    if section in ("global", "install"):
        print("PIP_" + name.upper().replace("-", "_"), " ".join(ast.literal_eval(value).split()), sep="=")
' || true
}

copy_settings() {
  local line name value word
  while IFS='=' read -r name value; do
    [[ -n ${!name:-} ]] || export "$name=$value"
  done < <(pip_settings)
  if command -v npm >/dev/null; then
    for name in registry cafile proxy https-proxy noproxy strict-ssl; do
      value=$(npm config get "$name" 2>/dev/null) || continue
      case $value in "" | null | undefined) ;; *) export "npm_config_${name//-/_}=$value" ;; esac
    done
  fi
  while read -r name; do
    case ${name,,} in
      http_proxy | https_proxy | ftp_proxy | all_proxy | no_proxy) ;;
      ssl_cert_file | requests_ca_bundle | curl_ca_bundle | node_extra_ca_certs | git_ssl_cainfo | npm_config_cafile) ;;
      pip_* | npm_config_* | openblas_* | torch_spec | torch_index_url | opconform_without | ci | seed | term) ;;
      *) continue ;;
    esac
    export_variable "$name" "${!name}"
    for word in ${!name}; do
      word=${word#file://}
      [[ $word == /* && $name != TERM ]] || continue
      show "${word%/simple}" # the files of an index lie beside its pages
    done
  done < <(compgen -e)
  for word in /usr/local/share/ca-certificates/*.crt /etc/ssl/certs/ca-certificates.crt; do
    if [[ -f $word ]]; then show "$word"; fi
  done
  if command -v apt-config >/dev/null; then
    apt-config dump Acquire | grep -E '::(Proxy|CaInfo|Verify-Peer|Verify-Host) ' >"$host/apt.conf" || true
  fi
}

# Runs inside, as root.
cat >"$host/inside.sh" <<'INSIDE'
set -euo pipefail
source /host/environment
export DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8
quietly() { "$@" >/tmp/fresh.log 2>&1 || { tail -n 25 /tmp/fresh.log >&2 && exit 1; }; }
if [[ -s /host/apt.conf ]]; then cp /host/apt.conf /etc/apt/apt.conf.d/99fresh; fi
cp -R /host/files/. /
quietly apt-get update
quietly apt-get install -y --no-install-recommends ca-certificates git make
cp -R /host/files/. / # the installation has written /etc/ssl/certs/ca-certificates.crt anew
git init -q /root/opconform
cd /root/opconform
git fetch -q /host/opconform.bundle HEAD
git checkout -q --force --detach FETCH_HEAD
unset DEBIAN_FRONTEND
make setup
"$@"
INSIDE

if [[ -n $(git status --porcelain) ]]; then say "What is not committed is not tried."; fi
git bundle create -q "$host/opconform.bundle" HEAD
: >"$host/environment"
copy_settings

# ---- the tree --------------------------------------------------------------------------------------------------------

# Both set `run`, the words that go before a command to run it inside.

in_container() {
  local folder
  run=("$by" run --rm -i -v "$host:/host:ro")
  if [[ -t 0 && -t 1 ]]; then run+=(-t); fi
  for folder in "${folders[@]}"; do run+=(-v "$folder:$folder:ro"); done
  run+=("$image")
}

# The mirror of the distribution that this machine's own packages come from; nothing where it is another distribution's.
own_mirror() {
  local ID='' VERSION_CODENAME=''
  source /etc/os-release
  [[ $ID == "$id" ]] || return 0
  apt-get indextargets --format "\$(RELEASE) \$(REPO_URI)" 'Created-By: Packages' |
    awk -v release="$VERSION_CODENAME" '$1 == release { print $2; exit }'
}

make_tree() {
  local mirror=${MIRROR:-} keyring=/usr/share/keyrings/$id-archive-keyring.gpg options=(--variant=minbase) more=() proxy=''
  [[ -r $keyring ]] || die "there is no $keyring, which the packages are checked with; the package $id-archive-keyring has it"
  [[ $id != ubuntu ]] || options+=(--components=main,universe)
  [[ -n $mirror ]] || mirror=$(own_mirror)
  if [[ ! -e /usr/share/debootstrap/scripts/$codename ]]; then # newer than this debootstrap; Ubuntu's are all alike
    [[ $id == ubuntu && -n $mirror ]] || die "this debootstrap does not know $codename; a newer one does"
    more=(/usr/share/debootstrap/scripts/gutsy)
  fi
  if command -v apt-config >/dev/null && [[ -z ${http_proxy:-} ]]; then
    eval "$(apt-config shell proxy Acquire::http::Proxy)"
    if [[ -n $proxy && $proxy != DIRECT ]]; then export http_proxy=$proxy; fi
  fi
  say "Making a tree of $image in $tree …"
  debootstrap "${options[@]}" --include=ca-certificates --keyring="$keyring" "$codename" "$tree" \
    ${mirror:+"$mirror"} "${more[@]}" >"$work/debootstrap.log" 2>&1 ||
    { tail -n 15 "$work/debootstrap.log" >&2 && die "debootstrap failed"; }
  printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d" # no service is to be started in there
  chmod +x "$tree/usr/sbin/policy-rc.d"
  touch "$tree/.fresh-$codename"
}

# The mounts, and all processes, end with the namespaces that they are made in.
in_chroot() {
  local file
  tree=${FRESH_DIR:-$work/tree}
  if [[ ! -e $tree/.fresh-$codename ]]; then
    [[ -z $(ls -A "$tree" 2>/dev/null) ]] || die "FRESH_DIR is $tree, which holds something other than a tree of $image"
    mkdir -p "$tree"
    make_tree
  fi
  for file in /etc/resolv.conf /etc/hosts; do cp -L --remove-destination "$file" "$tree$file"; done
  mkdir -p "$tree/host"
  run=(unshare --mount --pid --fork --kill-child bash -c '
    set -euo pipefail
    tree=$1 host=$2 count=$3
    mount -t proc proc "$tree/proc"
    mount --rbind /sys "$tree/sys"
    mount --rbind /dev "$tree/dev"
    mount --bind -o ro "$host" "$tree/host"
    for folder in "${@:4:count}"; do
      mkdir -p "$tree$folder"
      mount --bind -o ro "$folder" "$tree$folder"
    done
    shift $((3 + count))
    status=0 # not exec: something has to be process 1 in there
    chroot "$tree" /usr/bin/env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
      "$@" || status=$?
    exit "$status"
  ' bash "$tree" "$host" "${#folders[@]}" "${folders[@]}")
}

main() { # bash has read all of this file before it runs a line of main, so the checkout may change meanwhile
  local begin=$SECONDS status=0 tree run=()
  case $by in
    chroot) in_chroot ;;
    *) in_container ;;
  esac
  "${run[@]}" /bin/bash /host/inside.sh "$@" || status=$?
  say "$image by $by: exit status $status after $((SECONDS - begin)) s"
  exit "$status"
}
main "$@"

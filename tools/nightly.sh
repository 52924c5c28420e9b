#!/usr/bin/env bash
# The nightly run on one machine, with the commands of .github/workflows/nightly.yml: the shards of every build, one
# after another; merged; compared with the night before; and a report of it all. Ends 0; 1 on a regression, or where an
# entry of known_failures.toml has expired or matches nothing; 2 and above where a step could not be done.
#
#   tools/nightly.sh         all of it
#   tools/nightly.sh judge   only what follows the searches, for the shards that other machines left in NIGHTLY_DIR
#
#   BUDGET          minutes for the searches of all shards and builds together; default 30
#   SHARDS          how many shards; default 2
#   GGML_LIB        a folder with libggml; default $OPCONFORM_GGML_LIB. It is tested with every other backend of this machine
#   EXTRA_GGML      more ggml builds, as NAME=FOLDER with blanks between; each is tested as --backend ggml@NAME, so that its
#                   results have a history of their own. Keep the name when the build changes: then it is compared
#   KNOWN_FAILURES  the expected failures; default known_failures.toml where there is one
#   KNOWN_CASES     folders of case files that run as known cases, with blanks between: such as opconform import writes of
#                   the models that you serve
#   WATCH           minutes for tiny models of every architecture, watched on each device of each ggml build; default a
#                   third of BUDGET, 0 leaves them out. It comes on top of BUDGET
#   NIGHTLY_DIR     where everything goes; default opconform-out/nightly
#   NIGHTLY_ARGS    more options for `opconform test`, such as "--op acc,set"
#   OPCONFORM       the command; default .venv/bin/opconform
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,/^set /s/^# \{0,1\}//p' tools/nightly.sh; }
case $* in
  "" | judge) ;;
  --help) usage && exit ;;
  *) usage >&2 && exit 2 ;;
esac

opconform=${OPCONFORM:-.venv/bin/opconform}
out=${NIGHTLY_DIR:-opconform-out/nightly}
listed=(${KNOWN_FAILURES:+--known-failures "$KNOWN_FAILURES"})

# search NAME OPTION…: every shard of one build, each with its share of the time that is left. A failure of a test is no
# failure of the step: what is new in it is for `opconform compare` to say.
search() {
  local name=$1 shard seconds
  shift
  for ((shard = 1; shard <= shards; shard++)); do
    seconds=$(((end - $(date +%s)) / left--))
    printf '\n== %s, shard %s of %s\n' "$name" "$shard" "$shards"
    "$opconform" test "$@" --profile nightly --minutes "$(awk "BEGIN { print ($seconds > 3 ? $seconds : 3) / 60 }")" \
      --seed "$seed" --shard "$shard/$shards" --report-dir "$out" --history "$out/shard-$name-$shard.sqlite" \
      "${listed[@]}" "${more[@]}" || (($? == 1)) || exit 2
  done
}

# watch NAME OPTION…: a tiny model of every architecture on each device of a ggml build. What is wrong is again for
# `opconform compare` to judge.
watch() {
  local name=$1 share
  shift
  share=$(awk "BEGIN { print ${WATCH:-$BUDGET / 3} / (1 + ${#extra[@]}) }")
  if [[ $share == 0 ]]; then return; fi
  printf '\n== models on %s\n' "$name"
  "$opconform" watch --arch all "$@" --minutes "$share" --report-dir "$out" --history "$out/shard-watch-$name.sqlite" ||
    (($? == 1)) || exit 2
}

# run_all: the searches of every build; they leave $out/shard-*.sqlite.
run_all() {
  local shards=${SHARDS:-2} lib=${GGML_LIB:-${OPCONFORM_GGML_LIB:-}} more extra known folder build seed end left
  read -ra more <<<"${NIGHTLY_ARGS:-}"
  read -ra known <<<"${KNOWN_CASES:-}"
  for folder in "${known[@]}"; do more+=(--known-cases "$folder"); done
  read -ra extra <<<"${EXTRA_GGML:-}"
  [[ ${BUDGET:=30} =~ ^[0-9]+(\.[0-9]+)?$ ]] || wrong "BUDGET is '$BUDGET'; it must be a number of minutes"
  [[ ${WATCH:-0} =~ ^[0-9]+(\.[0-9]+)?$ ]] || wrong "WATCH is '$WATCH'; it must be a number of minutes"
  [[ $shards =~ ^[1-9][0-9]*$ ]] || wrong "SHARDS is '$shards'; it must be a whole number"
  for build in "${extra[@]}"; do
    [[ $build == ?*=?* ]] || wrong "EXTRA_GGML has '$build'; write NAME=FOLDER"
  done
  seed=$(date +%s)
  end=$((seed + $(awk "BEGIN { print int(60 * $BUDGET) }")))
  left=$((shards * (1 + ${#extra[@]})))
  mkdir -p "$out"
  rm -f "$out"/shard-*.sqlite*
  search main ${lib:+--ggml-lib "$lib"}
  for build in "${extra[@]}"; do
    search "${build%%=*}" --backend "ggml@${build%%=*}" --ggml-lib "${build#*=}"
  done
  if [[ $lib ]]; then watch main --backend ggml --ggml-lib "$lib"; fi
  for build in "${extra[@]}"; do
    watch "${build%%=*}" --backend "ggml@${build%%=*}" --ggml-lib "${build#*=}"
  done
}

wrong() {
  printf '%s\n' "$*" >&2
  exit 2
}

# judge: merge the shards in $out, compare them with the night before, write the report; returns the comparison's status.
judge() {
  local before=none status=0
  printf '\n== merge\n'
  rm -f "$out"/tonight.sqlite* "$out"/next.sqlite* "$out/summary.md"
  "$opconform" merge "$out/tonight.sqlite" "$out"/shard-*.sqlite
  "$opconform" merge --results "$out/history.sqlite" "$out/tonight.sqlite"

  printf '\n== compared with the night before\n'
  if [[ -e $out/previous.sqlite ]]; then before=$out/previous.sqlite; fi
  "$opconform" compare "$before" "$out/tonight.sqlite" "${listed[@]}" --summary "$out/summary.md" || status=$?
  if ((status > 1)); then return "$status"; fi

  printf '\n== report\n'
  "$opconform" report --history "$out/history.sqlite" --out "$out/report.html"
  "$opconform" merge --results "$out/next.sqlite" "$out/tonight.sqlite" >/dev/null
  mv "$out/next.sqlite" "$out/previous.sqlite"
  return "$status"
}

if [[ $* != judge ]]; then run_all; fi
judge

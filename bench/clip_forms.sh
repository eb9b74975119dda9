#!/bin/sh
# The forms of the clip range in the tiny network, GSPO and LUSPO: `sh bench/clip_forms.sh OUT [SEEDS] [CELL...]`.
# Each cell is one `luspo compare` into OUT/CELL, which goes on where it was stopped. Without names all cells run.
set -eu
out=${1:?folder for the runs} seeds=${2:-8}
[ $# -lt 2 ] && shift || shift 2
[ $# -gt 0 ] || set -- no-clip mean no-limit low-only high-only gspo-own root sum-wide sum-narrow \
    free-no-clip free-mean free-balanced balanced balanced-gspo-own balanced-root balanced-sum-wide balanced-sum-narrow

options() {
    case $1 in
    no-clip) echo clip_low=1.0 clip_high=1e9 ;;
    mean) echo clip_low=2e-3 clip_high=2.5e-3 ;;
    low-only) echo clip_low=2e-3 clip_high=1e9 ;;
    high-only) echo clip_low=1.0 clip_high=2.5e-3 ;;
    gspo-own) echo clip_low=3e-4 clip_high=4e-4 ;;
    root) echo clip_on=root clip_low=9.2e-3 clip_high=1.15e-2 ;;
    sum-wide) echo clip_on=sum clip_low=0.042 clip_high=0.0525 ;;
    sum-narrow) echo clip_on=sum clip_low=0.01 clip_high=0.0125 ;;
    no-limit) echo gradient_clip=0 "$(options mean)" ;; # the mean over tokens without a limit on the gradient's norm
    free-*) echo max_response_tokens=256 "$(options "${1#free-}")" ;; # a limit that next to nothing reaches
    balanced) echo clip_band=balanced "$(options mean)" ;;
    balanced-*) echo clip_band=balanced "$(options "${1#balanced-}")" ;;
    *) echo "clip_forms.sh: no cell '$1'" >&2; exit 2 ;;
    esac
}

for cell; do options "$cell" >/dev/null; done
for cell; do
    sets=
    for value in $(options "$cell"); do
        case $value in max_response_tokens*) section=rollout ;; gradient_clip*) section=update ;; *) section=objective ;; esac
        sets="$sets --set $section.$value"
    done
    # shellcheck disable=SC2086  # one word an option
    ${LUSPO:-luspo} compare --preset tiny --objectives gspo,luspo --seeds "$seeds" $sets --out "$out/$cell"
done

# Packages, build and timed stages, for apps/quickstart, tests/run and .ci/run, which source this file.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1
mkdir -p build
log=build/setup.log
printf '\n# %s, %s\n' "$0" "$(date)" >>"$log"

# What the build, the tests and the quick start need, by its Debian name (Ubuntu has the same names).
packages=(g++ cmake ninja-build ccache
  libdnnl-dev libhwy-dev liblbfgs-dev libeigen3-dev libfmt-dev librandom123-dev
  libcli11-dev libtomlplusplus-dev nlohmann-json3-dev libpng-dev zlib1g-dev libxxhash-dev libssl-dev
  catch2 librapidcheck-dev dataset-fashion-mnist)

fail() { # CODE WHAT HINT
  printf 'error: %s\nhint: %s\n' "$2" "$3" >&2
  exit "$1"
}

# Runs a command under a name, prints its seconds and remembers them in `stages` for a closing line.
stages=()
stage() { # NAME COMMAND...
  local name=$1 status=0 start=${EPOCHREALTIME/[.,]/} tenths
  shift
  printf '== %s\n' "$name"
  "$@" || status=$?
  tenths=$(((${EPOCHREALTIME/[.,]/} - start) / 100000))
  stages+=("$name $((tenths / 10)).$((tenths % 10))")
  if ((status == 0)); then echo "== ${stages[-1]} s"; else echo "== ${stages[-1]} s, failed" >&2; fi
  return "$status"
}

# Runs a command with its output in the log: on a terminal its latest line is shown, after a failure its end.
logged() {
  local status=0 before
  printf '\n$ %s\n' "$*" >>"$log"
  before=$(wc -l <"$log")
  if [[ -t 1 ]]; then
    "$@" 2>&1 | tee -a "$log" | while IFS= read -r line; do printf '\r\033[K%.78s' "$line"; done || status=$?
    printf '\r\033[K'
  else
    "$@" >>"$log" 2>&1 || status=$?
  fi
  if ((status != 0)); then
    tail -n +"$((before + 1))" "$log" | tail -n 40 >&2
    printf 'error: exit code %s of: %s\nhint: the whole output is in %s\n' "$status" "$*" "$root/$log" >&2
  fi
  return "$status"
}

missing_packages() {
  local installed package
  # shellcheck disable=SC2016 # dpkg-query, not the shell, reads the ${...}
  installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null) || true
  for package in "${packages[@]}"; do
    [[ $'\n'$installed$'\n' == *$'\n'"$package installed"$'\n'* ]] || printf '%s ' "$package"
  done
}

# Installs what is missing: at once if its argument is "yes" or CI=true, after asking on a terminal; else it stops
# with the line to type. Touches no network when nothing is missing.
install_packages() { # yes|ask
  local missing as_root=() install answer
  if ! command -v dpkg-query >/dev/null; then
    echo "not a Debian system: the packages below have to be there under their names on this system"
    echo "${packages[*]}"
    return 0
  fi
  read -ra missing <<<"$(missing_packages)"
  ((${#missing[@]} > 0)) || return 0
  ((EUID == 0)) || as_root=(sudo)
  install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive
    apt-get install --no-install-recommends -y "${missing[@]}")
  echo "missing packages: ${missing[*]}"
  if [[ $1 != yes && ${CI:-} != true ]]; then
    [[ -t 0 && -t 1 ]] || stop_with_install_line "${missing[@]}"
    read -r -p "Install them now? [Y/n] " answer
    [[ ${answer:-y} == [Yy]* ]] || stop_with_install_line "${missing[@]}"
  fi
  ((EUID == 0)) || command -v sudo >/dev/null || stop_with_install_line "${missing[@]}"
  logged "${as_root[@]}" apt-get update && logged "${install[@]}"
}

stop_with_install_line() { # PACKAGE...
  fail 5 "packages are missing" "as root: apt-get update && apt-get install --no-install-recommends -y $*"
}

# The same places in the same order as CMakeLists.txt.
find_nvcc() {
  local candidate
  for candidate in "${CUDA_HOME:-}/bin/nvcc" "${CUDA_PATH:-}/bin/nvcc" "$(command -v nvcc)" \
    /usr/local/cuda/bin/nvcc /opt/cuda/bin/nvcc; do
    [[ -x $candidate ]] && echo "$candidate" && return 0
  done
  return 1
}

# Whether CMakeLists.txt will find what the CUDA side needs: CUDA 13 or later and cuDNN's headers.
can_build_cuda() {
  local nvcc release folder
  nvcc=$(find_nvcc) || return 1
  release=$("$nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\).*/\1/p')
  ((${release:-0} >= 13)) || return 1
  folder=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
  for folder in "$folder/include" "${CUDA_HOME:-}/include" "${CUDNN_HOME:-}/include" /usr/include /usr/local/include \
    /usr/include/x86_64-linux-gnu; do
    [[ -e $folder/cudnn.h ]] && return 0
  done
  return 1
}

# Configures and builds build/PRESET; does next to nothing when it is up to date.
build() { # PRESET
  stage configure logged cmake --preset "$1" && stage build logged cmake --build --preset "$1"
}

# "seconds: configure 3.1, build 97.0, tests 40.2"
print_seconds() {
  local line
  line=$(printf '%s, ' "${stages[@]}")
  echo "seconds: ${line%, }"
}

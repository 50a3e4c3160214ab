#!/usr/bin/env bash
# Makes a machine one of a cluster: Python, raylingvo, JAX for its accelerator, and the environment of all commands.
#
#   setup.sh cpu|cuda12|tpu DATA_ROOT
#
# Cluster files copy here, into ~/raylingvo: constraints.txt, and dist/ with the wheel (or checkout/, the repository).
# Repeating it is harmless, and quick if nothing has changed. RAYLINGVO_PYTHON, such as 3.11.13, is a version for
# machines whose own Python differs: Ray wants the same one, to the last number, on all machines of a cluster.
set -euo pipefail

accelerator=$1 data_root=$2
home=~/raylingvo
venv=$home/venv

as_root() {
  if [[ $(id -u) == 0 ]]; then "$@"; else sudo "$@"; fi
}

install() { # of Debian or Ubuntu, which may be busy with its own updates just after it was started
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600)
  as_root "${apt[@]}" update && as_root "${apt[@]}" install -y "$@"
}

if [[ $accelerator == cuda12 && ! -e /proc/driver/nvidia/version ]]; then
  install ubuntu-drivers-common
  as_root ubuntu-drivers install --gpgpu
  as_root modprobe nvidia
fi

if [[ ! -x $venv/bin/python ]]; then
  python3 -c 'import ensurepip' 2>/dev/null || install python3-venv
  if [[ -n ${RAYLINGVO_PYTHON:-} ]]; then
    python3 -m venv $home/uv && $home/uv/bin/python -m pip install -q uv
    $home/uv/bin/uv venv -q --seed --python "$RAYLINGVO_PYTHON" $venv
  else
    python3 -m venv $venv
  fi
fi

if compgen -G "$home/dist/raylingvo-*.whl" >/dev/null; then
  # Those of earlier versions may lie there too.
  what=("$(printf '%s\n' "$home"/dist/raylingvo-*.whl | sort -V | tail -n 1)")
else
  what=("$home/checkout") # needs a C++ compiler
fi
if [[ $accelerator != cpu ]]; then
  # The extra of the JAX version that constraints.txt names.
  what+=("jax[$accelerator]")
fi
$venv/bin/python -m pip install -q -c $home/constraints.txt "${what[@]}"
# pip keeps what has the same version: a new wheel of the same one is to take its place all the same.
$venv/bin/python -m pip install -q --no-deps --force-reinstall "${what[0]}"

if [[ -e ~/.ray/auth_token ]]; then
  chmod 600 ~/.ray/auth_token
fi
cat >~/.raylingvo.env <<ENVIRONMENT
export PATH=$venv/bin:\$PATH
# Nobody who has not the token of ~/.ray/auth_token is answered.
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
export RAYLINGVO_DATA=$data_root
# How long a job that is stopped may take to write its checkpoint, in seconds.
export RAY_JOB_STOP_WAIT_TIME_S=300
# As in a Ray that a run starts for itself: training is what the machine is there for.
export RAY_worker_niceness=0
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0
ENVIRONMENT
for file in ~/.profile ~/.bashrc; do
  grep -qs raylingvo.env "$file" || echo '. ~/.raylingvo.env' >>"$file"
done

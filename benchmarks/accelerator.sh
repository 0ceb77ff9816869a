#!/bin/sh
# What mtjax does on this machine's accelerator, in about ten minutes; prints tables.
#
#     sh benchmarks/accelerator.sh                        installs mtjax with its support for NVIDIA GPUs, then measures
#     EXTRA=cuda13 sh benchmarks/accelerator.sh           with CUDA 13; EXTRA=tpu on a TPU
#     PYTHON=python sh benchmarks/accelerator.sh --quick  with an environment that has mtjax, tiny sizes, any device
#
# Arguments go to accelerator.py; --help lists them.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
if [ -n "${PYTHON:-}" ]; then
    exec "$PYTHON" "$here/accelerator.py" "$@"
fi
extra=${EXTRA:-cuda}
case $extra in
tpu) platform=tpu ;;
*) platform=gpu ;;
esac
exec "$here/../start" --with "$extra" python "$here/accelerator.py" "--platform=$platform" "$@"

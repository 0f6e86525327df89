#!/bin/bash
# GPT-3 175B on a v5p slice without Kubernetes: bash docs/launch/tpu_vm.sh NAME ZONE BUCKET
# Makes the slice, installs the zoo on each of its 128 hosts and starts the run there; the same command goes on with it.
set -euo pipefail
name=$1 zone=$2 bucket=$3
processes=128

tpu() { gcloud compute tpus tpu-vm "$@" --zone "$zone"; }

tpu describe "$name" >/dev/null 2>&1 || tpu create "$name" --type v5p --topology 8x8x8 --version v2-alpha-tpuv5
first=$(tpu describe "$name" --format 'value(networkEndpoints[0].ipAddress)')

# Each host asks for its own number. The folder of the run is one that all see: a bucket, mounted. The zoo is copied out of it, for
# each host sets up an environment of its own.
tpu ssh "$name" --worker all --command "
    set -euo pipefail
    number=\$(curl -sf -H 'Metadata-Flavor: Google' \
        http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)
    mkdir -p shared
    mountpoint -q shared || gcsfuse --implicit-dirs $bucket shared
    [ -d transformer-zoo ] || cp -r shared/transformer-zoo transformer-zoo
    cd shared
    exec python3 ../transformer-zoo/run.py --extra tpu train gpt3-175b --data.paths corpus/ --tokenizer.path tokenizer/ \
        --processes $processes --process \$number --coordinator $first:29500
"
